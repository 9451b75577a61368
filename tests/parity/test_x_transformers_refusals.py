"""What cannot be carried is refused by name, and the model stays as it was."""

import pytest
import torch
from parity_cases import SCALE, Case, build_ours, build_peer, difference

from flagformer.interop.x_transformers import load_x_transformers

REFUSED = {
    "a gate's bias under ff_no_bias": (Case({"ff_glu": True, "ff_no_bias": True}), "ff.0.proj.bias"),
    "alibi with grouped heads": (
        Case({"alibi_pos_bias": True, "attn_kv_heads": 2}),
        "slopes belong to heads",
    ),
    "memory under qk rms norm": (Case({"attn_qk_rmsnorm": True, "attn_num_mem_kv": 2}), "mem_k"),
    "scale and sandwich norm": (Case({**SCALE, "sandwich_norm": True}), "before the sandwich norm"),
    "macaron and sandwich norm": (Case({"macaron": True, "sandwich_norm": True}), "before the sandwich norm"),
    "biases of inner norms": (
        Case({"dynamic_pos_bias": True, "dynamic_pos_bias_norm": True}),
        "rel_pos.mlp.1.1.bias",
    ),
    "t5 over layers of other groups": (
        Case({"rel_pos_bias": True, "attn_kv_heads": (4, 2)}),
        "attn_kv_heads",
    ),
    "another width": (Case({}, theirs={"ff_mult": 2}), "is [128, 32], its weights are [64, 32]"),
    "another depth": (Case({}, theirs={"depth": 3}), "attn_layers.layers.4.0.0.gamma"),
    "another norm": (Case({"use_rmsnorm": True}, ours={"use_rmsnorm": None}), "final_norm.g"),
    "another norm place": (Case({"pre_norm": False}, ours={"pre_norm": None}), "layers.0.0.2.gamma"),
    "half of each head, unsaid": (
        Case({"rotary_pos_emb": True}, theirs={"rotary_emb_dim": 8}),
        "rotary_emb_dim",
    ),
    "another base": (
        Case({"rotary_pos_emb": True}, theirs={"rotary_base_rescale_factor": 2.0}),
        "rotary_base_rescale_factor",
    ),
    "positions beside alibi, unsaid": (
        Case({"alibi_pos_bias": True}, theirs={"use_abs_pos_emb": True}),
        "pos_emb.emb.weight",
    ),
    "a flag of theirs": (Case({}, theirs={"attn_head_scale": True}), "head_scale_params"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(name: str) -> None:
    case, word = REFUSED[name]
    theirs, ours = build_peer(case), build_ours(case)
    before = {key: value.clone() for key, value in ours.state_dict().items()}
    with pytest.raises(ValueError) as caught:
        load_x_transformers(theirs, ours)
    assert word in str(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in ours.state_dict().items())


def test_every_missing_and_every_left_over_weight_is_listed() -> None:
    case = Case({})
    weights = build_peer(case).state_dict()
    weights["a.stranger"] = torch.zeros(1)
    for key in ("to_logits.weight", "attn_layers.layers.1.1.ff.2.bias"):
        del weights[key]
    with pytest.raises(ValueError) as caught:
        load_x_transformers(weights, build_ours(case))
    lines = str(caught.value).splitlines()[1:]
    assert any("`a.stranger` has no place" in line for line in lines)
    assert any("`to_logits.weight` is missing" in line for line in lines)
    assert any("sublayers.1.fn" in line and "gets no weights" in line for line in lines)


def test_a_state_dict_serves_as_well_as_the_model() -> None:
    case = Case({"rotary_pos_emb": True, "attn_kv_heads": 2})
    theirs, ours = build_peer(case), build_ours(case)
    load_x_transformers(theirs.state_dict(), ours)
    assert difference(ours, theirs, case) < 1e-5


def test_gains_stored_without_offset() -> None:
    case = Case({"use_rmsnorm": True, **SCALE}, theirs={"norm_add_unit_offset": False})
    theirs, ours = build_peer(case), build_ours(case)
    load_x_transformers(theirs, ours)
    assert difference(ours, theirs, case) > 1e-2, "gains are one too large"
    load_x_transformers(theirs, ours, norm_add_unit_offset=False)
    assert difference(ours, theirs, case) < 1e-5


def test_only_a_wrapper_takes_weights() -> None:
    with pytest.raises(ValueError, match=r"`model` must be a TransformerWrapper or .*, but is Linear"):
        load_x_transformers({}, torch.nn.Linear(2, 2))
