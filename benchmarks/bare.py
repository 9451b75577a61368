"""A decoder in plain torch, written by hand: the practical limit for comparisons.

In the manner of nanoGPT, gpt-fast and the Llama reference code: one fused qkv projection, rotation as one
complex multiplication of neighbouring pairs, `scaled_dot_product_attention` with `is_causal`, one fused
gate/value projection. No mask where none is needed, no flags, no hooks. Where two plain forms exist, the one
measured faster on a CPU is used: RMSNorm by `vector_norm` instead of `F.rms_norm`, complex rotation instead
of halves, ALiBi as a cached float mask, the T5 bias as a mask with gradient.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FAMILIES = ("llama", "absolute", "alibi", "t5")
# Timed in training on long rows only, and without a bare form.
LONG_FAMILIES = ("dynamic", "window", "prefix_kv")
WINDOW, NUM_PREFIX_KV = 256, 16
T5_BUCKETS, T5_DISTANCE = 32, 128


@dataclass(frozen=True)
class Size:
    """The sizes of every contender; `inner` is the feedforward dimension."""

    family: str
    dim: int = 512
    depth: int = 6
    heads: int = 8
    length: int = 1024
    vocab: int = 256

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads

    @property
    def inner(self) -> int:
        return self.dim * self.ff_mult

    @property
    def ff_mult(self) -> int:
        return 3 if self.family == "llama" else 4  # Llama's rule: 8/3 dim, rounded up to a multiple of 256


def t5_bucket(distance: Tensor) -> Tensor:
    """The bucket of each backward distance: exact up to half the buckets, then logarithmic."""
    exact = T5_BUCKETS // 2
    scaled = torch.log(distance.clamp(min=1).float() / exact) / math.log(T5_DISTANCE / exact)
    far = (exact + (scaled * (T5_BUCKETS - exact)).long()).clamp(max=T5_BUCKETS - 1)
    return torch.where(distance < exact, distance, far)


def alibi_slopes(heads: int) -> Tensor:
    return torch.tensor([2.0 ** (-8.0 * (head + 1) / heads) for head in range(heads)])


class Block(nn.Module):
    """One pre-norm block: attention, then feedforward."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        dim, inner = size.dim, size.inner
        self.heads, self.llama = size.heads, size.family == "llama"
        self.attn_norm, self.ff_norm = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.ones(dim))
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        self.up = nn.Linear(dim, 2 * inner if self.llama else inner, bias=not self.llama)
        self.down = nn.Linear(inner, dim, bias=not self.llama)

    def norm(self, x: Tensor, weight: Tensor) -> Tensor:
        if self.llama:
            length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
            return x * (weight * (x.shape[-1] ** 0.5 / (length + 1e-6)))
        return F.layer_norm(x, weight.shape, weight)

    def heads_of(self, x: Tensor, rotation: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v as [B, H, T, K]; q and k rotated by the complex numbers in `rotation` [T, 1, 1, K/2]."""
        batch, time, dim = x.shape
        qkv = self.qkv(x).view(batch, time, 3, self.heads, dim // self.heads)
        if rotation is None:
            return qkv.permute(2, 0, 3, 1, 4).unbind(0)
        qk, v = qkv.split((2, 1), dim=2)
        pairs = torch.view_as_complex(qk.unflatten(-1, (-1, 2)))
        qk = torch.view_as_real(pairs * rotation).flatten(-2)
        q, k = qk.permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, v.squeeze(2).transpose(1, 2)

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """Add the attention's output [B, H, T, K] and the feedforward's to the stream."""
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        hidden = self.up(self.norm(x, self.ff_norm))
        if self.llama:
            gate, value = hidden.chunk(2, dim=-1)
            return x + self.down(F.silu(gate) * value)
        return x + self.down(F.gelu(hidden))

    def forward(self, x: Tensor, rotation: Tensor | None, bias: Tensor | None) -> Tensor:
        q, k, v = self.heads_of(self.norm(x, self.attn_norm), rotation)
        return self.finish(x, F.scaled_dot_product_attention(q, k, v, bias, is_causal=bias is None))


class Bare(nn.Module):
    """`logits = model(ids)`; ids [B, T] -> [B, T, V]."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.size = size
        self.embed = nn.Embedding(size.vocab, size.dim)
        self.blocks = nn.ModuleList(Block(size) for _ in range(size.depth))
        self.final_norm = nn.Parameter(torch.ones(size.dim))
        self.head = nn.Linear(size.dim, size.vocab, bias=False)
        steps = torch.arange(size.length)
        if size.family == "absolute":
            self.positions = nn.Embedding(size.length, size.dim)
        if size.family == "t5":
            self.table = nn.Embedding(T5_BUCKETS, size.heads)
        if size.family == "llama":
            rate = 10000.0 ** (-torch.arange(0, size.head_dim, 2) / size.head_dim)
            angle = torch.outer(steps.float(), rate)[:, None, None]
            self.register_buffer("rotation", torch.polar(torch.ones_like(angle), angle), persistent=False)
        self.register_buffer("steps", steps, persistent=False)
        self._alibi: Tensor | None = None

    def rotation_of(self, start: int, stop: int) -> Tensor | None:
        return self.rotation[start:stop] if self.size.family == "llama" else None

    def embedded(self, ids: Tensor, start: int = 0) -> Tensor:
        x = self.embed(ids)
        if self.size.family == "absolute":
            return x + self.positions(self.steps[start : start + ids.shape[1]])
        return x

    def bias(self, time: int) -> Tensor | None:
        """[1, H, T, T] added to the scores, with the causal mask; None if the kernel applies it."""
        if self.size.family not in ("alibi", "t5"):
            return None
        if self._alibi is not None and self._alibi.shape[-1] == time:
            return self._alibi
        with torch.inference_mode(False):  # the cached mask must work in training after inference
            steps = self.steps[:time]
            causal = torch.full((time, time), float("-inf")).triu(1)
            distance = (steps[:, None] - steps).clamp(min=0)
            if self.size.family == "alibi":
                self._alibi = (causal - alibi_slopes(self.size.heads)[:, None, None] * distance)[None]
                return self._alibi
        return (self.table(t5_bucket(distance)).permute(2, 0, 1) + causal)[None]

    def bias_row(self, length: int) -> Tensor | None:
        """[1, H, 1, length]: the bias of the last position; its tails are the rows of earlier positions."""
        distance = self.steps[:length].flip(0)
        if self.size.family == "t5":
            return self.table(t5_bucket(distance)).t()[None, :, None].contiguous()
        if self.size.family == "alibi":
            return (-alibi_slopes(self.size.heads)[:, None] * distance)[None, :, None]
        return None

    def logits(self, x: Tensor) -> Tensor:
        return self.head(self.blocks[-1].norm(x, self.final_norm))

    def forward(self, ids: Tensor) -> Tensor:
        time = ids.shape[1]
        x, rotation, bias = self.embedded(ids), self.rotation_of(0, time), self.bias(time)
        for block in self.blocks:
            x = block(x, rotation, bias)
        return self.logits(x)
