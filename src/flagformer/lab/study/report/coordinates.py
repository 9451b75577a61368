"""The figure of a coordinate check: changes of activations against the width."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flagformer.lab.study.report.figures import COLORS, MARKERS, STYLES, standalone, svg
from flagformer.lab.study.statistics import mean_interval
from flagformer.lab.train.coordinates import Coordinates

WITHOUT, WITH = "standard", "muP"


def verdict(found: Coordinates, kind: str, margin: float) -> str:
    """`flat`, `grows` or `shrinks`, if the interval of the slope over seeds lies inside the margin, above or
    below it; else `not resolved`."""
    slope = mean_interval(list(found.slopes(kind)))
    if slope.low is None or slope.high is None:
        return "not resolved"
    if slope.low > margin:
        return "grows"
    if slope.high < -margin:
        return "shrinks"
    return "flat" if slope.low >= -margin and slope.high <= margin else "not resolved"


def coordinate_figure(runs: Mapping[str, Coordinates]) -> str:
    """The means over seeds as an SVG file: a colour for each kind of activation, dashed without muP."""

    def draw(axes: Any) -> None:
        for name, found in runs.items():
            style = STYLES[0] if name == WITH else STYLES[1]
            for kind, color, marker in zip(found.changes, COLORS, MARKERS, strict=False):
                axes.plot(
                    found.widths, found.changes[kind].mean(0), color=color, marker=marker, linestyle=style,
                    markersize=4, label=f"{kind}, {name}",
                )  # fmt: skip
        widths = next(iter(runs.values())).widths
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        axes.set_xticks(list(widths), [str(width) for width in widths])
        axes.minorticks_off()
        axes.set_xlabel("width of the model")
        axes.set_ylabel("change of the activation (root mean square)")

    return standalone(svg("coordinates", draw, "Changes of activations against the width of the model"))
