"""Reverse: repeat a random string in reverse order after a separator."""

from typing import Literal

from torch import Tensor

from flagformer.lab.data.copy_task import Repetition


class Reverse(Repetition):
    """`a b c | c b a`: `seq_len // 2` random symbols, a separator (token `symbols`), the same symbols
    reversed.

    The symbols after the separator are scored.
    """

    source: Literal["reverse"]

    def answer(self, drawn: Tensor) -> Tensor:
        return drawn.flip(1)
