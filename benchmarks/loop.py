"""Overhead of the training loop over plain torch: the smallest default model, step by step.

    python benchmarks/loop.py [--rounds 8] [--steps 100]

Both train the model of `studies/positions.yaml` on the same text in one process, in turns. Bare: rows by
random offsets from a tensor in memory, forward, cross entropy, backward, clipping, the rate, fused AdamW,
the loss as a number. The loop adds rows that depend on step and seed alone, weights for tokens that are not
scored, autocast's context, a line of the log a step, and a checkpoint that reaches the disk once in a
hundred steps. Processor time of the one thread, so that other load on the machine has little effect; wall
time as well.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import flagformer
from flagformer.lab.study.file import load_study
from flagformer.lab.train.config import Trial
from flagformer.lab.train.trial import run_trial

STUDY = Path(__file__).resolve().parents[1] / "studies" / "positions.yaml"


class Bare:
    """The loop written by hand."""

    def __init__(self, trial: Trial, text: Tensor) -> None:
        torch.manual_seed(trial.seed)
        self.config, self.length, self.text = trial.train, trial.source.seq_len, text
        self.model = flagformer.build(trial.model_flags)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3, betas=(0.9, 0.95), fused=True)
        self.done = 0

    def batch(self) -> tuple[Tensor, Tensor]:
        first = torch.randint(len(self.text) - self.length - 1, (self.config.batch_size,))
        rows = self.text[first[:, None] + torch.arange(self.length + 1)].long()
        return rows[:, :-1], rows[:, 1:]

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.done += 1
            inputs, targets = self.batch()
            loss = F.cross_entropy(self.model(inputs).flatten(0, 1), targets.flatten())
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
            rate = 0.5 * self.config.lr * (1 + math.cos(math.pi * self.done / 10_000))
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            loss.item()


class Turns:
    """The trial runs to its end in one call; every `steps` steps the bare loop runs."""

    def __init__(self, bare: Bare, steps: int) -> None:
        self.bare, self.steps = bare, steps
        self.times: dict[str, list[tuple[float, float]]] = {"bare": [], "loop": []}
        self.began: tuple[float, float] | None = None

    def __call__(self, line: dict[str, Any]) -> None:
        """Called after each step of the trial, before its checkpoint, which counts towards the next turn."""
        if line["step"] % self.steps != 1:
            return
        now = clocks()
        if self.began is not None:
            self.times["loop"].append(since(self.began, now))
        self.bare.run(self.steps)
        self.times["bare"].append(since(now, clocks()))
        self.began = clocks()


def clocks() -> tuple[float, float]:
    return time.process_time(), time.perf_counter()


def since(before: tuple[float, float], now: tuple[float, float]) -> tuple[float, float]:
    return now[0] - before[0], now[1] - before[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=100)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    study, _ = load_study(STUDY, [f"train.steps={asked.rounds * asked.steps + 2}", "train.device=cpu"])
    trial = study.trial(study.baseline, 0)
    turns = Turns(Bare(trial, trial.source.content("train")), asked.steps)
    turns.bare.run(10)
    with tempfile.TemporaryDirectory() as folder:
        run_trial(trial, Path(folder) / "run", turns)
    ratios = []
    for number, (bare, loop) in enumerate(zip(turns.times["bare"], turns.times["loop"])):
        ratios.append(loop[0] / bare[0])
        shown = [f"{1e3 * seconds / asked.steps:.2f}" for seconds in (*bare, *loop)]
        walls = f"({shown[1]} and {shown[3]} wall)"
        print(f"round {number}: ms a step: bare {shown[0]}, loop {shown[2]} {walls}")
    middle, low, high = statistics.median(ratios), min(ratios), max(ratios)
    print(f"loop / bare, processor time: median {middle:.3f}, {low:.3f} to {high:.3f}")


if __name__ == "__main__":
    main()
