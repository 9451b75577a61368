"""Time and memory of learning through segments: replay, back-propagation through all of them, one long row.

    python benchmarks/segments.py [--counts 1 2 4 8 16 32 64] [--rounds 3] [--threads 2] [--clock wall|cpu]
                                  [--segment 64] [--only NAME ...] [--json FILE]

A decoder (d 128, 4 layers, 4 heads, rotary, 16 slots) reads segments of 64 tokens, batch 2. *replay* is
`train_segments`; *through all* is one backward through every segment; *dense* is the same decoder
without slots on one row of all tokens. Peak is the growth of the process in one step; gradients of
parameters exist before.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import flagformer
from gauge import give_back_at_once, peak
from report import machine
from timing import CLOCKS, interleave

MIB = 2**20
VOCAB, BATCH = 256, 2
SIZES = {"num_tokens": VOCAB, "dim": 128, "depth": 4, "heads": 4, "attn_dim_head": 32, "rotary_pos_emb": True}
SLOTS = {"cross_attend": True, "num_memory_slots": 16}
NAMES = ("replay", "through all", "dense")


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


def steps(count: int, size: int, names: list[str]) -> dict[str, Callable[[], object]]:
    """A training step of each contender on `count` segments of `size` tokens."""
    torch.manual_seed(0)
    ids = torch.randint(VOCAB, (BATCH, count * size + 1))
    slots = flagformer.build({**SIZES, **SLOTS, "max_seq_len": size}).train()
    plain = flagformer.build({**SIZES, "max_seq_len": count * size}).train()
    found = {
        "replay": lambda: flagformer.train_segments(slots, ids),
        "through all": lambda: through_all(slots, ids),
        "dense": lambda: dense(plain, ids),
    }
    return {name: found[name] for name in names}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--counts", nargs="*", type=int, default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--segment", type=int, default=64, help="tokens of a segment")
    parser.add_argument("--only", nargs="*", default=list(NAMES), choices=NAMES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    parser.add_argument("--json", type=Path, help="write every sample to this file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    samples = {}
    for count in options.counts:
        works = steps(count, options.segment, options.only)
        for work in works.values():
            work()
        samples[count] = interleave(works, options.rounds, options.clock)
    give_back_at_once()
    rows = []
    print("| segments | tokens | step | ms | peak, MiB |\n" + "|---" * 5 + "|")
    for count in options.counts:
        for name, work in steps(count, options.segment, options.only).items():
            work()
            row = {"segments": count, "name": name, "seconds": samples[count][name], "peak": peak(work)}
            rows.append(row)
            seconds = statistics.median(row["seconds"])
            size = f"{count} | {count * options.segment}"
            print(f"| {size} | {name} | {seconds * 1e3:.0f} | {row['peak'] / MIB:.1f} |", flush=True)
    if options.json is not None:
        record = {"machine": machine(), "clock": options.clock, "threads": options.threads, "rows": rows}
        record["segment"] = options.segment
        options.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
