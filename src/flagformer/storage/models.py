"""Save and load a model as a directory: weights as safetensors, flags as JSON; no code in it is executed.

The file of weights also holds the flags, so that the files of two models, mixed by an interrupted `save`, are
detected. Directories of version 0.1 have the flags only in the JSON file, and other names of parameters
(`schema.py`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flagformer.flags import FlagError
from flagformer.flags.others import recognise_directory
from flagformer.ops.sharded import is_sharded
from flagformer.storage.changes import refuse_changed, second_names
from flagformer.storage.schema import READABLE, SCHEMA, rename_saved
from flagformer.storage.tensors import (
    digest_of,
    load_metadata,
    load_tensors,
    need_safetensors,
    replace_file,
    save_tensors,
)

WEIGHTS, FLAGS = "model.safetensors", "flags.json"
Build = Callable[[Mapping[str, Any]], nn.Module]


def save_model(model: nn.Module, flags: Mapping[str, Any], build: Build, directory: Path) -> None:
    """Write both files, each to a temporary name first, so that a crash leaves no incomplete file.

    Args:
        model: the model that `build` builds from `flags`.

    Raises:
        ValueError: for a model that `load_model` could not restore, with the differences; no file is written.
    """
    need_safetensors()
    if is_sharded(model):
        raise ValueError(
            "a model that is saved must hold whole parameters, but `fully_shard` has sharded these: gather "
            "them on all ranks by `get_model_state_dict` of torch.distributed.checkpoint.state_dict with "
            "`full_state_dict=True`, load them into `flagformer.build(model.flags)` and save that model"
        )
    try:
        text = json.dumps(flags)
    except TypeError:
        given = [name for name, value in flags.items() if not _is_plain(value)]
        raise ValueError(
            f"`{'`, `'.join(given)}` was given as a class or module, which JSON cannot hold: name a class by "
            "its import path (`norm='mylab.norms:MyNorm'`), or save `model.state_dict()` and build the "
            "model in code"
        ) from None
    refuse_changed(model, flags, build)
    shared = second_names(model)
    tensors = {name: tensor for name, tensor in model.state_dict().items() if name not in shared}
    record = {"schema": SCHEMA, "saved": _digest(text.encode()), "flags": flags}
    directory.mkdir(parents=True, exist_ok=True)
    save_tensors(tensors, directory / WEIGHTS, {"flags": text, "weights": digest_of(tensors)})
    replace_file(directory / FLAGS, (json.dumps(record, indent=2) + "\n").encode())


def saved_flags(directory: Path, build: Build) -> dict[str, Any]:
    """The flags of a directory of `save_model`; no weights are read.

    Raises:
        ValueError: names the file that is missing, unreadable, of a newer schema or of another model.
    """
    _refuse_other(directory)
    path = directory / WEIGHTS
    record = _read_record(directory / FLAGS, path)
    _refuse_other_flags(record, path, directory / FLAGS, build)
    return dict(record["flags"])


def load_model(directory: Path, build: Build) -> nn.Module:
    """Load a directory of `save_model`; `build` builds a model from flags.

    Raises:
        ValueError: names the file that is missing, unreadable, of a newer schema or of another model.
    """
    _refuse_other(directory)
    path = directory / WEIGHTS
    record = _read_record(directory / FLAGS, path)
    try:
        model = build(record["flags"])
    except FlagError as error:
        raise ValueError(f"{directory / FLAGS} does not describe a model of this version: {error}") from None
    _refuse_other_flags(record, path, directory / FLAGS, build)
    fill(model, rename_saved(load_tensors(path), model.state_dict()), path, directory / FLAGS)
    return model


def fill(model: nn.Module, state: Mapping[str, Tensor], path: Path, flags: Path) -> None:
    """Load the tensors of a file into the model of its flags, in the precision in which they were saved.

    Raises:
        ValueError: for tensors that are missing, unknown or of another shape; names both files.
    """
    parameters = {name for name, _ in model.named_parameters()}  # buffers may have another precision
    dtypes = {state[name].dtype for name in parameters & set(state) if state[name].is_floating_point()}
    if len(dtypes) == 1:  # a model saved in half precision is loaded in half precision
        model.to(dtypes.pop())
    else:
        for name, parameter in model.named_parameters():
            if name in state:
                parameter.data = parameter.data.to(state[name].dtype)
    second = {name: state[first] for name, first in second_names(model).items() if first in state}
    try:
        model.load_state_dict({**state, **second})
    except RuntimeError as error:
        lines = str(error).splitlines()[1:]
        shown = "\n".join(lines[:5]) + (f"\n... and {len(lines) - 5} more" if len(lines) > 5 else "")
        text = f"{path} does not hold the weights of {flags}:\n{shown}"
        raise ValueError(text) from None


def weights_digest(directory: str | Path) -> str:
    """The digest of the weights in a directory; empty for those of version 0.1."""
    return load_metadata(Path(directory) / WEIGHTS).get("weights", "")


def refuse_other_weights(path: Path) -> None:
    """ValueError for a stream that was not saved with the weights in its directory."""
    saved, here = load_metadata(path).get("of weights", ""), weights_digest(path.parent)
    if saved and here and saved != here:
        raise ValueError(
            f"{path} was not saved with {path.parent / WEIGHTS}: a `save` was interrupted, or the model was "
            "saved later without the stream; save both again by `stream.save`"
        )


def _refuse_other_flags(record: Mapping[str, Any], weights: Path, flags: Path, build: Build) -> None:
    text = load_metadata(weights).get("flags")
    if text is None or record.get("saved") == _digest(text.encode()):
        return
    if _same_model(record["flags"], json.loads(text), build):
        return
    raise ValueError(
        f"{weights} does not hold the weights of {flags}, but of a model with other flags: a `save` was "
        f"interrupted, or a file was copied; save again, or delete {flags.name} to load the model of the "
        "weights, whose file holds its flags too"
    )


def _same_model(flags: Mapping[str, Any], others: Mapping[str, Any], build: Build) -> bool:
    """Whether two records describe one model; one of an earlier version lacks the flags that are newer."""
    if flags == others:
        return True
    try:
        with torch.device("meta"):
            return build(flags).flags == build(others).flags
    except FlagError:
        return False


def _refuse_other(directory: Path) -> None:
    """ValueError for a path that cannot hold a model of this library, with a description of it."""
    if not directory.is_dir():
        fault = "is a file" if directory.exists() else "does not exist"
        raise ValueError(f"`directory` must be one that `model.save` wrote, but {directory} {fault}")
    if (directory / FLAGS).exists() or load_metadata(directory / WEIGHTS).get("flags"):
        return
    if (directory / "model" / FLAGS).exists():
        raise ValueError(f"{directory} is not the directory of the model; load {directory / 'model'}")
    if other := recognise_directory(directory):
        raise ValueError(
            f"{directory} is {other.what}, but `load` reads directories of `model.save`; {other.advice}"
        )


def _read_record(path: Path, weights: Path) -> dict[str, Any]:
    """The record of flags; that in the file of weights if there is no file of flags."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        text = load_metadata(weights).get("flags")
        if text is None:
            raise ValueError(f"{path} does not exist; `model.save(directory)` writes it") from None
        record = {"schema": SCHEMA, "flags": json.loads(text)}
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{error.lineno} is not valid JSON: {error.msg}") from None
    except (OSError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    if not isinstance(record, dict) or not isinstance(record.get("flags"), dict):
        raise ValueError(f"{path} must hold an object with `schema` and `flags`; another program wrote it")
    if record.get("schema") not in READABLE:
        raise ValueError(
            f"{path} has schema {record.get('schema')!r}, but this version reads schemas "
            + " and ".join(map(str, READABLE))
        )
    return record


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _is_plain(value: Any) -> bool:
    try:
        json.dumps(value)
    except TypeError:
        return False
    return True
