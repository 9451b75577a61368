"""A linear projection with a custom initialisation."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

Init = Callable[[nn.Linear], object]


class Linear(nn.Linear):
    """`nn.Linear` whose `init` is applied after torch's initialisation, also in `reset_parameters`.

    The initialisation belongs to the layer, so that it does not depend on the order in which modules are
    initialised.
    """

    init: Init | None = None

    def __init__(self, inputs: int, outputs: int, bias: bool = True, init: Init | None = None) -> None:
        self.init = init  # torch's constructor initialises
        super().__init__(inputs, outputs, bias=bias)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if self.init is not None:
            self.init(self)
