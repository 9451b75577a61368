"""One trial from flags to result.json."""

import contextlib
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

import flagformer
from flagformer.train.checkpoint import (
    Checkpoint,
    load_checkpoint,
    remove_checkpoints,
    restore_rng,
    rng_state,
    save_checkpoint,
)
from flagformer.train.config import TrainConfig, Trial
from flagformer.train.evaluation import evaluate
from flagformer.train.files import naming, only_process, read_json, sync_folder, write_json
from flagformer.train.log import Log, read_log
from flagformer.train.loop import make_optimizer, train_step
from flagformer.train.schedule import learning_rate

Report = Callable[[dict[str, Any]], None]


def run_trial(trial: Trial, directory: Path, report: Report | None = None) -> dict[str, Any]:
    """Build, train, evaluate and save one trial in `directory`; return what result.json then holds.

    A finished trial returns its result at once; an unfinished one goes on from its last checkpoint, on a CPU
    with the same number of threads bit for bit as if it had never stopped. `report` gets every line of the
    log as it is written.

    The result: `status` ("finished", or "diverged" at the first loss that is not finite), `steps` trained,
    `train_loss` (mean of the last tenth of the steps, nats), `evaluation` (one entry per length, see
    `evaluation.evaluate`; empty if training diverged), `validation_nats` (mean of the last validations),
    `params`, `cost` (`seconds` and `tokens_per_second` of the steps alone, `peak_memory_bytes`), `notes`, and
    what it was run on.

    ValueError: the trial cannot run, the directory is another trial's or in use, a file in it is damaged.
    OSError: a full disk; names the file, and all that was finished is kept.
    """
    directory = Path(directory)
    if not (directory / "result.json").exists():
        trial.check()  # before anything is written
    with naming(directory):
        directory.mkdir(parents=True, exist_ok=True)
    with only_process(directory):
        claim(trial, directory)
        if (directory / "result.json").exists():
            remove_checkpoints(directory)
            return read_json(directory / "result.json")
        with _matmul_precision(trial.train):
            return _Run(trial, directory, report or (lambda line: None)).finish()


def claim(trial: Trial, directory: Path) -> None:
    """Mark `directory` as this trial's; ValueError names it and what differs if it is another's."""
    path = directory / "trial.json"
    mine = trial.model_dump(mode="json")
    if not path.exists():
        write_json(path, {"id": trial.id, **mine})
        return
    theirs = read_json(path)
    if theirs.get("id") != trial.id:
        differs = [key for key in mine if mine[key] != theirs.get(key)]
        raise ValueError(
            f"{directory} holds another trial (it differs in {', '.join(differs) or 'its id'}); "
            "use another directory or delete this one"
        )


class _Run:
    """The moving parts of one trial: model, optimizer, step."""

    def __init__(self, trial: Trial, directory: Path, report: Report) -> None:
        self.trial, self.directory, self.report = trial, directory, report
        self.device = _device(trial.train)
        self.fingerprint = trial.source.fingerprint()
        torch.manual_seed(trial.weights_seed)
        self.model = flagformer.build(trial.model_flags).to(self.device)
        self.optimizer = make_optimizer(self.model, trial.train)
        self.step, self.seconds = 0, 0.0
        self.notes: list[str] = []
        self._resume()

    def finish(self) -> dict[str, Any]:
        """Train to the last step, measure, save; result.json comes when all else is on the disk."""
        finite = self._train()
        evaluation, validation = [], None
        if finite:
            validation = self._validation()
            evaluation = [
                evaluate(self.model, self.trial, self.trial.evaluate.split, n) for n in self.trial.lengths
            ]
            finite = all(entry["nats"] is not None for entry in evaluation)
            self._save_model()
        result = self._result("finished" if finite else "diverged", evaluation)
        result["validation_nats"] = validation
        write_json(self.directory / "result.json", result)
        remove_checkpoints(self.directory)
        return result

    def _train(self) -> bool:
        """Run the steps that are left; False if the loss stopped being finite."""
        config, source = self.trial.train, self.trial.source
        self.model.train()
        with Log(self.directory / "log.jsonl", lines=self.step) as log:
            while self.step < config.steps:
                start = time.perf_counter()
                data = source.batch("train", self.step, self.trial.seed, config.batch_size, source.seq_len)
                inputs, targets = (part.to(self.device) for part in data)
                lr = learning_rate(self.step + 1, config)
                update = train_step(self.model, self.optimizer, (inputs, targets), lr, config)
                took = time.perf_counter() - start
                self.step, self.seconds = self.step + 1, self.seconds + took
                line = {
                    "step": self.step,
                    "loss": update.loss if update.finite else None,
                    "lr": lr,
                    "gradient_norm": update.gradient_norm if update.finite else None,
                    "tokens": self.step * inputs.numel(),
                    "tokens_per_second": round(inputs.numel() / took, 1),
                }
                if update.finite and config.eval_every and self.step % config.eval_every == 0:
                    measured = evaluate(self.model, self.trial, "validation", source.seq_len)
                    line["validation_loss"] = measured["nats"]
                log.write(line)
                self.report(line)
                if not update.finite:
                    return False
                if self.step % config.checkpoint_every == 0 or self.step == config.steps:
                    log.sync()  # before the checkpoint that relies on its lines
                    self._checkpoint()
        return True

    def _validation(self) -> float | None:
        """The validation loss that candidates are chosen by: the mean of that at the end and those logged in
        the last tenth of the steps."""
        last = evaluate(self.model, self.trial, "validation", self.trial.source.seq_len)["nats"]
        late = [
            line["validation_loss"]
            for line in read_log(self.directory / "log.jsonl")
            if line["step"] > 0.9 * self.step and line["step"] < self.step and "validation_loss" in line
        ]
        return None if last is None or None in late else sum([*late, last]) / (1 + len(late))

    def _checkpoint(self) -> None:
        checkpoint = Checkpoint(
            trial=self.trial.id,
            data=self.fingerprint,
            step=self.step,
            seconds=self.seconds,
            threads=torch.get_num_threads(),
            device=self.device.type,
            notes=self.notes,
            model=self.model.state_dict(),
            optimizer=self.optimizer.state_dict(),
            rng=rng_state(),
        )
        save_checkpoint(self.directory, checkpoint)

    def _resume(self) -> None:
        """Go on from the last good checkpoint, if there is one."""
        saved, notes = load_checkpoint(self.directory)
        if saved is None:
            return
        for name, theirs, mine in (
            ("trial", saved.trial, self.trial.id),
            ("data", saved.data, self.fingerprint),
        ):
            if theirs != mine:
                raise ValueError(
                    f"{self.directory} was trained on another {name} ({theirs}, now {mine}); "
                    "use another directory or delete this one"
                )
        try:
            self.model.load_state_dict(saved.model)
            self.optimizer.load_state_dict(saved.optimizer)
        except (RuntimeError, ValueError, KeyError) as error:
            raise ValueError(
                f"the checkpoint in {self.directory} does not fit the model that is built now: {error}"
            ) from error
        restore_rng(saved.rng)
        self.step, self.seconds = saved.step, saved.seconds
        self.notes = saved.notes + [f"resumed at step {saved.step}: {note}" for note in notes]
        now = (torch.get_num_threads(), self.device.type)
        if (saved.threads, saved.device) != now:
            self.notes.append(
                f"resumed at step {saved.step} with {now[0]} threads on {now[1]}, "
                f"after {saved.threads} on {saved.device}: not bit for bit the uninterrupted run"
            )

    def _save_model(self) -> None:
        fresh, final = self.directory / "model.tmp", self.directory / "model"
        with naming(final):
            for folder in (fresh, final):
                if folder.exists():
                    shutil.rmtree(folder)
            self.model.save(fresh)
            fresh.replace(final)
        sync_folder(self.directory)

    def _result(self, status: str, evaluation: list[dict[str, Any]]) -> dict[str, Any]:
        losses = [line["loss"] for line in read_log(self.directory / "log.jsonl") if line["loss"] is not None]
        last = losses[-max(1, len(losses) // 10) :]
        tokens = self.step * self.trial.train.batch_size * self.trial.source.seq_len
        return {
            "status": status,
            "id": self.trial.id,
            "seed": self.trial.seed,
            "steps": self.step,
            "tokens": tokens,
            "params": sum(parameter.numel() for parameter in self.model.parameters()),
            "train_loss": sum(last) / len(last) if last else None,
            "evaluation": evaluation,
            "metric": self.trial.source.metric,
            "data": self.fingerprint,
            "cost": {
                "seconds": round(self.seconds, 3),
                "tokens_per_second": round(tokens / self.seconds, 1),
                "peak_memory_bytes": peak_memory(self.device),
            },
            "machine": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "device": self.device.type,
                "threads": torch.get_num_threads(),
            },
            "notes": self.notes,
        }


def peak_memory(device: torch.device) -> int | None:
    """Most bytes held so far: by torch on a CUDA device, otherwise by the whole process; None where the
    system does not say.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _device(config: TrainConfig) -> torch.device:
    present = torch.cuda.is_available()
    if config.device == "cuda" and not present:
        raise ValueError("`train.device` must be auto or cpu here, but is cuda: torch finds no CUDA device")
    return torch.device("cuda" if present and config.device != "cpu" else "cpu")


@contextlib.contextmanager
def _matmul_precision(config: TrainConfig) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(config.matmul_precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
