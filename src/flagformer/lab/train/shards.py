"""Checkpoints of several ranks: a folder with the shards of every rank, by torch.distributed.checkpoint.

    shards/rest.pt                  a `Checkpoint` without model and optimizer, with checksums of other files
    shards/__R_N.distcp, .metadata  the shards of rank R; any number of ranks, or one process, can read them
    shards.previous/                the previous checkpoint

As with a single file, a folder is written under a temporary name and renamed, and if it is damaged, the
previous one is used.
"""

import hashlib
import shutil
import warnings
from collections.abc import Container, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from flagformer.lab.train.checkpoint import (
    Checkpoint,
    newest_valid,
    promote,
    read_checkpoint,
    write_checkpoint,
)
from flagformer.lab.train.files import os_error_context
from flagformer.lab.train.process_group import SINGLE, ProcessGroup
from flagformer.storage.schema import rename_saved

CURRENT, PREVIOUS, FRESH, REST = "shards", "shards.previous", "shards.new", "rest.pt"


def save_shards(
    directory: Path, rest: Checkpoint, model: nn.Module, optimizer: Any, ranks: ProcessGroup
) -> None:
    """Write `shards/` from all ranks; the earlier folder becomes `shards.previous/`."""
    import torch.distributed.checkpoint as dcp  # the import takes 0.7 s, so single processes skip it
    from torch.distributed.checkpoint.state_dict import get_state_dict

    fresh = directory / FRESH
    ranks.on_rank_zero(lambda: shutil.rmtree(fresh, ignore_errors=True))
    weights, moments = get_state_dict(model, optimizer)
    with os_error_context(fresh):
        dcp.save({"model": weights, "optimizer": moments}, checkpoint_id=fresh)
    mine = sorted(fresh.glob(f"__{ranks.rank}_*")) + [fresh / ".metadata"] * ranks.is_first
    sums = ranks.gather({path.name: _sum(path) for path in mine})
    states = ranks.gather(rest.rng[0])

    def take_the_name() -> None:
        whole = replace(
            rest, rng=states, shards={name: value for part in sums for name, value in part.items()}
        )
        write_checkpoint(fresh / REST, whole)
        promote(fresh, directory / CURRENT, directory / PREVIOUS)

    ranks.on_rank_zero(take_the_name)


def find_shards(directory: Path) -> tuple[Path | None, Checkpoint | None, list[str]]:
    """The newest valid folder with its `rest`, or None, and notes on damaged folders, which are deleted.

    ValueError if all folders are damaged.
    """
    return newest_valid((directory / CURRENT, directory / PREVIOUS), _read_rest, shutil.rmtree)


def load_shards(folder: Path, model: nn.Module, optimizer: Any, ranks: ProcessGroup) -> None:
    """Load model and optimizer, sharded or not, from shards of any number of ranks."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_state_dict,
        set_model_state_dict,
        set_optimizer_state_dict,
    )

    found: Any = get_state_dict(model, optimizer)
    weights, moments = found
    entries = _entries(folder)
    saved = _saved_names(entries, weights)
    by_saved_name = {saved.get(name, name): value for name, value in moments["state"].items()}
    by_saved_name = _in_entries(by_saved_name, entries)
    state: dict[str, Any] = {
        "model": {saved.get(name, name): value for name, value in weights.items()},
        "optimizer": {**moments, "state": by_saved_name},
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one process can read too
        dcp.load(state, checkpoint_id=folder, no_dist=ranks is SINGLE)
    moments = state["optimizer"]
    for group in moments["param_groups"]:
        group["params"] = list(rename_saved(dict.fromkeys(group["params"]), weights))
    moments["state"] = rename_saved(moments["state"], weights)
    weights = rename_saved(state["model"], weights)
    set_model_state_dict(model, weights)
    options = StateDictOptions(strict=False)  # parameters that had no gradient have no moments
    set_optimizer_state_dict(model, optimizer, optim_state_dict=moments, options=options)


def _entries(folder: Path) -> set[str]:
    """The names of all tensors and values in a folder: `model.NAME`, `optimizer.state.NAME.KEY`."""
    from torch.distributed.checkpoint import FileSystemReader

    return set(FileSystemReader(folder).read_metadata().state_dict_metadata)


def _saved_names(entries: Iterable[str], names: Container[str]) -> dict[str, str]:
    """The names of a model's parameters -> those in a folder, where version 0.1 wrote it with other names."""
    saved = [name.removeprefix("model.") for name in entries if name.startswith("model.")]
    return rename_saved({name: name for name in saved}, names)


def _in_entries(moments: dict[str, dict[str, Any]], entries: Container[str]) -> dict[str, dict[str, Any]]:
    """The moments that a folder has: a new optimizer has those of all parameters."""
    found = {
        name: {key: value for key, value in own.items() if f"optimizer.state.{name}.{key}" in entries}
        for name, own in moments.items()
    }
    return {name: own for name, own in found.items() if own}


def named_moments(model: nn.Module, optimizer: Any) -> dict[str, Any]:
    """The optimizer state of an unsharded model, by parameter names."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

    return get_optimizer_state_dict(model, optimizer, options=StateDictOptions(full_state_dict=True))


def load_moments(model: nn.Module, optimizer: Any, named: dict[str, Any]) -> None:
    """Load the optimizer state of `named_moments` into the optimizer of a sharded model."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict

    options = StateDictOptions(full_state_dict=True, strict=False)
    set_optimizer_state_dict(model, optimizer, optim_state_dict=named, options=options)


def whole_weights(model: nn.Module) -> dict[str, Any]:
    """The weights of a sharded model, gathered by all ranks to the CPU of rank 0."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


def remove_shards(directory: Path) -> None:
    """Free the space of a finished trial."""
    for name in (CURRENT, PREVIOUS, FRESH):
        shutil.rmtree(directory / name, ignore_errors=True)


def _read_rest(folder: Path) -> Checkpoint:
    """The checkpoint of a folder without model and optimizer, after all checksums are verified."""
    if not (folder / REST).is_file():
        raise ValueError(f"{folder} is damaged: it has no {REST}")
    rest = read_checkpoint(folder / REST)
    for name, value in rest.shards.items():
        if not (folder / name).is_file() or _sum(folder / name) != value:
            raise ValueError(f"{folder} is damaged: the checksum of {name} is wrong")
    return rest


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
