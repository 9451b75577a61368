"""The tiny study, trial functions that fail, and the study as its own process."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from flagformer.flow import Causal
from flagformer.lab.study.audits import audit_variant
from flagformer.lab.train import state
from flagformer.lab.train.optimizers.groups import make_optimizer
from flagformer.lab.train.trial import run_trial

TINY = """\
name: tiny
base:
  dim: 16
  depth: 1
  heads: 2
data: {source: copy, symbols: 8, seq_len: 16}
train: {steps: 200, batch_size: 4, lr: 1e-2, warmup: 5, checkpoint_every: 20, device: cpu}
compare:
  learned: {}
  rotary: {rotary_pos_emb: true, use_abs_pos_emb: false}
seeds: 2
evaluate: {seq_lens: [16, 32], batches: 2}
concurrency: 2
threads: 1
audit: false
"""
START = "from flagformer.lab.cli.study import study; study()"
PATIENCE = 200.0  # seconds until a process counts as stuck; only a broken run waits that long


def fails(trial: Any, directory: Path) -> object:
    """Run the trial; seed 1 of the rotary variant crashes after its log has begun."""
    if trial.seed == 1 and "rotary_pos_emb" in trial.flags:
        raise RuntimeError("the roof is on fire")
    return run_trial(trial, directory)


def dies(trial: Any, directory: Path) -> object:
    """Run the trial; seed 0 of the rotary variant is killed by the system."""
    if trial.seed == 0 and "rotary_pos_emb" in trial.flags:
        os.kill(os.getpid(), signal.SIGKILL)
    return run_trial(trial, directory)


def ends_in_every_way(trial: Any, directory: Path) -> object:
    """Learned: seed 0 runs, seed 1 diverges. Rotary: seed 0 exceeds its memory, seed 1 crashes."""
    if "rotary_pos_emb" in trial.flags:
        if trial.seed == 0:
            torch.empty(1 << 55)
        raise RuntimeError("the roof is on fire")
    if trial.seed == 1:
        state.make_optimizer = _poisoned
    return run_trial(trial, directory)


def dies_once(trial: Any, directory: Path) -> object:
    """Killed by the system at the first attempt."""
    mark = directory / "died"
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return run_trial(trial, directory)


def _poisoned(model: Any, config: Any, rules: Any) -> Any:
    """An optimizer for a model without one of its weights."""
    with torch.no_grad():
        next(model.parameters()).fill_(torch.nan)
    return make_optimizer(model, config, rules)


def fills_the_disk(trial: Any, directory: Path) -> object:
    """Run seed 0; afterwards the disk is full."""
    if trial.seed == 1:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(directory / "checkpoint.pt"))
    return run_trial(trial, directory)


def _listening() -> None:
    """Enable Ctrl-C, also if the tests run in the background of a shell, which disables it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class StudyProcess:
    """`flagformer study run` as a user starts it; its process tree is found by a mark."""

    def __init__(self, file: Path, out: Path, *overrides: str, **env: str) -> None:
        self.mark = uuid.uuid4().hex
        self.out = out
        self.process = subprocess.Popen(
            [sys.executable, "-c", START, "run", str(file), *overrides, "--out", str(out)],
            env={**os.environ, "STUDY_TEST_MARK": self.mark, "OMP_NUM_THREADS": "1", **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=_listening,
        )

    def wait(self) -> tuple[int, str]:
        """Exit status and standard error."""
        _, errors = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, errors

    def family(self) -> list[int]:
        """Every living process of this study, itself included."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and self.mark in _read(entry / "environ") and _state(entry) != "Z":
                found.append(int(entry.name))
        return found

    def worker_of(self, trial: Path) -> int | None:
        """The process that trains in the directory of a trial."""
        return trainer(trial, self.family())


def trainer(trial: Path, among: list[int]) -> int | None:
    """The one of these processes that trains in the directory of a trial."""
    for pid in among:
        try:
            links = [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()]
        except OSError:
            continue
        if any(link == str(trial / "log.jsonl") for link in links):
            return pid
    return None


def descendants(parent: int) -> list[int]:
    """A process and all its descendants, parents first."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (words := _read(entry / "stat").rpartition(")")[2].split()):
            children.setdefault(int(words[1]), []).append(int(entry.name))
    found = [parent]
    for pid in found:
        found += children.get(pid, [])
    return found


def until(condition: Callable[[], Any]) -> Any:
    """Wait for a condition and return its value."""
    deadline = time.monotonic() + PATIENCE
    while not (value := condition()):
        assert time.monotonic() < deadline, "the condition never came true"
        time.sleep(0.02)  # a scan of /proc takes a millisecond
    return value


def logged(trial: Path) -> int:
    """Lines of a trial's log."""
    path = trial / "log.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def finished(out: Path) -> dict[str, bytes]:
    """The result of every finished trial, byte for byte."""
    return {path.parent.name: path.read_bytes() for path in (out / "trials").glob("*/result.json")}


def table(out: Path) -> dict[str, Any]:
    """results.json without measured values."""
    results = json.loads((out / "results.json").read_text())
    del results["measured"]
    return results


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _state(entry: Path) -> str:
    return _read(entry / "stat").rpartition(")")[2].split(" ")[1:2][0] if _read(entry / "stat") else "Z"


def leaks(trial: Any, directory: Path) -> object:
    """Run the trial; the clamped variant has a mask that is off by one, and attends to the token to
    predict."""
    _plant_the_leak(trial)
    return run_trial(trial, directory)


def examine_leaking(trial: Any, directory: Path) -> object:
    """Audit the variant with the same mask."""
    _plant_the_leak(trial)
    return audit_variant(trial, directory)


def _plant_the_leak(trial: Any) -> None:
    if "attn_softclamp_logits" in trial.flags:
        Causal.mask_mod = lambda self, q, kv: lambda b, h, q_idx, kv_idx: kv_idx <= q_idx + 1
