"""One trial from flags to result.json."""

import contextlib
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from flagformer.lab.train.averages import averaged
from flagformer.lab.train.config import TrainConfig, Trial
from flagformer.lab.train.device import device_of
from flagformer.lab.train.evaluation import evaluate
from flagformer.lab.train.files import only_process, os_error_context, read_json, sync_folder, write_json
from flagformer.lab.train.log import Log, read_log
from flagformer.lab.train.loop import train_step
from flagformer.lab.train.memory import MemoryRise
from flagformer.lab.train.mup.multipliers import SCALES
from flagformer.lab.train.process_group import SINGLE, ProcessGroup
from flagformer.lab.train.result import read_result
from flagformer.lab.train.schedule import learning_rate
from flagformer.lab.train.state import State, remove_all
from flagformer.lab.train.stopping import Stopping

Report = Callable[[dict[str, Any]], None]
START = "start.json"


def run_trial(
    trial: Trial,
    directory: Path,
    report: Report | None = None,
    ranks: ProcessGroup = SINGLE,
    stopping: Stopping | None = None,
) -> dict[str, Any]:
    """Build, train, evaluate and save one trial in `directory`; return the contents of result.json.

    A finished trial returns its result immediately; an unfinished one resumes from its last checkpoint,
    on CPU with the same number of threads bit-identical to an uninterrupted run. `report` is called with
    every line of the log. With several `ranks`, all of them call this function, and rank 0 writes. A
    signal to `stopping`, on any rank, stops training after the current step with a checkpoint.

    The result: `status` ("finished", or "diverged" at the first loss that is not finite), `steps` trained,
    `train_loss` (mean of the last tenth of the steps, nats), `evaluation` (one entry per length, see
    `evaluation.evaluate`; empty if training diverged), `validation_nats` (mean of the last validations),
    `params`, `cost` (`seconds` and `tokens_per_second` of the training steps; `peak_memory_bytes`, the peak
    memory relative to the process before the model was built, on CUDA of tensors), `notes`, the
    environment, and for a model that training starts from `start`: `from`, `evaluation` before the first
    step and `graft`, the tensors that were kept, grown and initialised.

    ValueError: the trial cannot run, the directory belongs to another trial or is in use, or a file in it is
    damaged. OSError: the disk is full; finished work is kept. KeyboardInterrupt: stopped by a signal; the
    message has the saved step.
    """
    directory = Path(directory)

    def prepare() -> None:
        ranks.check(trial.train.batch_size, trial.train.accumulate)
        _refuse_sharded(trial.train, ranks)
        if not (directory / "result.json").exists():
            trial.check()  # before anything is written
        with os_error_context(directory):
            directory.mkdir(parents=True, exist_ok=True)

    ranks.on_rank_zero(prepare)
    with ranks.rank_zero_context(only_process(directory)):
        result = ranks.on_rank_zero(lambda: _finished(trial, directory))
        if result is not None:
            return result
        with _matmul_precision(trial.train):
            run = _Run(trial, directory, report or (lambda line: None), ranks, stopping or Stopping())
            return run.finish()


def _refuse_sharded(config: TrainConfig, ranks: ProcessGroup) -> None:
    """Raise ValueError for an optimizer that reads whole matrices, with parameters that ranks share."""
    if ranks.shards_parameters and not config.optimizer.is_elementwise:
        name = config.optimizer.name
        raise ValueError(
            f"`parallel` must be ddp with `optimizer: {name}`, which reads whole matrices, but is fsdp"
        )


def _finished(trial: Trial, directory: Path) -> dict[str, Any] | None:
    """The existing result, if any; from here on the directory belongs to this trial."""
    lock_directory(trial, directory)
    if not (directory / "result.json").exists():
        return None
    result = read_result(directory / "result.json", whole=True)
    remove_all(directory)
    return result


def lock_directory(trial: Trial, directory: Path) -> None:
    """Assign `directory` to this trial; ValueError with the differences if it belongs to another one."""
    path = directory / "trial.json"
    mine = trial.settings()
    if not path.exists():
        write_json(path, {"id": trial.id, **mine})
        return
    theirs = read_json(path)
    if theirs.get("id") != trial.id:
        differs = [key for key in mine if mine[key] != theirs.get(key)]
        raise ValueError(
            f"{directory} contains another trial (it differs in {', '.join(differs) or 'its id'}); "
            "use another directory or delete this one"
        )


class _Run:
    """A running trial."""

    def __init__(
        self, trial: Trial, directory: Path, report: Report, ranks: ProcessGroup, stopping: Stopping
    ) -> None:
        self.trial, self.directory, self.report, self.ranks = trial, directory, report, ranks
        self.stopping, self.objective = stopping, trial.trained_by
        self.device = device_of(trial.train)
        self.memory = MemoryRise(self.device)
        self.state = State(trial, directory, self.device, ranks)

    def finish(self) -> dict[str, Any]:
        """Train to the last step, evaluate, save; result.json is written last."""
        self._measure_start()
        finite = self._train()
        evaluation, validation = [], None
        if finite:
            with averaged(self.state.optimizer):
                validation = self._validation()
                evaluation = self._evaluation()
                model = self.state.whole_model()
                self.ranks.on_rank_zero(lambda: self._save_model(model))
            finite = all(entry["nats"] is not None for entry in evaluation)
        status = "finished" if finite else "diverged"
        return self.ranks.on_rank_zero(lambda: self._close(status, evaluation, validation))

    def _evaluation(self) -> list[dict[str, Any]]:
        split = self.trial.evaluate.split
        return [
            evaluate(self.state.model, self.trial, split, n, self.ranks, answers=True)
            for n in self.trial.lengths
        ]

    def _close(
        self, status: str, evaluation: list[dict[str, Any]], validation: float | None
    ) -> dict[str, Any]:
        result = self._result(status, evaluation) | {"validation_nats": validation}
        write_json(self.directory / "result.json", result)
        remove_all(self.directory)
        return result

    def _measure_start(self) -> None:
        """Write the loss of a model that training starts from, before the first step, to start.json."""
        trial, state, path = self.trial, self.state, self.directory / START
        if trial.start is None or self.ranks.on_rank_zero(path.exists):
            return
        split = trial.evaluate.split
        if state.step:  # it stopped before the file was written
            return
        measured = evaluate(state.model, trial, split, trial.source.seq_len, self.ranks)
        grafted = {} if state.graft is None else state.graft.as_plain()
        content = {"from": trial.start.model_dump(), "evaluation": measured, "graft": grafted}
        self.ranks.on_rank_zero(lambda: write_json(path, content))

    def _train(self) -> bool:
        """Run the remaining steps; return False if the loss is not finite."""
        config, state = self.trial.train, self.state
        state.model.train()
        with self._log() as log, self.stopping.after_steps():
            while state.step < config.steps:
                line = self._step()
                if log is not None:
                    log.write(line)
                    self.report(line)
                if line["loss"] is None:
                    return False
                stopped = self._stopped()
                if stopped or state.step % config.checkpoint_every == 0 or state.step == config.steps:
                    if log is not None:
                        log.sync()  # before the checkpoint, which needs its lines
                    state.save()
                if stopped:
                    raise KeyboardInterrupt(
                        f"stopped: step {state.step:,} of {config.steps:,} is saved in {self.directory}; "
                        "run the same command again to resume"
                    )
        return True

    def _stopped(self) -> bool:
        """Whether any rank has received a signal to stop."""
        return bool(self.ranks.total(torch.tensor(float(self.stopping.requested))))

    def _validation(self) -> float | None:
        """The validation loss for the selection of candidates: the mean of the final one and those logged in
        the last tenth of the steps."""
        state = self.state
        measured = evaluate(state.model, self.trial, "validation", self.trial.source.seq_len, self.ranks)
        last = measured["nats"]
        late = [
            line["validation_loss"]
            for line in self.ranks.on_rank_zero(lambda: read_log(self.directory / "log.jsonl"))
            if line["step"] > 0.9 * state.step and line["step"] < state.step and "validation_loss" in line
        ]
        return None if last is None or None in late else sum([*late, last]) / (1 + len(late))

    def _log(self) -> contextlib.AbstractContextManager[Log | None]:
        """The log on rank 0, None on other ranks."""
        if not self.ranks.is_first:
            return contextlib.nullcontext()
        return Log(self.directory / "log.jsonl", lines=self.state.step)

    def _step(self) -> dict[str, Any]:
        """Run one update and return its log line."""
        config, source, state = self.trial.train, self.trial.source, self.state
        start = time.perf_counter()
        objective, seed = self.objective, self.trial.seed
        data = objective.batch(source, "train", state.step, seed, config.batch_size, source.seq_len)
        batch = tuple(part.to(self.device) for part in data)
        lr = learning_rate(state.step + 1, config)
        update = train_step(state.model, state.optimizer, batch, lr, config, self.ranks, objective)
        took = time.perf_counter() - start
        state.step, state.seconds = state.step + 1, state.seconds + took
        tokens = config.batch_size * source.seq_len
        line = {
            "step": state.step,
            "loss": update.loss if update.finite else None,
            "lr": lr,
            "gradient_norm": update.gradient_norm if update.finite else None,
            "tokens": state.step * tokens,
            "tokens_per_second": round(tokens / took, 1),
        }
        if update.finite and config.eval_every and state.step % config.eval_every == 0:
            with averaged(state.optimizer):
                measured = evaluate(state.model, self.trial, "validation", source.seq_len, self.ranks)
            line["validation_loss"] = measured["nats"]
        return line

    def _save_model(self, model: Any) -> None:
        fresh, final = self.directory / "model.tmp", self.directory / "model"
        with os_error_context(final):
            for folder in (fresh, final):
                if folder.exists():
                    shutil.rmtree(folder)
            model.save(fresh)
            fresh.replace(final)
        sync_folder(self.directory)

    def _result(self, status: str, evaluation: list[dict[str, Any]]) -> dict[str, Any]:
        losses = [line["loss"] for line in read_log(self.directory / "log.jsonl") if line["loss"] is not None]
        last = losses[-max(1, len(losses) // 10) :]
        state = self.state
        tokens = state.step * self.trial.train.batch_size * self.trial.source.seq_len
        return {
            "status": status,
            "id": self.trial.id,
            "seed": self.trial.seed,
            "steps": state.step,
            "tokens": tokens,
            "params": sum(parameter.numel() for parameter in state.model.parameters()),
            "train_loss": sum(last) / len(last) if last else None,
            "evaluation": evaluation,
            "metric": self.objective.metric(self.trial.source),
            "data": state.fingerprint,
            "cost": {
                "seconds": round(state.seconds, 3),
                "tokens_per_second": round(tokens / state.seconds, 1),
                "peak_memory_bytes": self.memory.peak(),
            },
            "machine": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "device": self.device.type,
                "threads": torch.get_num_threads(),
                "ranks": self.ranks.world,
            },
            "notes": state.notes,
            **self._start(),
            **self._mup(),
        }

    def _mup(self) -> dict[str, Any]:
        """`mup`: the sizes of the base model, the multipliers, and the parameters by factor of the rate."""
        mup = self.trial.train.mup
        if mup is None:
            return {}
        rates: dict[str, int] = {}
        for rule in self.trial.mup_rules().values():
            rates[f"{rule.role} {rule.rate:g}"] = rates.get(f"{rule.role} {rule.rate:g}", 0) + 1
        flags = {name: self.trial.model_flags[name] for name in SCALES if name in self.trial.model_flags}
        return {"mup": {"base": mup.base, "flags": flags, "rates": rates}}

    def _start(self) -> dict[str, Any]:
        """`start`: the contents of start.json, if the trial wrote it."""
        path = self.directory / START
        return {"start": read_json(path)} if self.trial.start is not None and path.exists() else {}


@contextlib.contextmanager
def _matmul_precision(config: TrainConfig) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(config.matmul_precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
