"""Mixers that scan a matrix state: gated DeltaNet and Mamba 2."""

from __future__ import annotations

from flagformer.flow import Dims
from flagformer.mixer import Mixer, StateField
from flagformer.mixer.convolution import CausalConvolution
from flagformer.mixer.sizes import check_groups


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
