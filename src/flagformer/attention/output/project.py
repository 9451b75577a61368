"""The output projection (1706.03762, section 3.2.2), and attention on attention (1908.06954)."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flagformer.attention.output import Output
from flagformer.attention.projection.heads import AttnBias, has_bias
from flagformer.flags import Flag, component
from flagformer.flow import Dims
from flagformer.ops.linear import Linear

OutBias = Annotated[
    bool | None,
    Flag("attn_out_bias", "bias in the output projection; None: as `attn_bias`", example=True, neutral=True),
]


@component("output", paper="arXiv:1706.03762, section 3.2.2")
class Project(Linear, Output):
    """One projection of all heads, without bias by default."""

    def __init__(self, dims: Dims, *, bias: AttnBias = False, out_bias: OutBias = None) -> None:
        super().__init__(dims.heads * dims.dim_value, dims.dim, bias=has_bias(bias, out_bias))

    @property
    def last(self) -> Linear:
        return self


@component("output", select="attn_on_attn", paper="arXiv:1908.06954, section 3.1")
class AttentionOnAttention(nn.Module, Output):
    """A projection to 2 * D, whose second half gates the first by its sigmoid.

    Departure: the paper's gate also reads the query; this one only the outputs of the heads.
    """

    def __init__(self, dims: Dims, *, bias: AttnBias = False, out_bias: OutBias = None) -> None:
        super().__init__()
        self.project = Linear(dims.heads * dims.dim_value, 2 * dims.dim, bias=has_bias(bias, out_bias))
        self.register_load_state_dict_pre_hook(_rename_weight)

    @property
    def last(self) -> Linear:
        return self.project

    def init_neutral(self) -> float:
        """Start with the gate 1/2 for every token."""
        with torch.no_grad():
            for tensor in self.project.parameters():
                tensor[len(tensor) // 2 :].zero_()
        return 0.5

    def forward(self, heads: Tensor) -> Tensor:
        return F.glu(self.project(heads), dim=-1)


def _rename_weight(module: nn.Module, state: MutableMapping[str, Any], prefix: str, *_: Any) -> None:
    """Rename the weight of models saved by version 0.1 and earlier."""
    if f"{prefix}weight" in state:
        state[f"{prefix}project.weight"] = state.pop(f"{prefix}weight")
