"""ListOps: nested operations on digits. Nangia and Bowman 2018, arXiv 1804.06028; Long Range Arena, arXiv
2011.04006."""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from flagformer.lab.data import IGNORE
from flagformer.lab.data.generated import Generated, Numbers

OPERATIONS = ("max", "min", "median", "sum modulo 10")
DIGITS, CLOSE, END, BLANK = 10, 14, 15, 16
Row = list[int]


class ListOps(Generated):
    """`[max 2 9 [min 4 7 ] 0 ] =`: the target at `=` is the value of the expression, a digit.

    There is one target per row. The value of each row is drawn first, uniformly, so that chance is one in
    ten. Shorter rows begin with blanks. Tokens: ten digits, four opening operations, `]`, `=`, blank.
    Departure: expressions have at most `seq_len` tokens, `depth` levels, and 2 to `arguments` arguments per
    operation.
    """

    metric: ClassVar[str] = "the value of the expression; accuracy: the share predicted right; chance: 1 / 10"

    source: Literal["list_ops"]
    depth: int = Field(default=3, ge=1, le=20, description="Largest depth of nested operations.")
    arguments: int = Field(default=4, ge=2, le=10, description="Largest number of arguments of an operation.")

    @property
    def num_tokens(self) -> int:
        return BLANK + 1

    @property
    def chance(self) -> float | None:
        return 1 / DIGITS

    @property
    def num_classes(self) -> int | None:
        return DIGITS

    def least(self) -> tuple[int, str]:
        return 5, "an operation on two digits and `=`"

    def rows(self, batch_size: int, seq_len: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        inputs = torch.full((batch_size, seq_len), BLANK)
        targets = torch.full((batch_size, seq_len), IGNORE)
        wanted = torch.randint(DIGITS, (batch_size,), generator=generator).tolist()
        for row, value in enumerate(wanted):
            tokens = self._expression(value, seq_len - 1, generator)
            inputs[row, seq_len - 1 - len(tokens) :] = torch.tensor([*tokens, END])
            targets[row, -1] = value
        return inputs, targets

    def _expression(self, wanted: int, longest: int, generator: torch.Generator) -> Row:
        """An expression of at most `longest` tokens with the value `wanted`."""
        numbers = Numbers(generator)
        while True:
            tokens, value = self._draw(longest, self.depth, numbers)
            if value == wanted:
                return tokens

    def _draw(self, longest: int, depth: int, numbers: Numbers) -> tuple[Row, int]:
        """A random expression of at most `longest` tokens and `depth` levels, and its value."""
        operation = numbers.below(len(OPERATIONS))
        most = min(self.arguments, longest - 2)
        count = 2 + numbers.below(most - 1)
        tokens, values, left = [DIGITS + operation], [], longest - 2
        for index in range(count):
            spare = left - (count - index - 1)
            if depth > 1 and spare >= 4 and numbers.below(2):
                inner, value = self._draw(spare, depth - 1, numbers)
            else:
                value = numbers.below(DIGITS)
                inner = [value]
            tokens += inner
            values.append(value)
            left -= len(inner)
        return [*tokens, CLOSE], evaluate(operation, values)


def evaluate(operation: int, values: Row) -> int:
    """The value of one operation; the median of an even number of values is the lower middle one."""
    if operation == 0:
        return max(values)
    if operation == 1:
        return min(values)
    if operation == 2:
        return sorted(values)[(len(values) - 1) // 2]
    return sum(values) % 10
