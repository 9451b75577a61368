"""The recurrent block of Griffin, with its real-gated linear recurrent unit (arXiv:2402.19427)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flagformer.flags import component
from flagformer.flow import Dims
from flagformer.mixer import BlockTokens, Mixer, State, StateField
from flagformer.mixer.convolution import CausalConvolution
from flagformer.mixer.diagonal import diagonal_scan
from flagformer.mixer.sizes import CAUSAL, Chunk, DimValue, Heads, Kernel
from flagformer.mixer.tokens import Compaction
from flagformer.ops.full_precision import accum_dtype, without_casts
from flagformer.ops.linear import Linear

POWER = 8.0  # c in the paper
FACTORS = (0.9, 0.999)  # of the state of a new layer, at a gate of 1


class BlockGate(nn.Module):
    """sigmoid(x W + b), with a matrix W [V, V] for each of H blocks of dimensions."""

    def __init__(self, heads: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(heads, width, width))
        self.bias = nn.Parameter(torch.empty(heads, width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal with variance 1 / V, and zero."""
        nn.init.normal_(self.weight, std=self.weight.shape[1] ** -0.5)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, H V] -> [B, T, H V], computed in fp32 (fp64 for fp64): errors of a decay add up."""
        blocks = x.to(accum_dtype(x.dtype)).unflatten(-1, self.bias.shape)
        with without_casts(x.device):
            out = torch.einsum("bthv,hvw->bthw", blocks, self.weight.to(blocks.dtype))
        return (out + self.bias.to(out.dtype)).sigmoid().flatten(-2)


class GatedDecay(nn.Module):
    """The logarithm of the state's factor, -c softplus(rate) gate, for each of R dimensions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.empty(width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Factors uniform in 0.9 ... 0.999 at a gate of 1."""
        with torch.no_grad():
            self.rate.uniform_(*FACTORS).log_().div_(-POWER).expm1_().log_()  # the inverse of softplus

    def forward(self, gate: Tensor) -> Tensor:
        return -POWER * F.softplus(self.rate.to(gate.dtype)) * gate


@component("sequence_mixer", select="mixer", when="rglru", paper="arXiv:2402.19427", requires=[CAUSAL])
class RGLRU(Mixer):
    """Griffin's recurrent block: a state [R] that decays by a gate in each dimension (RG-LRU).

    R = H V, for H heads of width V; the gates have a matrix [V, V] for each head. The state is kept in fp32,
    the last W - 1 inputs of the convolution in the dtype of the model.
    """

    def __init__(
        self,
        dims: Dims,
        *,
        heads: Heads = None,
        dim_value: DimValue = None,
        kernel: Kernel = 4,
        chunk: Chunk = 32,
    ) -> None:
        super().__init__()
        heads, width = heads or dims.heads, dim_value or dims.dim_head
        self.dim, self.inner, self.chunk = dims.dim, heads * width, chunk
        self.to_gate = nn.Linear(dims.dim, self.inner)
        self.to_inner = nn.Linear(dims.dim, self.inner)
        self.convolution = CausalConvolution(self.inner, kernel, bias=True)
        self.input_gate, self.recurrence_gate = BlockGate(heads, width), BlockGate(heads, width)
        self.decay = GatedDecay(self.inner)
        self.w_out = Linear(self.inner, dims.dim)

    def fields(self) -> dict[str, StateField]:
        return {
            "state": StateField((self.inner,), full=True),
            "tail": StateField((self.convolution.kernel - 1, self.inner)),
            "started": StateField((1,), full=True),  # 1 after the first token
        }

    def mix(self, x: Tensor, tokens: BlockTokens, state: State) -> tuple[Tensor, dict[str, Tensor]]:
        rows = Compaction(tokens)
        x = rows.compact(x)
        gate = F.gelu(self.to_gate(x), approximate="tanh")
        inner, tail = self.convolution(self.to_inner(x), state["tail"], rows)
        decay = rows.only_valid(self.decay(self.recurrence_gate(inner)))
        scale = _input_scale(decay).masked_fill(_first(rows, state["started"], x), 1.0)
        added = rows.only_valid(scale * self.input_gate(inner) * inner.to(decay.dtype))
        out, new = diagonal_scan(decay, added, state["state"], self.chunk, rows.starts)
        started = torch.ones_like(state["started"])
        if rows.counts is not None:
            started = torch.where(rows.counts[:, None] > 0, started, state["started"])
        out = self.w_out(out.to(gate.dtype) * gate)
        return rows.restore(out), {"state": new, "tail": tail, "started": started}


def _input_scale(decay: Tensor) -> Tensor:
    """sqrt(1 - a ** 2) for a = exp(decay), so that the state keeps the size of its inputs.

    The derivative of the root is infinite at decay 0, that of padding.
    """
    return (-torch.expm1(2 * decay)).clamp(min=torch.finfo(decay.dtype).tiny).sqrt()


def _first(rows: Compaction, started: Tensor, x: Tensor) -> Tensor:
    """[B, T, 1] bool, True for the first token of a row or document, in compacted rows x [B, T, D]."""
    first = (torch.arange(x.shape[1], device=x.device) == 0) & (started == 0)
    return (first if rows.starts is None else first | rows.starts)[..., None]
