"""Product-key memory (arXiv:1907.05242): a feedforward that looks up values in a large table."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import torch
from product_key_memory.product_key_memory import PKM, init_
from torch import Tensor, nn

from flagformer.feedforward import Activation, FeedForward
from flagformer.feedforward.dense import Dropout
from flagformer.flags import Flag, component
from flagformer.flow import Dims, SideInputs
from flagformer.ops.full_precision import no_autocast
from flagformer.ops.reset import reset

TOPK, HEADS, WIDTH = 32, 4, 128  # defaults of the package: selected keys, heads, width of a half key


@component(
    "feedforward",
    select="ff_pkm",
    paper="arXiv:1907.05242, section 3",
    lacks={"output_projection": "it has no output projection: its output is a sum of stored values"},
)
class ProductKeys(FeedForward):
    """Weighted sum of the values of the top-k of N ** 2 keys, found as pairs of N half keys.

    Computed by the `product-key-memory` package, in the dtype of the weights also under autocast. Departure:
    LayerNorm of the queries in place of BatchNorm, which would mix tokens.
    """

    reads_activation = False

    def __init__(
        self,
        dims: Dims,
        activation: Activation,
        *,
        keys: Annotated[
            int,
            Flag("pkm_num_keys", "number N of half keys of a product-key memory with N ** 2 values", ge=2),
        ] = 128,
        dropout: Dropout = 0.0,
    ) -> None:
        super().__init__()
        device = torch.get_default_device()
        with torch.device("meta"):  # saves time: the package initialises its values twice
            memory = Lookup(dims.dim, keys, dropout)
        self.memory = memory.to_empty(device=device)
        reset(self.memory)

    def forward(self, x: Tensor, side: SideInputs) -> Tensor:
        # the embedding bag of the package needs weights and values of one dtype
        with no_autocast(x.device):
            return self.memory(x.to(self.memory.keys.dtype)).to(x.dtype)


class Lookup(PKM):
    """The memory of the package, with `reset_parameters`."""

    def __init__(self, dim: int, keys: int, dropout: float) -> None:
        super().__init__(
            dim,
            heads=HEADS,
            num_keys=keys,
            topk=min(TOPK, keys),
            dim_head=WIDTH,
            value_dropout=dropout,
        )
        self.values = Values(self.num_memories, dim, mode="sum")

    def reset_parameters(self) -> None:
        init_(self.keys)


class Values(nn.EmbeddingBag):
    """The stored values, initialised as in the package."""

    def reset_parameters(self) -> None:
        init_(self.weight)


def parameter_groups(model: nn.Module, lr: float) -> list[dict[str, Any]]:
    """Return parameter groups for an optimizer: the values of product-key memories with `lr`, and the rest.

    Each value is looked up by few tokens; the paper's code uses 1e-3 for values and 2.5e-4 for the rest.
    """
    values = {id(value) for value in _values(model)}
    rest = [p for p in model.parameters() if id(p) not in values]
    groups: list[dict[str, Any]] = [{"params": rest}]
    return [*groups, {"params": list(_values(model)), "lr": lr}] if values else groups


def _values(model: nn.Module) -> Iterator[nn.Parameter]:
    for module in model.modules():
        if isinstance(module, ProductKeys):
            yield module.memory.values.weight
