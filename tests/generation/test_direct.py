"""A directly called view of a model: the same numbers, and everything that listens is heard."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from flagformer import AutoregressiveWrapper
from flagformer.generation.direct import direct
from stirred_models import stirred

FLAGS = {
    "model": "decoder",
    "num_tokens": 11,
    "max_seq_len": 16,
    "dim": 16,
    "depth": 2,
    "heads": 2,
    "attn_dim_head": 8,
}
IDS = torch.tensor([[3, 1, 4, 1]])


@pytest.fixture
def model():
    return stirred(FLAGS).eval()


def test_it_holds_the_models_own_tensors_and_gives_its_numbers(model):
    view = direct(model)
    assert view is not model
    assert isinstance(view, type(model))
    assert torch.equal(view(IDS), model(IDS))
    own = {id(tensor) for tensor in model.state_dict(keep_vars=True).values()}
    assert {id(tensor) for tensor in view.state_dict(keep_vars=True).values()} == own


def test_the_model_is_as_it_was(model):
    before = copy.deepcopy(model.state_dict())
    modules = [(id(module), type(module)) for module in model.modules()]
    AutoregressiveWrapper(model).generate([3, 1, 4], 5)
    assert modules == [(id(module), type(module)) for module in model.modules()]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_tied_module_has_one_view():
    model = stirred(FLAGS | {"weight_tie_layers": True})
    view = direct(model)
    assert view is not model
    first, later = view.attn_layers.steps[0], view.attn_layers.steps[2]
    assert first is later


def _hooked(module, heard):
    module.register_forward_hook(lambda *_: heard.append("hook"))


def _prehooked(module, heard):
    module.register_forward_pre_hook(lambda *_: heard.append("pre-hook"))


def _patched(module, heard):
    plain = module.forward

    def forward(*args):
        heard.append("patch")
        return plain(*args)

    module.forward = forward


def _compiled(module, heard):
    def backend(graph, example):
        heard.append("compiled")
        return graph.forward

    module.compile(backend=backend)


def _reclassed(module, heard):
    class Listening(type(module)):
        def __call__(self, *args):
            heard.append("class")
            return super().__call__(*args)

    module.__class__ = Listening


LISTENERS = [_hooked, _prehooked, _patched, _compiled, _reclassed]


@pytest.mark.parametrize("listen", LISTENERS, ids=lambda listen: listen.__name__.strip("_"))
def test_who_listens_to_a_module_is_heard_while_generating(model, listen):
    heard = []
    expected = AutoregressiveWrapper(model).generate([3, 1, 4], 5, temperature=0)
    listen(model.attn_layers.sublayers[1].fn, heard)
    assert torch.equal(AutoregressiveWrapper(model).generate([3, 1, 4], 5, temperature=0), expected)
    assert heard


def test_a_hook_of_all_modules_is_heard(model):
    heard = []
    handle = nn.modules.module.register_module_forward_hook(lambda *_: heard.append("all"))
    try:
        assert direct(model) is model
        AutoregressiveWrapper(model).generate([3, 1, 4], 2)
    finally:
        handle.remove()
    assert heard


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def test_a_parametrized_weight_is_computed(model):
    parametrize.register_parametrization(model.token_emb, "weight", Doubled())
    assert torch.equal(direct(model)(IDS), model(IDS))


def test_a_replaced_part_takes_part(model):
    layer = model.attn_layers.sublayers[1]
    layer.fn = nn.Identity()
    layer.fn.forward = lambda x, side: torch.zeros_like(x)
    assert torch.equal(direct(model)(IDS), model(IDS))


class Counting(nn.Module):
    """A module that writes to itself while it runs: an attribute and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.register_buffer("total", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        self.total = self.total + x.sum()
        return x + self.total


def test_what_a_forward_sets_is_set_on_the_module():
    module, twin = Counting(), Counting()
    view = direct(module)
    for _ in range(3):
        assert torch.equal(view(torch.ones(2)), twin(torch.ones(2)))
    assert module.calls == 3
    assert torch.equal(module.total, twin.total)
    assert torch.equal(module.state_dict()["total"], twin.total)


def test_what_is_no_module_passes():
    def model(ids):
        return ids

    assert direct(model) is model
