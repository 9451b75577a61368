"""`flagformer presets [WORD]`: the published models whose flags `preset` returns."""

from __future__ import annotations

from typing import Annotated

import typer

from flagformer.lab.cli.errors import clear_errors


def presets(
    word: Annotated[str | None, typer.Argument(help="A part of a name or of a model type.")] = None,
) -> None:
    """List the presets: flag sets, and published models with their sizes."""
    with clear_errors():
        from rich.console import Console
        from rich.table import Table

        from flagformer.flags import nearest
        from flagformer.interop.hugging_face.sizes import SIZES
        from flagformer.presets import PRESETS

        table = Table()
        for heading in ("preset", "model type", "parameters"):
            table.add_column(heading, justify="right" if heading == "parameters" else "left", no_wrap=True)
        rows = [(name, "-", "sizes are yours") for name in PRESETS]
        rows += [
            (name, size.model_type, "-" if size.params is None else f"{size.params:,}")
            for name, size in SIZES.items()
        ]
        shown = [row for row in rows if word is None or word in row[0] or word in row[1]]
        if not shown:
            hint = nearest(str(word), [row[0] for row in rows]) or "; `flagformer presets` lists them all"
            raise ValueError(f"no preset has {word!r} in its name or model type{hint}")
        for row in shown:
            table.add_row(*row)
        Console().print(table)
