"""Memory and time of a training step against depth, for each executor and two other libraries.

    python benchmarks/memory.py [--depths 2 4 8 16 24 48] [--only NAME ...] [--rounds 5] [--json FILE]
                                [--figure FILE] [--threads 2] [--clock wall|cpu] [--loss]

See README.md in this directory for what is measured and how to read it.
"""

import argparse
import json
import statistics
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from depth_models import EXECUTORS, LOSSES, PEERS, Job, Size, job, loss_job
from gauge import held, peak, return_freed_memory, saved
from report import installed, machine
from timing import CLOCKS, interleave, ratio

MIB = 2**20
DEPTHS = (2, 4, 8, 16, 24, 48)
LOSS_SIZE, LOSS_DEPTH, CHUNKS = Size(length=4096), 6, 32


def timed(jobs: dict[str, Job], rounds: int, clock: str) -> dict[str, list[float]]:
    """Seconds of each job's steps, before the allocator returns freed memory, which costs time."""
    for one in jobs.values():
        one.step()
    return interleave({name: one.step for name, one in jobs.items()}, rounds, clock) if rounds else {}


def gauged(one: Job) -> dict[str, int]:
    """Gradients exist before, so that the peak is of activations and temporary tensors."""
    one.step()
    return {"saved": saved(one.loss, one.model), "held": held(one.loss), "peak": peak(one.step)}


def measure(parts: dict[int, dict[str, Callable[[], Job]]], rounds: int, clock: str) -> list[dict]:
    """A row for each depth and name: all times first, then all memory."""
    seconds = {}
    for depth, makers in parts.items():
        jobs = {name: make() for name, make in makers.items()}
        seconds[depth] = timed(jobs, rounds, clock)
    return_freed_memory()
    rows = []
    for depth, makers in parts.items():
        samples = seconds[depth]
        found = [
            {"depth": depth, "name": name, **gauged(make()), "seconds": samples.get(name, [])}
            for name, make in makers.items()
        ]
        show(found)
        rows += found
    return rows


def installed_only(names: list[str]) -> list[str]:
    """The names without missing peers, which are printed."""
    found = []
    for name in names:
        try:
            job(name, 1, Size())
        except ImportError as error:
            print(f"{name}: left out, {error}", file=sys.stderr)
        else:
            found.append(name)
    return found


def show(rows: list[dict]) -> None:
    """Print a line of the table for each row; time as a ratio to the sequential one's, round by round."""
    base = next((row["seconds"] for row in rows if row["name"] in ("sequential", LOSSES[1])), [])
    for row in rows:
        time = f"{statistics.median(row['seconds']) * 1e3:.0f}" if row["seconds"] else ""
        share = f"{ratio(row['seconds'], base):.2f}" if row["seconds"] and base else ""
        sizes = " | ".join(f"{row[kind] / MIB:.1f}" for kind in ("saved", "held", "peak"))
        print(f"| {row['depth']} | {row['name']} | {sizes} | {time} | {share} |", flush=True)


def write(path: Path, part: str, rows: list[dict], clock: str) -> dict:
    """Add the rows to the file, replacing those of the same depth and name."""
    held = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    new = {(row.get("depth"), row["name"]) for row in rows}
    old = [row for row in held.get(part, []) if (row.get("depth"), row["name"]) not in new]
    held |= {"machine": machine(), "clock": clock, "size": vars(Size())}
    held["machine"]["versions"] |= {"routing-transformer": installed("routing-transformer")}
    held["loss size"] = {**vars(LOSS_SIZE), "depth": LOSS_DEPTH, "chunks": CHUNKS}
    held[part] = sorted([*old, *rows], key=lambda row: row.get("depth", 0))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(held, indent=1) + "\n", encoding="utf-8")
    return held


def draw(path: Path, rows: list[dict]) -> None:
    """Saved bytes, peak and time against depth."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    base = {row["depth"]: row["seconds"] for row in rows if row["name"] == "sequential"}
    for name in dict.fromkeys(row["name"] for row in rows):
        mine = [row for row in rows if row["name"] == name]
        depths = [row["depth"] for row in mine]
        axes[0].plot(depths, [row["held"] / MIB for row in mine], marker="o", markersize=3, label=name)
        axes[1].plot(depths, [row["peak"] / MIB for row in mine], marker="o", markersize=3)
        timed = [
            row for row in mine if row["seconds"] and len(row["seconds"]) == len(base.get(row["depth"], ()))
        ]
        shares = [ratio(row["seconds"], base[row["depth"]]) for row in timed]
        axes[2].plot([row["depth"] for row in timed], shares, marker="o", markersize=3)
    titles = ("held for backward, MiB", "peak above the model, MiB", "step, by that of sequential")
    for axis, title in zip(axes, titles):
        axis.set(title=title, xlabel="depth (blocks)")
        axis.grid(alpha=0.3)
    for axis in axes[:2]:
        axis.set_yscale("log")
    axes[2].set_ylim(0, None)
    axes[0].legend(fontsize=7)
    figure.savefig(path, dpi=80)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depths", nargs="*", type=int, default=list(DEPTHS))
    parser.add_argument("--only", nargs="*", default=[*EXECUTORS, *PEERS], choices=[*EXECUTORS, *PEERS])
    parser.add_argument("--rounds", type=int, default=5, help="timed steps of each; 0: memory alone")
    parser.add_argument("--json", type=Path, help="add every sample to this file")
    parser.add_argument("--figure", type=Path, help="draw what the file holds, or this run")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--clock", choices=list(CLOCKS), default="wall", help="cpu: for a machine with company"
    )
    parser.add_argument(
        "--loss", action="store_true", help="the loss of a large vocabulary, in place of depths"
    )
    return parser.parse_args()


def main() -> int:
    options = arguments()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore", category=FutureWarning)
    print("| depth | model | saved, MiB | held, MiB | peak, MiB | ms | ratio |\n" + "|---" * 7 + "|")
    if options.loss:
        makers = {name: partial(loss_job, name, LOSS_DEPTH, LOSS_SIZE, CHUNKS) for name in LOSSES}
        parts = {LOSS_DEPTH: makers}
    else:
        names = installed_only(options.only)
        parts = {d: {name: partial(job, name, d, Size()) for name in names} for d in options.depths}
    rows = measure(parts, options.rounds, options.clock)
    part = "loss" if options.loss else "depths"
    if options.json:
        rows = write(options.json, part, rows, options.clock)[part]
    if options.figure and not options.loss:
        draw(options.figure, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
