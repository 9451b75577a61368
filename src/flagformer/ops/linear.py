"""A projection with an initialisation of its own."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

Init = Callable[[nn.Linear], object]


class Linear(nn.Linear):
    """`nn.Linear` that starts at what `init` makes of torch's initial values; None: at these.

    Who builds a projection chooses how it starts, and `reset_parameters` of the projection obeys, whatever
    order modules are initialised in.
    """

    init: Init | None = None

    def __init__(self, inputs: int, outputs: int, bias: bool = True, init: Init | None = None) -> None:
        self.init = init  # torch's constructor initialises
        super().__init__(inputs, outputs, bias=bias)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if self.init is not None:
            self.init(self)
