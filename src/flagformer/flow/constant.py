"""Numbers that follow a model from device to device and never lose their precision."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Constant(nn.Module):
    """fp32 numbers that `model.bfloat16()` does not round; not saved with the model."""

    value: Tensor

    def __init__(self, numbers: Sequence[float]) -> None:
        super().__init__()
        self.numbers = list(numbers)
        self.register_buffer("value", torch.tensor(self.numbers), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        device = fn(self.value).device
        self.value = torch.tensor(self.numbers, device=device)
        return self
