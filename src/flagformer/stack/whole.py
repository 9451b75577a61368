"""Base class of models and stacks: initialisation of all parts, and a check of the memory they need."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from flagformer.ops.reset import refuse_unknown, reset
from flagformer.stack.sizes import within_memory


class Whole(nn.Module):
    """A model or a stack, whose `reset_parameters` initialises all its parts.

    Constructors of subclasses raise FlagError, before allocation, for a model that does not fit into memory.

    Attributes:
        first: names of the parts that are initialised before the other children, in this order; a part may
            belong to another module, as a tied embedding does.
    """

    first: Sequence[str] = ()

    def __init_subclass__(cls, **how: Any) -> None:
        super().__init_subclass__(**how)
        if "__init__" in vars(cls):
            cls.__init__ = _with_memory_check(cls.__init__)  # type: ignore[method-assign]

    def reset_parameters(self) -> None:
        """Initialise every parameter and buffer as the constructor does; equal seeds give equal values.

        Raises:
            TypeError: for a user's module that has tensors and no `reset_parameters`.
        """
        refuse_unknown(self)
        for name in self.first:
            reset(getattr(self, name))
        for name, child in self.named_children():
            if name not in self.first:
                reset(child)


def _with_memory_check(init: Callable[..., None]) -> Callable[..., None]:
    """Return a constructor that checks the memory first."""

    @functools.wraps(init)
    def __init__(self: Whole, *args: Any, **flags: Any) -> None:
        def again() -> None:
            init(type(self).__new__(type(self)), *args, **flags)

        within_memory(flags, lambda: init(self, *args, **flags), again)

    return __init__
