"""`flagformer mup check FILE`: the coordinate check of muP."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flagformer.lab.cli.allow import Allow, allowing
from flagformer.lab.cli.errors import clear_errors

if TYPE_CHECKING:
    from flagformer.lab.train.coordinates import Coordinates

mup = typer.Typer(no_args_is_help=True, help="Check muP: learning rates that hold at all widths.")


@mup.callback()
def _group() -> None:
    pass


@mup.command()
def check(
    file: Annotated[Path, typer.Argument(help="A training file, as for `flagformer train`.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="For example train.lr=1e-2.")
    ] = None,
    widths: Annotated[
        str, typer.Option(help="Widths, with commas; the first is that of the base model.")
    ] = "128,256,512",
    grow: Annotated[
        str, typer.Option(help="What grows with the width: heads (their number) or attn_dim_head.")
    ] = "heads",
    steps: Annotated[int, typer.Option(min=1, help="Steps of training at each width.")] = 4,
    seeds: Annotated[int, typer.Option(min=2, max=100, help="Seeds, for the intervals.")] = 5,
    figure: Annotated[Path | None, typer.Option(help="An SVG file for the figure.")] = None,
    allow: Allow = None,
) -> None:
    """Train a few steps at several widths, with muP and without, and print how activations change with width.

    For each kind of activation: the slope of log(change after training) against log(width), with its 95 % t
    interval over seeds. With muP slopes are near 0.

    Exit status: 0 if all slopes with muP are flat, 1 if one is not, 2 if the input is wrong.
    """
    with clear_errors(), allowing(allow):
        from flagformer.lab.cli.runfile import load_run
        from flagformer.lab.study.report.coordinates import WITH, WITHOUT, coordinate_figure
        from flagformer.lab.train.coordinates import coordinates

        sizes = widths_of(widths)
        if figure is not None and not figure.parent.is_dir():
            raise ValueError(f"`--figure` must be in a directory that exists, but is {figure}")
        trial = load_run(file, overrides or [])[1]
        runs = {
            name: coordinates(trial, sizes, mup=name == WITH, seeds=range(seeds), steps=steps, grow=grow)
            for name in (WITH, WITHOUT)
        }
        flat = show(runs)
        if figure is not None:
            figure.write_text(coordinate_figure(runs), encoding="utf-8")
        if not flat:
            raise SystemExit(1)


def widths_of(text: str) -> list[int]:
    """`64,128` as numbers; ValueError for other texts."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) for part in parts):
        raise ValueError(f"`--widths` must be whole numbers with commas, such as 64,128, but is {text!r}")
    return [int(part) for part in parts]


def show(runs: dict[str, Coordinates]) -> bool:
    """Print the slopes; return whether all of muP are flat."""
    from rich.console import Console
    from rich.table import Table

    from flagformer.lab.study.report.coordinates import WITH, verdict
    from flagformer.lab.study.statistics import mean_interval
    from flagformer.lab.train.coordinates import MARGIN

    table: Any = Table()
    for heading in ("activation", "", "slope", "95 % interval", "verdict"):
        table.add_column(heading)
    flat = True
    for name, found in runs.items():
        for kind in found.changes:
            slope, judged = mean_interval(list(found.slopes(kind))), verdict(found, kind, MARGIN)
            interval = (
                "-" if slope.low is None or slope.high is None else f"{slope.low:+.3f} to {slope.high:+.3f}"
            )
            mean = "-" if slope.mean is None else f"{slope.mean:+.3f}"
            table.add_row(kind, name, mean, interval, judged)
            flat = flat and (name != WITH or judged == "flat")
    console = Console(highlight=False)
    console.print(table)
    found = runs[WITH]
    lines = f"widths {', '.join(map(str, found.widths))}; flat: the interval lies within ±{MARGIN:g}"
    console.print(lines, soft_wrap=True)
    return flat
