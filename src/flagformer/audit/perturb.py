"""Perturbs parameters whose initial values disable a part of a model.

A branch whose output is initialised to zero, a closed gate, a LayerScale of 1e-5 or very small weights hide
faults in the part that they scale: every check would pass, and the fault would appear in training. While
outputs are compared, constant parameters are therefore perturbed and small matrices are rescaled; afterwards
they are restored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from flagformer.audit.preserve import preserve_parameters

SMALL = 0.1
MIN_GAIN = 0.5


@contextmanager
def perturbed_parameters(module: nn.Module | None, seed: int) -> Iterator[None]:
    """Perturb the trainable parameters that are constant, and rescale matrices of small gain, inside."""
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
        return _perturbed
    return _rescaled if values.dim() > 1 and 0 < _gain(values) < MIN_GAIN else None


def _gain(values: Tensor) -> float:
    """The expected ratio of the norms of output and input of a matrix `[out, ...in]`."""
    width = values.numel() // values.shape[0]
    return values.detach().float().square().mean().sqrt().item() * math.sqrt(width)


def _rescaled(values: Tensor, generator: torch.Generator) -> Tensor:
    return values / _gain(values)


def _perturbed(values: Tensor, generator: torch.Generator) -> Tensor:
    """Gains stay near their value; zeros and small constants get the scale of a usual initialisation."""
    noise = torch.rand(values.shape, generator=generator).mul_(2).sub_(1).to(values)  # in [-1, 1)
    constant = values.flatten()[0].abs().item()
    if constant >= SMALL:
        return values * (1 + 0.25 * noise)
    if values.dim() < 2:
        return values + 0.5 * noise.where(noise.abs() > SMALL, torch.full_like(noise, 0.5))
    return values + noise / math.sqrt(values.shape[-1])
