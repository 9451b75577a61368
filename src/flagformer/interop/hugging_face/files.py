"""Directories of safetensors files: names, shapes and dtypes from their headers, tensors one at a time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flagformer.interop.hugging_face.errors import ConversionError
from flagformer.storage.tensors import HEADERS, need_safetensors

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
LARGEST_JSON = 256 << 20  # bytes
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; ConversionError for anything else."""
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise ConversionError([f"{path} has more than {LARGEST_JSON >> 20} MiB"])
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, ConversionError):
            raise
        raise ConversionError([f"{path} cannot be read as JSON: {error}"]) from None
    if not isinstance(content, dict):
        raise ConversionError([f"{path} must hold an object, but holds a {type(content).__name__}"])
    return content


class WeightFiles:
    """The tensors of a directory.

    Attributes:
        where: name of a tensor -> name of its file.
        shapes, dtypes: of each tensor; dtypes as safetensors writes them ("BF16").

    Raises:
        ConversionError: for a file that is missing, truncated, outside the directory or no safetensors file.
    """

    def __init__(self, path: Path) -> None:
        need_safetensors()
        from safetensors import SafetensorError, safe_open

        self.path = path
        self.where: dict[str, str] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        self._open: dict[str, Any] = {}
        for name in self._names():
            try:
                file = safe_open(path / name, HEADERS)
            except (SafetensorError, OSError) as error:
                raise ConversionError([f"{path / name} cannot be read: {error}"]) from None
            for key in file.keys():  # noqa: SIM118
                if key in self.where:
                    raise ConversionError([f"tensor `{key}` is in {self.where[key]} and in {name}"])
                part = file.get_slice(key)
                self.where[key] = name
                self.shapes[key], self.dtypes[key] = tuple(part.get_shape()), part.get_dtype()

    def _names(self) -> list[str]:
        index = self.path / INDEX
        if not index.exists():
            if not (self.path / WEIGHTS).exists():
                raise ConversionError([_no_weights(self.path)])
            return [WEIGHTS]
        found = read_json(index).get("weight_map")
        if not isinstance(found, dict) or not found:
            raise ConversionError([f"{index} has no `weight_map`"])
        for name in found.values():
            if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
                text = f"{index} names {name!r}, which is no safetensors file of its directory"
                raise ConversionError([text])
        return sorted(set(found.values()))

    def get(self, name: str) -> Tensor:
        """A tensor; its pages belong to the mapped file."""
        from safetensors import safe_open

        file = self.where[name]
        if file not in self._open:
            self._open[file] = safe_open(self.path / file, "pt")
        tensor: Tensor = self._open[file].get_tensor(name)
        return tensor


def _no_weights(path: Path) -> str:
    found = sorted(file.name for pattern in PICKLES for file in path.glob(pattern))
    if found:
        text = f"{path} has no {WEIGHTS} but {found[0]}, a pickle, which could execute code"
        return f"{text}: convert it with `save_pretrained` of transformers"
    return f"{path} has neither {WEIGHTS} nor {INDEX}"
