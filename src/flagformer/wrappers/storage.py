"""A model in a directory: weights as safetensors, flags as JSON; nothing in it is executed."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from flagformer.flags import FlagError

if TYPE_CHECKING:
    from flagformer.wrappers.memformer import Memformer
    from flagformer.wrappers.transformer import TransformerWrapper
    from flagformer.wrappers.vit import ViTransformerWrapper
    from flagformer.wrappers.xtransformer import XTransformer

SCHEMA = 1
WEIGHTS, FLAGS = "model.safetensors", "flags.json"


def save_model(
    model: TransformerWrapper | XTransformer | Memformer | ViTransformerWrapper, directory: Path
) -> None:
    """Writes both files, each to a temporary name first, so that a crash leaves no half of one."""
    flags = model.flags
    try:
        text = json.dumps({"schema": SCHEMA, "flags": flags}, indent=2)
    except TypeError:
        given = [name for name, value in flags.items() if not _is_plain(value)]
        raise ValueError(
            f"`{'`, `'.join(given)}` was given as a class or module, which JSON cannot hold: "
            "save `model.state_dict()` and rebuild the model in code"
        ) from None
    directory.mkdir(parents=True, exist_ok=True)
    shared = _shared(model)
    tensors = model.state_dict().items()
    save_tensors({name: tensor for name, tensor in tensors if name not in shared}, directory / WEIGHTS)
    _replace(directory / FLAGS, (text + "\n").encode())


def load_model(directory: Path, build: Any) -> nn.Module:
    """Reads what `save_model` wrote; `build` makes a model of flags.

    Raises:
        ValueError: naming the file that is missing, unreadable, of a newer schema or of another model.
    """
    try:
        model = build(_read_flags(directory / FLAGS))
    except FlagError as error:
        raise ValueError(f"{directory / FLAGS} does not describe a model of this version: {error}") from None
    path = directory / WEIGHTS
    state = load_tensors(path)
    learned = {name for name, _ in model.named_parameters()}  # buffers may keep a precision of their own
    kinds = {state[name].dtype for name in learned & set(state) if state[name].is_floating_point()}
    if len(kinds) == 1:  # a model saved in half precision comes back in it
        model.to(kinds.pop())
    state |= {name: state[first] for name, first in _shared(model).items() if first in state}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        lines = str(error).splitlines()[1:]
        shown = "\n".join(lines[:5]) + (f"\n... and {len(lines) - 5} more" if len(lines) > 5 else "")
        text = f"{path} does not hold the weights of {directory / FLAGS}:\n{shown}"
        raise ValueError(text) from None
    return model


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """By name, as safetensors; first to a temporary name."""
    from safetensors.torch import save

    _replace(path, save({name: tensor.contiguous() for name, tensor in tensors.items()}))


def load_tensors(path: Path, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """What `save_tensors` wrote.

    Raises:
        ValueError: naming a file that is missing or unreadable.
    """
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


def _shared(model: nn.Module) -> dict[str, str]:
    """Second names of parameters (tied embeddings) -> their first; only the first is stored."""
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    every = model.named_parameters(remove_duplicate=False)
    return {name: first[id(parameter)] for name, parameter in every if first[id(parameter)] != name}


def _read_flags(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist; `model.save(directory)` writes it") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{error.lineno} is not valid JSON: {error.msg}") from None
    except (OSError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    if not isinstance(record, dict) or not isinstance(record.get("flags"), dict):
        raise ValueError(f"{path} must hold an object with `schema` and `flags`; it is not one of ours")
    if record.get("schema") != SCHEMA:
        raise ValueError(
            f"{path} has schema {record.get('schema')!r}, but this version reads schema {SCHEMA}"
        )
    return record["flags"]


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(path.name + ".partial")
    with open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _is_plain(value: Any) -> bool:
    try:
        json.dumps(value)
    except TypeError:
        return False
    return True
