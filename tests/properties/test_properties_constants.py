"""Numbers of formulas survive every way in which a model is made, copied or moved."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

import flagformer
from flagformer.reference import choices, settings

CHOICES = [choice for choice in choices() if not settings(choice).keys() & {"cross_attend", "only_cross"}]


def ids_for(flags):
    return torch.randint(0, flags["num_tokens"], (2, 12), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def filled(monkeypatch):
    """Memory that nothing has written is NaN."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: choice.name)
@torch.no_grad()
def test_a_model_is_the_same_however_it_is_made(choice, filled):
    """By meta, `to_empty` and a state dict (copied or assigned), by a copy, a pickle, casts there and back,
    and with every buffer that no state dict holds destroyed, as classes that build on meta do."""
    flags = settings(choice)
    torch.manual_seed(0)
    model = flagformer.build(flags).eval()
    state, ids = model.state_dict(), ids_for(flags)
    want = model(ids)
    made = {"copied": copy.deepcopy(model), "pickled": pickle.loads(pickle.dumps(model))}
    for name in ("loaded", "assigned"):
        with torch.device("meta"):
            made[name] = flagformer.build(flags).eval()
        if name == "loaded":
            made[name].to_empty(device="cpu")
        made[name].load_state_dict(state, assign=name == "assigned")
    made["cast"] = copy.deepcopy(model).double().float()
    destroyed = made["destroyed"] = copy.deepcopy(model)
    for part in destroyed.modules():
        for name in part._non_persistent_buffers_set:
            part._buffers[name] = torch.zeros_like(part._buffers[name])
    for name, other in made.items():
        found = other(ids)
        torch.testing.assert_close(found, want, rtol=0, atol=0, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: choice.name)
def test_a_default_dtype_does_not_reach_the_numbers_of_a_formula(choice, dtype):
    """Built under it, a model holds the dtypes and numbers of one that was built before and cast."""
    flags = settings(choice)
    late = flagformer.build(flags).to(dtype)
    torch.set_default_dtype(dtype)
    try:
        early = flagformer.build(flags)
    finally:
        torch.set_default_dtype(torch.float32)
    early.load_state_dict(late.state_dict())
    held = {name: value.dtype for name, value in late.named_buffers()}
    assert {name: value.dtype for name, value in early.named_buffers()} == held
    ids = ids_for(flags)
    with torch.no_grad():
        torch.testing.assert_close(early.eval()(ids), late.eval()(ids), rtol=0, atol=0)
