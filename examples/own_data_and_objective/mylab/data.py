"""A source of data: balanced brackets."""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from flagformer.lab.data import IGNORE
from flagformer.lab.data.generated import Generated


class Brackets(Generated):
    """Random balanced brackets of several kinds, as `( [ ] ( ) )`.

    A target is the next bracket where it closes one: its kind follows from the brackets before it. Tokens:
    the opening brackets, then the closing ones.
    """

    metric: ClassVar[str] = "closing brackets; accuracy: the share predicted right; chance: 1 / kinds"

    source: str  # the import path
    kinds: int = Field(default=4, ge=1, le=100, description="Kinds of brackets.")

    @property
    def num_tokens(self) -> int:
        return 2 * self.kinds

    @property
    def chance(self) -> float:
        return 1 / self.kinds

    def least(self) -> tuple[int, str]:
        return 2, "one pair of brackets"

    def rows(self, batch_size: int, seq_len: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Inputs and targets, long [batch_size, seq_len]."""
        kinds = torch.randint(self.kinds, (batch_size, seq_len + 1), generator=generator).tolist()
        opens = (torch.rand(batch_size, seq_len + 1, generator=generator) < 0.5).tolist()
        tokens = torch.tensor([self._row(*drawn) for drawn in zip(kinds, opens)])
        following = tokens[:, 1:]
        return tokens[:, :-1], following.where(following >= self.kinds, IGNORE)

    def _row(self, kinds: list[int], opens: list[bool]) -> list[int]:
        """One row; a bracket is closed only if one is open."""
        row: list[int] = []
        waiting: list[int] = []
        for kind, is_open in zip(kinds, opens):
            if is_open or not waiting:
                waiting.append(kind)
                row.append(kind)
            else:
                row.append(self.kinds + waiting.pop())
        return row
