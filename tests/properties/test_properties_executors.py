"""Executors compute the same as sequential execution with less memory: same losses, gradients and draws."""

from itertools import product

import pytest
import torch
from property_settings import TINY, by_layer, cross_forms, tunings
from property_subject import Subject, built_or_refused, perturb

import flagformer
from commit_sample import part_of
from flagformer.flags import CATALOGUE
from flagformer.lab.reference import choices, settings
from flagformer.stack.executor.sequential import Sequential

DROPS = {"attn_dropout": 0.3, "ff_dropout": 0.3, "emb_dropout": 0.3, "layer_dropout": 0.3}
MIXES = {
    "plain": {},
    "dropout": DROPS,
    "dropout and biases": {**DROPS, "rel_pos_bias": True, "attn_num_mem_kv": 2},
    "tied blocks": {**DROPS, "weight_tie_layers": True, "rotary_pos_emb": True},
    "cross-attention": {**DROPS, "cross_attend": True, "dynamic_pos_bias": True},
}
EXECUTORS = {
    "checkpoint='sublayer'": {"checkpoint": "sublayer"},
    "checkpoint='selective'": {"checkpoint": "selective"},
    "reversible": {"reversible": True},
    "reversible_exact": {"reversible": True, "reversible_exact": True},
}
# Relative to the largest gradient, in fp32 and under bf16 autocast (8 bits): streams are reconstructed
# up to rounding, and uncached casts sum the gradients of shared parameters in fp32.
ROUNDING = {
    "checkpoint='sublayer'": (0.0, 0.0),
    "checkpoint='selective'": (0.0, 1e-2),
    "reversible": (1e-5, 1e-2),
    "reversible_exact": (1e-6, 1e-2),
}
SINGLES = {
    **{choice.name: settings(choice) for choice in choices() if "model" not in choice.flags},
    **{f"{name} (tuned)": settings() | flags for name, flags in tunings().items()},
    **{name: settings() | flags for name, flags in cross_forms().items()},
    **{name: settings() | flags for name, flags in by_layer().items()},
}


def plain(model):
    """The same stream in sequential order."""
    model.attn_layers.executor = Sequential()
    return model


def trained(model, autocast):
    """Loss, gradients, and the RNG state afterwards."""
    given = model.attn_layers.has_cross and not model.num_memory_slots
    side = {"context": torch.randn(2, 5, 16)} if given else {}
    ids = torch.randint(11, (2, 9))
    torch.manual_seed(7)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = model.train()(ids, **side).float().square().mean()
    loss.backward()
    return loss.detach(), [p.grad for p in model.parameters()], torch.get_rng_state()


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "bf16 autocast"])
def test_executor_equals_sequential_order(executor, mix, autocast):
    flags = {**settings(), **TINY, **MIXES[mix], **EXECUTORS[executor]}
    results = []
    for prepare in (lambda model: model, plain):
        torch.manual_seed(5)
        results.append(trained(prepare(perturb(flagformer.build(flags))), autocast))
    (loss, grads, draws), (loss_too, grads_too, draws_too) = results
    assert torch.equal(loss, loss_too)
    bound = ROUNDING[executor][autocast]
    most = max(grad.abs().max() for grad in grads_too)
    for one, other in zip(grads, grads_too):
        assert (one - other).abs().max() <= bound * most, "recomputation must repeat dropout's numbers too"
    assert torch.equal(draws, draws_too), "the next random number must not depend on the executor"


def noisy(subject, twice=False):
    """A training step of a subject: the loss, the gradients, and the RNG state.

    `twice`: a second backward of the same forward must give the same gradients.
    """
    model = subject.model.train()
    parameters = list(model.parameters())
    torch.manual_seed(3)
    loss = subject.loss()
    grads = torch.autograd.grad(loss, parameters, retain_graph=twice, allow_unused=True)
    if twice:
        second = torch.autograd.grad(loss, parameters, allow_unused=True)
        torch.testing.assert_close(second, grads, rtol=0, atol=0)
    return loss.detach(), grads, torch.get_rng_state()


@pytest.mark.parametrize(
    ("name", "executor"),
    part_of(product([name for name in SINGLES if name not in EXECUTORS], EXECUTORS), len(EXECUTORS) + 1),
)
def test_every_setting_under_every_executor(name, executor):
    """Each runs with the gradients of sequential order, or is refused by both names."""
    chosen = {**SINGLES[name], **TINY}
    if any(flag in chosen for flag in ("checkpoint", "reversible")):
        return  # executors themselves: one slot
    flags = {**chosen, **EXECUTORS[executor]}
    subject, text = built_or_refused(flags)
    if text is not None:
        assert any(f"`{flag}" in text for flag in EXECUTORS[executor]), text
        assert any(f"`{flag}" in text for flag in SINGLES[name]), text
        return
    loss, grads, draws = noisy(subject, twice=True)
    plain(subject.model)
    wanted_loss, wanted, wanted_draws = noisy(subject)
    assert torch.equal(loss, wanted_loss)
    assert torch.equal(draws, wanted_draws)
    most = max(grad.abs().max() for grad in wanted if grad is not None)
    for one, other in zip(grads, wanted):
        assert (one is None) == (other is None)
        # fp64: rounding of reconstructed streams, through sharp softmaxes
        assert one is None or (one - other).abs().max() <= 1e-11 * most


@pytest.mark.parametrize("executor", EXECUTORS)
def test_two_losses_of_one_forward(executor):
    """Each has its own backward, in either order, and together they equal that of the sum."""
    flags = {**settings(), **TINY, **DROPS, **EXECUTORS[executor], "rotary_pos_emb": True}
    model = perturb(flagformer.build(flags).double().train())
    parameters = list(model.parameters())
    logits = model(torch.randint(11, (2, 9)))
    losses = [logits[:, :4].square().mean(), logits[:, 4:].cos().mean()]
    first, second = (torch.autograd.grad(one, parameters, retain_graph=True) for one in losses)
    again = torch.autograd.grad(losses[0], parameters, retain_graph=True)
    sums = torch.autograd.grad(sum(losses), parameters)
    for one, other, repeated, both in zip(first, second, again, sums):
        assert torch.equal(repeated, one)
        torch.testing.assert_close(one + other, both, rtol=0, atol=1e-11)  # fp64: reconstructed streams


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("name", ["rotary_pos_emb", "use_rmsnorm", "ff_moe", "cross_attend"])
@pytest.mark.parametrize("read", ["both segments", "the second alone"])
def test_gradients_through_memories(executor, name, read):
    """A loss of the second segment has gradients through the first, whether that has a loss or not."""
    flags = {**SINGLES[name], **TINY, **EXECUTORS[executor], "use_abs_pos_emb": False}
    subject = Subject({**flags, "max_mem_len": 16, "rotary_pos_emb": True})
    model, found = subject.model, []
    for prepare in (lambda model: model, plain):
        prepare(model)
        earlier, mems = model(subject.ids[:, :5], return_mems=True, detach_mems=False, **subject.side(0, 1))
        loss = model(subject.ids[:, 5:], mems=mems, **subject.side(0, 1)).cos().sum()
        if read == "both segments":
            loss = loss + earlier.sin().sum()
        found.append(torch.autograd.grad(loss, list(model.parameters())))
    most = max(grad.abs().max() for grad in found[1])
    for one, other in zip(*found):
        assert (one - other).abs().max() <= 1e-11 * most


def test_dropout_differs_between_seeds():
    """Without it the tests above could not fail."""
    for flags in EXECUTORS.values():
        torch.manual_seed(5)
        model = flagformer.build({**settings(), **TINY, **DROPS, **flags})
        ids = torch.randint(11, (2, 9))
        losses = [model(ids).square().mean() for _ in range(2)]
        assert losses[0] != losses[1]


def kept(flags, depth):
    """Bytes that autograd saves for a backward, without parameters."""
    torch.manual_seed(5)
    model = flagformer.build({**settings(), **TINY, **flags, "depth": depth})
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    seen = {}

    def pack(tensor):
        seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(torch.randint(11, (2, 16))).sum()
    return sum(size for address, size in seen.items() if address not in own)


def test_executors_save_less_for_backward():
    most = kept({}, 6)
    assert kept(EXECUTORS["checkpoint='sublayer'"], 6) < 0.3 * most
    for name in ("reversible", "reversible_exact"):
        assert kept(EXECUTORS[name], 12) == kept(EXECUTORS[name], 2) < 0.3 * most


def test_every_executor_is_tested():
    selects = {item.select for item in CATALOGUE.in_slot("executor") if item.select is not None}
    units = CATALOGUE.param("checkpoint").flag.choices
    assert selects == {name for flags in EXECUTORS.values() for name in flags if name != "reversible_exact"}
    assert {flags["checkpoint"] for flags in EXECUTORS.values() if "checkpoint" in flags} == {*units} - {None}
