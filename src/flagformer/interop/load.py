"""`flagformer.load`: directories of this library, and those of `save_pretrained` of transformers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from flagformer.flags import allowed_modules
from flagformer.interop.graft import graft
from flagformer.interop.hugging_face.errors import ConversionError
from flagformer.interop.hugging_face.files import CONFIG, read_json
from flagformer.interop.hugging_face.own import MODEL_TYPE, load_own, own_flags
from flagformer.interop.hugging_face.read import OpenDirectory, load_directory, open_directory
from flagformer.models import build as models
from flagformer.storage.models import FLAGS, WEIGHTS, load_model, saved_flags
from flagformer.storage.tensors import load_metadata

T = TypeVar("T")


def load(
    directory: str | Path,
    *,
    allow: Sequence[str] = (),
    dtype: torch.dtype | None = None,
    part: str | None = None,
    **flags: Any,
) -> Any:
    """Load a model that `model.save(directory)` wrote, or `save_pretrained` of transformers.

    No code in the files is executed. A published model is one of the families of `docs/reference/models.md`;
    its config becomes flags, and its tensors are read one at a time. A directory of a `FlagformerForCausalLM`
    gives its model of flags.

    Args:
        allow: modules or packages from which the flags may name classes by import path
            (`norm: "mylab.norms:MyNorm"`); they are imported, which executes them.
        dtype: of all parameters; None: that of the files.
        part: "text" or "vision", for a published directory of several models (CLIP, LLaVA): the one of
            `text_config` or `vision_config`. `export` writes it as a model of its own.
        **flags: grafted onto the model: they replace its own, and new parameters start without effect where
            that is possible. `model.graft` names all tensors that were kept, grown or initialised, and the
            flags that change the function from the start.

    Raises:
        FlagError: for flags that exclude each other or those of the directory, or that cannot be grafted.
        ValueError: for a directory of something else, damaged files, a module that `allow` does not list,
            and for a published model with config fields or tensors that have no place; it names them all.
    """
    path = Path(directory)
    with allowed_modules(allow):
        model = open_model(path, dtype, part)
        return graft(model, flags, str(path)) if flags else model


def open_model(path: Path, dtype: torch.dtype | None = None, part: str | None = None) -> Any:
    """The model of a directory with its own flags; as `load`, with the modules that the caller allows."""
    if not is_published(path):
        if part is not None:
            raise ValueError(f"`part` must be None, because {path} holds one model, but is {part!r}")
        model = load_model(path, models.build)
        return model if dtype is None else model.to(dtype)

    def read(config: Mapping[str, Any]) -> Any:
        if config.get("model_type") != MODEL_TYPE:
            return load_directory(path, dtype, part)
        own = load_own(path, config)
        return own if dtype is None else own.to(dtype)

    return _with_names(path, read)


def meta_model(path: Path) -> Any:
    """The model of a directory on torch's meta device; of weights, only headers are read.

    Raises:
        ValueError: as `load`.
    """
    if is_published(path):
        config = read_json(path / CONFIG)
        if config.get("model_type") != MODEL_TYPE:
            return open_published(path).model
        flags = own_flags(config)
    else:
        flags = saved_flags(path, models.build)
    with torch.device("meta"):
        return models.build(flags)


def open_published(path: Path) -> OpenDirectory:
    """A directory of transformers in flags, with a model on torch's meta device; see `open_directory`.

    Raises:
        ConversionError: with the directory and the family.
    """
    return _with_names(path, lambda config: open_directory(path))


def _with_names(path: Path, read: Callable[[Mapping[str, Any]], T]) -> T:
    """The result for the config; the errors name the directory and its `model_type`."""
    config = read_json(path / CONFIG)
    try:
        return read(config)
    except ConversionError as error:
        what = f"{path}, a Hugging Face model ({config.get('model_type')}), cannot be loaded"
        raise ConversionError(error.reasons, what) from None


def is_published(path: Path) -> bool:
    """Whether a directory holds a model of transformers."""
    own = (path / FLAGS).exists() or bool(load_metadata(path / WEIGHTS).get("flags"))
    return (path / CONFIG).is_file() and not own
