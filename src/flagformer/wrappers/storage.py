"""Save and load a model as a directory: weights as safetensors, flags as JSON; no code in it is executed.

The file of weights also holds the flags, so that the files of two models, mixed by an interrupted `save`, are
detected. Directories of version 0.1 have the flags only in the JSON file, and other names of parameters
(`storage_schema.py`).
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
    """Write both files, each to a temporary name first, so that a crash leaves no incomplete file.

    Raises:
        ValueError: for a model that `load_model` could not restore, with the differences; no file is written.
    """
    from flagformer.wrappers.build import build  # which imports the callers of this module

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
    _refuse_other_flags(record, path, directory / FLAGS)
    state = rename_saved(load_tensors(path), model.state_dict())
    parameters = {name for name, _ in model.named_parameters()}  # buffers may have another precision
    dtypes = {state[name].dtype for name in parameters & set(state) if state[name].is_floating_point()}
    if len(dtypes) == 1:  # a model saved in half precision is loaded in half precision
        model.to(dtypes.pop())
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
    """Write tensors by name as a safetensors file with metadata, first to a temporary name."""
    _need_safetensors()
    from safetensors.torch import save

    header = {METADATA: json.dumps(metadata, sort_keys=True)} if metadata else None
    _replace(path, save({name: tensor.contiguous() for name, tensor in tensors.items()}, header))


def load_tensors(path: Path, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """Read a file of `save_tensors`.

    Raises:
        ValueError: names a file that is missing or unreadable.
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
            f"{path} cannot be read ({error}); it is truncated or not a safetensors file"
        ) from None


def load_metadata(path: Path) -> dict[str, str]:
    """Read the metadata of a file of `save_tensors`; empty if there is none or the file cannot be read."""
    _need_safetensors()
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            texts = json.loads((file.metadata() or {}).get(METADATA, "{}"))
    except (SafetensorError, OSError, ValueError, RecursionError):  # ValueError: invalid JSON
        return {}
    return (
        {name: text for name, text in texts.items() if isinstance(text, str)}
        if isinstance(texts, dict)
        else {}
    )


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


def _refuse_other_flags(record: Mapping[str, Any], weights: Path, flags: Path) -> None:
    text = load_metadata(weights).get("flags")
    if text is None or record.get("saved") == _digest(text.encode()) or record["flags"] == json.loads(text):
        return
    raise ValueError(
        f"{weights} does not hold the weights of {flags}, but of a model with other flags: a `save` was "
        f"interrupted, or a file was copied; save again, or delete {flags.name} to load the model of the "
        "weights, whose file holds its flags too"
    )


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


def _replace(path: Path, content: bytes) -> None:
    """Replace the content of `path` atomically; after an OSError it is unchanged."""
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
    """Digest of names, dtypes, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _is_plain(value: Any) -> bool:
    try:
        json.dumps(value)
    except TypeError:
        return False
    return True
