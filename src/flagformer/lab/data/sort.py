"""Sort: repeat a random string in order after a separator."""

from typing import Literal

from torch import Tensor

from flagformer.lab.data.copy_task import Repetition


class Sort(Repetition):
    """`c a b | a b c`: `seq_len // 2` random symbols, a separator (token `symbols`), the same symbols in
    order, repeated ones as often.

    The symbols after the separator are scored. Chance is that of a guess without the source; a guess of the
    expected symbol at each position of a long string is better.
    """

    source: Literal["sort"]

    def answer(self, drawn: Tensor) -> Tensor:
        return drawn.sort(1).values
