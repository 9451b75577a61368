"""Two convolutions in time that embed frames of a spectrogram (Whisper, arXiv:2212.04356)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flagformer.ops.borrow import borrow

WIDTH, STRIDE = 3, 2


class ConvStem(nn.Module):
    """Frames [B, T, C] -> [B, ceil(T / 2), E]: two convolutions of width 3, each with a GELU.

    The second moves by two frames.

    Frames beyond the ends and those that `valid` excludes are zeros for both convolutions.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.first = nn.Conv1d(channels, width, WIDTH, padding=1)
        self.second = nn.Conv1d(width, width, WIDTH, STRIDE, padding=1)

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """`valid`: [B, T] bool, True for frames; None: all are."""
        x = x.mT
        for convolve in (self.first, self.second):
            x = F.gelu(convolve(x if valid is None else x * valid[:, None]))
        return x.mT


def halved(valid: Tensor | None) -> Tensor | None:
    """[B, T] bool of frames -> [B, ceil(T / 2)] of outputs of `ConvStem`: the frames in their middle."""
    return None if valid is None else valid[:, ::STRIDE]


class ZeroVectors(nn.Module):
    """ids [B, T] -> zeros [B, T, E], the token embedding of a model whose inputs have biases of their own.

    Args:
        like: a module with a weight, whose dtype the zeros have.
    """

    def __init__(self, width: int, like: nn.Conv1d) -> None:
        super().__init__()
        self.width = width
        borrow(self, {"like": like})
        self.like: nn.Conv1d

    def forward(self, ids: Tensor) -> Tensor:
        return torch.zeros(*ids.shape, self.width, dtype=self.like.weight.dtype, device=ids.device)
