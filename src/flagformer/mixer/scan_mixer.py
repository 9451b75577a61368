"""Mixers that scan a matrix state: gated DeltaNet and Mamba 2."""

from __future__ import annotations

import torch
from torch import Tensor

from flagformer.flow import Dims
from flagformer.mixer import Mixer, StateField
from flagformer.mixer.convolution import CausalConvolution
from flagformer.mixer.kernels import flash_linear_attention
from flagformer.mixer.scan import ScanInputs, scan
from flagformer.mixer.sizes import check_groups
from flagformer.ops.home import home_of


class ScanMixer(Mixer):
    """Base of mixers with a state [H, K, V] that a scan reads and writes, after a causal convolution.

    Attributes:
        heads: H.
        groups: G, the groups of heads that share keys and queries.
        dim_key: K.
        dim_value: V.
        widths: the parts of the convolution's dimensions.
    """

    convolution: CausalConvolution
    widths: list[int]

    def __init__(
        self, dims: Dims, heads: int, groups: int, dim_key: int | None, dim_value: int | None, chunk: int
    ) -> None:
        super().__init__()
        self.dim, self.heads, self.chunk = dims.dim, heads, chunk
        self.groups = check_groups(groups, heads)
        self.dim_key, self.dim_value = dim_key or dims.dim_head, dim_value or dims.dim_head

    def fields(self) -> dict[str, StateField]:
        return {
            "state": StateField((self.heads, self.dim_key, self.dim_value), full=True),
            "tail": StateField((self.convolution.kernel - 1, sum(self.widths))),
        }

    def scan(self, inputs: ScanInputs, state: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Compute the outputs by the kernels of flash-linear-attention where they run, else in plain torch.

        Args:
            dtype: of the queries, keys and values, before they are cast to that of the state.
        """
        if flash_linear_attention.refusal(state.device, dtype, self.dim_key):
            return scan(inputs, state, self.chunk)
        return flash_linear_attention.scan(inputs, state, dtype)

    def kernel(self) -> str:
        reason = flash_linear_attention.refusal(*home_of(self), self.dim_key)
        if reason:
            return f"plain torch, in chunks of {self.chunk} tokens: {reason}"
        return "flash-linear-attention: CUDA in half precision"
