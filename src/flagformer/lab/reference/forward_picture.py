"""`docs/forward.svg`: a forward from token ids to logits, with its slots and their components."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from html import escape

from flagformer.flags import CATALOGUE, SLOTS

WIDTH, GAP, PAD, LINE, CHARS = 268, 22, 12, 15, 36
COLOURS = {"model": "#dbe9f6", "stack": "#e3f1dd", "attention": "#fdebd3", "feedforward": "#f5dcd7",
           "mixer": "#f7f0c8", "branch": "#e8e1f2"}  # fmt: skip


@dataclass(frozen=True)
class Panel:
    """A column of steps from top to bottom.

    Attributes:
        scopes: slots of these scopes that no panel names are appended to `once`.
        steps: run in this order; the name of a slot draws its components, other text an operation.
        once: slots that act outside of the order of steps.
    """

    title: str
    scopes: tuple[str, ...]
    steps: tuple[str, ...]
    once: tuple[str, ...] = ()


COLUMNS = (
    (
        Panel(
            "TransformerWrapper",
            ("model",),
            ("token ids [B, T]", "token embedding", "token_scale", "+ absolute positions", "absolute",
             "embedding_norm", "merge with memory tokens", "memory", "AttentionLayers [B, T, D]", "layer_mix",
             "head", "logits [B, T, V]"),
            ("recurrence", "slots"),
        ),
        Panel(
            "AttentionLayers",
            ("stack",),
            ("order of the sublayers", "plan", "run the sublayers in this order", "executor",
             "final norm"),
            ("init", "dims"),
        ),
    ),
    (
        Panel(
            "Sublayer",
            ("branch",),
            ("residual stream h", "x = in_norm(residual.read(h))", "norm", "norm_position", "input_mixer",
             "attention, mixer or feedforward", "branch_norm(out)", "branch", "h = residual.write(h, out)",
             "residual", "out_norm(h)"),
        ),
        Panel(
            "Feedforward",
            ("feedforward",),
            ("x [B, T, D]", "feedforward", "activation", "out [B, T, D]"),
        ),
        Panel("Mixer", ("mixer",), ("x [B, T, D]", "sequence_mixer", "out [B, T, D]")),
    ),
    (
        Panel(
            "Attention",
            ("attention",),
            ("x, context", "values", "projection", "value_mod", "qk_norm", "rotation", "KV cache", "window",
             "prefix_kv", "core", "local", "kernel", "q k^T * scale", "score", "score_bias",
             "+ position bias, attention mask", "position_bias", "normalizer", "weight_mod",
             "weights v", "gate", "output", "out [B, T, D]"),
        ),
    ),
)  # fmt: skip


def forward_picture() -> str:
    """The whole SVG file.

    Each slot appears once. A new slot that no panel names is drawn at the end of the panel of its scope; a
    name that is a slot no more is an operation until the panel drops it.
    """
    columns, heights = [], []
    for number, panels in enumerate(COLUMNS):
        top, drawn = PAD, ""
        for panel in panels:
            part, top = _panel(panel, PAD + number * (WIDTH + GAP), top)
            drawn, top = drawn + part, top + GAP
        columns.append(drawn)
        heights.append(top)
    width, height = 2 * PAD + len(COLUMNS) * (WIDTH + GAP) - GAP, max(heights)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" font-family="sans-serif" font-size="12">\n'
        "<title>A forward from token ids to logits, with its slots and their components</title>\n"
        f'<rect width="{width}" height="{height}" fill="white"/>\n'
    )
    return head + "".join(columns) + "</svg>\n"


def _panel(panel: Panel, left: int, top: int) -> tuple[str, int]:
    """The panel drawn from `top` on, and where it ends."""
    once = [*panel.once, *_unnamed(panel.scopes)]
    drawn, end = _text(panel.title, left + PAD, top + 20, 'font-size="14" font-weight="bold"'), top + 32
    for number, step in enumerate(panel.steps):
        if number:
            drawn, end = drawn + _arrow(left + WIDTH // 2, end), end + 14
        part, end = _step(step, left + PAD, end)
        drawn += part
    if any(slot in SLOTS for slot in once):
        drawn += _text("outside of the order:", left + PAD, end + 20, 'font-style="italic"')
        end += 22
    for slot in once:
        part, end = _step(slot, left + PAD, end + 6)
        drawn += part
    frame = f'<rect x="{left}" y="{top}" width="{WIDTH}" height="{end + PAD - top}" rx="6" fill="none" '
    return f'{frame}stroke="#888"/>\n{drawn}', end + PAD


def _unnamed(scopes: Iterable[str]) -> Iterator[str]:
    named = {slot for panels in COLUMNS for panel in panels for slot in (*panel.steps, *panel.once)}
    for slot in SLOTS.values():
        if slot.scope in scopes and slot.name not in named and slot.name != "wrapper":
            yield slot.name


def _step(step: str, left: int, top: int) -> tuple[str, int]:
    """One slot with its components, or one operation, and where it ends."""
    if step not in SLOTS:
        return _text(step, left + 4, top + 13, 'fill="#333"'), top + 18
    slot = SLOTS[step]
    names = ", ".join(item.name for item in CATALOGUE.in_slot(step))
    lines = textwrap.wrap(names, CHARS, break_long_words=False)
    height = 22 + LINE * len(lines)
    drawn = f'<rect x="{left}" y="{top}" width="{WIDTH - 2 * PAD}" height="{height}" rx="4" '
    drawn += f'fill="{COLOURS[slot.scope]}" stroke="#aaa"/>\n'
    drawn += _text(step, left + 6, top + 15, 'font-weight="bold" font-family="monospace"')
    for number, line in enumerate(lines):
        drawn += _text(line, left + 6, top + 15 + LINE * (number + 1), 'font-size="11"')
    return drawn, top + height


def _arrow(middle: int, top: int) -> str:
    line = f'<path d="M{middle} {top + 2} v8" stroke="#666"/>'
    return f'{line}<path d="M{middle - 3} {top + 8} h6 l-3 5 z" fill="#666"/>\n'


def _text(text: str, left: int, base: int, style: str) -> str:
    return f'<text x="{left}" y="{base}" {style}>{escape(text)}</text>\n'
