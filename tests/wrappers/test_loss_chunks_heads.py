"""A loss in chunks of any head equals the loss of all logits, with its gradients, in every context."""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from flagformer.ops.cross_entropy import chunked_cross_entropy

D, V = 6, 11


class Calls(nn.Module):
    """A linear, and a function of its output."""

    def __init__(self, call, **how):
        super().__init__()
        self.linear, self.call = nn.Linear(D, V, **how), call

    def forward(self, x):
        return self.call(self.linear, x)


class Adapted(Calls):
    """A frozen linear and an adapter of rank 2."""

    def __init__(self):
        super().__init__(lambda linear, x: linear(x))
        self.linear.requires_grad_(False)
        self.down, self.up = nn.Linear(D, 2, bias=False), nn.Linear(2, V, bias=False)

    def forward(self, x):
        return super().forward(x) + self.up(self.down(x))


def offloaded(linear, x):
    with torch.autograd.graph.save_on_cpu():
        return linear(x)


def several(linear, x):
    """One weight through `F.linear`, of one row and of all, by a product, by name, detached."""
    row = F.linear(x[0, 0], linear.weight)
    named = F.linear(input=x, weight=linear.weight, bias=linear.bias)
    return named + x @ linear.weight.T + F.linear(x, linear.weight.detach()) + row


HEADS = {
    "linear": lambda: Calls(lambda linear, x: linear(x)),
    "without bias": lambda: Calls(lambda linear, x: linear(x), bias=False),
    "frozen": lambda: Calls(lambda linear, x: linear(x)).requires_grad_(False),
    "bias alone": lambda: Calls(lambda linear, x: F.linear(x, linear.weight.detach(), linear.bias)),
    "capped": lambda: Calls(lambda linear, x: 3 * torch.tanh(linear(x) / 3)),
    "its output is kept": lambda: Calls(lambda linear, x: linear(x).sigmoid()),
    "adapted": Adapted,
    "deep": lambda: nn.Sequential(nn.Linear(D, 9), nn.GELU(), nn.Linear(9, V)),
    "parametrized": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(D, V)),
    "checkpointed": lambda: Calls(lambda linear, x: checkpoint(linear, x, use_reentrant=False)),
    "offloaded": lambda: Calls(offloaded),
    "none": nn.Identity,
    "several": lambda: Calls(several),
}
# "several" adds the first row of its input to all others: the whole input is one chunk
CHUNKS = {"several": 1}
SURROUNDINGS = {
    "plain": lambda loss, x: loss(x),
    "checkpointed": lambda loss, x: checkpoint(loss, x, use_reentrant=False),
    "reentrant": lambda loss, x: checkpoint(loss, x, use_reentrant=True),
    "offloaded": lambda loss, x: within(torch.autograd.graph.save_on_cpu(), loss, x),
}


def within(context, loss, x):
    with context:
        return loss(x)


def trained(head, loss, x, around=SURROUNDINGS["plain"]):
    """The loss, and the gradients of a multiple of it, accumulated with those of another backward."""
    head.zero_grad()
    x = x.clone().requires_grad_(x.requires_grad)
    for scale in (2.0, 3.0):
        value = around(loss, x)
        if value.requires_grad:
            (scale * value + x.detach().sum()).backward()
    return [value.detach(), x.grad, *[p.grad for p in head.parameters()]]


def data(name, features):
    x = torch.randn(2, 7, D, dtype=torch.float64, requires_grad=features)
    targets = torch.randint(D if name == "none" else V, (2, 7))
    targets[1, 3:] = -100
    return x, targets


@pytest.mark.parametrize("around", SURROUNDINGS)
@pytest.mark.parametrize("features", [True, False], ids=["features learn", "features are fixed"])
@pytest.mark.parametrize("name", HEADS)
def test_loss_and_gradients_equal_those_of_all_logits(name, features, around):
    if around == "reentrant" and not features:
        pytest.skip("torch gives no gradients to what a reentrant checkpoint was not given")
    torch.manual_seed(0)
    head = HEADS[name]().double()
    x, targets = data(name, features)
    got = trained(
        head,
        lambda x: chunked_cross_entropy(head, x, targets, -100, CHUNKS.get(name, 4)),
        x,
        SURROUNDINGS[around],
    )
    rows = (1, 14, D) if name in CHUNKS else (2, 7, D)
    want = trained(head, lambda x: F.cross_entropy(head(x.view(rows)).flatten(0, 1), targets.flatten()), x)
    for one, other in zip(got, want):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["linear", "adapted", "deep", "parametrized", "capped"])
def test_half_precision(name):
    """Under autocast, and of a model in bf16, gradients are as close to those of fp64 as without chunks."""
    torch.manual_seed(0)
    exact = HEADS[name]().double()
    x, targets = data(name, True)

    def losses(head):
        return (
            lambda x: chunked_cross_entropy(head, x, targets, -100, 4),
            lambda x: F.cross_entropy(head(x).float().flatten(0, 1), targets.flatten()),
        )

    want = trained(exact, lambda x: F.cross_entropy(exact(x).flatten(0, 1), targets.flatten()), x)
    for dtype, context in (
        (torch.float32, lambda: torch.autocast("cpu", torch.bfloat16)),
        (torch.bfloat16, nullcontext),
    ):
        head = HEADS[name]()
        head.load_state_dict(exact.state_dict())
        head.to(dtype)
        for loss in losses(head):
            got = trained(
                head,
                loss,
                x.detach().to(dtype).requires_grad_(),
                lambda f, x, context=context: within(context(), f, x),
            )
            for one, other in zip(got, want):
                assert (one is None) == (other is None)
                if one is not None:
                    assert one.dtype in (dtype, torch.float32)
                    # a few roundings to 8 bits, some of a sum of others
                    assert (one.double() - other).norm() <= 2e-2 * other.norm()


def test_autocast_afterwards_learns():
    """The loss leaves no cast of the weight in autocast's cache, which the next product uses."""
    head, x = nn.Linear(D, V), torch.randn(1, 4, D)
    with torch.autocast("cpu", torch.bfloat16):
        chunked_cross_entropy(head, x, torch.zeros(1, 4, dtype=torch.long), -100, 2)
        head(x).sum().backward()
    assert head.weight.grad is not None


def test_a_compiled_head():
    torch._dynamo.reset()
    torch.manual_seed(0)
    head = nn.Linear(D, V)
    compiled = torch.compile(head, backend="aot_eager", fullgraph=True)
    x, targets = torch.randn(1, 8, D), torch.randint(V, (1, 8))
    got = trained(head, lambda x: chunked_cross_entropy(compiled, x, targets, -100, 4), x)
    want = trained(head, lambda x: F.cross_entropy(head(x)[0], targets[0]), x)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def test_a_tensor_subclass_uses_its_own_product():
    class Counted(torch.Tensor):
        seen = 0

        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            cls.seen += func is F.linear
            return super().__torch_function__(func, types, args, kwargs)

    weight = torch.randn(V, D).as_subclass(Counted).requires_grad_()
    x, targets = torch.randn(1, 8, D), torch.randint(V, (1, 8))
    chunked_cross_entropy(lambda x: F.linear(x, weight), x, targets, -100, 4).backward()
    assert Counted.seen == 4
    plain = weight.detach().as_subclass(torch.Tensor).requires_grad_()
    F.cross_entropy(F.linear(x, plain)[0], targets[0]).backward()
    torch.testing.assert_close(weight.grad.as_subclass(torch.Tensor), plain.grad, rtol=1e-5, atol=1e-6)
