"""The bucketed relative position bias of T5 (arXiv:1910.10683)."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor, nn

from flagformer.flags import Finding, Flag, FlagError, component
from flagformer.flow import Dims
from flagformer.ops.buckets import t5_bucket
from flagformer.ops.full_precision import accum_dtype
from flagformer.position import DistanceBias


@component("position_bias", select="rel_pos_bias", paper="arXiv:1910.10683", needs={"learned_bias"})
class T5(DistanceBias):
    """A learned number per head and bucket of distances, shared by all layers.

    Scaled by sqrt(K) by default, as T5's scores are not scaled down. The table starts at zero: a random one
    cost 0.5 bits per byte after 400 steps of a small byte model.
    """

    def __init__(
        self,
        dims: Dims,
        *,
        buckets: Annotated[int, Flag("rel_pos_num_buckets", "how many buckets", ge=4, lt=2**20)] = 32,
        max_distance: Annotated[
            int, Flag("rel_pos_max_distance", "distances from here on share the last bucket", ge=2)
        ] = 128,
        scale: Annotated[
            float | None,
            Flag(
                "rel_pos_bias_scale",
                "factor of the table; None: K ** 0.5 (T5: 1, with `attn_scale=1`)",
                ge=1e-6,
                example=1.0,
            ),
        ] = None,
    ) -> None:
        super().__init__()
        exact = buckets // 2 if dims.causal else buckets // 4
        if max_distance <= exact:
            text = f"`rel_pos_max_distance` must exceed the {exact} distances with a bucket of their own"
            raise FlagError([Finding("rel_pos_max_distance", f"{text}, but is {max_distance}")])
        self.buckets, self.max_distance, self.causal = buckets, max_distance, dims.causal
        self.saturation_distance = max_distance
        self.path_changes_at = (max_distance,)
        self.scale = dims.dim_head**0.5 if scale is None else float(scale)
        self.table = nn.Parameter(torch.empty(buckets, dims.heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.table)

    def init_neutral(self) -> float:
        self.reset_parameters()
        return 1.0

    def forward(self, distance: Tensor) -> Tensor:
        table = (
            self.table.to(accum_dtype(self.table.dtype)) * self.scale
        )  # a model in half precision rounds it once
        return table[t5_bucket(distance, self.buckets, self.max_distance, self.causal)]
