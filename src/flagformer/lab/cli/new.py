"""`flagformer new component SLOT NAME`: writes the files of a new component into a clone."""

from __future__ import annotations

from typing import Annotated

import typer

from flagformer.lab.cli.errors import clear_errors

new = typer.Typer(no_args_is_help=True, help="Write the files of a new component.")


@new.callback()
def _group() -> None:
    pass


@new.command()
def component(
    slot: Annotated[str, typer.Argument(help="The slot: norm, score, gate, ...", show_default=False)],
    name: Annotated[
        str, typer.Argument(help="The name of the class, such as PowerNorm.", show_default=False)
    ],
) -> None:
    """Write a component with an example formula, its catalogue line, a test and a card, all of them to edit.

    It needs a clone with an editable installation, and takes about a minute: it also writes the generated
    pages, schemas and types.
    """
    with clear_errors():
        from flagformer.lab.reference.files import root
        from flagformer.lab.reference.new_component import NewComponent, create

        folder = root()
        for path in create(folder, slot, name):
            typer.echo(f"wrote {folder / path}")
        new = NewComponent(slot, name)
        flags = " and ".join(f"`{flag}`" for flag in dict.fromkeys([new.selector, *new.flags()]))
        typer.echo(
            f"The flags {flags} work, and `make quick` passes. Now replace the example: the formula in the "
            "component, the same formula in its test, and the text of the card. After each change of a flag, "
            "run `python -m flagformer.lab.reference`."
        )
