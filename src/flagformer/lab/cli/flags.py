"""`flagformer flags [WORD]`: lists every flag, explains one, or searches."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Annotated

import typer

from flagformer.lab.cli.errors import clear_errors

if TYPE_CHECKING:
    from rich.console import Console

    from flagformer.lab.cli.flag_words import Card


def flags(
    word: Annotated[
        str | None, typer.Argument(help="A flag to explain, or a word to search for.", show_default=False)
    ] = None,
) -> None:
    """List all flags by slot; with WORD, explain the flag of that name or search names and texts."""
    with clear_errors():
        from flagformer.flags import nearest
        from flagformer.lab.cli.flag_words import cards, find, known_words

        found, exact = (cards(), False) if word is None else find(word)
        if word is not None and not found:
            hint = nearest(word, known_words()) or "; `flagformer flags` lists them all"
            raise ValueError(f"no flag is called `{word}`, and no description contains it{hint}")
        if exact:
            explain(found[0], str(word))
        else:
            list_cards(found)


def list_cards(found: list[Card]) -> None:
    """A table for each slot."""
    from rich.table import Table
    from rich.text import Text

    from flagformer.flags import SLOTS

    console = _console()
    wide = max(len(card.name) for card in found) + 2
    for slot, group in groupby(found, key=lambda card: card.slot):
        console.print(Text.assemble((slot, "bold"), f": {SLOTS[slot].contract}"))
        grid = Table.grid(padding=(0, 2))
        grid.add_column(min_width=wide, no_wrap=True)
        grid.add_column(min_width=9, no_wrap=True)
        grid.add_column(overflow="fold")
        for card in group:
            grid.add_row(Text(f"  {card.name}", style="cyan"), Text(card.standard), Text(card.doc))
        console.print(grid)
        console.print()
    count = "1 flag" if len(found) == 1 else f"{len(found)} flags"
    console.print(f"{count}, with defaults; `flagformer flags NAME` explains one", markup=False)


def explain(card: Card, word: str) -> None:
    """Print all information about one flag; `word` is its name as typed."""
    from rich.table import Table
    from rich.text import Text

    from flagformer.flags import SLOTS

    console = _console()
    console.print(Text(word, style="bold cyan"))
    if word != card.name:
        console.print(f"  `{card.name}`, set for cross-attention only", markup=False)
    lines = [
        ("what", card.doc),
        ("type", card.kind),
        ("default", card.standard),
        ("slot", f"{card.slot}: {SLOTS[card.slot].contract}"),
        *(("paper", paper) for paper in card.papers),
        *(("rule", rule) for rule in card.rules),
    ]
    grid = Table.grid(padding=(0, 2))
    for label, text in lines:
        grid.add_row(Text(f"  {label}", style="dim"), Text(text))
    console.print(grid)


def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False)
