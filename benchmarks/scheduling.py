"""Overhead of a study over its trials: forty trials that do nothing, each in its own process.

    python benchmarks/scheduling.py [--trials 40] [--rounds 3]

A fake trial writes a result and returns, so what is timed is the study: reading the file, starting processes,
watching them, booking their results. The report, whose cost is constant, is timed separately.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from flagformer.lab.study.run import prepare, run_study, write_report
from flagformer.lab.train.files import write_json

STUDY = """\
name: nothing
base: {dim: 16, depth: 1, heads: 2}
data: {source: copy, symbols: 8, seq_len: 16}
train: {steps: 1, batch_size: 4, warmup: 0, device: cpu}
compare: {one: {}, two: {rotary_pos_emb: true, use_abs_pos_emb: false}}
evaluate: {seq_lens: [16], batches: 1}
threads: 1
"""


def fake(trial: Any, directory: Path) -> None:
    """The result of a trial without work."""
    entry = {"split": "test", "seq_len": 16, "nats": 1.0 + trial.seed / 100, "bits_per_byte": None}
    line = {
        "step": 1,
        "loss": 1.0,
        "lr": 1e-3,
        "gradient_norm": 1.0,
        "tokens": 64,
        "tokens_per_second": 640.0,
    }
    (directory / "log.jsonl").write_text(json.dumps(line) + "\n")
    cost = {"seconds": 0.1, "tokens_per_second": 640.0, "peak_memory_bytes": 1}
    write_json(
        directory / "result.json",
        {
            "status": "finished", "id": trial.id, "seed": trial.seed, "steps": 1, "tokens": 64, "params": 1,
            "train_loss": 1.0, "metric": "none", "data": trial.data.fingerprint(), "notes": [],
            "evaluation": [{**entry, "accuracy": 0.5, "chance": 0.125, "tokens": 64}],
            "cost": cost, "machine": {},
        },
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    took = []
    for _ in range(asked.rounds):
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "study.yaml"
            file.write_text(STUDY + f"seeds: {asked.trials // 2}\n")
            start = time.perf_counter()
            prepared = prepare(file)
            ready = time.perf_counter()
            results = run_study(prepared, Path(folder) / "run", Console(file=io.StringIO()), fake)
            end = time.perf_counter()
            write_report(results.directory)
            report = time.perf_counter() - end
            assert results.count("finished") == asked.trials, results.trials
            took.append(end - ready - report)
            print(
                f"{asked.trials} trials: prepared in {ready - start:.2f} s, scheduled in {took[-1]:.2f} s, "
                f"{took[-1] / asked.trials:.3f} s a trial; report in {report:.2f} s"
            )
    print(f"median: {statistics.median(took) / asked.trials:.3f} s a trial")


if __name__ == "__main__":
    main()
