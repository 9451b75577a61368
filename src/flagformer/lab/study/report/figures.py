"""The figures as SVG by matplotlib, in the page's text colour, for light and dark pages."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from itertools import cycle
from typing import Any

import numpy as np

from flagformer.lab.study.results import BITS, Results, VariantResult

INK, FAINT = "#010203", "#040506"  # placeholders, replaced by the page's colours
SIZE = (7.2, 4.3)
# mid-tones with a contrast of at least 3 on white and on the dark page
COLORS = ("#2f7fd1", "#d9641e", "#2b9a66", "#c0479e", "#8d7a15", "#7d6ae0", "#c9403f", "#2496a8", "#7a7f87")
MARKERS = "osD^vPX*<"
STYLES = ("-", "--", "-.", ":")
STYLE: Any = {
    "svg.fonttype": "none", "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10.5,
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK, "ytick.color": INK,
    "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True, "axes.grid": True,
    "grid.color": FAINT, "grid.linewidth": 0.6, "lines.linewidth": 1.7, "legend.frameon": False,
}  # fmt: skip
POINTS = 48  # of a smoothed curve

Curve = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # tokens; mean, low, high over seeds
Curves = dict[str, Curve]


def _per_token(results: Results) -> str:
    return f"{results.unit} per token"


def loss_curves(results: Results, curves: Curves) -> str:
    """Training loss against tokens."""

    def draw(axes: Any) -> None:
        for name, color, _, style in _looks(results):
            if name in curves:
                tokens, mean, low, high = curves[name]
                axes.fill_between(tokens, low, high, color=color, alpha=0.18, linewidth=0)
                axes.plot(tokens, mean, color=color, linestyle=style, label=name)
        axes.set_xlabel("tokens trained on")
        axes.set_ylabel(f"training loss ({_per_token(results)})")
        axes.xaxis.set_major_formatter(_thousands)
        if curves:
            lowest = min(low.min() for _, _, low, _ in curves.values())
            highest = max(high[len(high) // 12] for _, _, _, high in curves.values())
            # the first steep steps would flatten the rest of the curve
            axes.set_ylim(lowest - 0.05 * (highest - lowest), highest + 0.02)

    return svg("curves", draw, "Training loss against tokens, one line per variant")


def quality_by_length(results: Results) -> str:
    """The metric against the length tested at; bars are t intervals."""

    def draw(axes: Any) -> None:
        for row, color, marker, style in _rows(results):
            lengths = [length for length, value in row.quality.items() if value.mean is not None]
            if lengths:
                values = [row.quality[length] for length in lengths]
                bars = [value.half_width or 0.0 for value in values]
                axes.errorbar(
                    lengths, [value.mean for value in values], yerr=bars, color=color, marker=marker,
                    linestyle=style, capsize=3, markersize=5, label=row.variant,
                )  # fmt: skip
        axes.set_xscale("log", base=2)
        axes.set_xticks(list(results.rows[0].quality), [str(length) for length in results.rows[0].quality])
        axes.minorticks_off()
        axes.axvline(results.study.data.seq_len, color=INK, linewidth=0.8, linestyle=":")
        _note(axes, "trained at", (results.study.data.seq_len, 1.0), ("data", "axes fraction"), (4, -11))
        axes.set_xlabel("length tested at (tokens)")
        if results.chance is not None:
            axes.axhline(results.chance, color=INK, linewidth=0.8, linestyle="--")
            _note(axes, "chance", (1.0, results.chance), ("axes fraction", "data"), (-38, 3))
        lower = " (lower is better)" if results.metric == BITS else ""
        axes.set_ylabel(f"held-out {results.metric}{lower}")

    return svg("lengths", draw, f"Held-out {results.metric} against the length tested at")


def differences(results: Results) -> str:
    """Difference in held-out loss from the baseline: mean and interval of every variant, and single seeds."""

    def draw(axes: Any) -> None:
        rows = [
            (row, color, marker) for row, color, marker, _ in _rows(results) if row.difference is not None
        ]
        for y, (row, color, marker) in enumerate(rows):
            estimate = row.difference.estimate if row.difference else None
            if estimate is not None and estimate.mean is not None:
                low, high = (estimate.mean if end is None else end for end in (estimate.low, estimate.high))
                bars = [[estimate.mean - low], [high - estimate.mean]]
                axes.errorbar(estimate.mean, y, xerr=bars, color=color, marker=marker, capsize=4)
                inner = row.difference.equivalence if row.difference else None
                if inner is not None:
                    axes.plot(inner, [y, y], color=color, linewidth=4, alpha=0.6, solid_capstyle="butt")
                axes.plot(estimate.values, [y + 0.22] * estimate.n, "|", color=color, alpha=0.8, markersize=7)
        axes.axvline(0.0, color=INK, linewidth=0.8, linestyle=":")
        if results.study.margin is not None:
            axes.axvspan(-results.study.margin, results.study.margin, color=FAINT, alpha=0.5, linewidth=0)
        axes.set_yticks(range(len(rows)), [row.variant for row, _, _ in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlabel(
            f"held-out loss minus that of {results.study.reference} ({results.unit}; left of zero is better)"
        )

    return svg("differences", draw, f"Difference in loss from {results.study.reference}", legend=False)


def loss_by_position(results: Results) -> str:
    """Held-out loss by position in the longest test rows."""
    longest = max(results.rows[0].quality)

    def draw(axes: Any) -> None:
        for row, color, marker, style in _rows(results):
            if row.by_position:
                parts = len(row.by_position)
                centers = [(part + 0.5) * longest / parts for part in range(parts)]
                axes.plot(
                    centers, row.by_position, color=color, marker=marker, linestyle=style, markersize=4,
                    label=row.variant,
                )  # fmt: skip
        if results.study.data.seq_len < longest:
            axes.axvline(results.study.data.seq_len, color=INK, linewidth=0.8, linestyle=":")
            _note(
                axes, "trained up to", (results.study.data.seq_len, 1.0), ("data", "axes fraction"), (4, -11)
            )
        axes.set_xlabel("position in the row (tokens)")
        axes.set_ylabel(f"held-out loss ({_per_token(results)})")

    return svg("positions", draw, "Held-out loss against the position in the row")


def tuned_numbers(results: Results) -> list[str]:
    """The tuned settings that have an axis: numbers above zero, at least two of them."""
    return [
        key
        for key, values in results.study.tune.items()
        if len(values) > 1
        and all(isinstance(v, int | float) and not isinstance(v, bool) and v > 0 for v in values)
    ]


def loss_by_setting(results: Results, key: str) -> str:
    """Validation loss against one tuned setting, the others at their best."""

    def draw(axes: Any) -> None:
        for row, color, marker, style in _rows(results):
            others = {name: value for name, value in row.tuned.items() if name != key}
            line = [
                (c.setting[key], c.validation)
                for c in row.candidates
                if c.validation.mean is not None and others.items() <= c.setting.items()
            ]
            line.sort(key=lambda point: point[0])
            axes.errorbar(
                [x for x, _ in line], [e.mean for _, e in line], yerr=[e.half_width or 0.0 for _, e in line],
                color=color, marker=marker, linestyle=style, capsize=3, markersize=5, label=row.variant,
            )  # fmt: skip
            chosen = [(x, e.mean) for x, e in line if x == row.tuned.get(key)]
            axes.plot(
                *zip(*chosen), "o", markersize=13, markerfacecolor="none", color=color
            ) if chosen else None
        axes.set_xscale("log")
        values = sorted(results.study.tune[key])
        axes.set_xticks(values, [f"{value:g}" for value in values])
        axes.minorticks_off()
        axes.set_xlabel("learning rate" if key == "train.lr" else key.removeprefix("train."))
        axes.set_ylabel(f"validation loss ({_per_token(results)})")

    return svg(
        f"tuned-{key.replace('.', '-')}", draw, f"Validation loss against {key.removeprefix('train.')}"
    )


def quality_by_speed(results: Results) -> str:
    """Held-out loss against measured training speed."""

    def draw(axes: Any) -> None:
        for row, color, marker, _ in _rows(results):
            if row.loss.mean is not None and row.tokens_per_second is not None and row.speed_range:
                low, high = row.speed_range
                seed_range = [[row.tokens_per_second - low], [high - row.tokens_per_second]]
                axes.errorbar(
                    row.tokens_per_second, row.loss.mean, yerr=row.loss.half_width or 0.0, xerr=seed_range,
                    color=color, marker=marker, linestyle="none", capsize=3, label=row.variant,
                )  # fmt: skip
        axes.set_xlabel("training tokens per second (measured; bars from the slowest to the fastest seed)")
        axes.set_ylabel(f"held-out loss at {results.loss_length} tokens ({results.unit})")
        axes.xaxis.set_major_formatter(_thousands)

    return svg("speed", draw, "Held-out loss against measured training speed")


def _rows(results: Results) -> list[tuple[VariantResult, str, str, str]]:
    return [(results.row(name), color, marker, style) for name, color, marker, style in _looks(results)]


def _looks(results: Results) -> list[tuple[str, str, str, str]]:
    """A colour, a marker and a line style for every variant, the same in every figure."""
    names = list(results.study.compare)
    styles = [STYLES[(index // len(COLORS)) % len(STYLES)] for index in range(len(names))]
    return list(zip(names, cycle(COLORS), cycle(MARKERS), styles))


def svg(name: str, draw: Callable[[Any], None], title: str, legend: bool = True) -> str:
    """One figure as an `<svg>` element that scales with the page; `name` makes its ids unique."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE | {"svg.hashsalt": name}):
        figure = Figure(figsize=SIZE, layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        if legend and axes.get_legend_handles_labels()[0]:
            figure.legend(loc="outside right upper", fontsize=10)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _inline(buffer.getvalue(), name, title)


def _note(
    axes: Any, text: str, position: tuple[float, float], units: tuple[str, str], shift: tuple[int, int]
) -> None:
    """A small label next to a line."""
    axes.annotate(
        text, position, xycoords=units, xytext=shift, textcoords="offset points", color=INK, fontsize=9
    )


def standalone(svg: str) -> str:
    """A figure as a separate file, in the colours of the reader's colour scheme."""
    look = (
        "<style>svg { color: #1b1f24; background: #ffffff; --grid: #d1d9e0 } @media (prefers-color-scheme: "
        "dark) { svg { color: #e6e9ed; background: #12161b; --grid: #39424c } }</style>"
    )
    head, inside = svg.split(">", 1)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{head}>\n{look}{inside}\n'


def _inline(svg: str, name: str, title: str) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', rf'\1 role="img" aria-label="{title}"', svg, count=1)
    # ids must be unique in the page, and matplotlib's are unique in one figure
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = svg.replace("'DejaVu Sans'", "'DejaVu Sans', Verdana, sans-serif")
    return svg.replace(INK, "currentColor").replace(FAINT, "var(--grid)")


def _thousands(value: float, position: int) -> str:
    return f"{value / 1e6:g} M" if value >= 1e6 else f"{value / 1e3:g} k" if value else "0"
