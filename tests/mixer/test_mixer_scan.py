"""The chunked form of the scan equals the recurrent definition, with gradients; fp64."""

import pytest
import torch
import torch.nn.functional as F
from mixer_models import close
from torch.utils.flop_counter import FlopCounterMode

from flagformer.mixer.scan import ScanInputs, chunked, recurrent, scan
from flagformer.ops.linear_recurrence import linear_recurrence, recurrence

LENGTHS = [1, 7, 15, 63, 64, 65, 130, 286, 300]


def inputs(length, beta, groups=3, strong=False):
    torch.manual_seed(0)

    def draw(*shape):
        return torch.randn(2, length, *shape, dtype=torch.float64)

    q, k = draw(groups, 8), F.normalize(draw(groups, 8), dim=-1)
    decay = -F.softplus(draw(6)) * (40 if strong else 1)
    rates = draw(6).sigmoid() if beta else None
    return ScanInputs(q, k, draw(6, 5), decay, rates), torch.randn(2, 6, 8, 5, dtype=torch.float64)


def starts_of(length, share=0.1):
    return torch.rand(2, length, generator=torch.Generator().manual_seed(1)) < share


@pytest.mark.parametrize("beta", [True, False])
@pytest.mark.parametrize("strong", [True, False])
@pytest.mark.parametrize("chunk", [1, 16, 64])
@pytest.mark.parametrize("length", LENGTHS)
def test_chunked_is_recurrent(length, chunk, beta, strong):
    given, state = inputs(length, beta, strong=strong)
    for starts in (None, starts_of(length)):
        one = given._replace(starts=starts)
        for got, want in zip(chunked(one, state, chunk), recurrent(one, state)):
            close(got, want)


@pytest.mark.parametrize("beta", [True, False])
def test_recurrent_is_the_definition(beta):
    given, state = inputs(5, beta, groups=2)
    out, _ = recurrent(given, state)
    for row in range(2):
        for head in range(6):
            held = state[row, head].clone()
            for t in range(5):
                q, k = given.q[row, t, head // 3], given.k[row, t, head // 3]
                held = held * given.decay[row, t, head].exp()
                update = given.v[row, t, head]
                if beta:
                    update = given.beta[row, t, head] * (update - held.T @ k)
                held = held + torch.outer(k, update)
                close(out[row, t, head], held.T @ q)


def gradients(form, given, state, *more):
    leaves = [None if x is None else x.clone().requires_grad_() for x in (*given[:5], state)]
    out, new = form(ScanInputs(*leaves[:5], given.starts), leaves[5], *more)
    (out.square().sum() + (new**3).sum()).backward()
    return [x.grad for x in leaves if x is not None]


@pytest.mark.parametrize("beta", [True, False])
@pytest.mark.parametrize("length", [15, 65])
def test_gradients_chunked_are_recurrent(beta, length):
    given, state = inputs(length, beta)
    given = given._replace(starts=starts_of(length, 0.05))
    want = gradients(recurrent, given, state)
    for chunk in (16, 64):
        for one, two in zip(gradients(chunked, given, state, chunk), want):
            close(one, two, 1e-8)


def test_strong_decay_gives_finite_gradients_in_fp32():
    given, state = inputs(130, True, strong=True)
    given = ScanInputs(*(x.float() for x in given[:5]), starts_of(130))
    assert all(grad.isfinite().all() for grad in gradients(chunked, given, state.float(), 64))


@pytest.mark.parametrize("width", [1, 4])
def test_the_operator_is_the_loop(width):
    """Values, gradients of any order and forms of derivatives."""
    torch.manual_seed(0)
    given = [torch.randn(2, 3, width, width), torch.randn(2, 3, 4, 5), torch.randn(2, 4, 5)]
    given = [x.double().requires_grad_() for x in given]
    close(recurrence(*given), linear_recurrence(*given))
    assert torch.autograd.gradcheck(recurrence, given)
    assert torch.autograd.gradgradcheck(recurrence, given)
    torch.library.opcheck(recurrence, given)


@pytest.mark.parametrize("beta", [True, False])
def test_compiled_is_eager(beta):
    given, state = inputs(40, beta)
    given = given._replace(starts=starts_of(40))
    want = gradients(scan, given, state, 16)
    compiled = torch.compile(scan, backend="aot_eager", fullgraph=True)
    for one, two in zip(gradients(compiled, given, state, 16), want):
        close(one, two, 1e-8)


def test_a_compiled_graph_does_not_grow_with_the_number_of_chunks():
    graphs = []

    def count(graph, example):
        graphs.append(len(graph.graph.nodes))
        return graph

    for length in (64, 640):
        torch._dynamo.reset()
        given, state = inputs(length, True)
        torch.compile(scan, backend=count, fullgraph=True, dynamic=False)(given, state, 16)
    assert graphs[0] == graphs[1]


def test_flops_of_triangular_systems_count():
    given, state = inputs(64, True)
    counter = FlopCounterMode(display=False)
    with counter:
        chunked(given, state, 16)
    counts = counter.get_flop_counts()["Global"]
    solved = counts[torch.ops.aten.linalg_solve_triangular]
    # 2 rows, 6 heads, 4 chunks: systems of 16 with 5 + 8 right-hand sides
    assert solved == 2 * 6 * 4 * 16 * 15 * (5 + 8)
    one, other = FlopCounterMode(display=False), FlopCounterMode(display=False)
    given = [torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 5), torch.randn(3, 8, 5)]
    with one:
        recurrence(*given)
    with other:
        linear_recurrence(*given)
    assert one.get_total_flops() == other.get_total_flops() == 3 * 4 * 2 * 8 * 8 * 5
