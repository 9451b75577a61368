"""Reverse: repeat a random string backwards after a separator."""

from typing import Literal

from torch import Tensor

from flagformer.lab.data.copy_task import Repetition


class Reverse(Repetition):
    """`a b c | c b a`: `seq_len // 2` random symbols, a separator (token `symbols`), the same symbols
    backwards.

    Scored are the symbols after the separator.
    """

    source: Literal["reverse"]

    def answer(self, drawn: Tensor) -> Tensor:
        return drawn.flip(1)
