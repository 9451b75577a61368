"""Check that a model equals the one that its flags build, so that flags and weights restore it."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from flagformer.stack.layers import AttentionLayers, CrossAttender, Decoder, Encoder

# Names of one class, which differ in the flags that they fix.
ONE_CLASS = (AttentionLayers, Encoder, Decoder, CrossAttender)
SHOWN = 6  # differences
WAYS = (
    "merge or remove adapters, parametrizations and pruning masks first, build a model of other sizes by its"
    " flags and copy the weights into it, or save `model.state_dict()` and build the model in code"
)


def refuse_changed(
    model: nn.Module, flags: Mapping[str, Any], build: Callable[[Mapping[str, Any]], nn.Module]
) -> None:
    """Raise ValueError if `build` builds another model from the flags: other classes, tensors or ties."""
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again = build(json.loads(json.dumps(flags)))
    if type(model) is not type(again):
        raise ValueError(
            f"a {type(model).__name__} cannot be saved, because `load` would make a {type(again).__name__} of"
            " its flags: save `model.state_dict()` and build the model in code"
        )
    found = [*_classes(model, again), *_tensors(model, again), *_ties(model, again)]
    if found:
        more = [f"... and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
        lines = "\n".join(f"- {line}" for line in [*found[:SHOWN], *more])
        raise ValueError(
            f"this model cannot be saved, because it was changed since its flags built it:\n{lines}\n{WAYS}"
        )


def second_names(model: nn.Module) -> dict[str, str]:
    """Second names of parameters (tied embeddings) -> their first."""
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    every = model.named_parameters(remove_duplicate=False)
    return {name: first[id(parameter)] for name, parameter in every if first[id(parameter)] != name}


def _classes(model: nn.Module, again: nn.Module) -> Iterator[str]:
    here, there = (dict(one.named_modules(remove_duplicate=False)) for one in (model, again))
    for name, module in here.items():
        if name not in there:
            # modules inside a module of another class are not listed
            if name.rpartition(".")[0] in there and _same(here, there, name.rpartition(".")[0]):
                yield f"`{name}`, a {type(module).__name__}, is not part of the model of its flags"
        elif not _same(here, there, name):
            mine, theirs = _names(type(module), type(there[name]))
            yield f"`{name}` is a {mine}, but a {theirs} by its flags"
        else:
            yield from _functions(name, module, there[name])
    yield from (f"`{name}` is missing" for name in there if name not in here)


def _names(mine: type, theirs: type) -> tuple[str, str]:
    """Return the names of two classes, with their modules if the names are equal."""
    if mine.__name__ != theirs.__name__:
        return mine.__name__, theirs.__name__
    return f"{mine.__module__}.{mine.__name__}", f"{theirs.__module__}.{theirs.__name__}"


def _same(here: Mapping[str, nn.Module], there: Mapping[str, nn.Module], name: str) -> bool:
    kinds = type(here[name]), type(there[name])
    return kinds[0] is kinds[1] or all(kind in ONE_CLASS for kind in kinds)


def _functions(name: str, module: nn.Module, other: nn.Module) -> Iterator[str]:
    """Functions used as modules, such as an activation."""
    for key, theirs in vars(other).items():
        mine = vars(module).get(key, getattr(module, key, None))
        if not callable(theirs) or isinstance(theirs, (type, nn.Module)):
            continue
        if type(mine) is not type(theirs) or (isinstance(theirs, FunctionType) and mine is not theirs):
            yield f"`{name}.{key}` is {mine!r}, but {theirs!r} by its flags"


def _tensors(model: nn.Module, again: nn.Module) -> Iterator[str]:
    here, there = model.state_dict(), again.state_dict()
    for name, tensor in here.items():
        if not isinstance(tensor, Tensor):
            yield f"`{name}` is a {type(tensor).__name__}, not a tensor"
        elif name not in there:
            yield f"`{name}` is a tensor that is not part of the model of its flags"
        elif tensor.shape != there[name].shape:
            yield f"`{name}` has shape {list(tensor.shape)}, but {list(there[name].shape)} by its flags"
        elif type(tensor) not in (Tensor, nn.Parameter):
            yield f"`{name}` is a {type(tensor).__name__}, which safetensors does not support"
        elif tensor.is_meta:
            yield f"`{name}` is on the meta device and has no values"
    yield from (f"`{name}` is missing" for name in there if name not in here)


def _ties(model: nn.Module, again: nn.Module) -> Iterator[str]:
    here, there = second_names(model), second_names(again)
    for name in here.keys() - there.keys():
        yield f"`{name}` is the same parameter as `{here[name]}`, which its flags do not tie"
    for name in there.keys() - here.keys():
        yield f"`{name}` is another parameter than `{there[name]}`, which its flags tie"
