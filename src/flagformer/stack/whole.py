"""A model or a stack: it is initialised again as it was at first, and what memory cannot hold is refused."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from flagformer.ops.reset import refuse_unknown, reset
from flagformer.stack.sizes import within_memory


class Whole(nn.Module):
    """A model or a stack, whose `reset_parameters` initialises everything that it contains.

    Constructors of subclasses raise FlagError for a model that does not fit into memory, before it is made.

    Attributes:
        first: names of the parts that constructors initialise before the other children, in this order; a
            part may belong to another module, as a tied embedding does.
    """

    first: Sequence[str] = ()

    def __init_subclass__(cls, **how: Any) -> None:
        super().__init_subclass__(**how)
        if "__init__" in vars(cls):
            cls.__init__ = _sized(cls.__init__)  # type: ignore[method-assign]

    def reset_parameters(self) -> None:
        """Initialises every parameter and buffer as the constructor did; the same seed gives the same values.

        Raises:
            TypeError: for a module of your own with tensors and without `reset_parameters`.
        """
        refuse_unknown(self)
        for name in self.first:
            reset(getattr(self, name))
        for name, child in self.named_children():
            if name not in self.first:
                reset(child)


def _sized(init: Callable[..., None]) -> Callable[..., None]:
    """A constructor that makes what fits into memory."""

    @functools.wraps(init)
    def __init__(self: Whole, *args: Any, **flags: Any) -> None:
        def again() -> None:
            init(type(self).__new__(type(self)), *args, **flags)

        within_memory(flags, lambda: init(self, *args, **flags), again)

    return __init__
