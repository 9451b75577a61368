"""Restore modes, gradients, buffers, parameters and random states after an audit."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

# Parameters below which the audit of a model is as fast on one thread as on two.
SMALL = 20_000_000


Number = int | float | bool | None


class Buffers:
    """A copy of a module's buffers and numeric attributes that can be restored, also between two forwards.

    Numbers are state too: rotary positions of transformers store the longest length so far.
    """

    def __init__(self, module: nn.Module | None) -> None:
        self._saved: list[tuple[nn.Module, str, Tensor, Tensor]] = []
        self._numbers: list[tuple[nn.Module, dict[str, Number]]] = []
        for owner in module.modules() if module is not None else ():
            numbers = {name: value for name, value in vars(owner).items() if isinstance(value, Number)}
            self._numbers.append((owner, numbers))
            for name, buffer in owner._buffers.items():
                if buffer is not None:
                    self._saved.append((owner, name, buffer, buffer.detach().clone()))

    @torch.no_grad()
    def restore(self) -> None:
        """Write every buffer, as version counters do not detect the writes of batch normalisation."""
        for owner, numbers in self._numbers:
            changed = (name for name, value in numbers.items() if vars(owner).get(name, value) is not value)
            for name in [name for name in changed if name != "training"]:
                setattr(owner, name, numbers[name])
        for owner, name, buffer, copy in self._saved:
            owner._buffers[name] = buffer
            buffer.copy_(copy)


@contextmanager
def preserve_parameters(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Restore the exact values of parameters that are written to inside."""
    copies = [(parameter, parameter.detach().clone()) for parameter in parameters]
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, copy in copies:
                parameter.copy_(copy)


@contextmanager
def preserve_rng_states() -> Iterator[None]:
    """Restore the random states of torch, on every device in use, and of Python."""
    state = random.getstate()
    cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if cuda else []):
        try:
            yield
        finally:
            random.setstate(state)


@contextmanager
def threads_for(module: nn.Module | None) -> Iterator[None]:
    """Use one thread for a small model on CPU, whose operators are too short to parallelise."""
    threads = torch.get_num_threads()
    parameters = list(module.parameters()) if module is not None else []
    small = sum(parameter.numel() for parameter in parameters) < SMALL
    if small and all(parameter.device.type == "cpu" for parameter in parameters):
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def preserve_module(module: nn.Module | None) -> Iterator[None]:
    """Restore random states, and a module's modes, gradients and buffers; inside, fp32 products are exact."""
    precision = torch.get_float32_matmul_precision()
    modes = [(part, part.training) for part in module.modules()] if module is not None else []
    gradients = [(p, p.grad) for p in module.parameters()] if module is not None else []
    buffers = Buffers(module)
    with preserve_rng_states():
        try:
            for parameter, _ in gradients:
                parameter.grad = None
            torch.set_float32_matmul_precision("highest")
            yield
        finally:
            torch.set_float32_matmul_precision(precision)
            for part, training in modes:
                part.training = training
            for parameter, gradient in gradients:
                parameter.grad = gradient
            buffers.restore()
