"""Sums of sine waves, for models of vectors."""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from flagformer.lab.data import Form, Split
from flagformer.lab.data.generated import Generated


class Sines(Generated):
    """Each channel of a row is a sum of `waves` sine waves of random frequency and phase, with noise.

    With `predict: next` the target of each position is the next value without noise, for causal models; with
    `predict: clean` it is the value of the position without noise. Frequencies are uniform from 0.02 to 0.2
    periods a step, and the waves of a channel have variance 1 together. A row is [seq_len, channels].
    """

    form: ClassVar[Form] = "vectors"
    metric: ClassVar[str] = (
        "values without noise; accuracy: the share of their mean square that predictions explain; chance: 0, "
        "zeros"
    )

    source: Literal["sines"]
    channels: int = Field(default=2, ge=1, le=4096, description="Values at each position.")
    waves: int = Field(default=3, ge=1, le=64, description="Sine waves of a channel.")
    noise: float = Field(default=0.3, ge=0, le=100, description="Standard deviation of the noise.")
    predict: Literal["next", "clean"] = Field(
        default="next", description="next: the value at the next position; clean: that of the position."
    )

    @property
    def model(self) -> str:
        return "continuous"

    @property
    def predicts_next(self) -> bool:
        return self.predict == "next"

    @property
    def num_tokens(self) -> int:
        return self.channels

    @property
    def chance(self) -> float | None:
        return 0.0

    def least(self) -> tuple[int, str]:
        return 2, "two values"

    def example(self, rows: int, seq_len: int) -> Tensor:
        return torch.zeros(rows, seq_len, self.channels)

    def batch(
        self, split: Split, step: int, seed: int, batch_size: int, seq_len: int
    ) -> tuple[Tensor, Tensor]:
        """Inputs and targets, fp32 [batch_size, seq_len, channels]."""
        return super().batch(split, step, seed, batch_size, seq_len)

    def rows(self, batch_size: int, seq_len: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        shape = (batch_size, 1, self.channels, self.waves)
        frequencies = 0.02 + 0.18 * torch.rand(shape, generator=generator)
        phases = torch.rand(shape, generator=generator)
        steps = torch.arange(seq_len + 1)[:, None, None]
        waves = torch.sin(2 * torch.pi * (frequencies * steps + phases))  # [B, T + 1, C, waves]
        clean = waves.sum(-1) * (2 / self.waves) ** 0.5
        noise = torch.randn(batch_size, seq_len, self.channels, generator=generator)
        inputs = clean[:, :-1] + self.noise * noise
        return inputs, clean[:, 1:] if self.predict == "next" else clean[:, :-1]
