"""Small stacks for comparing gradients: an executor against plain autograd of the same equations."""

import torch
from torch import nn

from flagformer import AttentionLayers, Decoder
from flagformer.flags import Spec
from flagformer.flow import OutputCollector
from flagformer.stack.executor.sequential import Sequential

SIZES = {"dim": 16, "depth": 3, "heads": 2, "attn_dim_head": 8}
DROPS = {"attn_dropout": 0.2, "ff_dropout": 0.2, "layer_dropout": 0.3}
# Rounding of a few hundred additions in each precision.
TIGHT = {torch.float64: 1e-12, torch.float32: 1e-5}


class Busy(nn.Module):
    """Imitates mixtures of experts and routing: random draws, collected losses, a count of its forwards."""

    def __init__(self, dims, activation):
        super().__init__()
        self.inner, self.outer = nn.Linear(dims.dim, 24), nn.Linear(24, dims.dim)
        self.activation, self.counted = activation, 0
        self.register_buffer("seen", torch.zeros(24))

    def forward(self, x, side):
        hidden = self.inner(x)
        if self.training:
            hidden = hidden + 0.3 * torch.randn_like(hidden)
            if not side.recomputing:
                self.counted += 1
                self.seen += hidden.detach().mean(dim=(0, 1)).to(self.seen.dtype)
        side.collector.add_loss("busy.balance", hidden.softmax(dim=-1).square().mean())
        side.collector.add_loss("busy.size", hidden.square().mean() + x.square().mean())
        return self.outer(self.activation(hidden))


def busy_decoder(**flags):
    torch.manual_seed(4)
    return Decoder(**{**SIZES, "feedforward": Spec(Busy), "reversible": True, **flags})


def plain(layers: AttentionLayers) -> AttentionLayers:
    """The same equations in sequential order, with plain autograd."""
    layers.executor = Sequential()
    return layers


def inputs(layers, dtype, length=7):
    """x, and a context for cross-attention; both with gradients."""
    generator = torch.Generator().manual_seed(9)
    x = torch.randn(2, length, layers.dim, generator=generator, dtype=torch.float64).to(dtype)
    if not layers.has_cross:
        return [x.requires_grad_()]
    width = layers.dims.dim_context or layers.dim
    context = torch.randn(2, 5, width, generator=generator, dtype=torch.float64).to(dtype)
    return [x.requires_grad_(), context.requires_grad_()]


def trained(layers, dtype, autocast=False, length=7, weigh=0.7, cache=True):
    """The output, the gradients of inputs and parameters, and the RNG state afterwards."""
    given = inputs(layers, dtype, length)
    layers.zero_grad()
    torch.manual_seed(7)
    collector = OutputCollector()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast, cache_enabled=cache):
        out = layers(given[0], collector=collector, **({"context": given[1]} if len(given) > 1 else {}))
        losses = [value for values in collector.losses.values() for value in values]
        loss = (out * out.detach().cos()).sum() + weigh * sum(losses)
    loss.backward()
    return out.detach(), [one.grad for one in (*given, *layers.parameters())], torch.get_rng_state()


def error(grads, wanted):
    """The largest difference, as a share of the largest gradient of the same tensor.

    Gradients that are zero up to rounding are compared with the largest of all.
    """
    most = max(one.abs().max() for one in wanted if one is not None)
    worst = 0.0
    for one, other in zip(grads, wanted):
        assert (one is None) == (other is None)
        if one is not None:
            scale = torch.maximum(other.abs().max(), 1e-3 * most)
            worst = max(worst, ((one - other).abs().max() / scale).item())
    return worst
