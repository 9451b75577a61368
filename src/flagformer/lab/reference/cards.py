"""The cards in `docs/papers/` and their file names."""

from __future__ import annotations

from flagformer.flags import CATALOGUE, Component


def card_name(item: Component) -> str:
    """Return the file name, `norm-rmsnorm.md`; empty for a component with neither paper nor selector."""
    return f"{item.slot}-{item.name.lower()}.md" if item.paper or item.select else ""


def cards() -> dict[str, Component]:
    """Return the components that must have a card, by file name."""
    return {card_name(item): item for item in CATALOGUE if card_name(item)}
