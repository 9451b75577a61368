"""Masked diffusion: Nie et al. 2025, arXiv 2502.09992; Ou et al. 2024, arXiv 2406.03736."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from flagformer.lab.data import IGNORE, Source, Split, draws
from flagformer.lab.objectives import Batch, token_losses, token_penalties
from flagformer.lab.objectives.masking import MaskedObjective, chance_of, masked_positions, targets_at


class MaskedDiffusion(MaskedObjective):
    """A random number of the tokens of each row is masked and predicted from the others.

    The number m is uniform from 1 to `seq_len`, and the losses of a row are weighted by `seq_len / m`
    (arXiv 2502.09992, equation 6): their mean over all tokens estimates an upper bound of the negative
    log-likelihood of the row, and bits per byte are that bound. In evaluation the numbers of a batch are
    evenly spaced. The mask token is the last id, after the vocabulary of the data.
    """

    name: Literal["masked_diffusion"] = "masked_diffusion"

    summary: ClassVar[str] = (
        "A random number of tokens is masked; the loss bounds the likelihood (LLaDA, arXiv:2502.09992)."
    )

    def batch(self, source: Source, split: Split, step: int, seed: int, rows: int, seq_len: int) -> Batch:
        ids = source.batch(split, step, seed, rows, seq_len)[0]
        generator = draws("masked_diffusion", split, seed, step, seq_len)
        if split == "train":
            counts = torch.randint(1, seq_len + 1, (rows,), generator=generator)
        else:
            shift = torch.rand((), generator=generator)
            counts = 1 + ((torch.arange(rows) + shift) * seq_len / rows).long().clamp(max=seq_len - 1)
        masked = masked_positions(counts, seq_len, generator)
        return ids.masked_fill(masked, source.num_tokens), targets_at(ids, masked)

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        return token_losses(logits, targets) * _weights(targets)

    def penalties(self, logits: Tensor, targets: Tensor, label_smoothing: float, z_loss: float) -> Tensor:
        return token_penalties(logits, targets, label_smoothing, z_loss) * _weights(targets)

    def counted(self, targets: Tensor) -> Tensor:
        return torch.ones_like(targets, dtype=torch.bool)

    def is_bytes(self, source: Source) -> bool:
        return source.is_bytes

    def metric(self, source: Source) -> str:
        return (
            "all tokens, by an upper bound of their loss; accuracy: the share of masked tokens predicted "
            f"right{chance_of(source)}"
        )


def _weights(targets: Tensor) -> Tensor:
    """[B, 1], the length of a row over its number of masked tokens."""
    return targets.shape[1] / (targets != IGNORE).sum(1, keepdim=True)
