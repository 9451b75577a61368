"""Conflicts are derived from slots and requirements or declared with a reason, and reported together."""

import pickle

import pytest
import torch
from torch import nn

import flagformer
from flagformer.attention.cores.dense import Dense
from flagformer.attention.kernels.eager import Eager
from flagformer.attention.kernels.sdpa import SDPA
from flagformer.flags import (
    CATALOGUE,
    MODEL_SCOPES,
    NEEDS,
    Finding,
    FlagError,
    Instance,
    Registry,
    Requirement,
    Spec,
    component,
    resolve,
)
from flagformer.flow import Dims
from flagformer.lab.reference.selectors import choices, settings
from flagformer.norm.rmsnorm import RMSNorm
from flagformer.position import DistanceBias, PositionBias
from flagformer.position.alibi import ALiBi

SMALL = {"num_tokens": 11, "max_seq_len": 16, "dim": 16, "depth": 2, "heads": 4, "attn_dim_head": 8}
IDS = torch.arange(9)[None]


def refused(**flags):
    with pytest.raises(FlagError) as caught:
        flagformer.build({**SMALL, **flags})
    return str(caught.value)


class SoftClamp(nn.Module):
    """A score modification without declared capabilities."""

    def __init__(self, dims: Dims, *, limit: float = 5.0) -> None:
        super().__init__()
        self.limit = limit

    def forward(self, scores, q, k, pairs):
        return (scores / self.limit).tanh() * self.limit


class Shift(DistanceBias):
    """A position bias without declared capabilities and parameters."""

    def __init__(self, dims: Dims) -> None:
        super().__init__()
        self.heads = dims.heads

    def forward(self, distance):
        return (-0.3 * distance.float()[..., None]).expand(*distance.shape, self.heads)


class Double(nn.Module):
    """A gate."""

    def __init__(self, dims: Dims) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.full((dims.heads, 1, 1), 2.0))

    def forward(self, out, x):
        return out * self.gain


def kernels(model):
    return {type(s.fn.core.kernel).__name__ for s in model.attn_layers.sublayers if s.kind != "f"}


def same_function(model, other):
    other.load_state_dict(model.state_dict(), strict=False)
    return torch.allclose(model.eval()(IDS), other.eval()(IDS), atol=1e-6)


def crowds():
    """Slots with one component, and two flags that fill it."""
    found = []
    for slot in ("norm", "norm_position", "position_bias", "projection", "qk_norm", "activation", "absolute"):
        chosen = [item for item in CATALOGUE.in_slot(slot) if item.select is not None]
        for i, one in enumerate(chosen):
            found += [(slot, one, other) for other in chosen[i + 1 :] if meet(one, other)]
    return found


def meet(one, other):
    """Whether two flags differ and apply to at least one kind of attention in common."""
    return one.select != other.select and {one.kind, other.kind} != {"a", "c"}


@pytest.mark.parametrize(("slot", "one", "other"), crowds(), ids=lambda value: getattr(value, "name", value))
def test_two_components_for_one_slot(slot, one, other):
    values = {"attn_kv_heads": 2, "attn_kv_rank": 4, "ff_activation": "relu"}
    values |= {"adaptive_layernorm": 6, "adaptive_rmsnorm": 6}
    flags = {
        item.select: item.when if item.when is not ... else values.get(item.select, True)
        for item in (one, other)
    }
    text = refused(**flags, cross_attend="c" in (one.kind, other.kind))
    assert (
        f"`{one.say()}` and `{other.say()}` cannot be combined, because both fill the slot `{slot}`" in text
    )


def test_three_components_for_one_slot():
    text = refused(alibi_pos_bias=True, rel_pos_bias=True, dynamic_pos_bias=True)
    assert (
        "`alibi_pos_bias` and `rel_pos_bias` and `dynamic_pos_bias` cannot be combined, because all" in text
    )


def test_many_components_for_a_slot_that_takes_many():
    model = flagformer.build({**SMALL, "attn_num_mem_kv": 2, "attn_add_zero_kv": True})
    assert model.attn_layers.sublayers[0].fn.num_prefix_kv == 3


def test_kernel_is_the_fastest_supported():
    assert kernels(flagformer.build(SMALL)) == {"SDPA"}
    assert kernels(flagformer.build({**SMALL, "alibi_pos_bias": True})) == {"SDPA"}
    assert kernels(flagformer.build({**SMALL, "rel_pos_bias": True})) == {"SDPATrainableBias"}
    assert kernels(flagformer.build({**SMALL, "attn_flash": False})) == {"Eager"}
    mixed = flagformer.build({**SMALL, "attn_flash": (True, False)})
    assert kernels(mixed) == {"SDPA", "Eager"}
    assert "Eager in self-attention: needed" in mixed.explain()


def test_score_modification_selects_the_eager_kernel():
    model = flagformer.build({**SMALL, "score": SoftClamp})
    assert kernels(model) == {"Eager"}
    plain = flagformer.build(SMALL)
    assert not same_function(model, plain)
    wide = flagformer.build({**SMALL, "score": Spec(SoftClamp, {"limit": 1e4})})
    assert same_function(wide, plain), "a clamp above all scores changes nothing"


@pytest.mark.parametrize("flags", [{"attn_flash": True}, {"attn_flash": (False, True)}, {"kernel": SDPA}])
def test_score_modification_refuses_the_fused_kernel(flags):
    text = refused(score=SoftClamp, **flags)
    assert "and `score` cannot be combined, because it reads the attention scores, which the fused" in text
    assert f"`{next(iter(flags))}" in text


@pytest.mark.parametrize("flags", [{"attn_flash": True}, {"kernel": SDPA}])
def test_learned_bias_refuses_the_fused_kernel(flags):
    text = refused(dynamic_pos_bias=True, **flags)
    assert "and `dynamic_pos_bias` cannot be combined, because the fused kernel computes no gradient" in text


def test_kernel_given_as_a_supported_class():
    model = flagformer.build({**SMALL, "kernel": Eager, "score": SoftClamp})
    assert kernels(model) == {"Eager"}
    assert same_function(model, flagformer.build({**SMALL, "score": SoftClamp}))


def test_a_given_normalizer_needs_scores_too():
    class Even(nn.Module):
        def __init__(self, dims):
            super().__init__()

        def forward(self, scores):
            seen = scores.isfinite().to(scores.dtype)
            return seen / seen.sum(-1, keepdim=True)

    assert kernels(flagformer.build({**SMALL, "normalizer": Even})) == {"Eager"}
    assert "`normalizer`" in refused(normalizer=Even, attn_flash=True)


@pytest.mark.parametrize(
    "given", [Shift, Spec(Shift), Spec(ALiBi, {"heads": 2})], ids=["class", "Spec", "params"]
)
def test_custom_position_bias(given):
    """Treated as learned unless it declares otherwise; the absolute table is omitted as for any other."""
    model = flagformer.build({**SMALL, "position_bias": given})
    assert not model.absolute_positions
    own = type(model.attn_layers.position_bias)
    assert own is getattr(given, "cls", given)
    assert kernels(model) == ({"SDPA"} if own is ALiBi else {"SDPATrainableBias"})
    shifted = model.eval()(IDS, pos=torch.arange(9) * 2)
    assert not torch.allclose(shifted, model(IDS), atol=1e-4)
    assert "`position_bias`" in refused(position_bias=Shift, attn_flash=True)


def test_custom_gates_share_their_slot():
    once = flagformer.build({**SMALL, "gate": Double})
    twice = flagformer.build({**SMALL, "gate": (Double, Spec(Double))})
    assert [len(model.attn_layers.sublayers[0].fn.gates) for model in (once, twice)] == [1, 2]
    halved = flagformer.build(SMALL)
    halved.load_state_dict(once.state_dict(), strict=False)
    with torch.no_grad():
        for sublayer in halved.attn_layers.sublayers[::2]:
            sublayer.fn.to_out.weight *= 2
    torch.testing.assert_close(once(IDS), halved(IDS))
    once(IDS).sum().backward()
    assert once.attn_layers.sublayers[0].fn.gates[0].gain.grad.abs().min() > 0


def test_module_given_for_a_slot():
    bias = ALiBi(Dims(dim=16, heads=4, dim_head=8, causal=True))
    model = flagformer.build({**SMALL, "position_bias": bias})
    assert model.attn_layers.position_bias is bias
    assert same_function(flagformer.build({**SMALL, "alibi_pos_bias": True}), model)
    assert "ALiBi (given)" in model.explain()


def test_invalid_values_for_a_slot():
    assert "`score` must be a Spec, a class or a module that meets the slot's contract, but is 3" in refused(
        score=3
    )


def test_flag_with_a_component_given_for_its_slot():
    text = refused(norm=RMSNorm, use_rmsnorm=True)
    assert "`use_rmsnorm` has no effect here, because `norm` is set to a component of your own" in text


@pytest.mark.parametrize("order", [{"only_cross": True}, {"custom_layers": "cf", "depth": None}])
@pytest.mark.parametrize(
    "flags", [{"rotary_pos_emb": True}, {"rel_pos_bias": True}, {"position_bias": Shift}]
)
def test_positions_without_a_reader(order, flags):
    text = refused(**order, **flags)
    for flag in (next(iter(order)), next(iter(flags))):
        assert f"`{flag}`" in text


def test_plan_conflicts_name_both():
    assert "`cross_attend` and `only_cross`" in refused(cross_attend=True, only_cross=True)
    assert "`depth` and `custom_layers`" in refused(custom_layers="af")
    text = refused(custom_layers="af", weight_tie_layers=True, sandwich_coef=1)
    for flag in ("depth", "weight_tie_layers", "sandwich_coef"):
        assert f"`{flag}` and `custom_layers` cannot be combined" in text


def test_declared_requirement_says_its_reason():
    @component("norm", select="use_decay", requires=[Requirement("causal", True, "the decay is one-sided")])
    class Decay(RMSNorm):
        """Requires a causal order."""

    registry = Registry([item.cls for item in CATALOGUE])
    registry.fill([Decay])
    flags = {"dim": 16, "depth": 1, "use_decay": True}
    resolve({**flags, "causal": True}, registry)
    with pytest.raises(FlagError) as caught:
        resolve(flags, registry, prefix="enc_")
    assert caught.value.findings == (
        Finding(
            "enc_use_decay",
            "`enc_use_decay` needs `enc_causal=True` (it is False), because the decay is one-sided",
        ),
    )


LACKING = [
    (need, choice) for choice in choices() if choice.component is not None for need in choice.component.lacks
]


def with_new(slot, *needs, cls=nn.Identity):
    """The catalogue and a new component of a slot, selected by `use_new`."""
    new = component(slot, select="use_new", needs=needs)(type("New", (cls,), {"__doc__": "New."}))
    return Registry([*(item.cls for item in CATALOGUE), new])


def test_every_need_is_served_by_some_and_refused_by_others():
    assert {need for need, _ in LACKING} == set(NEEDS)
    assert {need for item in CATALOGUE for need in item.needs} == set(NEEDS)


@pytest.mark.parametrize(
    ("need", "choice"), LACKING, ids=[f"{need} {choice.name}" for need, choice in LACKING]
)
def test_a_new_component_is_refused_with_all_that_lack_its_need(need, choice):
    flags = {name: value for name, value in settings(choice).items() if name != "model"}
    flags |= {"causal": True, "use_new": True}
    resolve(flags, with_new("init"), MODEL_SCOPES)
    with pytest.raises(FlagError) as caught:
        resolve(flags, with_new("init", need), MODEL_SCOPES)
    (finding,) = caught.value.findings
    name, reason = choice.component.say(), choice.component.lacks[need]
    assert finding.flag == choice.component.select
    assert f"`{name}` and `use_new` cannot be combined, because {reason}; leave" in finding.message


def test_needs_hold_inside_one_sublayer():
    registry = with_new("weight_mod", "same_keys")
    common = {"dim": 16, "depth": 2, "cross_attend": True, "use_new": (True, False)}
    resolve({**common, "num_clusters": (None, 2)}, registry)
    for clusters in ({"num_clusters": (2, None)}, {"context_num_clusters": (2, None)}):
        with pytest.raises(FlagError, match="and `enc_use_new` cannot be combined, because each head"):
            resolve({**common, **clusters}, registry, prefix="enc_")


def test_a_refusal_names_the_form_for_cross_attention():
    text = refused(cross_attend=True, cross_attn_talking_heads=True, cross_attn_flash=True)
    assert "`cross_attn_flash=True` and `cross_attn_talking_heads` cannot be combined" in text
    text = refused(cross_attend=True, cross_attn_shared_kv=True, context_shared_qk=True)
    assert "`context_shared_qk` and `cross_attn_shared_kv` cannot be combined" in text


def test_unknown_needs_are_an_error():
    for how in ({"needs": {"scorse"}}, {"lacks": {"scorse": "it has none"}}):
        with pytest.raises(ValueError, match="'scorse' is not a need of a component; they are: scores, "):
            component("norm", **how)


def test_error_shows_a_line_per_finding_and_survives_pickling():
    error = FlagError([Finding("a", "`a` is wrong"), Finding("b", "`b` is wrong")])
    assert str(error) == "2 flags cannot be used:\n- `a` is wrong\n- `b` is wrong"
    assert isinstance(error, ValueError)
    back = pickle.loads(pickle.dumps(error))
    assert (type(back), str(back), back.findings) == (FlagError, str(error), error.findings)
    assert str(FlagError([Finding("a", "`a` is wrong")])).startswith("1 flag cannot be used:\n")


def test_check_reports_what_build_reports_without_tensors(monkeypatch):
    for flags in ({"attn_kv_heads": 3}, {"rotery": 1}, {"dim": 0}):
        texts = []
        for call in (flagformer.check, flagformer.build):
            with pytest.raises(FlagError) as caught:
                call({**SMALL, **flags})
            texts.append(str(caught.value))
        assert texts[0] == texts[1]
    flagformer.check({**SMALL, "dim": 8192, "depth": 100})  # a hundred GiB of weights if they were allocated


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"model": "encoder", "alibi_pos_bias": True},
        {"model": "prefix_decoder", "rel_pos_bias": True, "rel_pos_num_buckets": 8},
        {"custom_layers": ("a", "c", "f"), "depth": None, "cross_attn_dim_context": 6},
        {"attn_kv_heads": (2, 4), "layer_dropout": [0.1, 0.1, 0.2, 0.2], "tie_embedding": True},
        {"use_abs_pos_emb": False}, {"scaled_sinu_pos_emb": True, "emb_dropout": 0.1},
        {"rotary_pos_emb": True, "use_abs_pos_emb": True},
        {"score": SoftClamp, "gate": (Double, Spec(Double))},
    ],
)  # fmt: skip
def test_flags_rebuild_the_model(flags):
    model = flagformer.build({**SMALL, **flags})
    again = flagformer.build(model.flags)
    assert again.flags == model.flags
    assert again.explain() == model.explain()
    shapes = [{name: value.shape for name, value in m.state_dict().items()} for m in (model, again)]
    assert shapes[0] == shapes[1]
    for name, value in flags.items():
        assert model.flags[name] == (tuple(value) if isinstance(value, list) else value)


def test_flags_of_layers_built_by_hand():
    layers = flagformer.Encoder(dim=16, depth=1, heads=4, alibi_pos_bias=True)
    model = flagformer.TransformerWrapper(num_tokens=11, max_seq_len=16, attn_layers=layers)
    assert layers.flags == {"dim": 16, "depth": 1, "heads": 4, "alibi_pos_bias": True, "causal": False}
    assert model.flags["model"] == "encoder"
    assert flagformer.build(model.flags).explain() == model.explain()


def test_the_catalogue_declares_sound_components():
    for item in CATALOGUE:
        assert item.doc, f"{item.name} needs a docstring"
        if item.select is None:
            others = [one for one in CATALOGUE.in_slot(item.slot) if one.select is None]
            assert len(others) == 1 or item.slot == "kernel", (
                f"{item.slot} has two components without a selector"
            )
        for param in item.params:
            assert param.flag.doc
            assert not param.flag.doc.endswith(".")
    assert Dense.component.slot == "core"
    assert issubclass(ALiBi, PositionBias)
    assert Instance(nn.Identity()).build() is not None
