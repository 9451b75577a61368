"""The chunked scan with a decay for each dimension equals its definition, with gradients; fp64."""

import pytest
import torch
from mixer_models import close

from flagformer.mixer.diagonal import diagonal_chunked, diagonal_recurrent
from flagformer.ops.linear_recurrence import linear_recurrence, recurrence


def inputs(length, strong=False):
    torch.manual_seed(0)
    decay = -torch.rand(2, length, 6, dtype=torch.float64) * (40 if strong else 1)
    return decay, torch.randn(2, length, 6, dtype=torch.float64), torch.randn(2, 6, dtype=torch.float64)


def starts_of(length, share=0.1):
    return torch.rand(2, length, generator=torch.Generator().manual_seed(1)) < share


def gradients(form, given, *more):
    leaves = [x.clone().requires_grad_() for x in given]
    out, new = form(*leaves, *more)
    (out.square().sum() + (new**3).sum()).backward()
    return [out, new, *(x.grad for x in leaves)]


@pytest.mark.parametrize("strong", [True, False])
@pytest.mark.parametrize("length", [1, 7, 15, 63, 64, 65, 286, 300])
def test_chunked_is_recurrent(length, strong):
    given = inputs(length, strong)
    for starts in (None, starts_of(length)):
        want = gradients(diagonal_recurrent, given, starts)
        for chunk in (1, 16, 64):
            for one, two in zip(gradients(diagonal_chunked, given, chunk, starts), want):
                close(one, two)


def test_recurrent_is_the_definition():
    decay, x, state = inputs(5)
    starts = torch.tensor([[False, True, False, False, False], [False] * 5])
    out, new = diagonal_recurrent(decay, x, state, starts)
    for row in range(2):
        held = state[row]
        for t in range(5):
            held = decay[row, t].exp() * held * (not starts[row, t]) + x[row, t]
            close(out[row, t], held)
        close(new[row], held)


def test_the_operator_is_the_loop():
    """With factors of columns: values and gradients."""
    torch.manual_seed(0)
    given = [torch.randn(1, 2, 1, 3), torch.randn(1, 2, 2, 3), torch.randn(1, 2, 3)]
    given = [x.double().requires_grad_() for x in given]
    close(recurrence(*given), linear_recurrence(*given))
    assert torch.autograd.gradcheck(recurrence, given)
