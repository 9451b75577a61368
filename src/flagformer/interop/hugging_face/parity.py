"""Inputs on which a model is compared with transformers, and the comparison of two answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

ROWS = 2
PADDING = 5  # tokens
SPECIAL = ("pad_token_id", "bos_token_id", "eos_token_id")


@dataclass(frozen=True)
class Probe:
    """The inputs of one check.

    Attributes:
        name: of the check.
        inputs: ids [B, T], or images [B, C, height, width].
        mask: [B, T] bool, True for tokens; None for images.
        cached: whether greedy tokens are read with a cache; None: one forward without greedy tokens.
        start: the first token of the targets of an encoder-decoder.
    """

    name: str
    inputs: Tensor
    mask: Tensor | None = None
    cached: bool | None = None
    start: int = 0


@dataclass(frozen=True)
class Answer:
    """The outputs of a model for a probe.

    Attributes:
        outputs: [M, V], logits or embeddings of all tokens, rows or patches.
        tokens: [B, N], the greedy tokens; None without them.
        logits: whether the outputs are logits.
    """

    outputs: Tensor
    tokens: Tensor | None = None
    logits: bool = True


@dataclass(frozen=True)
class ParityCheck:
    """The comparison of two answers.

    Attributes:
        name: of the check.
        gap: the largest difference of outputs, in standard deviations of those of transformers.
        kl: the largest Kullback-Leibler divergence of a token's distributions, in nats; None for outputs that
            are no logits.
        greedy: number of equal greedy tokens; None without them.
        tokens: number of greedy tokens.
        passed: whether `gap` is at most the tolerance, and all greedy tokens are equal.
        theirs_exact: as `gap`, of transformers from the model here in fp64.
        ours_exact: as `gap`, of the model here in fp32 from itself in fp64: its rounding. None without fp64.
    """

    name: str
    gap: float
    kl: float | None
    greedy: int | None
    tokens: int | None
    passed: bool
    theirs_exact: float | None = None
    ours_exact: float | None = None


def probes_of(
    kind: str,
    logits: bool,
    flags: Mapping[str, Any],
    config: Mapping[str, Any],
    sizes: tuple[int, int],
    seed: int,
) -> list[Probe]:
    """The probes of a kind of model.

    Args:
        kind: the flag `model`.
        logits: whether outputs are logits of the next token.
        sizes: (tokens of a text, greedy tokens), or fewer where the model reads fewer.
    """
    generator = torch.Generator().manual_seed(seed)
    if kind == "vit":
        height, width = _pair(flags["image_size"])
        shape = (ROWS, flags.get("channels", 3), height, width)
        return [Probe("random images", torch.randn(shape, generator=generator))]
    prefix = "enc_" if kind == "xtransformer" else ""
    generates = kind in ("decoder", "xtransformer") and logits
    longest = flags[f"{prefix}max_seq_len"] - PADDING - (sizes[1] if generates and not prefix else 0)
    if longest < 1:
        raise ValueError(
            f"the model reads at most {flags[f'{prefix}max_seq_len']} tokens, too few for this check"
        )
    ids, pad = _text(flags[f"{prefix}num_tokens"], min(sizes[0], longest), config, generator)
    whole = torch.ones_like(ids, dtype=torch.bool)
    left = kind == "decoder" and logits
    wider, mask = padded(ids, pad, left)
    start = config.get("decoder_start_token_id")
    first = start if isinstance(start, int) else pad
    texts = [("random text", ids, whole), (f"{'left' if left else 'right'}-padded text", wider, mask)]
    caches = {False: ", no cache", True: ", cached"} if generates else {None: ""}
    return [
        Probe(name + word, inputs, valid, cached, first)
        for name, inputs, valid in texts
        for cached, word in caches.items()
    ]


def padded(ids: Tensor, pad: int, left: bool) -> tuple[Tensor, Tensor]:
    """(ids, mask) in which the last row of [B, T] ids is shorter, so that rows have lengths T + 5 and T."""
    wider = torch.cat([ids, ids.flip(0)[:, :PADDING]], dim=1)
    if wider.shape[1] < ids.shape[1] + PADDING:  # a text shorter than the padding
        wider = torch.cat([wider, wider], dim=1)[:, : ids.shape[1] + PADDING]
    mask = torch.ones_like(wider, dtype=torch.bool)
    mask[-1, slice(0, PADDING) if left else slice(-PADDING, None)] = False
    return wider.masked_fill(~mask, pad), mask


def compare(probe: Probe, want: Answer, got: Answer, exact: Answer | None, tolerance: float) -> ParityCheck:
    """Compare the answer of this library with that of transformers.

    Args:
        exact: the answer of this library in fp64; None: not computed.
    """
    a, b = want.outputs.double(), got.outputs.double()
    if a.shape != b.shape:
        raise ValueError(f"outputs of transformers have shape {list(a.shape)}, but {list(b.shape)} here")
    gap = _gap(a, b, a)
    both = (None, None) if exact is None else tuple(_gap(exact.outputs.double(), one, a) for one in (a, b))
    kl = _kl(a, b) if want.logits and a.shape[1] > 1 else None
    close = gap <= tolerance  # False for NaN
    if want.tokens is None or got.tokens is None:
        return ParityCheck(probe.name, gap, kl, None, None, close, *both)
    greedy, count = int((want.tokens == got.tokens).sum()), want.tokens.numel()
    return ParityCheck(probe.name, gap, kl, greedy, count, close and greedy == count, *both)


def _gap(first: Tensor, second: Tensor, scale: Tensor) -> float:
    """The largest difference, in standard deviations of `scale`."""
    return float((second - first).abs().max() / scale.std())


def _kl(want: Tensor, got: Tensor) -> float:
    """The largest divergence of a token, in nats."""
    p, q = want.log_softmax(-1), got.log_softmax(-1)
    return max(0.0, float((p.exp() * (p - q)).sum(-1).max()))


def _text(
    vocabulary: int, length: int, config: Mapping[str, Any], generator: torch.Generator
) -> tuple[Tensor, int]:
    """Random ids [B, length] without special tokens, and the id of padding."""
    special = {config.get(name) for name in SPECIAL if not isinstance(config.get(name), list)}
    pad = config.get("pad_token_id")
    pad = pad if isinstance(pad, int) and 0 <= pad < vocabulary else 0
    known = torch.tensor([one for one in range(vocabulary) if one not in special] or [0])
    ids = known[torch.randint(len(known), (ROWS, length), generator=generator)]
    return ids, pad


def _pair(size: Any) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    return height, width
