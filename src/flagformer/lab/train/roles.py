"""The role of each parameter of a model, for rates and weight decay of their own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

from torch import nn

from flagformer.head import Head
from flagformer.memory import SlotMemory
from flagformer.norm import Norm
from flagformer.stack.layers import AttentionLayers

Role = Literal["embedding", "matrix", "head", "norm", "bias", "vector"]
ROLES: dict[Role, str] = {
    "embedding": "tables of tokens and positions, and projections of inputs",
    "matrix": "weights of linear layers between embedding and head",
    "head": "the projection to outputs, where it is not the embedding",
    "norm": "gains and biases of norms",
    "bias": "other biases",
    "vector": "all others: gains, biases of positions, learned keys",
}
LAYERS = (AttentionLayers, SlotMemory)
EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
NORMS = (Norm, nn.LayerNorm, nn.RMSNorm)
HEADS = ("head", "project_out")  # attributes of whole models
MATRICES = ("weight", "w_")  # how the names of matrices begin: of linears, of experts


class Named(NamedTuple):
    """A parameter with its name in the model and its role."""

    name: str
    parameter: nn.Parameter
    role: Role


def roles_of(model: nn.Module) -> list[Named]:
    """Return all parameters, shared ones once, in the order of `model.named_parameters()`."""
    found: dict[int, Named] = {}
    for one in _walk(model, "", "embedding"):
        found.setdefault(id(one.parameter), one)
    return list(found.values())


def _walk(module: nn.Module, prefix: str, place: Role) -> Iterator[Named]:
    for name, parameter in module.named_parameters(recurse=False):
        yield Named(prefix + name, parameter, _role(module, name, parameter, place))
    for name, child in module.named_children():
        yield from _walk(child, f"{prefix}{name}.", _place(name, child, place))


def _place(name: str, child: nn.Module, place: Role) -> Role:
    """Return the role of the matrices of a child."""
    if place == "matrix" or isinstance(child, LAYERS):
        return "matrix"
    return "head" if isinstance(child, Head) or name in HEADS else place


def _role(owner: nn.Module, name: str, parameter: nn.Parameter, place: Role) -> Role:
    if isinstance(owner, NORMS):
        return "norm"
    if "bias" in name:
        return "bias"
    if isinstance(owner, EMBEDDINGS):
        return "embedding"
    if parameter.ndim < 2:
        return "vector"
    return "vector" if place == "matrix" and not name.startswith(MATRICES) else place
