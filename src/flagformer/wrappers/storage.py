"""A model in a directory: weights as safetensors, flags as JSON; nothing in it is executed.

The weights' file also holds the flags, so that whatever a `save` that was killed has left of two models, one
file after the other, is told from a model. Directories of version 0.1 have flags in their JSON alone, and
other names of parameters (`storage_schema.py`).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from flagformer.flags import FlagError
from flagformer.flags.others import recognise_directory
from flagformer.ops.sharded import is_sharded
from flagformer.wrappers.faithful import refuse_changed, second_names
from flagformer.wrappers.storage_schema import READABLE, SCHEMA, rename_saved

if TYPE_CHECKING:
    from flagformer.wrappers.memformer import Memformer
    from flagformer.wrappers.transformer import TransformerWrapper
    from flagformer.wrappers.vit import ViTransformerWrapper
    from flagformer.wrappers.xtransformer import XTransformer

WEIGHTS, FLAGS = "model.safetensors", "flags.json"
METADATA = "flagformer"  # one key: safetensors writes several in an order that differs between two writes


def save_model(
    model: TransformerWrapper | XTransformer | Memformer | ViTransformerWrapper, directory: Path
) -> None:
    """Writes both files, each to a temporary name first, so that a crash leaves no half of one.

    Raises:
        ValueError: for a model that `load_model` could not give back, naming what differs; nothing is
            written.
    """
    from flagformer.wrappers.build import build  # which makes models of this module's callers

    _need_safetensors()
    if is_sharded(model):
        raise ValueError(
            "a model that is saved must hold whole parameters, but `fully_shard` has sharded these: gather "
            "them on all ranks by `get_model_state_dict` of torch.distributed.checkpoint.state_dict with "
            "`full_state_dict=True`, load them into `flagformer.build(model.flags)` and save that model"
        )
    flags = model.flags
    try:
        text = json.dumps(flags)
    except TypeError:
        given = [name for name, value in flags.items() if not _is_plain(value)]
        raise ValueError(
            f"`{'`, `'.join(given)}` was given as a class or module, which JSON cannot hold: "
            "save `model.state_dict()` and rebuild the model in code"
        ) from None
    refuse_changed(model, flags, build)
    shared = second_names(model)
    tensors = {name: tensor for name, tensor in model.state_dict().items() if name not in shared}
    record = {"schema": SCHEMA, "saved": _digest(text.encode()), "flags": flags}
    directory.mkdir(parents=True, exist_ok=True)
    save_tensors(tensors, directory / WEIGHTS, {"flags": text, "weights": _digest_of(tensors)})
    _replace(directory / FLAGS, (json.dumps(record, indent=2) + "\n").encode())


def load_model(directory: Path, build: Any) -> nn.Module:
    """Reads what `save_model` wrote; `build` makes a model of flags.

    Raises:
        ValueError: naming the file that is missing, unreadable, of a newer schema or of another model.
    """
    _refuse_other(directory)
    path = directory / WEIGHTS
    record = _read_record(directory / FLAGS, path)
    try:
        model = build(record["flags"])
    except FlagError as error:
        raise ValueError(f"{directory / FLAGS} does not describe a model of this version: {error}") from None
    _refuse_other_flags(record, path, directory / FLAGS)
    state = rename_saved(load_tensors(path), model.state_dict())
    learned = {name for name, _ in model.named_parameters()}  # buffers may keep a precision of their own
    kinds = {state[name].dtype for name in learned & set(state) if state[name].is_floating_point()}
    if len(kinds) == 1:  # a model saved in half precision comes back in it
        model.to(kinds.pop())
    else:
        for name, parameter in model.named_parameters():
            if name in state:
                parameter.data = parameter.data.to(state[name].dtype)
    state |= {name: state[first] for name, first in second_names(model).items() if first in state}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        lines = str(error).splitlines()[1:]
        shown = "\n".join(lines[:5]) + (f"\n... and {len(lines) - 5} more" if len(lines) > 5 else "")
        text = f"{path} does not hold the weights of {directory / FLAGS}:\n{shown}"
        raise ValueError(text) from None
    return model


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """By name, as safetensors, with some texts; first to a temporary name."""
    _need_safetensors()
    from safetensors.torch import save

    held = {METADATA: json.dumps(metadata, sort_keys=True)} if metadata else None
    _replace(path, save({name: tensor.contiguous() for name, tensor in tensors.items()}, held))


def load_tensors(path: Path, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """What `save_tensors` wrote.

    Raises:
        ValueError: naming a file that is missing or unreadable.
    """
    _need_safetensors()
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise ValueError(
            f"{path} does not exist; `save(directory)` of the model, or of its stream, writes it"
        )
    try:
        return load_file(path, str(device))
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} cannot be read ({error}); it is cut off or is no safetensors file"
        ) from None


def load_metadata(path: Path) -> dict[str, str]:
    """The texts in what `save_tensors` wrote; empty where there are none, or no such file can be read."""
    _need_safetensors()
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            texts = json.loads((file.metadata() or {}).get(METADATA, "{}"))
    except (SafetensorError, OSError, ValueError, RecursionError):  # ValueError: no JSON under our key
        return {}
    return (
        {name: text for name, text in texts.items() if isinstance(text, str)}
        if isinstance(texts, dict)
        else {}
    )


def weights_digest(directory: str | Path) -> str:
    """What tells the weights in a directory from others; empty for those of version 0.1."""
    return load_metadata(Path(directory) / WEIGHTS).get("weights", "")


def refuse_other_weights(path: Path) -> None:
    """ValueError for a stream beside weights that it was not saved with."""
    saved, here = load_metadata(path).get("of weights", ""), weights_digest(path.parent)
    if saved and here and saved != here:
        raise ValueError(
            f"{path} was not saved with {path.parent / WEIGHTS}: a `save` was interrupted, or the model was "
            "saved alone since; save both again by `stream.save`"
        )


def _refuse_other_flags(record: Mapping[str, Any], weights: Path, flags: Path) -> None:
    held = load_metadata(weights).get("flags")
    if held is None or record.get("saved") == _digest(held.encode()) or record["flags"] == json.loads(held):
        return
    raise ValueError(
        f"{weights} does not hold the weights of {flags}, but of a model with other flags: a `save` was "
        f"interrupted, or a file was copied; save again, or delete {flags.name} to load the model of the "
        "weights, which hold their flags too"
    )


def _refuse_other(directory: Path) -> None:
    """ValueError, saying what is there, where no model of this library can be."""
    if not directory.is_dir():
        what = "is a file" if directory.exists() else "does not exist"
        raise ValueError(f"`directory` must be one that `model.save` wrote, but {directory} {what}")
    if (directory / FLAGS).exists() or load_metadata(directory / WEIGHTS).get("flags"):
        return
    if (directory / "model" / FLAGS).exists():
        raise ValueError(f"{directory} holds no model itself; load {directory / 'model'}")
    if other := recognise_directory(directory):
        raise ValueError(
            f"{directory} is {other.what}, but `load` reads what `model.save` wrote; {other.advice}"
        )


def _read_record(path: Path, weights: Path) -> dict[str, Any]:
    """The record of flags; that of the weights where its file is not there (any more, or yet)."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        held = load_metadata(weights).get("flags")
        if held is None:
            raise ValueError(f"{path} does not exist; `model.save(directory)` writes it") from None
        record = {"schema": SCHEMA, "flags": json.loads(held)}
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{error.lineno} is not valid JSON: {error.msg}") from None
    except (OSError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    if not isinstance(record, dict) or not isinstance(record.get("flags"), dict):
        raise ValueError(f"{path} must hold an object with `schema` and `flags`; it is not one of ours")
    if record.get("schema") not in READABLE:
        raise ValueError(
            f"{path} has schema {record.get('schema')!r}, but this version reads schemas "
            + " and ".join(map(str, READABLE))
        )
    return record


def _replace(path: Path, content: bytes) -> None:
    """Gives `path` new content, all of it or, by an OSError, none."""
    temporary = path.with_name(path.name + ".partial")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def _need_safetensors() -> None:
    try:
        import safetensors.torch  # noqa: F401
    except ImportError:
        raise ImportError(
            "models are saved and loaded by safetensors, which is not installed: "
            "`pip install safetensors`, or `pip install 'flagformer[study]'`"
        ) from None


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _digest_of(tensors: Mapping[str, Tensor]) -> str:
    """Of names, dtypes, shapes and values."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def _is_plain(value: Any) -> bool:
    try:
        json.dumps(value)
    except TypeError:
        return False
    return True
