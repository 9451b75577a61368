"""Read a directory of `save_pretrained` into a model of flags."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flagformer.interop.hugging_face.errors import ConversionError
from flagformer.interop.hugging_face.family import Family, Instance, tensors_of
from flagformer.interop.hugging_face.files import CONFIG, DTYPES, WeightFiles, read_json
from flagformer.interop.hugging_face.nested import part_of
from flagformer.interop.hugging_face.parts import Tensors


@dataclass(frozen=True)
class Source:
    """The directory that a model was loaded from, as the attribute `source` of the model.

    Attributes:
        config: its `config.json`, or the `text_config` in it (see `nested`).
        dropped: names of tensors without a part in the function.
    """

    config: Mapping[str, Any]
    dropped: tuple[str, ...]


@dataclass(frozen=True)
class OpenDirectory:
    """A directory whose config and headers are read and checked, and its model without weights.

    Attributes:
        config: its `config.json`, or the `text_config` in it (see `nested`).
        architectures: the classes of transformers that `config.json` names.
        family: the table of the config's class.
        files: the names, shapes and dtypes of its tensors.
        model: on torch's meta device.
        own: the tensors of the model.
        wanted: the tensors of the files that the model needs.
        present: name in the table -> name in the file.
        dropped: names of tensors without a part in the function.
    """

    config: Mapping[str, Any]
    architectures: tuple[str, ...]
    family: Family
    files: WeightFiles
    model: Any
    own: Tensors
    wanted: list[Instance]
    present: Mapping[str, str]
    dropped: tuple[str, ...]


def open_directory(path: Path, part: str | None = None) -> OpenDirectory:
    """Read the config and the headers of a directory of transformers, and build its model on the meta device.

    No tensor is read, except where the files hold an output projection next to the embedding: these two are
    compared.

    Args:
        part: "text" or "vision" of a directory that holds several models; None: it holds one.

    Raises:
        ConversionError: names all fields and tensors that are missing, unknown or of another shape.
    """
    whole = read_json(path / CONFIG)
    found = part_of(whole, part)
    config, family = found.config, found.family
    files = WeightFiles(path)
    flags = family.flags_of(config, max(len(files.where), 1))
    inside = found.names(files.where)
    names = _names(family, inside)
    dropped = [name for name in names if any(re.fullmatch(pattern, name) for pattern in family.drop)]
    present = {name: there for name, there in names.items() if name not in dropped}
    if family.tied and _is_tied(family, present, files, config):
        flags |= family.tied_flags
        if present.pop(family.tied[0], None):
            dropped.append(family.tied[0])
    model = family.build(flags)
    own = tensors_of(model)
    wanted = family.instances(own, len(files.where))
    _refuse(family, wanted, present, files)
    dropped += sorted(set(files.where).difference(inside.values()))
    said = whole.get("architectures")
    classes = tuple(map(str, said)) if isinstance(said, list) else ()
    return OpenDirectory(config, classes, family, files, model, own, wanted, present, tuple(dropped))


def load_directory(path: Path, dtype: torch.dtype | None = None, part: str | None = None) -> Any:
    """The model of a directory that `save_pretrained` of transformers wrote. No code in it is executed.

    Names, shapes and dtypes are checked before any tensor is read; then tensors are read one at a time.

    Args:
        dtype: of all parameters; None: that of each tensor in the files.
        part: as in `open_directory`.

    Raises:
        ConversionError: names all fields and tensors that are missing, unknown or of another shape.
    """
    if dtype is not None and dtype not in DTYPES.values():
        raise ValueError(f"`dtype` must be a floating-point dtype of torch or None, but is {dtype!r}")
    opened = open_directory(path, part)
    model, own = opened.model, opened.own
    given = (opened.wanted, opened.present, opened.files)
    dtypes = _dtypes(own, *given)
    state = {
        name: torch.empty(
            tensor.shape, dtype=dtypes[name] if dtype is None or name in _buffers(model) else dtype
        )
        for name, tensor in own.state.items()
    }
    _copy(opened.family, *given, Tensors(own.parts, state, own.settings))
    model.load_state_dict(state, assign=True)
    model.source = Source(opened.config, opened.dropped)
    return model


def _buffers(model: Any) -> set[str]:
    return {name for name, _ in model.named_buffers()}


def _names(family: Family, inside: Mapping[str, str]) -> dict[str, str]:
    """Name in the table -> name in the files, for the tensors of a part of them."""
    bare = bool(family.prefix) and not any(name.startswith(family.prefix) for name in inside)
    found = {}
    for name, there in inside.items():
        for old, new in family.old.items():
            name = name.replace(old, new)
        found[family.prefix + name if bare and name not in family.tied else name] = there
    return found


def _is_tied(
    family: Family, present: Mapping[str, str], files: WeightFiles, config: Mapping[str, Any]
) -> bool:
    """Whether the output projection is the embedding: the file decides."""
    head, embedding = (present.get(name) for name in family.tied)
    if config.get("tie_word_embeddings") is False:
        return False
    if head is None or embedding is None:
        return head is None
    return files.shapes[head] == files.shapes[embedding] and torch.equal(
        files.get(head), files.get(embedding)
    )


def _refuse(family: Family, wanted: list[Instance], present: Mapping[str, str], files: WeightFiles) -> None:
    """Raise ConversionError for all tensors that are missing, unknown, or of another shape or dtype."""
    shapes = {one.name: one.shape for one in wanted}
    why = [f"tensor `{name}` is missing" for name in shapes if name not in present]
    why += [
        f"tensor `{there}` is not known to the table of {family.model_type}"
        for name, there in present.items()
        if name not in shapes
    ]
    for name, shape in shapes.items():
        if name in present:
            there = present[name]
            found, dtype = files.shapes[there], files.dtypes[there]
            if found != tuple(shape):
                why.append(f"tensor `{there}` has shape {list(found)}, but {list(shape)} by the config")
            if dtype not in DTYPES:
                why.append(f"tensor `{there}` must have a dtype of {', '.join(DTYPES)}, but has {dtype}")
    if why:
        raise ConversionError(why)


def _dtypes(
    own: Tensors, wanted: list[Instance], present: Mapping[str, str], files: WeightFiles
) -> dict[str, torch.dtype]:
    """The dtype of each tensor of the state dict; its parts in the file must agree."""
    found: dict[str, str] = {}
    why = []
    for one in wanted:
        there = present[one.name]
        for plain in one.rule.names():
            state = own.parts[plain.format(**one.place)].state
            if found.setdefault(state, files.dtypes[there]) != files.dtypes[there]:
                text = f"tensor `{there}` has dtype {files.dtypes[there]}, and others of the same parameter"
                why.append(f"{text} have {found[state]}: pass `dtype`")
    if why:
        raise ConversionError(why)
    return {state: DTYPES[dtype] for state, dtype in found.items()}


def _copy(
    family: Family, wanted: list[Instance], present: Mapping[str, str], files: WeightFiles, own: Tensors
) -> None:
    """Copy all tensors, in the order of the files; each number of the model is written once."""
    written: dict[str, int] = {}
    with torch.no_grad():
        for one in sorted(wanted, key=lambda one: files.where[present[one.name]]):
            tensor = files.get(present[one.name])
            count = 0
            for there, here, plain in one.rule.pairs(tensor, own, one.place):
                count += there.numel()
                if not plain:
                    _refuse_changed(one.name, there, here)
                    continue
                here.copy_(there)
                state = own.parts[plain].state
                written[state] = written.get(state, 0) + here.numel()
            assert count == tensor.numel(), f"the table of {family.model_type} reads a part of {one.name}"
    wrong = [name for name, tensor in own.state.items() if written.get(name) != tensor.numel()]
    assert not wrong, f"the table of {family.model_type} does not fill {wrong[:3]} exactly once"


def _refuse_changed(name: str, found: Tensor, constant: Tensor) -> None:
    if not torch.equal(found, constant):
        raise ConversionError([f"tensor `{name}` must hold {constant.tolist()}, but holds {found.tolist()}"])
