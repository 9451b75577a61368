"""Write a model of flags as a directory that transformers reads."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flagformer.interop.hugging_face.errors import ConversionError
from flagformer.interop.hugging_face.families import family_of
from flagformer.interop.hugging_face.family import Instance, tensors_of
from flagformer.interop.hugging_face.files import CONFIG, INDEX, WEIGHTS
from flagformer.interop.hugging_face.parts import Tensors
from flagformer.interop.hugging_face.stacks import KINDS
from flagformer.storage.tensors import need_safetensors, replace_file

SHARD = 1 << 30  # bytes


def export(
    model: nn.Module,
    directory: str | Path,
    *,
    model_type: str | None = None,
    max_shard_bytes: int = SHARD,
) -> None:
    """Write `config.json` and safetensors files, which `from_pretrained` of transformers reads.

    The config is read again before any file is written: a flag that does not come back equal is refused.

    Args:
        model: built by flags, or loaded.
        directory: a new or empty one, or one without a config and weights.
        model_type: the family; None: that of the directory that the model was loaded from.
        max_shard_bytes: the largest size of a file; a larger tensor has a file of its own. As much memory is
            used in addition to the model.

    Raises:
        ConversionError: names the flags and tensors that have no place in the family.
        ValueError: for another kind of model, and for a directory that holds a config or weights.
    """
    need_safetensors()
    if not isinstance(model, KINDS):
        known = ", ".join(kind.__name__ for kind in KINDS)
        raise ValueError(f"`model` must be one of {known}, but is a {type(model).__name__}")
    source = getattr(model, "source", None)
    original: Mapping[str, Any] = {} if source is None else source.config
    if model_type is None and source is None:
        raise ValueError("`model_type` must be set for a model that was not loaded from such a directory")
    family = family_of(model_type or original["model_type"])
    own = tensors_of(model)
    family = family.of_kind(own.settings, original.get("architectures"))
    config = family.config_of(own.settings, original)
    instances = family.instances(own)
    path = Path(directory)
    _refuse_filled(path)
    _refuse_mixed(instances, own)
    path.mkdir(parents=True, exist_ok=True)
    _write_weights(path, instances, own, max_shard_bytes)
    replace_file(path / CONFIG, (json.dumps(config, indent=2, sort_keys=True) + "\n").encode())


def _refuse_filled(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise ValueError(f"`directory` must be a directory, but {path} is a file")
    found = [path / CONFIG, path / INDEX, *path.glob("*.safetensors")]
    there = [file for file in found if file.exists()]
    if there:
        raise ValueError(
            f"`directory` must hold no model, but {there[0]} exists: choose another, or remove it"
        )


def _dtypes(one: Instance, own: Tensors) -> set[torch.dtype]:
    return {own(name.format(**one.place)).dtype for name in one.rule.names()}


def _refuse_mixed(instances: list[Instance], own: Tensors) -> None:
    why = [
        f"tensor `{one.name}` is made of parts with several dtypes: convert the model to one"
        for one in instances
        if len(_dtypes(one, own)) > 1
    ]
    if why:
        raise ConversionError(why)


def _write_weights(path: Path, instances: list[Instance], own: Tensors, most: int) -> None:
    from safetensors.torch import save_file

    shards = _shards(instances, own, most)
    where: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = WEIGHTS if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {one.name: _file_tensor(one, own) for one in shard}
        partial = path / f"{name}.partial"  # a whole file replaces it, and a shard is in memory once
        save_file(tensors, partial, {"format": "pt"})
        os.replace(partial, path / name)
        where |= dict.fromkeys(tensors, name)
        del tensors  # before those of the next shard are made
    if len(shards) > 1:
        total = sum(_bytes(one, own) for one in instances)
        index: Mapping[str, Any] = {"metadata": {"total_size": total}, "weight_map": where}
        replace_file(path / INDEX, (json.dumps(index, indent=2) + "\n").encode())


def _shards(instances: list[Instance], own: Tensors, most: int) -> list[list[Instance]]:
    shards: list[list[Instance]] = [[]]
    room = most
    for one in instances:
        size = _bytes(one, own)
        if shards[-1] and size > room:
            shards.append([])
            room = most
        shards[-1].append(one)
        room -= size
    return shards


def _bytes(one: Instance, own: Tensors) -> int:
    return torch.Size(one.shape).numel() * next(iter(_dtypes(one, own))).itemsize


def _file_tensor(one: Instance, own: Tensors) -> Tensor:
    tensor = torch.empty(one.shape, dtype=next(iter(_dtypes(one, own))))
    for there, here, _ in one.rule.pairs(tensor, own, one.place):
        there.copy_(here.detach())
    return tensor
