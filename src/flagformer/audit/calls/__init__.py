"""How a family of models is called: ids in, logits out, and what else it can be given.

Every check goes through this contract, so a new family is one file here.
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
    """What a model is given beside the ids.

    Attributes:
        mask: [B, T] bool, True for real tokens.
        starts: [B] the place of each left-padded row's first token.
        seq_lens: the lengths of the sequences packed in each row.
        prefix: how many first tokens every token sees.
        window: how many of the last tokens a token sees.
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
        """Appends a block `[B, n]` and returns its logits `[B, n, V]`."""

    def reorder(self, index: Tensor) -> bool:
        """Takes the rows at `index` `[B]`; False where the family cannot."""
        return False

    def truncate(self, length: int) -> bool:
        """Forgets all but the first `length` tokens; False where the family cannot."""
        return False


class Calls(ABC):
    """How a model is called.

    Args:
        model: the callable under audit.
    """

    def __init__(self, model: Callable[..., Any]) -> None:
        self.model = model
        self.accepts = keywords_of(model)

    def missing(self, what: str) -> str:
        """Why `what` (MASK, STARTS, ...) cannot be checked; empty if it can."""
        return f"this model is not called with {what}"

    @abstractmethod
    def forward(self, ids: Tensor, given: CallInputs = NOTHING) -> Tensor:
        """ids `[B, T]` -> logits `[B, T, V]`. Only what is not `missing` is ever given."""

    def learn(self, ids: Tensor) -> Tensor:
        """As `forward`, so that every parameter takes part: where a model has slots, behind a segment."""
        return self.forward(ids)

    def session(self, batch: int, length: int, given: CallInputs = NOTHING) -> Session:
        """A new one; of `given`, `starts`, `window` and `first` count, where they are not `missing`."""
        raise NotImplementedError(self.missing(CACHE))

    def num_tokens(self) -> int | None:
        """The size of the vocabulary, where the model says it."""
        return None

    def longest(self) -> int | None:
        """The longest input, where the model says it."""
        return None

    def turning_points(self) -> tuple[int, ...]:
        """Positions from which on the model may compute in another way, where it says them."""
        return ()

    def long_rows(self) -> tuple[int, ...]:
        """Lengths of rows that go by every way in which the model computes long ones, where it says them."""
        return ()

    def promises(self, check: str) -> str:
        """What the model says that makes it a fault if the named check cannot run; else empty."""
        return ""

    def why_not_causal(self) -> str:
        """Empty for a causal model."""
        return ""


def keywords_of(model: Callable[..., Any]) -> frozenset[str]:
    """The names of the arguments a model can be called with; `**kwargs` count where it says what it wraps."""
    wrapped = getattr(model, "get_base_model", None)  # PEFT's wrappers hand their keywords on
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
    """Arguments that are not None."""
    return {name: value for name, value in arguments.items() if value is not None}
