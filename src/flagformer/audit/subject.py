"""The model under audit, its inputs, and its reference logits."""

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
from flagformer.ops.seed import seed_devices


class NotApplicable(Exception):
    """A check does not apply to this model; the message is the reason."""


@dataclass(frozen=True)
class Settings:
    """The options of an audit, with the vocabulary size and the length that it uses.

    Attributes:
        precision: the dtype of training; None for full precision.
        cast: whether comparisons run under autocast.
        brief: fewer rows, positions and blocks, for the repetition in longer rows.
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
        """The dtype of autocast."""
        return self.precision or torch.bfloat16

    @property
    def low_words(self) -> str:
        return f"under {'bf16' if self.low == torch.bfloat16 else 'fp16'} autocast"

    @property
    def rows(self) -> int:
        """Rows of a batch: rows of 1,000 tokens cost 30 to 100 times as much as those of 32."""
        return 2 if self.brief else 4

    @property
    def max_positions(self) -> int:
        """The largest number of positions at which rows are changed or cut."""
        return 4 if self.brief else 32

    @property
    def words(self) -> str:
        """A description of the rows."""
        return f"in rows of {self.seq_len} tokens{f' {self.low_words}' if self.cast else ''}"


def module_of(model: Callable[..., Any]) -> nn.Module | None:
    """Return the module, also for one of its bound methods; None for a plain function."""
    owner = model if isinstance(model, nn.Module) else getattr(model, "__self__", None)
    return owner if isinstance(owner, nn.Module) else None


class Subject:
    """A model with the ids of an audit. Comparisons run without gradients, with fixed seeds, and under
    autocast with `Settings.cast`."""

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
        """Random tokens that differ from `ids` at every position."""
        step = torch.randint(1, self.settings.num_tokens, ids.shape, generator=self._generator)
        return (ids + step.to(ids.device)) % self.settings.num_tokens

    def logits(
        self, ids: Tensor, given: CallInputs = NOTHING, *, seed: int = 0, keep_buffers: bool = False
    ) -> Tensor:
        """ids `[B, T]` -> logits `[B, T, V]`, from the same random state and buffers every time.

        Args:
            seed: added to the seed of the settings.
            keep_buffers: do not restore the buffers that earlier forwards changed.
        """
        if not keep_buffers:
            self._buffers.restore()
        with self.comparing(seed):
            return checked(self.calls.forward(ids, given), ids)

    @contextmanager
    def comparing(self, seed: int = 0) -> Iterator[None]:
        seed_devices(self.settings.seed + seed)
        random.seed(self.settings.seed + seed)
        with torch.no_grad(), self.autocast(self.settings.cast):
            yield

    def autocast(self, on: bool) -> torch.autocast:
        """Autocast to the dtype of the settings, or none."""
        return torch.autocast(self.device.type, self.settings.low, enabled=on)

    @contextmanager
    def training(self, on: bool) -> Iterator[None]:
        """Set the module's train mode inside, and eval mode afterwards."""
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
    def repeatability(self) -> MaxError:
        """The change of eval logits with the random state, and with earlier forwards."""
        worst = self.same_shape()
        again = self.logits(self.ids, seed=1)
        worst.compare(again, self.reference, "another random state gives other logits in eval mode")
        self.logits(self.random_ids(self.settings.rows, self.settings.seq_len), keep_buffers=True)
        again = self.logits(self.ids, keep_buffers=True)
        worst.compare(again, self.reference, "the same input gives other logits after another input was run")
        return worst

    def same_shape(self) -> MaxError:
        return self._worst(same_shape)

    def other_shape(self) -> MaxError:
        """A comparison of runs with different shapes; not applicable if the outputs are random."""
        if self.repeatability.failed:
            raise NotApplicable("outputs are random in eval mode: nothing to compare")
        return self._worst(other_shape)

    def _worst(self, tolerance: Callable[[torch.dtype], Tolerance]) -> MaxError:
        largest = self.reference.abs().max().item()
        dtypes = [self.reference.dtype, self.coarsest] + [self.settings.low] * self.settings.cast
        dtype = max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)
        return MaxError(tolerance(dtype), largest or 1.0)

    @property
    def coarsest(self) -> torch.dtype:
        """The least precise dtype of the parameters; float32 without parameters."""
        parameters = self.module.parameters() if self.module is not None else ()
        dtypes = {p.dtype for p in parameters if p.is_floating_point()}
        return max(dtypes, key=lambda dtype: torch.finfo(dtype).eps, default=torch.float32)

    @property
    def why_not_causal(self) -> str:
        if self.settings.causal is None:
            return self.calls.why_not_causal()
        return "" if self.settings.causal else "not causal (`causal=False`)"

    def across(self) -> list[CallInputs]:
        """Positions whose first half is before a change of the algorithm, for each change."""
        if self.calls.missing(FIRST):
            return []
        half = self.settings.seq_len // 2
        return [
            CallInputs(first=point - half) for point in self.calls.path_change_positions() if point >= half
        ]

    def needs(self, what: str) -> None:
        """Raise NotApplicable if the model does not accept `what`; from here on the model may refuse."""
        why = self.calls.missing(what)
        if why:
            raise NotApplicable(why)
        self.optional = True


def device_of(module: nn.Module | None) -> torch.device:
    tensors = [*module.parameters(), *module.buffers()] if module is not None else []
    return tensors[0].device if tensors else torch.device("cpu")


def checked(logits: Any, ids: Tensor) -> Tensor:
    """Return the output if it is logits for the ids, else raise ValueError."""
    fits = isinstance(logits, Tensor) and logits.dim() == 3 and logits.shape[:2] == ids.shape
    if not fits or not logits.is_floating_point():
        tensor = isinstance(logits, Tensor)
        got = f"{logits.dtype} of shape {list(logits.shape)}" if tensor else type(logits).__name__
        raise ValueError(
            f"`model` must return floating-point logits [B, T, V] for ids [B, T], but returned {got} for ids "
            f"of shape {list(ids.shape)}; audit the network, not a wrapper that returns a loss"
        )
    return logits
