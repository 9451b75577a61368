"""A mixture of experts: each token goes through k of E feedforwards (1701.06538, 2006.16668)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from flagformer.feedforward import Activation, FeedForward
from flagformer.feedforward.balance_bias import REMINDER, BalanceBias
from flagformer.feedforward.dense import GLU, MULT, Dense, Dropout, InnerDim, Mult, NoBias, inner_width
from flagformer.feedforward.experts import Experts
from flagformer.feedforward.gated import Gated, Limit, Offset
from flagformer.feedforward.router import (
    RATE,
    TOP_K,
    BalanceChoices,
    BalanceCoef,
    Balanced,
    Losses,
    Normalize,
    NumExperts,
    NumGroups,
    Rate,
    RouterBias,
    Scale,
    Score,
    SequenceCoef,
    TopGroups,
    TopK,
    WeightInput,
    ZCoef,
    choice_of,
    unused,
    valid_tokens,
)
from flagformer.flags import ANY, Flag, FlagError, component
from flagformer.flow import Dims, SideInputs
from flagformer.ops.experts import ByExpert, RouterOutput
from flagformer.ops.full_precision import accum_dtype
from flagformer.ops.reminder import watch
from flagformer.ops.traced import traced, transformed

GATED = "gated linear units: of the feedforward, and of the experts of `ff_moe`"
NumShared = Annotated[
    int,
    Flag(
        "moe_num_shared_experts", "experts that every token uses, with weight 1", ge=0, example=1, neutral=ANY
    ),
]
SharedDim = Annotated[
    int | None,
    Flag(
        "moe_shared_inner_dim",
        "inner width of a shared expert; None: F",
        ge=1,
        example=12,
        example_with={"moe_num_shared_experts": 1},
    ),
]
SharedGate = Annotated[
    bool,
    Flag(
        "moe_shared_gate",
        "a sigmoid of each token scales the shared experts (Qwen2-MoE)",
        example_with={"moe_num_shared_experts": 1},
    ),
]


@component(
    "feedforward",
    select="ff_moe",
    paper="arXiv:2006.16668, section 2.2",
    lacks={"output_projection": "each expert has an output projection of its own"},
)
class MixtureOfExperts(FeedForward):
    """Top-k mixture of experts, by default two, weighted by router probabilities that sum to one.

    Departures: experts have no capacity and drop no tokens, so that the output of a token depends on that
    token only. The second expert is always used, where the paper samples it, so that training and evaluation
    compute the same function. Router probabilities are fp32 (2101.03961, section 2.4).
    """

    def __init__(
        self,
        dims: Dims,
        activation: Activation,
        *,
        experts: NumExperts = 4,
        top_k: TopK = TOP_K,
        score: Score = "softmax",
        router_bias: RouterBias = False,
        normalize: Normalize = None,
        scale: Scale = 1.0,
        weight_input: WeightInput = False,
        num_groups: NumGroups = 1,
        top_groups: TopGroups = None,
        shared: NumShared = 0,
        shared_dim: SharedDim = None,
        shared_gate: SharedGate = False,
        balanced: Balanced = False,
        rate: Rate = RATE,
        balance: BalanceCoef = 1e-2,
        choices: BalanceChoices = "first",
        sequence: SequenceCoef = 0.0,
        z: ZCoef = 1e-3,
        glu: Annotated[bool | None, Flag("ff_glu", GATED)] = False,
        limit: Limit = None,
        offset: Offset = 0.0,
        mult: Mult = MULT,
        inner_dim: InnerDim = None,
        dropout: Dropout = 0.0,
        no_bias: NoBias = False,
    ) -> None:
        super().__init__()
        parts = (shared, shared_dim, shared_gate)
        _refuse_unused(glu, limit, offset, parts, balanced, rate, balance, choices)
        self.choice = choice_of(experts, top_k, score, normalize, scale, num_groups, top_groups)
        self.losses = Losses(balance, 1 if choices == "first" else self.choice.top_k, sequence, z)
        self.has_aux_loss = self.losses.any
        width = inner_width(dims.dim, mult, inner_dim)
        self.gated = Gated(limit, offset) if glu else None
        self.router = nn.Linear(dims.dim, experts, bias=router_bias)
        self.w_in = Experts(experts, dims.dim, 2 * width if glu else width, not no_bias)
        self.activation = activation
        self.dropout = nn.Dropout(dropout)
        self.w_out = Experts(experts, width, dims.dim, not no_bias)
        self.weight_input = weight_input
        self.balance_bias = BalanceBias(experts, rate) if balanced else None
        self.shared = _shared(self, dims, shared * (shared_dim or width), no_bias) if shared else None
        self.shared_gate = nn.Linear(dims.dim, 1, bias=False) if shared_gate else None
        self._watch()

    def init_neutral(self) -> float:
        """Start with a shared expert whose output is zero."""
        last = getattr(self.shared, "w_out", None)
        for tensor in () if last is None else last.parameters():
            nn.init.zeros_(tensor)
        return 1.0

    def _watch(self) -> None:
        if self.balance_bias is not None:
            watch(self, REMINDER)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._watch()

    def forward(self, x: Tensor, side: SideInputs) -> Tensor:
        tokens = x.flatten(0, 1)  # [B * T, D]
        logits = self.router(tokens)
        logits = logits.to(accum_dtype(logits.dtype))
        bias = None if self.balance_bias is None else self.balance_bias()
        routed = RouterOutput.of(logits, self.choice, bias)
        if self.training:
            self.losses.add(logits, routed, x.shape[:2], side)
            if self.balance_bias is not None and side.state is None and not side.recomputing:
                self.balance_bias.count(routed, valid_tokens(side.layout, x.shape[:2]))
        out = self._way(tokens)(tokens, routed).view_as(x)
        if self.shared is None:
            return out
        shared = self.shared(x, side)
        return out + (shared if self.shared_gate is None else self.shared_gate(x).sigmoid() * shared)

    def _way(self, tokens: Tensor) -> Callable[[Tensor, RouterOutput], Tensor]:
        """How the experts are computed; the ways differ in speed and in rounding only."""
        if not torch.compiler.is_compiling() and traced():
            return self._all_experts
        grouped = tokens.is_meta or self.w_in.has_grouped_mm(tokens)
        if not torch.compiler.is_compiling():
            return self._grouped if grouped else self._one_token if len(tokens) == 1 else self._routed
        opaque = not (torch.compiler.is_exporting() or transformed())
        return self._grouped if opaque and (grouped or tokens.device.type == "cpu") else self._all_experts

    def _experts(self, parts: list[Tensor], which: Sequence[int] | ByExpert) -> list[Tensor]:
        """Apply to each part its expert, or to a single one the experts of its rows."""
        hidden = [self.dropout(self._activated(x)) for x in self.w_in(parts, which)]
        out: list[Tensor] = self.w_out(hidden, which)
        return out

    def _activated(self, hidden: Tensor) -> Tensor:
        return self.activation(hidden) if self.gated is None else self.gated.of(hidden, self.activation)

    def _routed(self, tokens: Tensor, routed: RouterOutput) -> Tensor:
        """Apply every expert to its tokens, a slice of the sorted ones."""
        groups = ByExpert.of(routed)
        ends = groups.offsets.tolist()
        parts = self._sorted(tokens, routed, groups).tensor_split(ends[:-1])
        used = [number for number, part in enumerate(parts) if len(part)]
        outputs = self._experts([parts[number] for number in used], used)
        return self._mixed(torch.cat(outputs), routed, groups).to(tokens.dtype)

    def _one_token(self, token: Tensor, routed: RouterOutput) -> Tensor:
        """Apply the experts of a single token [1, D]."""
        numbers, weights = routed.experts[0].tolist(), routed.weights[0].unbind()
        if self.weight_input:
            outputs = self._experts([(token * weight).to(token.dtype) for weight in weights], numbers)
        else:
            outputs = self._experts([token] * len(numbers), numbers)
            outputs = [out * weight for out, weight in zip(outputs, weights)]
        return reduce(torch.add, outputs).to(token.dtype)

    def _grouped(self, tokens: Tensor, routed: RouterOutput) -> Tensor:
        """Apply all experts to the sorted tokens by one product each for both projections."""
        groups = ByExpert.of(routed)
        [out] = self._experts([self._sorted(tokens, routed, groups)], groups)
        return self._mixed(out, routed, groups).to(tokens.dtype)

    def _sorted(self, tokens: Tensor, routed: RouterOutput, groups: ByExpert) -> Tensor:
        """[T, D] -> [T * k, D], the inputs of the experts, sorted by expert."""
        x = tokens.index_select(0, groups.order // routed.experts.shape[1])
        if not self.weight_input:
            return x
        return (x * routed.weights.flatten()[groups.order][:, None]).to(x.dtype)

    def _mixed(self, out: Tensor, routed: RouterOutput, groups: ByExpert) -> Tensor:
        """[T * k, D], the outputs of the experts, sorted by expert -> [T, D]."""
        out = groups.unsorted(out).unflatten(0, routed.experts.shape)
        return (out if self.weight_input else out * routed.weights[..., None]).sum(dim=1)

    def _all_experts(self, tokens: Tensor, routed: RouterOutput) -> Tensor:
        """Apply every expert to all tokens, for transforms: no size depends on data"""
        zeros = torch.zeros_like(routed.probabilities)
        weights = zeros.scatter(1, routed.experts, routed.weights)
        chosen = zeros.scatter(1, routed.experts, 1.0) if self.weight_input else weights
        parts = [tokens] * weights.shape[1]
        if self.weight_input:
            parts = [(tokens * weight[:, None]).to(tokens.dtype) for weight in weights.unbind(1)]
        outputs = self._experts(parts, range(len(parts)))
        outputs = [out * weight[:, None] for out, weight in zip(outputs, chosen.unbind(1))]
        return reduce(torch.add, outputs).to(tokens.dtype)


def _shared(moe: MixtureOfExperts, dims: Dims, width: int, no_bias: bool) -> FeedForward:
    """The shared experts, as one feedforward of all their inner units."""
    dropout = moe.dropout.p
    if moe.gated is None:
        return Dense(dims, moe.activation, inner_dim=width, dropout=dropout, no_bias=no_bias)
    limit, offset = moe.gated.limit, moe.gated.offset
    return GLU(
        dims, moe.activation, inner_dim=width, dropout=dropout, no_bias=no_bias, limit=limit, offset=offset
    )


def _refuse_unused(
    glu: bool | None,
    limit: float | None,
    offset: float,
    shared: tuple[int, int | None, bool],
    balanced: bool,
    rate: float,
    balance: float,
    choices: str,
) -> None:
    """Raise FlagError for flags without effect."""
    count, width, gate = shared
    none = "there are no shared experts: set `moe_num_shared_experts`"
    findings = [
        *unused(
            ("ff_glu_limit", limit is not None and not glu, "`ff_glu` is not set: set it"),
            ("ff_glu_offset", offset != 0 and not glu, "`ff_glu` is not set: set it"),
            ("moe_shared_inner_dim", width is not None and not count, none),
            ("moe_shared_gate", gate and not count, none),
            ("moe_balance_bias_rate", rate != RATE and not balanced, "`moe_balance_bias` is not set: set it"),
            ("moe_balance_choices", choices != "first" and not balance, "`moe_loss_coef` is 0: increase it"),
        )
    ]
    if findings:
        raise FlagError(findings)
