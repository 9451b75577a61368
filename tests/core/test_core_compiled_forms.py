"""Each form of a call compiles to one graph with the same numbers."""

import pytest
import torch
from core_models import B, S, T, context, ids, make

YES = torch.ones(B, T, dtype=torch.bool)
FORMS = {
    "mask": ({}, lambda model, net: net(ids(), mask=YES.tril(5))),
    "left padding": (
        {"alibi_pos_bias": True},
        lambda model, net: net(ids(), seq_start_pos=torch.tensor([0, 3])),
    ),
    "packed": (
        {"rotary_pos_emb": True},
        lambda model, net: net(ids(), seq_lens=torch.tensor([[4, 5], [9, 0]])),
    ),
    "window": ({"rotary_pos_emb": True}, lambda model, net: net(ids(), window=3)),
    "positions": ({"rel_pos_bias": True}, lambda model, net: net(ids(), pos=torch.arange(T) * 2)),
    "pairs": ({}, lambda model, net: net(ids(), attn_mask=torch.ones(T, T, dtype=torch.bool).tril(-1))),
    "maps": ({}, lambda model, net: net(ids(), return_attn=True)[1][0]),
    "prefix": (
        {"model": "prefix_decoder"},
        lambda model, net: net(ids(), prefix_attn_len=torch.tensor([2, 4])),
    ),
    "context": (
        {"cross_attend": True, "cross_attn_dim_context": 6},
        lambda model, net: net(
            ids(), context=context(), context_mask=torch.arange(S) < torch.tensor([[5], [2]])
        ),
    ),
    "decoding": ({"rotary_pos_emb": True}, lambda model, net: decoded(model, net)),
    "decoding with a bias": ({"rel_pos_bias": True}, lambda model, net: decoded(model, net)),
}


def decoded(model, net):
    state = model.init_state(B, T)
    parts = [net(ids()[:, :6], state=state)]
    return torch.cat(parts + [net(ids()[:, i : i + 1], state=state) for i in range(6, T)], dim=1)


@torch.no_grad()
@pytest.mark.parametrize("form", FORMS)
def test_form_compiles(form):
    flags, call = FORMS[form]
    model = make(depth=1, **flags)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(call(model, compiled), call(model, model), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("flags", [{}, {"checkpoint": "sublayer", "ff_dropout": 0.1}, {"rel_pos_bias": True}])
def test_training_compiles(flags):
    """Forward and backward through AOT autograd; gradients as in eager mode if nothing is random."""
    model = make(depth=1, **flags).train()
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    compiled(ids()).square().mean().backward()
    grads = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model(ids()).square().mean().backward()
    if not flags.get("ff_dropout"):
        for one, parameter in zip(grads, model.parameters()):
            torch.testing.assert_close(one, parameter.grad, rtol=1e-4, atol=1e-5)
    assert all(grad.isfinite().all() for grad in grads)
