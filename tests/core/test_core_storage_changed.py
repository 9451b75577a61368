"""Models changed in code: `save` refuses a model that `load` cannot rebuild, and names the difference."""

import pytest
import torch
import torch.nn.utils.prune
from core_models import make
from torch import nn

import flagformer


class Own(flagformer.TransformerWrapper):
    """A user's class with the constructor of its base."""


class OwnLayers(flagformer.Decoder):
    """A user's layers."""


class Adapter(nn.Module):
    """A wrapper around a linear, as adapters are."""

    def __init__(self, base):
        super().__init__()
        self.base, self.low = base, nn.Linear(base.in_features, base.out_features, bias=False)

    def forward(self, x):
        return self.base(x) + self.low(x)


class Wide(nn.Linear):
    """The same tensors under another class."""

    @classmethod
    def like(cls, linear):
        return cls(linear.in_features, linear.out_features, linear.bias is not None)


def own_class():
    return Own(num_tokens=11, max_seq_len=16, attn_layers=flagformer.Decoder(dim=16, depth=1, heads=2))


def own_layers():
    return flagformer.TransformerWrapper(
        num_tokens=11, max_seq_len=16, attn_layers=OwnLayers(dim=16, depth=1, heads=2)
    )


def changed(change, **flags):
    model = make(**flags)
    change(model)
    return model


def set_head(model, make_head):
    model.head.project = make_head(model.head.project)


def grow(model):
    model.token_emb.weight = nn.Parameter(torch.cat([model.token_emb.weight.data] * 2))
    model.num_tokens *= 2


def tie(model):
    model.head.project.weight = model.token_emb.weight


def untie(model):
    model.token_emb.weight, held = nn.Parameter(model.token_emb.weight.detach().clone()), model.token_emb
    model.head.other = held.weight


def set_activation(model):
    model.attn_layers.sublayers[1].fn.activation = torch.relu


CHANGED = {
    "own class": (own_class, "a Own cannot be saved"),
    "own layers": (own_layers, "`attn_layers` is a OwnLayers, but a Decoder"),
    "adapter": (lambda: changed(lambda m: set_head(m, Adapter)), "`head.project` is a Adapter"),
    "larger": (lambda: changed(grow, tie_embedding=True), "`token_emb.weight` has shape"),
    "tied": (lambda: changed(tie), "is the same parameter as `token_emb.weight`"),
    "extra": (lambda: changed(untie), "`head.other` is a tensor that is not part of the model of its flags"),
    "linear": (lambda: changed(lambda m: set_head(m, Wide.like)), "`head.project` is a Wide"),
    "parametrized": (
        lambda: changed(lambda m: nn.utils.parametrizations.weight_norm(m.head.project)),
        "`head.project` is a ParametrizedLinear",
    ),
    "pruned": (
        lambda: changed(lambda m: nn.utils.prune.l1_unstructured(m.head.project, "weight", 0.5)),
        "`head.project.weight_mask` is a tensor that is not part of the model of its flags",
    ),
    "shorter": (lambda: changed(lambda m: m.attn_layers.sublayers.pop(3)), "is missing"),
    "activation": (lambda: changed(set_activation), "`attn_layers.sublayers.1.fn.activation` is"),
    "meta": (lambda: make().to("meta"), "is on the meta device"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGED)
def test_a_model_that_load_cannot_rebuild_is_refused(tmp_path, name):
    how, says = CHANGED[name]
    with pytest.raises(ValueError) as caught:
        how().save(tmp_path / "new")
    assert says in str(caught.value)
    assert not (tmp_path / "new").exists()
