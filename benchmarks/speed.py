"""Training, inference and decoding speed against bare torch, x-transformers and Hugging Face, in one process.

    python benchmarks/speed.py [--rows TEXT ...] [--libraries NAME ...] [--quick] [--json FILE] [--threads 2]
                                [--clock wall|cpu]

See README.md in this directory for what each row times and how to read it.
"""

import argparse
import fnmatch
import sys
from pathlib import Path

import torch

import report
from bare import Size
from contenders import LIBRARIES, Contender, gather
from timing import CLOCKS, interleave, once
from workloads import Row, rows, work


def fastest_settings(row: Row, contenders: list[Contender], clock: str) -> list[Contender]:
    """One contender per library: its fastest setting in one untimed round, which is the warm-up as well.

    A model whose settings differ in decoding only (the kind of cache) appears once in the other rows.
    """
    best: dict[str, tuple[float, Contender]] = {}
    models = set()
    for contender in contenders:
        if row.kind != "decode" and id(contender.model) in models:
            continue
        models.add(id(contender.model))
        job = work(row, contender)
        if row.kind != "decode":
            once(job, clock)
        seconds = once(job, clock)
        if contender.library not in best or seconds < best[contender.library][0]:
            best[contender.library] = (seconds, contender)
    return [contender for _, contender in best.values()]


def measure(row: Row, contenders: list[Contender], clock: str) -> dict:
    chosen = fastest_settings(row, contenders, clock)
    models = {c.library: {id(d.model) for d in contenders if d.library == c.library} for c in chosen}
    samples = interleave({c.library: work(row, c) for c in chosen}, row.rounds, clock)
    return {
        "row": row.name,
        "unit": row.unit,
        "units": row.units,
        "batch": row.batch,
        "length": row.length,
        "size": vars(row.size),
        "settings": {
            c.library: c.setting for c in chosen if row.kind == "decode" or len(models[c.library]) > 1
        },
        "parameters": {c.library: c.parameters() for c in chosen},
        "seconds": samples,
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", nargs="*", default=["*"], help="patterns: 'train/*' 'decode/llama/*'")
    parser.add_argument("--libraries", nargs="*", default=list(LIBRARIES), choices=list(LIBRARIES))
    parser.add_argument("--quick", action="store_true", help="short smoke run; its figures mean little")
    parser.add_argument("--json", type=Path, help="write every sample to this file")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--clock", choices=list(CLOCKS), default="wall", help="cpu: for a machine with company"
    )
    parser.add_argument("--list", action="store_true", help="print the rows' names and stop")
    return parser.parse_args()


def main() -> int:
    options = arguments()
    chosen = [row for row in rows(options.quick) if any(fnmatch.fnmatch(row.name, p) for p in options.rows)]
    if options.list or not chosen:
        print("\n".join(row.name for row in (chosen or rows(options.quick))))
        return 0 if options.list else 2
    torch.set_num_threads(options.threads)
    results: list[dict] = []
    print(report.header(), flush=True)
    size: Size | None = None
    contenders: list[Contender] = []
    for row in chosen:
        if row.size != size:
            size, contenders = row.size, gather(row.size, tuple(options.libraries))
        results.append(measure(row, contenders, options.clock))
        print(report.line(results[-1]), flush=True)
        if options.json:
            report.write(options.json, results, options.quick, options.clock)
    return 0


if __name__ == "__main__":
    sys.exit(main())
