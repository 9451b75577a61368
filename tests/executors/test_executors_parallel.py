"""Two processes over gloo: gradients equal those of one process with both halves of the batch."""

import pytest
import torch
import torch.distributed as dist
from executor_models import SIZES, error
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from flagformer import Decoder, Encoder
from forked import run_ranks

WORLD = 2


class Pair(nn.Module):
    """Reversible encoder and decoder with state that ranks must agree on: shared biases and tied blocks."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(4)
        self.encoder = Encoder(**SIZES, reversible=True, rel_pos_bias=True)
        self.decoder = Decoder(**SIZES, reversible=True, cross_attend=True, weight_tie_layers=True)

    def forward(self, x):
        return self.decoder(x, context=self.encoder(x))


def batch():
    return torch.randn(2 * WORLD, 7, 16, generator=torch.Generator().manual_seed(6), dtype=torch.float64)


def loss(model, x):
    return model(x).sin().square().mean()


def refused(model, x):
    """The error of a stack whose sublayers are sharded one by one."""
    try:
        loss(model, x)
    except ValueError as error:
        return str(error)
    return ""


def wrapped(name):
    model = Pair().double()
    if name == "pieces":
        for sublayer in model.encoder.sublayers:
            fully_shard(sublayer)
        return fully_shard(model), model
    if name == "fsdp2":
        for stack in (model.encoder, model.decoder):
            fully_shard(stack)
        fully_shard(model)
        return model, model
    how = {"static": {"static_graph": True}, "unused": {"find_unused_parameters": True}}.get(name, {})
    return DistributedDataParallel(model, **how), model


def work(rank, path, forms):
    dist.init_process_group("gloo")
    found = {}
    for name in forms:
        model, inner = wrapped(name)
        if name == "pieces":
            found[name] = refused(model, batch())
            continue
        for _ in range(2):  # a static graph is recorded in the first step
            inner.zero_grad()
            loss(model, batch()[rank::WORLD]).backward()
        found[name] = [p.grad.full_tensor() if name == "fsdp2" else p.grad for p in inner.parameters()]
    torch.save(found, path / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_have_the_gradients_of_one_process(tmp_path):
    forms = ["ddp", "static", "unused", "fsdp2", "pieces"]
    run_ranks(work, tmp_path, tmp_path, forms, world=WORLD)
    found = torch.load(tmp_path / "0.pt")
    assert list(found) == forms
    model = Pair().double()
    loss(model, batch()).backward()
    wanted = [p.grad for p in model.parameters()]
    assert "`fully_shard` on the stack" in found.pop("pieces")
    for name in found:
        assert error(found[name], wanted) < 1e-12, name
