"""Checkpointed execution is sequential execution with less memory: same losses, gradients and draws."""

import pytest
import torch
from property_settings import TINY
from property_subject import stir

import flagformer
from flagformer.flags import CATALOGUE
from flagformer.reference import choices, settings

DROPS = {"attn_dropout": 0.3, "ff_dropout": 0.3, "emb_dropout": 0.3, "layer_dropout": 0.3}
MIXES = {
    "plain": {},
    "dropout": DROPS,
    "dropout and biases": {**DROPS, "rel_pos_bias": True, "attn_num_mem_kv": 2},
    "tied blocks": {**DROPS, "weight_tie_layers": True, "rotary_pos_emb": True},
    "cross-attention": {**DROPS, "cross_attend": True, "dynamic_pos_bias": True},
}
EXECUTORS = [
    choice for choice in choices() if choice.component is not None and choice.component.slot == "executor"
]


def trained(model, autocast):
    """Loss, gradients, and the state of the random numbers behind them."""
    side = {"context": torch.randn(2, 5, 16)} if model.attn_layers.has_cross else {}
    ids = torch.randint(11, (2, 9))
    torch.manual_seed(7)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = model.train()(ids, **side).float().square().mean()
    loss.backward()
    return loss.detach(), [p.grad for p in model.parameters()], torch.get_rng_state()


@pytest.mark.parametrize("executor", EXECUTORS, ids=lambda choice: choice.name)
@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "bf16 autocast"])
def test_executor_equals_sequential(executor, mix, autocast):
    flags = {**settings(), **TINY, **MIXES[mix]}
    results = []
    for extra in ({}, executor.flags):
        torch.manual_seed(5)
        results.append(trained(stir(flagformer.build({**flags, **extra})), autocast))
    (loss, grads, draws), (loss_too, grads_too, draws_too) = results
    assert torch.equal(loss, loss_too)
    for one, other in zip(grads, grads_too):
        assert torch.equal(one, other), "recomputation must repeat every number, dropout's too"
    assert torch.equal(draws, draws_too), "the next random number must not depend on the executor"


def test_dropout_differs_between_seeds():
    """What makes the test above able to fail."""
    torch.manual_seed(5)
    model = flagformer.build({**settings(), **TINY, **DROPS, "checkpoint": "sublayer"})
    ids = torch.randint(11, (2, 9))
    losses = [model(ids).square().mean() for _ in range(2)]
    assert losses[0] != losses[1]


def test_checkpointed_keeps_less_for_backward():
    kept = {}
    for unit in (None, "sublayer"):
        torch.manual_seed(5)
        model = flagformer.build({**settings(), **TINY, "depth": 6, "checkpoint": unit})
        seen = {}

        def pack(tensor, seen=seen):
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(torch.randint(11, (2, 16))).sum()
        kept[unit] = sum(seen.values()) - sum(p.nbytes for p in model.parameters())
    assert kept["sublayer"] < 0.5 * kept[None]


def test_executors_are_listed():
    assert {choice.component.name for choice in EXECUTORS} == {
        item.name for item in CATALOGUE.in_slot("executor") if item.select is not None
    }
