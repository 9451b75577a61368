"""Values and components by layer, for every slot and flag of the sublayers; the place of a component."""

import pytest
import torch
from torch import nn

import flagformer
from flagformer import CATALOGUE, FlagError, Place
from flagformer.flags.slots import PER_LAYER
from flagformer.lab.reference import choices, settings

BASE = {"dim": 16, "depth": 2, "heads": 2, "attn_dim_head": 8}
SELECTORS = {
    choice.name: choice
    for choice in choices()
    if choice.component is not None and CATALOGUE.scope(next(iter(choice.flags))) in PER_LAYER
}
# Scores pass between layers: one layer alone has no effect.
CARRIES = {"residual_attn", "cross_residual_attn"}


def modules(flags):
    with torch.device("meta"):
        return flagformer.build(flags).attn_layers.resolved.modules


@pytest.mark.parametrize("name", SELECTORS)
def test_a_selector_takes_a_value_by_layer(name):
    """The first layer is that of a model with the flag, the last one that of a model without it."""
    flags = {**settings(SELECTORS[name]), "depth": 3}
    (flag,) = SELECTORS[name].flags
    if name in CARRIES:
        by_layer = (flags[flag], flags[flag], None)
    else:
        count = len(modules(flags)) if CATALOGUE.scope(flag) == "branch" else 3
        by_layer = (flags[flag],) + (None,) * (count - 1)
    got = modules({**flags, flag: by_layer})
    assert got[0] == modules(flags)[0]
    own = {flag, *(param.flag.name for param in SELECTORS[name].component.params)}
    assert got[-1] == modules({key: value for key, value in flags.items() if key not in own})[-1]


# `mixer` is a flag of the plan, which takes a tuple of names.
SHARED = [
    choice
    for choice in choices()
    if choice.component and choice.name not in SELECTORS and "mixer" not in choice.flags
]


@pytest.mark.parametrize("name", [choice.name for choice in SHARED if "model" not in choice.flags])
def test_a_selector_of_the_stack_or_model_takes_one_value(name):
    choice = next(choice for choice in SHARED if choice.name == name)
    (flag,) = choice.flags
    with pytest.raises(FlagError) as error:
        modules({**settings(choice), flag: (choice.flags[flag], choice.flags[flag])})
    found = {finding.flag: finding.message for finding in error.value.findings}
    whole = "model" if CATALOGUE.scope(flag) == "model" else "stack"
    assert f"is filled once for the {whole}, but is" in found[flag]


class Placed(nn.Module):
    """Keeps its place; returns the first of its inputs."""

    def __init__(self, *shapes, place):
        super().__init__()
        self.place = place

    def forward(self, *inputs):
        return inputs[0]


def places(**flags):
    layers = flagformer.Decoder(**BASE | flags)
    return [module.place for module in layers.modules() if isinstance(module, Placed)]


def test_components_of_a_slot_by_layer():
    layers = flagformer.Decoder(**BASE, activation=[nn.Tanh, None], gate=[[Placed, Placed], []])
    first, ff_first, second, ff_second = (sublayer.fn for sublayer in layers.sublayers)
    assert [len(first.gates), len(second.gates)] == [2, 0]
    assert "Tanh" in layers.explain()
    assert isinstance(ff_first.activation, nn.Tanh)
    assert not isinstance(ff_second.activation, nn.Tanh)


def test_a_list_of_components_without_lists_is_for_every_layer():
    layers = flagformer.Decoder(**BASE, gate=[Placed, Placed])
    assert [len(sublayer.fn.gates) for sublayer in layers.sublayers if sublayer.kind == "a"] == [2, 2]


@pytest.mark.parametrize(
    ("flags", "where"),
    [
        ({"activation": [nn.ReLU]}, "`activation` has 1 values for 2 feedforward sublayers"),
        ({"gate": [[Placed]]}, "`gate` has 1 values for 2 self-attention sublayers"),
        ({"activation": [nn.ReLU, 5]}, "`activation` at layer 1 must be a Spec"),
        ({"gate": [None, [5]]}, "`gate` at layer 1 must be a Spec"),
        ({"activation": [[nn.ReLU], None]}, "`activation` must be one component at layer 0"),
        ({"norm": [nn.Identity, nn.Identity]}, "`norm` must be one component, which all layers share"),
        ({"init": Placed}, "Placed asks for a `place`, which components of sublayers and norms have"),
    ],
)
def test_errors_name_the_layer(flags, where):
    with pytest.raises(FlagError, match=where):
        flagformer.Decoder(**BASE | flags)


@pytest.mark.parametrize("slot", ["gate", "feedforward", "branch", "score", "weight_mod", "activation"])
def test_a_component_knows_its_place(slot):
    each = 2 if slot == "branch" else 1
    assert places(**{slot: Placed}) == [Place(layer, 2) for layer in (0, 1) for _ in range(each)]


def test_a_norm_knows_its_place():
    """Both sublayers of a block have its index; the final norm comes after all layers."""
    assert [place.layer for place in places(norm=Placed)] == [0, 0, 1, 1, 2]


@pytest.mark.parametrize(
    ("flags", "layers", "count"),
    [
        ({"weight_tie_layers": True, "depth": 3}, [0], 3),
        ({"layers_execute_order": (2, 3, 0, 1)}, [1, 0], 2),
        ({"layers_execute_order": (0, 1, 0, 1, 2, 3)}, [0, 2], 3),
        ({"custom_layers": "aaf", "depth": None}, [0, 1], 2),
        ({"sandwich_coef": 1}, [0, 1], 2),
    ],
)
def test_tied_and_reordered_layers_have_the_place_of_their_first_run(flags, layers, count):
    given = {name: value for name, value in (BASE | flags).items() if value is not None}
    made = flagformer.Decoder(**given, gate=Placed)
    found = [module.place for module in made.modules() if isinstance(module, Placed)]
    assert found == [Place(layer, count) for layer in layers]
