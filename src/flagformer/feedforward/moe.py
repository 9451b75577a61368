"""A mixture of experts: each token goes through two of E feedforwards (1701.06538, 2006.16668)."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor, nn

from flagformer.feedforward import Activation, FeedForward
from flagformer.feedforward.dense import Dropout, Mult
from flagformer.flags import Flag, component
from flagformer.flow import Dims, SideInputs
from flagformer.ops.experts import RouterOutput, balance_loss, router_z_loss
from flagformer.ops.full_precision import accum_dtype
from flagformer.ops.traced import traced

BALANCE, Z = "moe.balance", "moe.z"  # names of the auxiliary losses


@component(
    "feedforward",
    select="ff_moe",
    paper="arXiv:2006.16668, section 2.2",
    lacks={"output_projection": "each expert has an output projection of its own"},
)
class MixtureOfExperts(FeedForward):
    """Top-2 mixture of experts, weighted by the router probabilities of the two, normalized to sum to one.

    Departures: experts have no capacity and drop no tokens, so that the output of a token depends on that
    token only. The second expert is always used, where the paper samples it, so that training and evaluation
    compute the same function. Router probabilities are fp32 (2101.03961, section 2.4).
    """

    def __init__(
        self,
        dims: Dims,
        activation: Activation,
        *,
        experts: Annotated[int, Flag("moe_num_experts", "number E of experts", ge=1)] = 4,
        balance: Annotated[float, Flag("moe_loss_coef", "weight of the load-balancing loss", ge=0)] = 1e-2,
        z: Annotated[
            float, Flag("moe_z_loss_coef", "weight of the router's z-loss (2202.08906)", ge=0)
        ] = 1e-3,
        mult: Mult = 4.0,
        dropout: Dropout = 0.0,
    ) -> None:
        super().__init__()
        width = max(int(dims.dim * mult), 1)
        self.experts = experts
        self.router = nn.Linear(dims.dim, experts, bias=False)
        self.w_in = Experts(experts, dims.dim, width)
        self.activation = activation
        self.dropout = nn.Dropout(dropout)
        self.w_out = Experts(experts, width, dims.dim)
        self.balance, self.z, self.has_aux_loss = balance, z, balance > 0 or z > 0

    def forward(self, x: Tensor, side: SideInputs) -> Tensor:
        tokens = x.flatten(0, 1)  # [B * T, D]
        logits = self.router(tokens)
        logits = logits.to(accum_dtype(logits.dtype))
        gates = RouterOutput.of(logits)
        if self.training:
            self._add_losses(logits, gates, x.shape, side)
        run = self._all_experts if traced() else self._routed
        return run(tokens, gates).view_as(x)

    def _add_losses(self, logits: Tensor, gates: RouterOutput, shape: torch.Size, side: SideInputs) -> None:
        valid = side.layout.valid
        valid = None if valid is None else valid.expand(shape[:2]).flatten()
        if self.balance:
            side.collector.add_loss(BALANCE, self.balance * balance_loss(gates, valid))
        if self.z:
            side.collector.add_loss(Z, self.z * router_z_loss(logits, valid))

    def _expert(self, number: int, tokens: Tensor) -> Tensor:
        return self.w_out(number, self.dropout(self.activation(self.w_in(number, tokens))))

    def _routed(self, tokens: Tensor, gates: RouterOutput) -> Tensor:
        """Apply every expert to the tokens that are routed to it."""
        out = torch.zeros_like(tokens)
        for number in range(self.experts):
            rows, choice = gates.of_expert(number)
            weighted = self._expert(number, tokens[rows]) * gates.weights[rows, choice, None]
            out = out.index_add(0, rows, weighted.to(out.dtype))
        return out

    def _all_experts(self, tokens: Tensor, gates: RouterOutput) -> Tensor:
        """Apply every expert to all tokens, for compilers: graphs have no data-dependent sizes."""
        weights = torch.zeros_like(gates.probabilities).scatter(1, gates.experts, gates.weights)
        outputs = [self._expert(n, tokens) * weights[:, n, None] for n in range(self.experts)]
        return torch.stack(outputs).sum(dim=0).to(tokens.dtype)


class Experts(nn.Module):
    """A linear layer for each of E experts, initialised like `nn.Linear`."""

    def __init__(self, experts: int, width: int, out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(experts, out, width))
        self.bias = nn.Parameter(torch.empty(experts, out))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        bound = self.weight.shape[2] ** -0.5
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, number: int, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight[number], self.bias[number])
