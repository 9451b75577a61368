"""Recall over segments, for models with memory between segments (after Memformer, arXiv 2010.06891)."""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from flagformer.lab.data import IGNORE
from flagformer.lab.data.generated import Generated


class SegmentRecall(Generated):
    """`s1 s2 ... | noise | ... | 2 1 1 4 ...`: the first segment begins with symbols, later segments query
    them by position.

    A row is `seq_len / segment` segments of `segment` tokens. Each segment from the second on is, at random,
    a query or noise (at least one is a query); with `delay` only the segment `delay` after the first is a
    query. The target of each token of a query is the symbol at the position that the token names. A model
    that reads segments independently, or with too little memory for the delay, is at chance level. Tokens:
    `stored` positions, then `symbols` symbols, then `noise` kinds of noise.
    """

    metric: ClassVar[str] = (
        "the symbol at each queried position; accuracy: the share predicted right; chance: 1 / symbols"
    )

    source: Literal["segment_recall"]
    segment: int = Field(default=8, ge=1, description="Tokens of a segment.")
    stored: int = Field(default=4, ge=1, description="Symbols to remember; at most `segment`.")
    symbols: int = Field(default=8, ge=2, description="Number of different symbols.")
    noise: int = Field(default=8, ge=1, description="Number of different tokens of noise.")
    delay: int | None = Field(
        default=None, ge=1, description="Segments from the first to the only query; none: queries are random."
    )

    @property
    def num_tokens(self) -> int:
        return self.stored + self.symbols + self.noise

    @property
    def chance(self) -> float | None:
        return 1 / self.symbols

    def least(self) -> tuple[int, str]:
        if self.stored > self.segment:
            raise ValueError(f"`stored` must be at most `segment` = {self.segment}, but is {self.stored}")
        return self.segment * (1 + (self.delay or 1)), "the first segment and a query"

    def check_length(self, seq_len: int) -> None:
        least, why = self.least()
        if seq_len % self.segment or seq_len < least:
            raise ValueError(
                f"`seq_len` must be a multiple of `segment` = {self.segment} and at least {least}, for "
                f"{why}, but is {seq_len}"
            )

    def rows(self, batch_size: int, seq_len: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        count = seq_len // self.segment
        shape = (batch_size, count, self.segment)
        inputs = torch.randint(self.stored + self.symbols, self.num_tokens, shape, generator=generator)
        symbols = self.stored + torch.randint(self.symbols, (batch_size, self.stored), generator=generator)
        inputs[:, 0, : self.stored] = symbols
        asked = torch.randint(self.stored, shape, generator=generator)
        wanted = symbols.gather(1, asked.flatten(1)).view(shape)
        draw = torch.rand(batch_size, count, 1, generator=generator)
        draw[:, 0] = 2.0
        queries = (draw < 0.5) | (draw == draw.amin(dim=1, keepdim=True))  # at least one in each row
        if self.delay is not None:
            queries = (torch.arange(count) == self.delay)[:, None]
        targets = torch.where(queries, wanted, IGNORE)
        return torch.where(queries, asked, inputs).flatten(1), targets.flatten(1)
