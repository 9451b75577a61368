"""Wakes the parts of a model that start asleep.

A branch whose output starts at zero, a gate that starts shut, a LayerScale of 1e-5 or weights drawn much
smaller than their width asks for hide whatever is wrong behind them: every check would pass, and the fault
would appear in training. So while outputs are compared, constant parameters are varied and weak matrices are
strengthened; afterwards they are put back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from flagformer.audit.preserve import preserve_parameters

SMALL = 0.1
WEAK = 0.5


@contextmanager
def perturbed_parameters(module: nn.Module | None, seed: int) -> Iterator[None]:
    """Inside, no trainable parameter is constant, and no matrix makes its input much smaller."""
    parameters = list(module.parameters()) if module is not None else []
    changes = [(p, change) for p in parameters if p.requires_grad and (change := _change(p)) is not None]
    with preserve_parameters([parameter for parameter, _ in changes]):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter, change in changes:
                parameter.copy_(change(parameter, generator))
        yield


def _change(values: Tensor) -> Callable[[Tensor, torch.Generator], Tensor] | None:
    if values.numel() == 0 or not values.is_floating_point():
        return None
    if (values == values.flatten()[0]).all():
        return _varied
    return _strengthened if values.dim() > 1 and 0 < _gain(values) < WEAK else None


def _gain(values: Tensor) -> float:
    """How much larger than its input a matrix `[out, ...in]` makes its output."""
    width = values.numel() // values.shape[0]
    return values.detach().float().square().mean().sqrt().item() * math.sqrt(width)


def _strengthened(values: Tensor, generator: torch.Generator) -> Tensor:
    return values / _gain(values)


def _varied(values: Tensor, generator: torch.Generator) -> Tensor:
    """Gains stay near their value; zeros and small constants get the size of an ordinary initialisation."""
    spread = torch.rand(values.shape, generator=generator).mul_(2).sub_(1).to(values)  # in [-1, 1)
    constant = values.flatten()[0].abs().item()
    if constant >= SMALL:
        return values * (1 + 0.25 * spread)
    if values.dim() < 2:
        return values + 0.5 * spread.where(spread.abs() > SMALL, torch.full_like(spread, 0.5))
    return values + spread / math.sqrt(values.shape[-1])
