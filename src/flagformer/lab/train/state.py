"""The training state of a trial (model, optimizer, step): saving and resuming with one or several ranks."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

import flagformer
from flagformer.interop.graft import Graft
from flagformer.lab.train import checkpoint, shards
from flagformer.lab.train.checkpoint import (
    Checkpoint,
    load_checkpoint,
    restore_rng,
    rng_state,
    save_checkpoint,
)
from flagformer.lab.train.config import Trial
from flagformer.lab.train.optimizers.groups import make_optimizer
from flagformer.lab.train.process_group import SINGLE, ProcessGroup
from flagformer.lab.train.shards import find_shards, load_moments, load_shards, named_moments, save_shards
from flagformer.storage.schema import rename_saved

Found = tuple[Path | None, Checkpoint, list[str]]


class State:
    """The state after `step` updates: from the newest checkpoint in `directory`, or the initial state.

    Raises:
        ValueError: the checkpoint is of another trial or of other data, or all checkpoints are damaged.
    """

    def __init__(self, trial: Trial, directory: Path, device: torch.device, ranks: ProcessGroup) -> None:
        self.trial, self.directory, self.device, self.ranks = trial, directory, device, ranks
        self.fingerprint = self._fingerprint()
        self.step, self.seconds = 0, 0.0
        self.notes: list[str] = []
        torch.manual_seed(trial.weights_seed)
        plain = trial.build()
        self.graft: Graft | None = getattr(plain, "graft", None)
        ranks.seed(trial.weights_seed, 0)
        found = ranks.on_rank_zero(lambda: newest(directory))
        if found is not None:
            self._refuse_foreign(found)
        try:
            self.model, self.optimizer = self._wrap(plain, found)
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"the checkpoint {self._file(found)} does not fit the model that is built now: "
                f"{' '.join(str(error).split())}; use another directory or delete this one"
            ) from error
        if found is not None:
            self._resume(found[1], found[2])

    def save(self) -> None:
        """Write a checkpoint: one file, or with several ranks a folder with the shards of each."""
        alone = self.ranks is SINGLE
        rest = Checkpoint(
            trial=self.trial.id,
            data=self.fingerprint,
            step=self.step,
            seconds=self.seconds,
            threads=torch.get_num_threads(),
            device=self.device.type,
            notes=self.notes,
            model=self.model.state_dict() if alone else {},
            optimizer=self.optimizer.state_dict() if alone else {},
            rng=[rng_state()],
            shards={},
        )
        if alone:
            save_checkpoint(self.directory, rest)
        else:
            save_shards(self.directory, rest, self.model, self.optimizer, self.ranks)

    def whole_model(self) -> Any:
        """The unsharded model, for `save`; with several ranks on rank 0, None on the others."""
        if self.ranks is SINGLE:
            return self.model
        weights = shards.whole_weights(self.model)
        if not self.ranks.is_first:
            return None
        model = flagformer.build(self.trial.model_flags)
        model.load_state_dict(weights)
        return model

    def _fingerprint(self) -> str:
        found = self.ranks.gather(self.trial.source.fingerprint())
        for rank, other in enumerate(found):
            if other != found[0]:
                raise ValueError(
                    f"rank {rank} has other data than rank 0 (fingerprints {other} and {found[0]}): "
                    "files or Python versions differ between machines"
                )
        return found[0]

    def _file(self, found: Found | None) -> Path:
        return self.directory / checkpoint.CURRENT if found is None or found[0] is None else found[0]

    def _refuse_foreign(self, found: Found) -> None:
        rest = found[1]
        for name, theirs, mine in (
            ("trial", rest.trial, self.trial.id),
            ("data", rest.data, self.fingerprint),
        ):
            if theirs != mine:
                raise ValueError(
                    f"{self.directory} was trained on another {name} ({theirs} in "
                    f"{self._file(found).name}, now {mine}); "
                    "use another directory or delete this one"
                )

    def _optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer of the model, plain or wrapped."""
        return make_optimizer(model, self.trial.train, self.trial.mup_rules())

    def _wrap(self, plain: nn.Module, found: Found | None) -> tuple[nn.Module, torch.optim.Optimizer]:
        """The wrapped model and its optimizer, with the state of the checkpoint, if any."""
        config, moments = self.trial.train, {}
        folder, rest = found[:2] if found is not None else (None, None)
        single = rest if folder is None else None
        if single is not None:
            weights = rename_saved(single.model, plain.state_dict())
            if misfit := _misfit(weights, plain.state_dict()):
                raise ValueError(misfit)
            plain.load_state_dict(weights)
        if single is not None and self.ranks is not SINGLE:
            whole = self._optimizer(plain)
            whole.load_state_dict(single.optimizer)
            moments = named_moments(plain, whole)
        model = self.ranks.wrap_model(plain, self.device)
        if config.compile:
            model.compile()
        optimizer = self._optimizer(model)
        if folder is not None:
            load_shards(folder, model, optimizer, self.ranks)
        elif moments:
            load_moments(model, optimizer, moments)
        elif single is not None:
            optimizer.load_state_dict(single.optimizer)
        for parameter, moments_ in optimizer.state.items():
            for name, value in moments_.items():
                if name in config.optimizer.factored:
                    continue
                if isinstance(value, torch.Tensor) and value.ndim and value.shape != parameter.shape:
                    saved, now = list(value.shape), list(parameter.shape)
                    raise ValueError(f"`{name}` of a parameter of shape {now} has shape {saved}")
        return model, optimizer

    def _resume(self, rest: Checkpoint, notes: list[str]) -> None:
        world = self.ranks.world
        self.step, self.seconds = rest.step, rest.seconds
        self.notes = rest.notes + [f"resumed at step {rest.step}: {note}" for note in notes]
        self.ranks.seed(self.trial.weights_seed, rest.step)
        if len(rest.rng) == world or self.ranks.is_first:
            restore_rng(rest.rng[self.ranks.rank])
        now = (torch.get_num_threads(), self.device.type)
        if (rest.threads, rest.device) != now:
            self.notes.append(
                f"resumed at step {rest.step} with {now[0]} threads on {now[1]}, "
                f"after {rest.threads} on {rest.device}: not bit-identical to the uninterrupted run"
            )
        if len(rest.rng) != world:
            self.notes.append(
                f"resumed at step {rest.step} with {world} ranks after {len(rest.rng)}: equal to the "
                "uninterrupted run except for rounding and for the random numbers of dropout"
            )


def _misfit(saved: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The first differences of weights in names and shapes; empty if there are none."""
    differences = [f"the model has no `{name}`" for name in saved if name not in now]
    differences += [f"`{name}` is missing in the checkpoint" for name in now if name not in saved]
    for name in now:
        shape = list(getattr(saved.get(name), "shape", ()))
        if name in saved and shape != list(now[name].shape):
            differences.append(f"`{name}` is {shape} in the checkpoint and {list(now[name].shape)} now")
    more = f", and {len(differences) - 3} more" if len(differences) > 3 else ""
    return ", ".join(differences[:3]) + more


def newest(directory: Path) -> Found | None:
    """The newest valid checkpoint: its folder (None: a single file), itself, and notes on damaged ones."""
    found: list[tuple[Path | None, Checkpoint]] = []
    notes: list[str] = []
    lost: list[str] = []
    for look in (_one_file, find_shards):
        try:
            folder, rest, said = look(directory)
        except ValueError as error:
            lost.append(str(error))
            continue
        notes += said
        if rest is not None:
            found.append((folder, rest))
    if not found:
        if lost:
            raise ValueError("; ".join(lost))
        return None
    folder, rest = max(found, key=lambda one: one[1].step)
    return folder, rest, notes + lost


def remove_all(directory: Path) -> None:
    """Free the space of a finished trial."""
    checkpoint.remove_checkpoints(directory)
    shards.remove_shards(directory)


def _one_file(directory: Path) -> tuple[None, Checkpoint | None, list[str]]:
    rest, notes = load_checkpoint(directory)
    return None, rest, notes
