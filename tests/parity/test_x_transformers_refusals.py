"""Weights that cannot be converted are refused by name, and the model is left unchanged."""

from typing import Any

import pytest
import torch
from parity_case import NEW, OLD, Case, run
from parity_cases import CASES, SCALE
from parity_peer import build_peer
from refusal_cases import REFUSED

import flagformer
from flagformer.interop import flags_of_x_transformers, load_x_transformers

PAIRS = [(v, name) for v in (OLD, NEW) for name, refusal in REFUSED.items() if v in refusal.theirs.versions]


def of_new(case: Case) -> torch.nn.Module:
    return build_peer(case.kind, case.peer_flags(NEW))


@pytest.mark.parametrize(("version", "name"), PAIRS)
def test_refused_by_name(version: str, name: str, old_peer: dict[str, Any]) -> None:
    refusal = REFUSED[name]
    weights = old_peer["refused"][name] if version == OLD else of_new(refusal.theirs).state_dict()
    flags = {**refusal.theirs.our_flags(version), **refusal.ours}
    ours = flagformer.build({flag: value for flag, value in flags.items() if value is not None})
    before = {key: value.clone() for key, value in ours.state_dict().items()}
    with pytest.raises(ValueError) as caught:
        load_x_transformers(weights, ours, version=version)
    assert refusal.word in str(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in ours.state_dict().items())


def test_every_missing_and_every_unused_weight_is_listed() -> None:
    case = Case({})
    weights = of_new(case).state_dict()
    weights["a.stranger"] = torch.zeros(1)
    for key in ("to_logits.weight", "attn_layers.layers.1.1.ff.2.bias"):
        del weights[key]
    with pytest.raises(ValueError) as caught:
        load_x_transformers(weights, flagformer.build(case.our_flags(NEW)))
    lines = str(caught.value).splitlines()[1:]
    assert any("`a.stranger` has no counterpart" in line for line in lines)
    assert any("`to_logits.weight` is missing" in line for line in lines)
    assert any("sublayers.1.fn" in line and "has no counterpart" in line for line in lines)


@pytest.mark.parametrize("version", [OLD, NEW])
@pytest.mark.parametrize(
    "name", ["learned positions", "llama", "encoder-decoder, other halves", "images with registers"]
)
def test_no_weight_is_dropped_silently(version: str, name: str, old_peer: dict[str, Any]) -> None:
    """Removing any one weight is refused, and so is adding one."""
    case = CASES[name]
    if version == OLD:
        weights = old_peer["results"][name]["weights"]
    else:
        weights = of_new(case).state_dict()
    ours = flagformer.build(case.our_flags(version))
    optional = {"encoder.to_logits.weight"}  # dropped with a warning
    if optional & set(weights):
        with pytest.warns(UserWarning, match=r"encoder\.to_logits\.weight"):
            load_x_transformers(weights, ours, version=version)
        del weights["encoder.to_logits.weight"]
    # a gated feedforward without the second bias is one of `ff_no_bias` there: zeros
    for key in (key for key in weights if not key.endswith("ff.2.bias")):
        for changed in (
            {k: v for k, v in weights.items() if k != key},
            {**weights, key + "_more": weights[key]},
        ):
            with pytest.raises(ValueError, match="do not fit"):
                load_x_transformers(changed, ours, version=version)


def test_a_state_dict_loads_like_the_model() -> None:
    case = Case({"rotary_pos_emb": True, "attn_kv_heads": 2})
    theirs = of_new(case)
    wrapped = {f"net.{key}": value for key, value in theirs.state_dict().items()}
    for weights in (theirs, theirs.state_dict(), wrapped):
        ours = load_x_transformers(weights, flagformer.build(case.our_flags(NEW)).eval())
        assert (run(ours, case) - run(theirs, case)).abs().max() < 1e-5
    trainer = flagformer.AutoregressiveWrapper(flagformer.build(case.our_flags(NEW)))
    assert load_x_transformers(wrapped, trainer) is trainer


def test_a_stack_without_wrapper() -> None:
    import x_transformers as peer

    torch.manual_seed(0)
    x, context = torch.randn(2, 9, 32), torch.randn(2, 5, 32)
    sizes = {"dim": 32, "depth": 2, "heads": 4, "attn_dim_head": 16}
    for kind, call in (("Encoder", {}), ("CrossAttender", {"context": context})):
        theirs = getattr(peer, kind)(**sizes)
        ours = load_x_transformers(theirs, getattr(flagformer, kind)(**sizes))
        assert (ours(x, **call) - theirs(x, **call)).abs().max() < 1e-5


def test_scales_stored_without_offset() -> None:
    case = Case({"use_rmsnorm": True, **SCALE, "norm_add_unit_offset": False})
    theirs, ours = of_new(case), flagformer.build(case.our_flags(NEW)).eval()
    load_x_transformers(theirs, ours)
    assert (run(ours, case) - run(theirs, case)).abs().max() > 1e-2, "scales are one too large"
    load_x_transformers(theirs, ours, norm_add_unit_offset=False)
    assert (run(ours, case) - run(theirs, case)).abs().max() < 1e-5
    ours = load_x_transformers(theirs, flags=case.peer_flags(NEW))
    assert (run(ours, case) - run(theirs, case)).abs().max() < 1e-5


def test_a_factor_outside_the_weights_must_be_given(old_peer: dict[str, Any]) -> None:
    name = "cosine attention with gains"
    ours = flagformer.build(CASES[name].our_flags(OLD))
    with pytest.raises(ValueError, match="load with `flags`"):
        load_x_transformers(old_peer["results"][name]["weights"], ours, version=OLD)


DIFFERENT = [
    ({"attn_sparse_topk": 3}, OLD, "`attn_sparse_topk` of x-transformers 1.27 keeps all scores except"),
    ({"cross_attend": True, "attn_max_attend_past": 3}, OLD, "masks a part of the context"),
    ({"cross_attend": True, "attn_max_attend_past": 3}, NEW, "masks a part of the context"),
    ({"attn_pre_talking_heads": True}, NEW, "`attn_pre_talking_heads` without the other is not supported"),
    (
        {"model": "xtransformer", "dim": 32, "dec_attn_post_talking_heads": True},
        NEW,
        "`dec_attn_post_talking_heads` without",
    ),
]


@pytest.mark.parametrize(("flags", "version", "word"), DIFFERENT)
def test_another_function_of_the_same_name_is_refused(flags: dict[str, Any], version: str, word: str) -> None:
    with pytest.raises(flagformer.FlagError) as caught:
        flags_of_x_transformers(flags, version)
    assert word in str(caught.value)


def test_required_declarations() -> None:
    with pytest.raises(ValueError, match=r"`model` must be one of TransformerWrapper, .*, but is Linear"):
        load_x_transformers({}, torch.nn.Linear(2, 2), version=NEW)
    with pytest.raises(ValueError, match="pass either `model`, to load into, or `flags`"):
        load_x_transformers({}, version=NEW)
    with pytest.raises(ValueError, match=r"`version` must be '1\.27' or '2\.31'.*but is '1\.30'"):
        load_x_transformers({}, flags={}, version="1.30")
