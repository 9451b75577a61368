"""The `train` and `evaluate` blocks of a study or training file, and the trial that combines them."""

import hashlib
import json
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_serializer, model_validator

import flagformer
from flagformer.lab.data import LONGEST, Source, Split, draws
from flagformer.lab.data.catalogue import DataConfig
from flagformer.lab.data.stdlib import StandardLibrary
from flagformer.lab.objectives import Objective
from flagformer.lab.objectives.catalogue import ObjectiveConfig, default_objective
from flagformer.lab.objectives.fit import check_lengths, refuse_misfit
from flagformer.lab.objectives.own import metric_name, metric_of, refuse_wrong_batches
from flagformer.lab.train.start import Start

SEED_LIMIT = 2**63  # seeds are below: torch's generators hold 64 bits


class Block(BaseModel):
    """Base of all blocks: unknown keys are errors, and instances are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class TrainConfig(Block):
    """Training settings. A step is one update of the weights from `batch_size` sequences."""

    steps: int = Field(default=400, ge=1, le=10**9, description="Updates of the weights.")
    batch_size: int = Field(
        default=32, ge=1, le=2**20, description="Sequences per update, all micro-batches together."
    )
    accumulate: int = Field(
        default=1,
        ge=1,
        description="Micro-batches per update; divides batch_size; changes memory, not the result.",
    )
    lr: float = Field(default=2e-3, gt=0, le=1e3, description="Peak learning rate of AdamW.")
    warmup: int = Field(
        default=40, ge=0, le=10**9, description="Steps of linear rise from 0 to lr; at most steps."
    )
    decay: Literal["cosine", "linear", "constant"] = Field(
        default="cosine", description="Shape of the decay of lr after the warmup."
    )
    lr_end: float = Field(default=0.1, ge=0, le=1, description="Final learning rate as a fraction of lr.")
    weight_decay: float = Field(
        default=0.1, ge=0, le=1e3, description="AdamW's decoupled decay, on matrices only."
    )
    betas: tuple[float, float] = Field(
        default=(0.9, 0.95), description="AdamW's decay rates of the two moments."
    )
    clip: float = Field(default=1.0, ge=0, le=1e9, description="Largest gradient norm; 0 is off.")
    precision: Literal["fp32", "bf16"] = Field(
        default="fp32", description="bf16: autocast; the weights stay fp32."
    )
    matmul_precision: Literal["highest", "high", "medium"] = Field(
        default="highest",
        description="torch.set_float32_matmul_precision; medium is faster, with products in bf16.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="auto: cuda if available, otherwise cpu."
    )
    segment: int | None = Field(
        default=None,
        ge=1,
        le=LONGEST,
        description="Tokens per forward, in training and evaluation; each segment reads the memory of the "
        "previous one (`num_memory_slots`, `max_mem_len`); default: whole rows.",
    )
    eval_every: int = Field(
        default=0,
        ge=0,
        le=10**9,
        description="Steps between validations, logged as validation_loss; 0: none.",
    )
    checkpoint_every: int = Field(
        default=100,
        ge=1,
        le=10**9,
        description="Steps between checkpoints: a kill loses at most these.",
    )

    @field_validator("betas")
    @classmethod
    def _betas_below_one(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"`betas` must both be at least 0 and below 1, but are {betas}")
        return betas

    @model_validator(mode="after")
    def _fits_together(self) -> "TrainConfig":
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"`accumulate` must divide `batch_size` = {self.batch_size}, but is {self.accumulate}; "
                "micro-batches must be of equal size"
            )
        if self.warmup > self.steps:
            raise ValueError(f"`warmup` must be at most `steps` = {self.steps}, but is {self.warmup}")
        return self


class EvaluateConfig(Block):
    """Evaluation settings. All trials are evaluated on the same data, independent of their seeds."""

    seq_lens: tuple[int, ...] = Field(
        default=(), description="Test lengths, also longer than in training; empty: the training length."
    )
    batches: int = Field(
        default=32,
        ge=1,
        le=10**6,
        description="Batches per length, each with as many tokens as a training step.",
    )
    split: Split = Field(
        default="test", description="The split of the final evaluation; eval_every always uses validation."
    )

    metrics: tuple[str, ...] = Field(
        default=(),
        max_length=100,
        description="Import paths of own functions: (logits, targets) of a batch -> a sum and a count.",
    )

    @model_serializer(mode="wrap")
    def _without_no_metrics(self, dump: Any) -> dict[str, Any]:
        """Without metrics, settings and ids of trials are those of earlier versions."""
        found: dict[str, Any] = dump(self)
        if not self.metrics:
            found.pop("metrics", None)
        return found

    @field_validator("metrics")
    @classmethod
    def _metrics_are_functions(cls, paths: tuple[str, ...]) -> tuple[str, ...]:
        for path in paths:
            metric_of(path)
        if len({metric_name(path) for path in paths}) < len(paths):
            raise ValueError(f"`metrics` must have functions of different names, but has {list(paths)}")
        return paths

    @field_validator("seq_lens")
    @classmethod
    def _lengths_are_lengths(cls, lengths: tuple[int, ...]) -> tuple[int, ...]:
        for length in lengths:
            if length < 2:
                raise ValueError(f"`seq_lens` must be lengths of at least 2, but holds {length}")
            if length > LONGEST:
                raise ValueError(f"`seq_lens` must be lengths of at most {LONGEST:,}, but holds {length}")
        if len(set(lengths)) < len(lengths):
            raise ValueError(f"`seq_lens` must name each length once, but is {list(lengths)}")
        return lengths


class Trial(Block):
    """The complete settings of one training run: model flags, data, training, evaluation, seed. Equal trials
    give equal results on one CPU.
    """

    flags: dict[str, Any] = Field(
        description="Flat flags for flagformer.build; num_tokens and max_seq_len may be left out."
    )
    data: DataConfig = StandardLibrary()
    objective: ObjectiveConfig | None = Field(
        default=None, description="The objective; None: the default of the model and the data."
    )
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    seed: int = Field(
        default=0,
        ge=0,
        lt=SEED_LIMIT,
        description="Seed of the weights, of dropout and of the order of the data.",
    )
    copy_number: int = Field(
        default=0,
        ge=0,
        description="Number of a copy with the same seed and data, but other initial weights.",
    )
    start: Start | None = Field(
        default=None, description="The model that training starts from; `from` among the flags."
    )

    @model_validator(mode="before")
    @classmethod
    def _start_of_flags(cls, given: Any) -> Any:
        """`from` among the flags: a directory, or its path and digest."""
        if not isinstance(given, dict) or "from" not in (given.get("flags") or {}):
            return given
        flags = dict(given["flags"])
        start = flags.pop("from")
        return {**given, "flags": flags, "start": start if isinstance(start, dict) else Start.of(start)}

    @property
    def source(self) -> Source:
        """The data source."""
        return self.data

    @property
    def weights_seed(self) -> int:
        """The seed of weights and dropout: `seed`, or another one for a copy."""
        return (
            self.seed if self.copy_number == 0 else draws("copy", self.seed, self.copy_number).initial_seed()
        )

    @property
    def lengths(self) -> tuple[int, ...]:
        """Lengths of the final evaluation."""
        return self.evaluate.seq_lens or (self.source.seq_len,)

    @property
    def longest(self) -> int:
        """The largest number of tokens in one forward."""
        whole = max(self.source.seq_len, *self.lengths)
        return whole if self.train.segment is None else min(whole, self.train.segment)

    @property
    def trained_by(self) -> Objective:
        """The objective, or the default one of the model and the data."""
        given = self.objective
        return default_objective(self.source, self._typed) if given is None else given

    @property
    def model_flags(self) -> dict[str, Any]:
        """The flags, with those that follow from the data and the longest row filled in.

        With `from`, those of the directory and the grafted ones.
        """
        typed = self._typed
        if self.start is not None:
            return typed
        return {**typed, **self.trained_by.filled(self.source, self.longest, typed), **self.flags}

    @property
    def _typed(self) -> dict[str, Any]:
        """The flags with the kind of model; with `from`, all flags of the model."""
        if self.start is not None:
            return dict(self.start.checked(self.flags).flags)
        return {"model": self.source.model, **self.flags}

    def build(self) -> Any:
        """The model before the first step; new parameters are random numbers of torch's generator."""
        return flagformer.build(self.model_flags) if self.start is None else self.start.build(self.flags)

    def settings(self) -> dict[str, Any]:
        """All settings as JSON values; of the directory that training starts from, the digest is one."""
        absent = {name for name in ("start", "objective") if getattr(self, name) is None}
        return self.model_dump(mode="json", exclude=absent)

    @property
    def id(self) -> str:
        """12 hexadecimal digits of a hash of all settings: equal trials have equal ids, in any process."""
        content = self.settings()
        if self.start is not None:  # a directory may be moved
            content["start"] = self.start.digest
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]

    def check(self) -> Any:
        """Raise ValueError, FlagError or OSError if this trial cannot run. Reads the data.

        Returns:
            The model on torch's meta device, which takes no memory.
        """
        if self.start is not None:
            self.start.refuse_changed()
        objective, source, typed = self.trained_by, self.source, self._typed
        refuse_misfit(objective, source, typed, self.train.segment)
        flags, sizes = self.model_flags, objective.sizes(source, self.longest, typed)
        for name in objective.fixed:
            self._check_size(name, flags[name], sizes[name])
        with torch.device("meta"):
            model = flagformer.build(flags)
        check_lengths(model, sizes, self.train.segment is not None)
        objective.check(source, "train", source.seq_len)
        objective.check(source, "validation", source.seq_len)
        for length in self.lengths:
            objective.check(source, self.evaluate.split, length)
        refuse_wrong_batches(objective, source, "train", source.seq_len)
        return model

    def _check_size(self, name: str, count: int, wanted: int) -> None:
        meaning = self.trained_by.contents(name)
        if self.start is not None and count < wanted:
            raise ValueError(
                f"`{name}` must be at least {wanted}, {meaning}, but is {count} in "
                f"{self.start.path}; use its own tokenizer (`source: tokens`), or set `{name}: {wanted}`"
            )
        if self.start is None and count != wanted:
            raise ValueError(f"`{name}` must be {wanted}, {meaning}, but is {count}; leave it out")
