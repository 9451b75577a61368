"""The recurrence S[n + 1] = A[n] S[n] + B[n], with matrices, columns' factors or numbers A.

Eager code runs a loop of torch's operators, which has all derivatives and transforms. A compiler would unroll
it, so in a compiled graph one operator, opaque to tracing, takes its place; its gradient is the same
recurrence backwards in time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry, register_flop_formula

from flagformer.ops.full_precision import without_casts
from flagformer.ops.traced import transformed


def linear_recurrence(a: Tensor, b: Tensor, initial: Tensor) -> Tensor:
    """Return all states.

    Args:
        a: [P, N, K, K]; [P, N, 1, V] for a factor of each column; [P, N, 1, 1] for multiples of the state.
        b: [P, N, K, V].
        initial: [P, K, V], the state S[0].

    Returns:
        [P, N + 1, K, V], the states S[0] ... S[N].
    """
    if torch.compiler.is_compiling() and not transformed():
        out: Tensor = recurrence(a, b, initial)
        return out
    return torch.stack(_states(a, b, initial), dim=1)


def _states(a: Tensor, b: Tensor, initial: Tensor) -> list[Tensor]:
    states = [initial]
    # unbound once: the gradient of a[:, n] is as large as a, for every n
    for factor, term in zip(a.unbind(1), b.unbind(1)):
        states.append(_next(factor, term, states[-1]))
    return states


def _next(factor: Tensor, term: Tensor, state: Tensor) -> Tensor:
    if factor.shape[-2] == 1:
        return torch.addcmul(term, factor, state)
    return torch.baddbmm(term, factor, state)


@torch.library.custom_op(
    "flagformer::linear_recurrence", mutates_args=(), schema="(Tensor a, Tensor b, Tensor initial) -> Tensor"
)
def recurrence(a: Tensor, b: Tensor, initial: Tensor) -> Tensor:
    """`linear_recurrence` as one operator."""
    return torch.stack(_states(a, b, initial), dim=1)


@recurrence.register_fake
def _(a: Tensor, b: Tensor, initial: Tensor) -> Tensor:
    return b.new_empty(b.shape[0], b.shape[1] + 1, *b.shape[2:])


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0], output)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    a, states = ctx.saved_tensors
    with without_casts(grad.device):  # a backward may run under autocast too
        # grads[N - n] is the gradient of S[n] with all that follows from it
        transposed = a if a.shape[-2] == 1 else a.mT
        grads = recurrence(transposed.flip(1), grad[:, :-1].flip(1), grad[:, -1]).flip(1)
        later, earlier = grads[:, 1:], states[:, :-1]
        if a.shape[-2] == 1:
            of_a = (later * earlier).sum_to_size(a.shape)
        else:
            of_a = later @ earlier.mT
    return of_a, later, grads[:, 0]


recurrence.register_autograd(_backward, setup_context=_save)


@register_flop_formula(torch.ops.flagformer.linear_recurrence)
def _flops(a: Any, b: Any, initial: Any, *args: Any, **kwargs: Any) -> int:
    """Shapes of `linear_recurrence` -> two per multiply-add."""
    count, steps, rows, width = a
    return 0 if rows == 1 else 2 * count * steps * width * width * b[-1]


def _solve_flops(a: Any, b: Any, *args: Any, **kwargs: Any) -> int:
    """Shapes of `torch.linalg.solve_triangular` with a [..., C, C] on the left and b [..., C, V]."""
    count = 1
    for size in b:
        count *= size
    return int(count * (a[-1] - 1))


if torch.ops.aten.linalg_solve_triangular not in flop_registry:
    register_flop_formula(torch.ops.aten.linalg_solve_triangular)(_solve_flops)
