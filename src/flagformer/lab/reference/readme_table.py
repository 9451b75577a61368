"""The table of slots and components in README.md."""

from __future__ import annotations

from flagformer.flags import CATALOGUE, SLOTS
from flagformer.lab.reference.markdown import code, table
from flagformer.lab.reference.marked import with_part

# Slots that share a row; other slots have a row of their own, after these.
ROWS: tuple[tuple[str, ...], ...] = (
    ("absolute",), ("memory", "slots"), ("norm", "norm_position"), ("rotation",), ("position_bias",),
    ("values", "projection"), ("qk_norm", "window"), ("prefix_kv",), ("score", "normalizer", "weight_mod"),
    ("gate", "output"), ("core", "local"), ("kernel",), ("sequence_mixer",), ("feedforward", "activation"),
    ("input_mixer", "branch"), ("residual", "init"), ("executor",), ("head",),
    ("recurrence",), ("plan",),
)  # fmt: skip
LEFT_OUT = {"wrapper", "dims"}
NOTES = {
    "MemoryTokens": " (before the row, or before every block)",
    "MemorySlots": " (Memformer's)",
    "SegmentRecurrence": " (Transformer-XL memories)",
    "Rotary": " (partial, interpolated, rescaled)",
    "Eager": " (the reference)",
    "Checkpointed": " (whole or selective)",
    "Plan": ": depth, cross-attention, macaron and parallel blocks, custom, sandwich and PAR orders, tied"
    " layers, execution in any order",
}


def readme_with_table(text: str) -> str:
    """Return the README with the table of the present catalogue between its markers."""
    named = {slot for row in ROWS for slot in row} | LEFT_OUT
    rows = [*ROWS, *((slot,) for slot in SLOTS if slot not in named)]
    cells = [(", ".join(map(code, row)), "; ".join(map(_components, row))) for row in rows]
    return with_part(text, "slots", table(("slot", "components"), cells))


def _components(slot: str) -> str:
    names = [item.name + NOTES.get(item.name, "") for item in CATALOGUE.in_slot(slot)]
    return ", ".join(names) or "empty"
