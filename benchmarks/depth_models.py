"""The models of `memory.py`: one decoder under each executor, and the same in two other libraries."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VOCAB, LARGE_VOCAB = 256, 50_000
EXECUTORS = {
    "sequential": {},
    "checkpoint=sublayer": {"checkpoint": "sublayer"},
    "checkpoint=selective": {"checkpoint": "selective"},
    "reversible": {"reversible": True},
    "reversible_exact": {"reversible": True, "reversible_exact": True},
}
PEERS = ("x-transformers", "routing-transformer")
LOSSES = ("hidden states alone", "whole logits", "loss_chunks")


@dataclass(frozen=True)
class Size:
    """D, tokens of the row, heads; feedforward dimension 4 D."""

    dim: int = 256
    length: int = 512
    heads: int = 4

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads


@dataclass
class Job:
    """A model and its loss, whose graph the backward needs."""

    model: nn.Module
    loss: Callable[[], Tensor]

    def step(self) -> None:
        self.loss().backward()


def job(name: str, depth: int, size: Size) -> Job:
    """Raises ImportError with the package to install if a peer is missing."""
    torch.manual_seed(0)
    ids = torch.randint(VOCAB, (1, size.length))
    if name in EXECUTORS:
        model = _flagformer(depth, size, VOCAB, EXECUTORS[name])
        return Job(model, lambda: F.cross_entropy(model(ids)[0, :-1], ids[0, 1:]))
    if name == "x-transformers":
        model = _x_transformers(depth, size)
        return Job(model, lambda: F.cross_entropy(model(ids)[0, :-1], ids[0, 1:]))
    model = _routing(depth, size)

    def with_commitment() -> Tensor:
        logits, commitment = model(ids)
        return F.cross_entropy(logits[0, :-1], ids[0, 1:]) + commitment.sum()

    return Job(model, with_commitment)


def loss_job(name: str, depth: int, size: Size, chunks: int) -> Job:
    """One decoder with a large vocabulary: without logits, with all, in chunks."""
    from flagformer import AutoregressiveWrapper

    torch.manual_seed(0)
    model = _flagformer(depth, size, LARGE_VOCAB, {})
    ids = torch.randint(LARGE_VOCAB, (1, size.length + 1))
    if name == "hidden states alone":
        return Job(model, lambda: model(ids[:, :-1], return_embeddings=True).square().mean())
    wrapper = AutoregressiveWrapper(model, loss_chunks=chunks if name == "loss_chunks" else 1)
    return Job(model, lambda: wrapper(ids))


def _flagformer(depth: int, size: Size, vocab: int, flags: dict[str, object]) -> nn.Module:
    from flagformer import build

    sizes = {"dim": size.dim, "depth": depth, "heads": size.heads, "attn_dim_head": size.head_dim}
    return build(
        {"num_tokens": vocab, "max_seq_len": size.length, "rotary_pos_emb": True, **sizes, **flags}
    ).train()


def _x_transformers(depth: int, size: Size) -> nn.Module:
    try:
        import x_transformers as xt
    except ImportError as error:
        raise ImportError(
            "x-transformers is missing: pip install -c constraints.txt x-transformers"
        ) from error
    layers = xt.Decoder(
        dim=size.dim,
        depth=depth,
        heads=size.heads,
        attn_dim_head=size.head_dim,
        rotary_pos_emb=True,
        attn_flash=True,
        verbose=False,
    )
    return xt.TransformerWrapper(
        num_tokens=VOCAB, max_seq_len=size.length, attn_layers=layers, use_abs_pos_emb=False
    ).train()


def _routing(depth: int, size: Size) -> nn.Module:
    """Reversible, half of the heads local, half routed: the peer's main configuration."""
    try:
        from routing_transformer import RoutingTransformerLM
    except ImportError as error:
        text = "routing-transformer is missing (no part of constraints.txt): pip install routing-transformer"
        raise ImportError(text) from error
    return RoutingTransformerLM(
        num_tokens=VOCAB,
        dim=size.dim,
        depth=depth,
        heads=size.heads,
        dim_head=size.head_dim,
        max_seq_len=size.length,
        window_size=128,
        n_local_attn_heads=size.heads // 2,
        causal=True,
        reversible=True,
    ).train()
