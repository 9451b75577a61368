"""Gated DeltaNet (arXiv:2412.06464)."""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flagformer.flags import Flag, component
from flagformer.flow import Dims
from flagformer.mixer import State
from flagformer.mixer.convolution import CausalConvolution
from flagformer.mixer.decay import Decay
from flagformer.mixer.scan import ScanInputs
from flagformer.mixer.scan_mixer import ScanMixer
from flagformer.mixer.sizes import CAUSAL, Chunk, DimKey, DimValue, Heads, Kernel, KeyGroups, NormEps
from flagformer.mixer.tokens import BlockTokens, Compaction
from flagformer.ops.full_precision import accum_dtype
from flagformer.ops.linear import Linear

EPS = 1e-6


class HeadNorm(nn.Module):
    """RMS norm of each head with one weight [V] for all heads; silu(gate) multiplies its output."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        """x [B, T, H, V] in fp32, gate [B, T, H V] -> [B, T, H V] in the dtype of the gate."""
        x = x * (x.square().mean(dim=-1, keepdim=True) + self.eps).rsqrt()
        out = (self.weight * x.to(gate.dtype)).flatten(2)
        return (out * F.silu(gate.to(x.dtype))).to(gate.dtype)


@component(
    "sequence_mixer", select="mixer", when="gated_deltanet", paper="arXiv:2412.06464", requires=[CAUSAL]
)
class GatedDeltaNet(ScanMixer):
    """Gated DeltaNet: a state [H, K, V] that decays by a gate and is corrected by the delta rule.

    Queries, keys and values pass a causal convolution and SiLU; queries and keys have length 1. The state is
    kept in fp32, the last W - 1 inputs of the convolution in the dtype of the model.
    """

    def __init__(
        self,
        dims: Dims,
        *,
        heads: Heads = None,
        dim_key: DimKey = None,
        dim_value: DimValue = None,
        key_groups: KeyGroups = None,
        kernel: Kernel = 4,
        chunk: Chunk = 32,
        norm_eps: NormEps = None,
        rate: Annotated[
            float,
            Flag(
                "mixer_delta_rate",
                "largest rate of the delta rule; 2 allows the state negative eigenvalues (OLMo hybrid)",
                ge=1e-6,
                example=2.0,
            ),
        ] = 1.0,
    ) -> None:
        heads = heads or dims.heads
        super().__init__(dims, heads, key_groups or heads, dim_key, dim_value, chunk)
        keys, values = self.groups * self.dim_key, self.heads * self.dim_value
        self.widths = [keys, keys, values]
        self.to_qkv = nn.Linear(dims.dim, sum(self.widths), bias=False)
        self.to_gate = nn.Linear(dims.dim, values, bias=False)
        self.to_beta = nn.Linear(dims.dim, self.heads, bias=False)
        self.to_step = nn.Linear(dims.dim, self.heads, bias=False)
        self.convolution = CausalConvolution(sum(self.widths), kernel)
        self.decay = Decay(self.heads)
        self.rate = float(rate)
        self.norm = HeadNorm(self.dim_value, EPS if norm_eps is None else float(norm_eps))
        self.w_out = Linear(values, dims.dim, bias=False)

    def mix(self, x: Tensor, tokens: BlockTokens, state: State) -> tuple[Tensor, dict[str, Tensor]]:
        rows = Compaction(tokens)
        x = rows.compact(x)
        mixed, tail = self.convolution(self.to_qkv(x), state["tail"], rows)
        dtype = accum_dtype(x.dtype)
        q, k, v = F.silu(mixed).to(dtype).split(self.widths, dim=-1)
        q, k = (_unit(part.unflatten(-1, (self.groups, -1))) for part in (q, k))
        v = v.unflatten(-1, (self.heads, -1))
        beta = rows.only_valid(self.to_beta(x).to(dtype).sigmoid() * self.rate)
        decay = rows.only_valid(self.decay(self.to_step(x))[1])
        inputs = ScanInputs(q * self.dim_key**-0.5, k, v, decay, beta, rows.starts)
        out, new = self.scan(inputs, state["state"], mixed.dtype)
        out = self.w_out(self.norm(out, self.to_gate(x)))
        return rows.restore(out), {"state": new, "tail": tail}


def _unit(x: Tensor) -> Tensor:
    """[..., K], of length 1; zeros stay zeros."""
    return x * (x.square().sum(dim=-1, keepdim=True) + EPS).rsqrt()
