"""The `train` block of a study or training file."""

from typing import Literal

from pydantic import Field, field_validator, model_validator

from flagformer.lab.data import LONGEST
from flagformer.lab.train.block import Block
from flagformer.lab.train.decays import decay_of, falling_steps
from flagformer.lab.train.mup.settings import Mup
from flagformer.lab.train.optimizers.adamw import AdamW
from flagformer.lab.train.optimizers.catalogue import OptimizerConfig
from flagformer.lab.train.roles import Role

WARMUP, BETAS = 40, (0.9, 0.95)


class GroupConfig(Block):
    """Settings of the parameters of one role."""

    lr: float | None = Field(default=None, gt=0, le=1e3, description="Peak learning rate; default: `lr`.")
    weight_decay: float | None = Field(
        default=None, ge=0, le=1e3, description="Default: `weight_decay` for matrices, 0 for others."
    )


class TrainConfig(Block):
    """Training settings. A step is one update of the weights from `batch_size` sequences."""

    added = ("optimizer", "groups", "decay_share", "label_smoothing", "z_loss", "ema", "compile", "mup")

    steps: int = Field(default=400, ge=1, le=10**9, description="Updates of the weights.")
    batch_size: int = Field(
        default=32, ge=1, le=2**20, description="Sequences per update, all micro-batches together."
    )
    accumulate: int = Field(
        default=1,
        ge=1,
        description="Micro-batches per update; divides batch_size; changes memory, not the result.",
    )
    optimizer: OptimizerConfig = Field(default=AdamW(), description="Its name, or `name` and its settings.")
    groups: dict[Role, GroupConfig] = Field(
        default={}, description="Rates and weight decay of parameters by role: embedding, matrix, head, "
        "norm, bias or vector.",
    )  # fmt: skip
    lr: float = Field(default=2e-3, gt=0, le=1e3, description="Peak learning rate.")
    warmup: int = Field(
        default=WARMUP, ge=0, le=10**9, description="Steps of linear rise from 0 to lr; at most steps."
    )
    decay: str = Field(
        default="cosine",
        description="Shape of the decay of lr after the warmup: cosine, linear, constant, wsd, inverse_sqrt, "
        "or the import path of a function (share of the steps after the warmup) -> share of lr.",
    )
    decay_share: float = Field(
        default=0.2, gt=0, le=1, description="Share of the steps in which lr falls, of `decay: wsd`."
    )
    lr_end: float = Field(default=0.1, ge=0, le=1, description="Final learning rate as a fraction of lr.")
    weight_decay: float = Field(default=0.1, ge=0, le=1e3, description="Decoupled decay, on matrices only.")
    betas: tuple[float, float] = Field(default=BETAS, description="AdamW's decay rates of the two moments.")
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=1, description="Share of the target that is spread over the vocabulary; in "
        "training only.",
    )  # fmt: skip
    z_loss: float = Field(
        default=0.0, ge=0, le=1e3, description="Weight of the squared log of the softmax's denominator, in "
        "training only.",
    )  # fmt: skip
    ema: float = Field(
        default=0.0, ge=0, lt=1, description="Decay of an exponential average of the weights, which is "
        "evaluated and saved; 0 is off.",
    )  # fmt: skip
    compile: bool = Field(default=False, description="Train a compiled model (`torch.compile`).")
    mup: Mup | None = Field(
        default=None,
        description="muP: initial weights, rates and multipliers relative to a base model (2203.03466).",
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

    @field_validator("decay")
    @classmethod
    def _decay_is_known(cls, name: str) -> str:
        decay_of(name)
        return name

    @model_validator(mode="after")
    def _fits_together(self) -> "TrainConfig":
        name, optimizer = self.optimizer.name, self.optimizer
        if self.betas != BETAS and not optimizer.reads_betas:
            raise ValueError(f"`betas` are not read by `optimizer: {name}`; leave them out")
        if not optimizer.decays_rate and self.decay not in ("cosine", "constant"):
            raise ValueError(
                f"`decay` must be left out with `optimizer: {name}`, whose rate stays at `lr`, but is "
                f"{self.decay!r}"
            )
        if not optimizer.decays_rate and self.ema:
            raise ValueError(
                f"`ema` must be left out with `optimizer: {name}`, which averages the weights itself"
            )
        if self.mup is not None and not isinstance(optimizer, AdamW):
            raise ValueError(
                f"`mup` must be left out with `optimizer: {name}`: its rates are derived for the updates "
                "of AdamW, whose elements have about the size of the rate; leave one of them out"
            )
        if self.decay != "wsd" and self.decay_share != type(self).model_fields["decay_share"].default:
            raise ValueError(f"`decay_share` needs `decay: wsd`, but `decay` is {self.decay!r}")
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"`accumulate` must divide `batch_size` = {self.batch_size}, but is {self.accumulate}; "
                "micro-batches must be of equal size"
            )
        if "warmup" not in self.model_fields_set and self.warmup > self.steps:
            self.__dict__["warmup"] = self.steps  # a short run has a short warmup
        if self.warmup > self.steps:
            raise ValueError(f"`warmup` must be at most `steps` = {self.steps}, but is {self.warmup}")
        stays = self.steps - falling_steps(self.steps, self.decay_share)
        if self.decay == "wsd" and self.warmup > stays:
            raise ValueError(
                f"`warmup` must be at most {stays}, the step after which `decay: wsd` falls, "
                f"but is {self.warmup}"
            )
        return self
