"""Objectives: the batches that a model is trained on, its loss and its metrics.

An `Objective` is its own configuration: its fields are the keys of the `objective` block of a study or
training file. It states which kinds of model it trains, with a reason for each other kind, makes batches from
a data source, calls the model, and computes the loss and the metrics. A batch depends on the arguments of
`batch` alone, as those of a source do. To add an objective, write one file with a subclass, one line in
`catalogue.py` and one test. An own class has a field `name: str`, which holds its
import path.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from torch.nn import functional as F

from flagformer.lab.data import IGNORE, Source, Split
from flagformer.lab.objectives.segment_reader import Reading, read_rows

# The values of `model` in a study or training file.
KINDS = (
    "decoder", "prefix_decoder", "routing_lm", "encoder", "classifier", "xtransformer", "routing_encdec",
    "memformer", "continuous", "vit",
)  # fmt: skip
PAIRS = ("xtransformer", "routing_encdec", "memformer")
NATS = "nats"
Batch = tuple[Tensor, ...]  # the inputs of the model, then the targets; rows first
Inputs = tuple[Tensor, ...]


class Objective(BaseModel, ABC):
    """An objective of training. It is frozen and refuses unknown fields.

    Attributes:
        summary: one sentence for the documentation, with the source.
        trains: the kinds of model that it trains.
        refusals: the reason for each other kind.
        without_segments: the reason why `train.segment` must be left out; empty if rows may be read in
            segments.
        reads_packed: whether it passes `Source.sequence_lengths` to the model.
        quality: the name of the metric in tables, and the entry of an evaluation that holds it.
        unit: the unit of the loss.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    summary: ClassVar[str]
    trains: ClassVar[tuple[str, ...]]
    refusals: ClassVar[Mapping[str, str]]
    without_segments: ClassVar[str] = "its rows are read whole"
    reads_packed: ClassVar[bool] = False
    quality: ClassVar[tuple[str, str]] = ("accuracy", "accuracy")
    unit: ClassVar[str] = NATS

    def misfit(self, flags: Mapping[str, Any]) -> str:
        """The reason why a model of these flags cannot be trained; empty if it can."""
        return self.refusals.get(flags["model"], "")

    @abstractmethod
    def data_misfit(self, source: Source, flags: Mapping[str, Any]) -> str:
        """The reason why the data cannot be used with these flags; empty if it can."""

    @abstractmethod
    def sizes(self, source: Source, longest: int, flags: Mapping[str, Any]) -> dict[str, Any]:
        """Flags of a model that follow from the data, for rows of up to `longest` tokens."""

    def filled(self, source: Source, longest: int, flags: Mapping[str, Any]) -> dict[str, Any]:
        """`sizes`, as they are set where a file does not; lengths may be larger."""
        return self.sizes(source, longest, flags)

    @property
    def fixed(self) -> tuple[str, ...]:
        """The names in `sizes` that a file cannot set to another value."""
        return ("num_tokens",)

    def contents(self, name: str) -> str:
        """The meaning of the value of a name in `fixed`, for messages."""
        return "the vocabulary of the data"

    def requires_causal(self, source: Source) -> bool:
        """Whether the audit requires that outputs depend on no later input."""
        return False

    def check(self, source: Source, split: Split, seq_len: int) -> None:
        """Raise ValueError or OSError if `batch` cannot generate this split at this length."""
        source.check(split, seq_len)

    @abstractmethod
    def batch(self, source: Source, split: Split, step: int, seed: int, rows: int, seq_len: int) -> Batch:
        """Inputs and targets on the CPU; targets are ids [B, T] with `IGNORE` where nothing is scored, or
        numbers [B, T, C]."""

    def example(self, source: Source, rows: int, seq_len: int) -> Inputs:
        """Zeros with the shapes and types of the inputs of `batch`, on torch's default device."""
        return (source.example(rows, seq_len),)

    def example_targets(self, logits: Tensor) -> Tensor:
        """Targets of zeros for the outputs of a model."""
        return torch.zeros(logits.shape[:-1], dtype=torch.long, device=logits.device)

    def ask(self, model: nn.Module, inputs: Inputs, segment: int | None, losses: bool) -> Reading:
        """The outputs of the model for the inputs of a batch; with `losses` its auxiliary loss too."""
        return read_rows(model, inputs[0], segment, losses)

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The loss of each target, fp32 [B, T]; 0 where nothing is scored."""
        return token_losses(logits, targets)

    def penalties(self, logits: Tensor, targets: Tensor, label_smoothing: float, z_loss: float) -> Tensor:
        """Label smoothing and z-loss, which are added to `losses` in training. An objective with another loss
        has its own, or refuses both."""
        return token_penalties(logits, targets, label_smoothing, z_loss)

    @property
    def has_penalties(self) -> bool:
        """Whether `penalties` belong to `losses`."""
        own = type(self)
        return own.losses is Objective.losses or own.penalties is not Objective.penalties

    def counted(self, targets: Tensor) -> Tensor:
        """bool [B, T], True for targets that count in the mean loss."""
        return targets != IGNORE

    def score(self, logits: Tensor, targets: Tensor) -> tuple[float, float]:
        """The numerator and the denominator of the metric."""
        right = int((logits.argmax(-1).view_as(targets) == targets).sum())
        return right, int((targets != IGNORE).sum())

    def exact_rows(self, model: nn.Module, inputs: Inputs, targets: Tensor) -> Tensor:
        """bool [B], whether the greedily generated answer of each row is right, if `has_answers`."""
        raise NotImplementedError

    def has_answers(self, source: Source) -> bool:
        """Whether rows have one right answer, which evaluations generate."""
        return False

    def figures(self, nats: float) -> dict[str, float]:
        """Further entries of an evaluation, from the mean loss."""
        return {}

    def chance(self, source: Source) -> float | None:
        """The metric of a random guess; None if unknown."""
        return source.chance

    def metric(self, source: Source) -> str:
        """One sentence: the scored targets and the definition of the metric."""
        return source.metric

    def is_bytes(self, source: Source) -> bool:
        """Whether the loss is of all bytes of a text, so that quality is bits per byte."""
        return False

    def quality_of(self, source: Source) -> tuple[str, str]:
        """The name of the metric, and its entry in an evaluation."""
        return ("bits per byte", "bits_per_byte") if self.is_bytes(source) else self.quality


def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy in nats at every position, fp32 [B, T]; 0 where the target is not scored. Logits are [B,
    T, V], or [B, V] for one target a row, T = 1."""
    flat = logits.reshape(-1, logits.shape[-1]).float()  # [B * T, V]
    losses = F.cross_entropy(flat, targets.flatten(), ignore_index=IGNORE, reduction="none")
    return losses.view_as(targets)


def token_penalties(logits: Tensor, targets: Tensor, label_smoothing: float, z_loss: float) -> Tensor:
    """Additions to `token_losses`.

    Args:
        label_smoothing: share of the target that is spread over all V (arXiv:1512.00567, section 7).
        z_loss: weight of the squared log of the softmax's denominator (arXiv:2204.02311, section 5).
    """
    flat, wanted = logits.reshape(-1, logits.shape[-1]).float(), targets.flatten()
    denominator = flat.logsumexp(-1)  # [B * T]
    scored = wanted != IGNORE
    target = flat.gather(1, wanted.masked_fill(~scored, 0)[:, None])[:, 0]
    added = label_smoothing * (target - flat.mean(-1)) + z_loss * denominator.square()
    return added.masked_fill(~scored, 0.0).view_as(targets)


def refused(reasons: Mapping[str, str], trains: tuple[str, ...]) -> dict[str, str]:
    """The reason for each kind that is not among `trains`; ValueError if one is missing."""
    missing = [kind for kind in KINDS if kind not in trains and kind not in reasons]
    if missing:
        raise ValueError(f"`refusals` must have a reason for {', '.join(missing)}")
    return {kind: reasons[kind] for kind in KINDS if kind not in trains}
