"""Flags of the router of a mixture of experts, their checks, and its auxiliary losses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from flagformer.flags import Finding, Flag, FlagError
from flagformer.flow import Layout, SideInputs
from flagformer.ops.experts import SCORES, Choice, RouterOutput
from flagformer.ops.router_losses import balance_loss, router_z_loss, sequence_balance_loss

BALANCE, SEQUENCE, Z = "moe.balance", "moe.sequence_balance", "moe.z"  # names of the auxiliary losses
TOP_K, RATE = 2, 1e-3

NumExperts = Annotated[int, Flag("moe_num_experts", "number E of experts", ge=1)]
TopK = Annotated[int, Flag("moe_top_k", "experts of each token", ge=1, example=3)]
Score = Annotated[
    str,
    Flag(
        "moe_router",
        "score of an expert, by the router's logits: their softmax, or the sigmoid of each (2412.19437)",
        choices=tuple(SCORES),
        example="sigmoid",
    ),
]
RouterBias = Annotated[bool, Flag("moe_router_bias", "the router has a bias", neutral=True)]
Normalize = Annotated[
    bool | None,
    Flag(
        "moe_normalize_weights",
        "divide the weights of the chosen experts by their sum; None: if there are several",
        example=False,
    ),
]
Scale = Annotated[
    float, Flag("moe_weight_scale", "a factor of the weights (2412.19437: 2.5)", ge=1e-6, example=2.5)
]
WeightInput = Annotated[
    bool, Flag("moe_weight_input", "weights multiply the inputs of experts, not their outputs (Llama 4)")
]
NumGroups = Annotated[
    int,
    Flag(
        "moe_num_groups",
        "groups of experts, among which a token chooses first",
        ge=1,
        example=2,
        example_with={"moe_top_groups": 1},
    ),
]
TopGroups = Annotated[
    int | None,
    Flag(
        "moe_top_groups",
        "groups whose experts a token may choose (2412.19437); None: all",
        ge=1,
        example=1,
        example_with={"moe_num_groups": 2},
    ),
]
Balanced = Annotated[
    bool,
    Flag(
        "moe_balance_bias",
        "balance the experts by a bias in their choice, without a gradient (2408.15664)",
        neutral=True,
    ),
]
Rate = Annotated[
    float,
    Flag(
        "moe_balance_bias_rate",
        "step of the balance bias, after each update",
        ge=0,
        example=0.5,
        example_with={"moe_balance_bias": True},
    ),
]
BalanceCoef = Annotated[float, Flag("moe_loss_coef", "weight of the load-balancing loss", ge=0)]
BalanceChoices = Annotated[
    str,
    Flag(
        "moe_balance_choices",
        "experts of a token that the load-balancing loss counts: the first, as in 2101.03961, or all, as in"
        " Mixtral (a perfect balance is then `moe_top_k`, not 1)",
        choices=("first", "all"),
        example="all",
        example_with={"moe_loss_coef": 0.5},
    ),
]
SequenceCoef = Annotated[
    float,
    Flag(
        "moe_sequence_loss_coef",
        "weight of the load-balancing loss within each sequence (2412.19437)",
        ge=0,
        example=0.5,
    ),
]
ZCoef = Annotated[float, Flag("moe_z_loss_coef", "weight of the router's z-loss (2202.08906)", ge=0)]


def choice_of(
    experts: int,
    top_k: int,
    score: str,
    normalize: bool | None,
    scale: float,
    num_groups: int,
    top_groups: int | None,
) -> Choice:
    """The choice of these flags; raise FlagError with all errors."""
    groups = num_groups if top_groups is None else top_groups
    errors = [
        *_count_errors(experts, top_k, num_groups, groups),
        *unused(
            ("moe_num_groups", num_groups != 1 and groups == num_groups, "every group may be chosen: set"
             " `moe_top_groups` below it"),
            ("moe_top_groups", num_groups == 1 and top_groups is not None, "`moe_num_groups` is not set"),
        ),
    ]  # fmt: skip
    if normalize and top_k == 1:
        text = "cannot be combined with `moe_top_k=1`, because the weight of a single expert would be 1, and"
        text = f"`moe_normalize_weights` {text} the router would have no gradient; leave it out"
        errors.append(Finding("moe_normalize_weights", text))
    if errors:
        raise FlagError(errors)
    top_k = min(top_k, experts)
    return Choice(top_k, score, top_k > 1 if normalize is None else normalize, scale, num_groups, groups)


def _count_errors(experts: int, top_k: int, num_groups: int, top_groups: int) -> Iterator[Finding]:
    if top_k > max(experts, TOP_K):  # a single expert serves the default of two
        text = f"`moe_top_k` must be at most `moe_num_experts` = {experts}, but is {top_k}"
        yield Finding("moe_top_k", text)
    if experts % num_groups:
        text = f"`moe_num_experts` must be a multiple of `moe_num_groups` = {num_groups}, but is {experts}"
        yield Finding("moe_num_experts", text)
    elif top_groups > num_groups:
        text = f"`moe_top_groups` must be at most `moe_num_groups` = {num_groups}, but is {top_groups}"
        yield Finding("moe_top_groups", text)
    elif top_groups * (experts // num_groups) < min(top_k, experts):
        count = top_groups * (experts // num_groups)
        text = f"must be at most {count}, the experts of `moe_top_groups` = {top_groups} groups"
        yield Finding("moe_top_k", f"`moe_top_k` {text}, but is {top_k}")


def unused(*rules: tuple[str, bool, str]) -> Iterator[Finding]:
    """A finding for each (flag, whether it is set without effect, reason)."""
    for name, wrong, reason in rules:
        if wrong:
            yield Finding(name, f"`{name}` has no effect here, because {reason}, or leave `{name}` out")


class Losses(NamedTuple):
    """Weights of the auxiliary losses, and the experts of a token that the load-balancing loss counts."""

    balance: float
    choices: int
    sequence: float
    z: float

    @property
    def any(self) -> bool:
        return self.balance > 0 or self.sequence > 0 or self.z > 0

    def add(self, logits: Tensor, routed: RouterOutput, shape: Sequence[int], side: SideInputs) -> None:
        """Add the losses of the tokens [B * T], `shape` [B, T], to the collector."""
        valid = valid_tokens(side.layout, shape)
        if self.balance:
            loss = balance_loss(routed, valid, self.choices)
            side.collector.add_loss(BALANCE, self.balance * loss)
        if self.sequence:
            top_k = routed.experts.shape[1]
            sequences = sequences_of(side.layout, shape, logits.device)
            loss = sequence_balance_loss(routed.probabilities, top_k, *sequences)
            side.collector.add_loss(SEQUENCE, self.sequence * loss)
        if self.z:
            side.collector.add_loss(Z, self.z * router_z_loss(logits, valid))


def valid_tokens(layout: Layout, shape: Sequence[int]) -> Tensor | None:
    """[B * T] bool, or None if all tokens are valid."""
    return None if layout.valid is None else layout.valid.expand(*shape).flatten()


def sequences_of(layout: Layout, shape: Sequence[int], device: torch.device) -> tuple[Tensor, int]:
    """The number [B * T] of each token's sequence, and how many there are; padding has that number."""
    batch, length = shape
    sequences = torch.arange(batch, device=device)[:, None].expand(batch, length)
    if layout.segment_ids is not None:  # padding after the last segment has the number of segments
        sequences = sequences * layout.num_segments + layout.segment_ids.clamp(max=layout.num_segments - 1)
    count = batch * (1 if layout.segment_ids is None else layout.num_segments)
    valid = valid_tokens(layout, shape)
    flat = sequences.flatten()
    return (flat if valid is None else flat.masked_fill(~valid, count)), count
