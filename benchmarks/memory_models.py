"""Time and memory of training through segments: replay, back-propagation through all, one long row.

    python benchmarks/memory_models.py [--counts 1 2 4 8 16 32 64] [--rounds 3] [--threads 2]
                                       [--clock wall|cpu] [--segment 256] [--only NAME ...]
                                       [--dense-most 64] [--processes 5] [--json FILE] [--figure FILE]

A decoder (d 128, 4 layers, 4 heads, rotary, 16 slots) reads segments of 256 tokens, one row. *replay* is
`train_segments`; *through all* is one backward through every segment; *dense* is the same decoder
without slots on one row of all tokens. Gradients of parameters exist before. Live is the most that tensors
take together in a step, which is the same in each run; peak is the growth of the process, the median of
several, as a fragmented heap adds up to a tenth to it.
"""

import argparse
import json
import multiprocessing
import statistics
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import flagformer
from gauge import live, peak, return_freed_memory
from report import machine
from timing import CLOCKS, interleave

MIB = 2**20
VOCAB = 256
SIZES = {"num_tokens": VOCAB, "dim": 128, "depth": 4, "heads": 4, "attn_dim_head": 32, "rotary_pos_emb": True}
SLOTS = {"cross_attend": True, "num_memory_slots": 16}
NAMES = ("replay", "through all", "dense")
Steps = dict[str, Callable[[], object]]


def through_all(model: nn.Module, ids: torch.Tensor) -> None:
    """One graph over all segments."""
    mems, total, size = None, 0.0, model.max_seq_len
    for start in range(0, ids.shape[1] - 1, size):
        part = ids[:, start : start + size + 1]
        logits, mems = model(part[:, :-1], mems=mems, return_mems=True)
        total = total + F.cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten(), reduction="sum")
    (total / ids[:, 1:].numel()).backward()


def dense(model: nn.Module, ids: torch.Tensor) -> None:
    F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()).backward()


def steps(count: int, size: int, names: list[str]) -> Steps:
    """A training step of each contender on `count` segments of `size` tokens, with existing gradients."""
    torch.manual_seed(0)
    ids = torch.randint(VOCAB, (1, count * size + 1))
    slots = flagformer.build({**SIZES, **SLOTS, "max_seq_len": size}).train()
    plain = flagformer.build({**SIZES, "max_seq_len": count * size}).train()
    works = {
        "replay": (flagformer.train_segments, slots),
        "through all": (through_all, slots),
        "dense": (dense, plain),
    }
    for name in names:
        step, model = works[name]
        step(model, ids[:, : 2 * size + 1])
    return {name: lambda work=works[name]: work[0](work[1], ids) for name in names}


def peaked(count: int, size: int, name: str, threads: int) -> int:
    """Bytes by which the process grows in a step of a contender, run first in a fresh heap."""
    torch.set_num_threads(threads)
    return_freed_memory()
    return peak(steps(count, size, [name])[name])


def memory(count: int, name: str, options: argparse.Namespace) -> dict[str, object]:
    """The peak of each process, and the live bytes of any of them."""
    peaks = []
    for _ in range(options.processes):
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            peaks.append(pool.submit(peaked, count, options.segment, name, options.threads).result())
    return {"peaks": peaks, "live": live(steps(count, options.segment, [name])[name])}


def measure(options: argparse.Namespace) -> list[dict]:
    """A row for each number of segments and contender."""
    chosen = {
        count: [name for name in options.only if name != "dense" or count <= options.dense_most]
        for count in options.counts
    }
    rows = []
    print("| segments | tokens | step | ms | live, MiB | peak, MiB |\n" + "|---" * 6 + "|")
    for count, names in chosen.items():
        samples = interleave(steps(count, options.segment, names), options.rounds, options.clock)
        for name in names:
            row = {"segments": count, "name": name, "seconds": samples[name], **memory(count, name, options)}
            rows.append(row)
            time, peak_of = statistics.median(row["seconds"]) * 1e3, statistics.median(row["peaks"])
            sizes = f"{row['live'] / MIB:.2f} | {peak_of / MIB:.1f}"
            print(f"| {count} | {count * options.segment} | {name} | {time:.0f} | {sizes} |", flush=True)
    return rows


def write(path: Path, rows: list[dict], options: argparse.Namespace) -> list[dict]:
    """Add the rows to the file, replacing those of the same size and name; return all of them."""
    held = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else []
    new = {(row["segments"], row["name"]) for row in rows}
    rows = [row for row in held if (row["segments"], row["name"]) not in new] + rows
    rows.sort(key=lambda row: (row["segments"], NAMES.index(row["name"])))
    record = {"machine": machine(), "clock": options.clock, "threads": options.threads}
    record |= {"segment": options.segment, "sizes": {**SIZES, **SLOTS}, "rows": rows}
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return rows


def draw(path: Path, rows: list[dict]) -> None:
    """Peak and time against the number of segments."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for name in NAMES:
        mine = [row for row in rows if row["name"] == name]
        counts = [row["segments"] for row in mine]
        peaks = [statistics.median(row["peaks"]) / MIB for row in mine]
        axes[0].plot(counts, peaks, marker="o", markersize=3, label=name)
        times = [statistics.median(row["seconds"]) for row in mine]
        axes[1].plot(counts, times, marker="o", markersize=3)
    for axis, title in zip(axes, ("peak above the model, MiB", "a training step, seconds")):
        axis.set(title=title, xlabel="segments", xscale="log", yscale="log")
        shown = sorted({row["segments"] for row in rows})
        axis.set_xticks(shown, [str(count) for count in shown])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=7)
    figure.savefig(path, dpi=80)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--counts", nargs="*", type=int, default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--segment", type=int, default=256, help="tokens of a segment")
    parser.add_argument("--only", nargs="*", default=list(NAMES), choices=NAMES)
    parser.add_argument("--dense-most", type=int, default=64, help="segments of the longest dense row")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=5, help="whose peaks are taken")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    parser.add_argument("--json", type=Path, help="add every sample to this file")
    parser.add_argument("--figure", type=Path, help="draw what the file holds, or this run")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = measure(options)
    if options.json is not None:
        rows = write(options.json, rows, options)
    if options.figure is not None:
        draw(options.figure, rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
