"""The `evaluate` block of a study or training file, and the trial that combines all blocks."""

import hashlib
import json
from typing import Any

import torch
from pydantic import Field, field_validator, model_validator

import flagformer
from flagformer.lab.data import LONGEST, Source, Split, draws
from flagformer.lab.data.catalogue import DataConfig
from flagformer.lab.data.stdlib import StandardLibrary
from flagformer.lab.objectives import Objective
from flagformer.lab.objectives.catalogue import ObjectiveConfig, default_objective
from flagformer.lab.objectives.fit import check_lengths, refuse_misfit
from flagformer.lab.objectives.own import metric_name, metric_of, refuse_wrong_batches
from flagformer.lab.train.block import Block
from flagformer.lab.train.mup.multipliers import multipliers
from flagformer.lab.train.mup.parameters import Rule, rules, scale_initial
from flagformer.lab.train.optimizers.groups import refuse_idle_groups
from flagformer.lab.train.settings import TrainConfig
from flagformer.lab.train.start import Start

SEED_LIMIT = 2**63  # seeds are below: torch's generators hold 64 bits


class EvaluateConfig(Block):
    """Evaluation settings. All trials are evaluated on the same data, independent of their seeds."""

    added = ("metrics",)

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
        flags = {**typed, **self.trained_by.filled(self.source, self.longest, typed), **self.flags}
        return flags if self.train.mup is None else {**flags, **multipliers(flags, self.train.mup)}

    @property
    def _typed(self) -> dict[str, Any]:
        """The flags with the kind of model; with `from`, all flags of the model."""
        if self.start is not None:
            return dict(self.start.checked(self.flags).flags)
        return {"model": self.source.model, **self.flags}

    def build(self) -> Any:
        """The model before the first step; new parameters are random numbers of torch's generator."""
        if self.start is not None:
            return self.start.build(self.flags)
        model = flagformer.build(self.model_flags)
        if found := self.mup_rules(model):
            scale_initial(model, found)
        return model

    def mup_rules(self, model: Any = None) -> dict[str, Rule]:
        """The rule of each parameter under `train.mup`; empty without it."""
        if self.train.mup is None:
            return {}
        if self.start is not None:
            raise ValueError(
                "`train.mup` and `from` cannot be combined, because muP sets initial weights; leave one out"
            )
        return rules(self.model_flags, self.train.mup, model)

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
        self._refuse_penalties(objective)
        flags, sizes = self.model_flags, objective.sizes(source, self.longest, typed)
        for name in objective.fixed:
            self._check_size(name, flags[name], sizes[name])
        with torch.device("meta"):
            model = flagformer.build(flags)
        self.mup_rules(model)
        check_lengths(model, sizes, self.train.segment is not None)
        refuse_idle_groups(model, self.train)
        objective.check(source, "train", source.seq_len)
        objective.check(source, "validation", source.seq_len)
        for length in self.lengths:
            objective.check(source, self.evaluate.split, length)
        refuse_wrong_batches(objective, source, "train", source.seq_len)
        return model

    def _refuse_penalties(self, objective: Objective) -> None:
        """Losses of vectors and of own objectives may have no softmax."""
        for name in ("label_smoothing", "z_loss"):
            if getattr(self.train, name) and not objective.has_penalties:
                kind = getattr(objective, "name", type(objective).__name__)
                raise ValueError(f"`train.{name}` needs a loss of tokens, but `objective: {kind}` has none")

    def _check_size(self, name: str, count: int, wanted: int) -> None:
        meaning = self.trained_by.contents(name)
        if self.start is not None and count < wanted:
            raise ValueError(
                f"`{name}` must be at least {wanted}, {meaning}, but is {count} in "
                f"{self.start.path}; use its own tokenizer (`source: tokens`), or set `{name}: {wanted}`"
            )
        if self.start is None and count != wanted:
            raise ValueError(f"`{name}` must be {wanted}, {meaning}, but is {count}; leave it out")
