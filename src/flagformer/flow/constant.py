"""Constants of a formula, such as slopes and rates, outside a module's state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flagformer.ops.traced import cacheable


class Constant:
    """fp32 numbers, created on a device at their first use there.

    This is not a buffer: half precision, the meta device, `to_empty`, copies and sharding do not change the
    numbers.
    """

    def __init__(self, numbers: Sequence[float]) -> None:
        self.numbers = tuple(numbers)
        self._made: dict[torch.device, Tensor] = {}

    def on(self, device: torch.device) -> Tensor:
        """[N] fp32."""
        if torch.compiler.is_compiling():  # a constant of the graph
            return torch.tensor(self.numbers, dtype=torch.float32, device=device)
        found = self._made.get(device)
        if found is None:
            with torch.inference_mode(False):
                found = torch.tensor(self.numbers, dtype=torch.float32, device=device)
            if cacheable(found):
                self._made[device] = found
        return found

    def __reduce__(self) -> Any:
        return Constant, (self.numbers,)
