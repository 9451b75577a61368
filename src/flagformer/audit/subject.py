"""The model under audit: its inputs, its reference logits, and one way to call it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from flagformer.audit.calls import FIRST, NOTHING, CallInputs
from flagformer.audit.calls.choose import calls_of
from flagformer.audit.max_error import MaxError
from flagformer.audit.preserve import Buffers
from flagformer.audit.tolerance import Tolerance, other_shape, same_shape


class NotApplicable(Exception):
    """A check cannot say anything about this model; the text says why."""


@dataclass(frozen=True)
class Settings:
    """What an audit was asked for, and what it found out about the vocabulary and the length.

    Attributes:
        precision: what the model is trained in where that is not full precision.
        cast: whether comparisons run under autocast.
        brief: fewer rows, places and blocks, for rows that are read once more.
    """

    num_tokens: int
    seq_len: int
    causal: bool | None
    seed: int
    precision: torch.dtype | None = None
    cast: bool = False
    brief: bool = False

    @property
    def low(self) -> torch.dtype:
        """Of autocast where it is on."""
        return self.precision or torch.bfloat16

    @property
    def low_words(self) -> str:
        return f"under {'bf16' if self.low == torch.bfloat16 else 'fp16'} autocast"

    @property
    def rows(self) -> int:
        """Rows of a batch: rows of 1,000 tokens cost 30 to 100 times as much as those of 32."""
        return 2 if self.brief else 4

    @property
    def most_places(self) -> int:
        """Positions at which something is changed or cut."""
        return 4 if self.brief else 32

    @property
    def words(self) -> str:
        """Which rows these are."""
        return f"in rows of {self.seq_len} tokens{f' {self.low_words}' if self.cast else ''}"


def module_of(model: Callable[..., Any]) -> nn.Module | None:
    """The module behind a model or behind a bound method; None for a plain function."""
    owner = model if isinstance(model, nn.Module) else getattr(model, "__self__", None)
    return owner if isinstance(owner, nn.Module) else None


class Subject:
    """A model with the ids it is asked about. Comparisons run without gradients, seeded, and under autocast
    only where the settings say so."""

    def __init__(self, model: Callable[..., Any], settings: Settings) -> None:
        self.settings = settings
        self.module = module_of(model)
        self.calls = calls_of(model)
        self.device = device_of(self.module)
        self.doing = ""
        self.optional = False
        self._buffers = Buffers(self.module)
        self._generator = torch.Generator().manual_seed(settings.seed)
        self.ids = self.random_ids(settings.rows, settings.seq_len)

    def random_ids(self, rows: int, length: int) -> Tensor:
        ids = torch.randint(self.settings.num_tokens, (rows, length), generator=self._generator)
        return ids.to(self.device)

    def other_ids(self, ids: Tensor) -> Tensor:
        """Random tokens, none of them the one that stands there."""
        step = torch.randint(1, self.settings.num_tokens, ids.shape, generator=self._generator)
        return (ids + step.to(ids.device)) % self.settings.num_tokens

    def logits(
        self, ids: Tensor, given: CallInputs = NOTHING, *, seed: int = 0, remember: bool = False
    ) -> Tensor:
        """ids `[B, T]` -> logits `[B, T, V]`, from the same random state and buffers every time.

        Args:
            seed: another one gives other random numbers.
            remember: leave the buffers as the forward before left them.
        """
        if not remember:
            self._buffers.restore()
        with self.comparing(seed):
            return checked(self.calls.forward(ids, given), ids)

    @contextmanager
    def comparing(self, seed: int = 0) -> Iterator[None]:
        torch.manual_seed(self.settings.seed + seed)
        random.seed(self.settings.seed + seed)
        with torch.no_grad(), self.autocast(self.settings.cast):
            yield

    def autocast(self, on: bool) -> torch.autocast:
        """That of the settings, or none."""
        return torch.autocast(self.device.type, self.settings.low, enabled=on)

    @contextmanager
    def training(self, on: bool) -> Iterator[None]:
        """Inside, the module is in that mode; afterwards it is in eval mode."""
        if self.module is not None:
            self.module.train(on)
        try:
            yield
        finally:
            if self.module is not None:
                self.module.eval()

    @cached_property
    def reference(self) -> Tensor:
        """The logits of `ids` in eval mode."""
        logits = self.logits(self.ids)
        if not torch.isfinite(logits).all():
            raise NotApplicable("logits are not finite: nothing to compare")
        return logits

    @cached_property
    def wobble(self) -> MaxError:
        """How far eval logits move with the random state, and with what was computed before."""
        worst = self.same_shape()
        again = self.logits(self.ids, seed=1)
        worst.compare(again, self.reference, "another random state gives other logits in eval mode")
        self.logits(self.random_ids(self.settings.rows, self.settings.seq_len), remember=True)
        again = self.logits(self.ids, remember=True)
        worst.compare(again, self.reference, "the same input gives other logits after another input was run")
        return worst

    def same_shape(self) -> MaxError:
        return self._worst(same_shape)

    def other_shape(self) -> MaxError:
        """For comparisons of runs of different shapes, which say nothing if the outputs are random."""
        if self.wobble.failed:
            raise NotApplicable("outputs are random in eval mode: nothing to compare")
        return self._worst(other_shape)

    def _worst(self, tolerance: Callable[[torch.dtype], Tolerance]) -> MaxError:
        largest = self.reference.abs().max().item()
        dtypes = [self.reference.dtype, self.coarsest] + [self.settings.low] * self.settings.cast
        dtype = max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)
        return MaxError(tolerance(dtype), largest or 1.0)

    @property
    def coarsest(self) -> torch.dtype:
        """The least precise type of the parameters; float32 where there are none."""
        parameters = self.module.parameters() if self.module is not None else ()
        dtypes = {p.dtype for p in parameters if p.is_floating_point()}
        return max(dtypes, key=lambda dtype: torch.finfo(dtype).eps, default=torch.float32)

    @property
    def why_not_causal(self) -> str:
        if self.settings.causal is None:
            return self.calls.why_not_causal()
        return "" if self.settings.causal else "not causal, as `causal=False` says"

    def across(self) -> list[CallInputs]:
        """For each of the model's turning points, positions of which the first half stands before it."""
        if self.calls.missing(FIRST):
            return []
        half = self.settings.seq_len // 2
        return [CallInputs(first=point - half) for point in self.calls.turning_points() if point >= half]

    def needs(self, what: str) -> None:
        """Leaves the check where the model cannot be given `what`; from here on the model may refuse."""
        why = self.calls.missing(what)
        if why:
            raise NotApplicable(why)
        self.optional = True


def device_of(module: nn.Module | None) -> torch.device:
    tensors = [*module.parameters(), *module.buffers()] if module is not None else []
    return tensors[0].device if tensors else torch.device("cpu")


def checked(logits: Any, ids: Tensor) -> Tensor:
    """The output, if it is logits for the ids."""
    fits = isinstance(logits, Tensor) and logits.dim() == 3 and logits.shape[:2] == ids.shape
    if not fits or not logits.is_floating_point():
        tensor = isinstance(logits, Tensor)
        got = f"{logits.dtype} of shape {list(logits.shape)}" if tensor else type(logits).__name__
        raise ValueError(
            f"`model` must return floating-point logits [B, T, V] for ids [B, T], but returned {got} for ids "
            f"of shape {list(ids.shape)}; audit the network, not a wrapper that returns a loss"
        )
    return logits
