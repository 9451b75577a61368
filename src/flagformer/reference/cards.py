"""Which component has a card in `docs/papers/`, and under which name."""

from __future__ import annotations

from flagformer.flags import CATALOGUE, Component


def card_name(item: Component) -> str:
    """`norm-rmsnorm.md`; empty for a component that has neither a paper nor a selector."""
    return f"{item.slot}-{item.name.lower()}.md" if item.paper or item.select else ""


def cards() -> dict[str, Component]:
    """Every card that must be there, by its file's name."""
    return {card_name(item): item for item in CATALOGUE if card_name(item)}
