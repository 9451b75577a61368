"""Calling conventions of model families: ids in, logits out, and optional arguments.

Every check uses this contract, so a new family is one file here.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

MASK, STARTS, PACKING = "a mask", "left-padded rows", "packed sequences"
CACHE, LEFT_CACHE, WINDOW = "a cache", "a cache for left-padded rows", "a window"
PREFIX = "a prefix length"
FIRST = "the position of the first token"


@dataclass(frozen=True)
class CallInputs:
    """Inputs of a model in addition to the ids.

    Attributes:
        mask: [B, T] bool, True for valid tokens.
        starts: [B], the index of each left-padded row's first token.
        seq_lens: the lengths of the sequences packed in each row.
        prefix: the length of the bidirectional prefix.
        window: the size of the sliding window.
        first: the position of every row's first token.
    """

    mask: Tensor | None = None
    starts: Tensor | None = None
    seq_lens: Sequence[Sequence[int]] | None = None
    prefix: int | None = None
    window: int | None = None
    first: int = 0


NOTHING = CallInputs()


class Session(ABC):
    """One decoding session."""

    @abstractmethod
    def step(self, ids: Tensor) -> Tensor:
        """Append a block `[B, n]` and return its logits `[B, n, V]`."""

    def reorder(self, index: Tensor) -> bool:
        """Select the rows at `index` `[B]`; return False if unsupported."""
        return False

    def truncate(self, length: int) -> bool:
        """Drop all but the first `length` tokens; return False if unsupported."""
        return False

    def mark(self) -> Any:
        """Return a point for `rollback`; None if unsupported."""
        return None

    def rollback(self, mark: Any) -> None:
        """Drop the tokens after a result of `mark`."""
        raise NotImplementedError


class Calls(ABC):
    """The calling convention of a model.

    Args:
        model: the callable under audit.
    """

    def __init__(self, model: Callable[..., Any]) -> None:
        self.model = model
        self.accepts = keywords_of(model)

    def missing(self, what: str) -> str:
        """Return the reason why `what` (MASK, STARTS, ...) is unsupported; empty if it is supported."""
        return f"this model does not accept {what}"

    @abstractmethod
    def forward(self, ids: Tensor, given: CallInputs = NOTHING) -> Tensor:
        """ids `[B, T]` -> logits `[B, T, V]`. Inputs that are `missing` are never set in `given`."""

    def learn(self, ids: Tensor) -> Tensor:
        """As `forward`, with every parameter in the graph: models with memory slots read a segment first."""
        return self.forward(ids)

    def session(self, batch: int, length: int, given: CallInputs = NOTHING) -> Session:
        """Return a new session with `starts`, `window` and `first` of `given`, if not `missing`."""
        raise NotImplementedError(self.missing(CACHE))

    def num_tokens(self) -> int | None:
        """The size of the vocabulary; None if unknown."""
        return None

    def longest(self) -> int | None:
        """The length of the longest input; None if unknown."""
        return None

    def path_change_positions(self) -> tuple[int, ...]:
        """Positions at which the model may change its algorithm; empty if unknown."""
        return ()

    def long_rows(self) -> tuple[int, ...]:
        """Row lengths that cover every algorithm of the model for long rows; empty if unknown."""
        return ()

    def promises(self, check: str) -> str:
        """Return the model's claim of support for a check, which then fails if it cannot run; else empty."""
        return ""

    def why_not_causal(self) -> str:
        """The reason why the model is not causal; empty for a causal model."""
        return ""


def keywords_of(model: Callable[..., Any]) -> frozenset[str]:
    """The names of the arguments of a model's forward; for a PEFT wrapper those of its base model."""
    wrapped = getattr(model, "get_base_model", None)  # PEFT's wrappers pass their keyword arguments on
    if callable(wrapped):
        return keywords_of(wrapped())
    target = model.forward if isinstance(model, nn.Module) else model
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):
        return frozenset()
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return frozenset(parameter.name for parameter in parameters if parameter.kind in named)


def logits_in(output: Any) -> Any:
    """The logits of an output: a tensor, the first of a tuple, `.logits` or `["logits"]`."""
    if isinstance(output, dict) and "logits" in output:
        return output["logits"]
    logits = getattr(output, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    return output[0] if isinstance(output, (tuple, list)) and output else output


def only_given(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments other than None."""
    return {name: value for name, value in arguments.items() if value is not None}
