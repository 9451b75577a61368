"""The depth of nested brackets, the parse of a context-free language (Dyck languages: Hahn 2020, arXiv
1906.06755)."""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from flagformer.lab.data import IGNORE
from flagformer.lab.data.generated import Generated, Numbers

Row = list[int]


class CfgDepth(Generated):
    """`a ( b [ a ] ) b =`: the target at `=` is the depth of the nested brackets, here 2.

    The depth of each row is drawn first, uniformly from 1 to `depth`, so that chance is `1 / depth`. Brackets
    of one kind close in the order of their opening, and every row is full, so that its length says nothing
    about the depth. There is one target per row, the depth minus one. Tokens: `depth` answers, `letters`
    letters, `kinds` opening brackets, `kinds` closing brackets, `=`.
    """

    metric: ClassVar[str] = (
        "the depth of the brackets; accuracy: the share predicted right; chance: 1 / depth"
    )

    source: Literal["cfg_depth"]
    depth: int = Field(default=4, ge=2, le=64, description="Largest depth.")
    kinds: int = Field(default=2, ge=1, le=64, description="Kinds of brackets.")
    letters: int = Field(default=4, ge=1, le=64, description="Number of different letters.")

    @property
    def num_tokens(self) -> int:
        return self.depth + self.letters + 2 * self.kinds + 1

    @property
    def chance(self) -> float | None:
        return 1 / self.depth

    @property
    def num_classes(self) -> int | None:
        return self.depth

    def least(self) -> tuple[int, str]:
        return 2 * self.depth + 2, "2 * depth + 2"

    def rows(self, batch_size: int, seq_len: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        numbers = Numbers(generator)
        depths = torch.randint(self.depth, (batch_size,), generator=generator)
        end = self.num_tokens - 1
        inputs = [[*self._nested(seq_len - 1, 1 + depth, numbers), end] for depth in depths.tolist()]
        targets = torch.full((batch_size, seq_len), IGNORE)
        targets[:, -1] = depths
        return torch.tensor(inputs), targets

    def _nested(self, count: int, depth: int, numbers: Numbers) -> Row:
        """`count` tokens of exactly this depth; `count` is at least `2 * depth + 1`."""
        if depth == 0:
            return self._shallow(count, 0, numbers)
        least = 2 * depth - 1
        inside = least + numbers.below(count - 2 - least + 1)
        before = numbers.below(count - 2 - inside + 1)
        deepest = self._enclosed(self._nested(inside, depth - 1, numbers), numbers)
        after = self._shallow(count - 2 - inside - before, depth, numbers)
        return self._shallow(before, depth, numbers) + deepest + after

    def _shallow(self, count: int, depth: int, numbers: Numbers) -> Row:
        """`count` tokens of at most this depth."""
        row: Row = []
        while (left := count - len(row)) > 0:
            if depth and left >= 3 and numbers.below(2):
                inside = self._shallow(1 + numbers.below(left - 2), depth - 1, numbers)
                row += self._enclosed(inside, numbers)
            else:
                row.append(self.depth + numbers.below(self.letters))
        return row

    def _enclosed(self, inside: Row, numbers: Numbers) -> Row:
        kind = self.depth + self.letters + numbers.below(self.kinds)
        return [kind, *inside, kind + self.kinds]
