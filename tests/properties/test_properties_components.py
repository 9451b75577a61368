"""Custom components in every slot: invalid ones are refused at construction."""

import functools

import pytest
import torch
from torch import nn

import flagformer
from flagformer import CATALOGUE, FlagError, Spec
from flagformer.flags import LAYER_SCOPES, SLOTS, open_slots
from flagformer.flags.contracts import contract_of

BASE = {"dim": 16, "depth": 2, "heads": 2, "attn_dim_head": 8, "cross_attend": True}
# flags of the slot `dims`, which have no effect if a component is given for it
SIZES = {"dim", "heads", "attn_dim_head"}
OWN = [slot.name for slot in open_slots(LAYER_SCOPES)]
OF_MODEL = [slot.name for slot in open_slots({"model"})]


class Empty:
    def __init__(self, *shapes, **params):
        pass


class NoForward(nn.Module):
    def __init__(self, *shapes):
        super().__init__()


class NoArguments(NoForward):
    def forward(self):
        return 0


class ThreeShapesMore(NoForward):
    def __init__(self, one, two, three, four, five):
        super().__init__()

    def forward(self, *inputs):
        return inputs[0]


class Refuses(NoForward):
    def __init__(self, *shapes):
        raise TypeError("unsupported operand")


def no_arguments():
    return 0


MISTAKES = {
    "number": 3,
    "text": "layernorm",
    "nothing": None,
    "function": no_arguments,
    "partial": functools.partial(nn.Linear, 16),
    "class": Empty,
    "module": NoForward,
    "forward": NoArguments,
    "instance": NoForward(),
    "instance with a forward": NoArguments(),
    "constructor": ThreeShapesMore,
    "failing constructor": Refuses,
    "spec of no class": Spec(3),
    "params": Spec(NoArguments, 3),
    "unknown params": Spec(nn.Identity(), {"width": 3}),
    "spec": Spec(Empty),
    "factory": Spec(lambda *shapes: 3),
}


def extra_flags(slot):
    if SLOTS[slot].scope == "mixer":
        sizes = {name: BASE[name] for name in SIZES}
        return {**sizes, "custom_layers": "mf", "causal": True}
    return {name: value for name, value in BASE.items() if slot != "dims" or name not in SIZES}


def builder(slot):
    """The constructor that takes a slot."""
    if SLOTS[slot].scope != "model":
        return flagformer.AttentionLayers
    return lambda **flags: flagformer.build({"num_tokens": 5, "max_seq_len": 8, **flags})


def refused(build, **flags):
    with pytest.raises(FlagError) as error:
        build(**flags)
    return {finding.flag: finding.message for finding in error.value.findings}


@pytest.mark.parametrize("slot", OWN + OF_MODEL)
def test_an_invalid_component_is_refused_by_name(slot):
    for mistake, value in MISTAKES.items():
        found = refused(builder(slot), **extra_flags(slot), **{slot: value})
        assert set(found) == {slot}, mistake
        assert "must be a Spec, a class or a module that meets the slot's contract, but" in found[slot], (
            mistake
        )
        assert "docs/flags.md" in found[slot], mistake


@pytest.mark.parametrize("slot", OWN + OF_MODEL)
def test_a_class_without_the_methods_of_the_contract(slot):
    """Each method is omitted once; the message names it."""
    contract = contract_of(CATALOGUE, slot)
    inner = () if contract.module is None else (contract.module,)
    for left_out in (*contract.methods, *contract.names):
        body = {name: value for name, value in vars(contract.base).items() if name in contract.methods}
        body |= dict.fromkeys(contract.names, 1) | {
            "__init__": lambda self, *shapes: nn.Module.__init__(self) if inner else None
        }
        body = {
            name: (lambda self, *inputs: 0) if name in contract.methods else value
            for name, value in body.items()
        }
        del body[left_out]
        found = refused(builder(slot), **extra_flags(slot), **{slot: type("Mine", inner, body)})
        assert f"Mine has no {left_out};" in found[slot]


@pytest.mark.parametrize("slot", ["wrapper", *OF_MODEL])
def test_slots_of_the_model_are_no_slots_of_its_layers(slot):
    text = refused(flagformer.Decoder, **BASE, **{slot: nn.Identity})[slot]
    assert "is the model itself" in text if slot == "wrapper" else "is a slot of a model of tokens" in text


class Doubled(nn.Module):
    """The first of its inputs, times a learned weight."""

    def __init__(self, *shapes):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(2.0))

    def forward(self, *inputs):
        return self.gain * inputs[0].nan_to_num(neginf=0.0)  # scores of masked pairs


def first(*inputs):
    return 2.0 * inputs[0].nan_to_num(neginf=0.0)


CALLED = {"norm", "feedforward", "activation", "branch", "score", "normalizer", "weight_mod", "gate"}


@pytest.mark.parametrize("slot", sorted(CALLED))
def test_a_class_and_a_function_fill_a_callable_slot(slot):
    """Each by itself and, in slots of many components, with another one."""
    inputs = torch.randn(1, 3, 16, generator=torch.Generator().manual_seed(1))
    outs = []
    for filler in (Doubled, first, Spec(Doubled)):
        given = [filler, filler] if SLOTS[slot].many else filler
        torch.manual_seed(0)
        outs.append(flagformer.Decoder(**BASE, **{slot: given})(inputs, context=inputs))
    assert torch.equal(outs[0], outs[1])
    assert torch.equal(outs[0], outs[2])
    torch.manual_seed(0)
    assert not torch.allclose(flagformer.Decoder(**BASE)(inputs, context=inputs), outs[0])


@pytest.mark.parametrize("slot", sorted(CALLED))
def test_a_module_with_parameters_fills_one_slot(slot):
    found = refused(flagformer.Decoder, **BASE, **{slot: Doubled()})
    assert "would share, with its parameters" in found[slot]
    flagformer.Decoder(**BASE, **{slot: nn.Identity if slot in {"norm", "activation", "branch"} else first})


def test_messages_show_the_name_of_the_user():
    halves = {f"{half}{name}": value for half in ("enc_", "dec_") for name, value in {
        "num_tokens": 5, "max_seq_len": 8, "depth": 2}.items()}  # fmt: skip
    found = refused(flagformer.XTransformer, dim=16, **halves, enc_norm=3, dec_feedforward=NoArguments)
    assert set(found) == {"enc_norm", "dec_feedforward"}
    assert "`dec_feedforward` must be" in found["dec_feedforward"]
    shared = refused(flagformer.XTransformer, dim=16, **halves, enc_norm=Doubled())
    assert set(shared) == {"enc_norm"}


def test_an_initialisation_needs_the_last_projection_of_a_feedforward():
    found = refused(flagformer.Decoder, **BASE, feedforward=Doubled, zero_init_branch_output=True)
    assert "`w_out`" in found["zero_init_branch_output"]


def test_rules_of_values_return_values():
    assert "returns 3" in refused(flagformer.Decoder, **BASE, values=lambda values: 3)["values"]
