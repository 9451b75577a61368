"""`flagformer diff A B`: the flags in which two models differ."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flagformer.lab.cli.allow import Allow, allowing
from flagformer.lab.cli.errors import clear_errors

if TYPE_CHECKING:
    from flagformer.lab.cli.described import Described

HELP = "A directory of `save_pretrained` or of `model.save`, or a YAML file of flags."


def diff(
    first: Annotated[Path, typer.Argument(metavar="A", help=HELP)],
    second: Annotated[Path, typer.Argument(metavar="B", help=HELP)],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    allow: Allow = None,
) -> None:
    """Show the flags in which two models differ. Weights are not compared.

    Exit status, as that of diff: 0 if all flags are equal, 1 if some differ, 2 if the input is wrong.
    """
    with clear_errors(), allowing(allow):
        from flagformer.lab.cli.described import described

        models = [described(path, allow or []) for path in (first, second)]
        found = differences(*models)
        if as_json:
            typer.echo(json.dumps(found, indent=2, default=repr))
        elif not found:
            typer.echo("all flags are equal")
        else:
            print_differences(found, short_names(first, second), models)
        if found:
            raise SystemExit(1)


def differences(first: Described, second: Described) -> dict[str, dict[str, Any]]:
    """Flag -> {"a": value, "b": value}, in the order of the first model; without a value where it has its
    default."""
    from flagformer.lab.cli.described import equal

    a, b = first.flags, second.flags
    return {
        name: {side: flags[name] for side, flags in (("a", a), ("b", b)) if name in flags}
        for name in dict.fromkeys([*a, *b])
        if not equal(a.get(name), b.get(name))
    }


def short_names(first: Path, second: Path) -> tuple[str, str]:
    """The last parts of two paths where these differ, or the paths."""
    names = first.resolve().name, second.resolve().name
    return (str(first), str(second)) if names[0] == names[1] else names


def print_differences(
    found: dict[str, dict[str, Any]], names: tuple[str, str], models: list[Described]
) -> None:
    """Print a row for each flag; defaults are in brackets."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from flagformer.lab.cli.described import default_of
    from flagformer.lab.cli.show import value_text

    console = Console(highlight=False)
    grid = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for heading in ("flag", *names):
        grid.add_column(Text(heading), overflow="fold")
    for name, values in found.items():
        row = [
            value_text(values[side])
            if side in values
            else f"({default_of(name, model.model.flags) or 'None'})"
            for side, model in zip("ab", models, strict=True)
        ]
        grid.add_row(Text(name, style="cyan"), *map(Text, row))
    console.print(grid)
    if same_function(*(one.model for one in models)):
        console.print("These flags do not change the outputs of the models.", markup=False)


def same_function(first: Any, second: Any) -> bool:
    """Whether two models of different flags compute one function in inference, as far as their flags show."""
    from flagformer.interop.hugging_face.settings import settings_of
    from flagformer.interop.hugging_face.stacks import KINDS

    comparable = isinstance(first, KINDS) and isinstance(second, KINDS)
    return comparable and settings_of(first) == settings_of(second)
