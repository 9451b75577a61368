"""Two processes over gloo: gradients equal those of one process with both halves of the batch."""

import traceback

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from executor_models import SIZES, error
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from flagformer import Decoder, Encoder

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


def work(rank, place, forms, answers):
    dist.init_process_group("gloo", init_method=f"file://{place}", rank=rank, world_size=WORLD)
    try:
        for name in forms:
            model, inner = wrapped(name)
            if name == "pieces":
                text = refused(model, batch())
                if rank == 0:
                    answers.put((name, text))
                continue
            for _ in range(2):  # a static graph is recorded in the first step
                inner.zero_grad()
                loss(model, batch()[rank::WORLD]).backward()
            grads = [p.grad.full_tensor() if name == "fsdp2" else p.grad for p in inner.parameters()]
            if rank == 0:
                answers.put((name, [grad.tolist() for grad in grads]))
    except Exception:
        answers.put((f"rank {rank}", traceback.format_exc()))
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_have_the_gradients_of_one_process(tmp_path):
    forms = ["ddp", "static", "unused", "fsdp2", "pieces"]
    context = mp.get_context("spawn")
    answers = context.Queue()
    workers = [
        context.Process(target=work, args=(rank, tmp_path / "meet", forms, answers)) for rank in range(WORLD)
    ]
    for worker in workers:
        worker.start()
    found = {}
    while len(found) < len(forms):
        name, grads = answers.get(timeout=240)
        assert name in forms, f"{name}: {grads}"
        found[name] = grads
    for worker in workers:
        worker.join(timeout=60)
    model = Pair().double()
    loss(model, batch()).backward()
    wanted = [p.grad for p in model.parameters()]
    assert "`fully_shard` on the stack" in found.pop("pieces")
    for name in found:
        assert error([torch.tensor(one, dtype=torch.float64) for one in found[name]], wanted) < 1e-12, name
