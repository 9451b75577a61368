"""Weights of x-transformers that this library cannot load, and the error for each."""

from dataclasses import dataclass, field
from typing import Any

from parity_case import NEW, OLD, Case
from parity_cases import ALIBI, SCALE, T5, TALKING

OF_NEW = {"versions": (NEW,)}
OF_OLD = {"versions": (OLD,)}


@dataclass(frozen=True)
class Refusal:
    """The weights of `theirs`, loaded into that model changed by `ours`, are refused with `word`."""

    theirs: Case
    word: str
    ours: dict[str, Any] = field(default_factory=dict)


REFUSED = {
    "a gate's bias under ff_no_bias": Refusal(Case({"ff_glu": True}), "ff.0.proj.bias", {"ff_no_bias": True}),
    "alibi with grouped heads": Refusal(
        Case({**ALIBI, "attn_kv_heads": 2}), "order of heads and slopes differs"
    ),
    "memory under qk rms norm": Refusal(
        Case({"attn_qk_rmsnorm": True, "attn_num_mem_kv": 2}, **OF_NEW), "mem_k"
    ),
    "memory under norms in parts": Refusal(
        Case({"attn_qk_norm": True, "attn_qk_norm_groups": 2, "attn_num_mem_kv": 2}), "attn_qk_norm_groups"
    ),
    "memory under xpos": Refusal(
        Case({"rotary_xpos": True, "attn_dim_head": 32, "rotary_emb_dim": 32, "attn_num_mem_kv": 2}),
        "origin of xPos",
    ),
    "memory under alibi": Refusal(Case({**ALIBI, "attn_num_mem_kv": 2}, **OF_OLD), "before the first token"),
    "scale and sandwich norm": Refusal(
        Case({**SCALE, "sandwich_norm": True}, **OF_NEW), "before the sandwich norm"
    ),
    "macaron and sandwich norm": Refusal(
        Case({"macaron": True, "sandwich_norm": True}), "before the sandwich norm"
    ),
    "biases of inner norms": Refusal(
        Case({"dynamic_pos_bias": True, "dynamic_pos_bias_norm": True}), "rel_pos.mlp.1.1.bias"
    ),
    "t5 over layers of other groups": Refusal(
        Case({**T5, "attn_kv_heads": (4, 2)}, **OF_NEW), "attn_kv_heads"
    ),
    "residual attention with a bias": Refusal(Case({**ALIBI, "residual_attn": True}), "again in each layer"),
    "residual attention with talking heads": Refusal(
        Case({"residual_attn": True}, **TALKING), "again in each layer"
    ),
    "a clamp with a bias": Refusal(
        Case({**T5, "attn_softclamp_logits": True}, **OF_NEW), "clamps after the position bias"
    ),
    "tied logits without a last norm": Refusal(
        Case({"tie_embedding": True, "pre_norm": False}, **OF_OLD), "does not divide logits by sqrt(D)"
    ),
    "a gate's bias": Refusal(
        Case({"attn_gate_values": True}, **OF_OLD), "attn_gate_values_bias", {"attn_gate_values_bias": None}
    ),
    "gains of queries that share keys": Refusal(
        Case({"attn_qk_norm": True, "attn_qk_norm_dim_scale": True, "attn_one_kv_head": True}, **OF_OLD),
        "is [1, 1, 16], its weights are [4, 1, 16]",
    ),
    "another width": Refusal(
        Case({"ff_mult": 2}), "is [128, 32], its weights are [64, 32]", {"ff_mult": None}
    ),
    "another depth": Refusal(Case({"depth": 3}), "attn_layers.layers.4.0.0.", {"depth": 2}),
    "another norm": Refusal(Case({"use_rmsnorm": True}), "final_norm.g", {"use_rmsnorm": None}),
    "another norm place": Refusal(Case({"pre_norm": False}), "layers.0.0.2.", {"pre_norm": None}),
    "half of each head, unsaid": Refusal(
        Case({"rotary_pos_emb": True, "attn_dim_head": 64}), "rotary_emb_dim", {"rotary_emb_dim": None}
    ),
    "another base": Refusal(
        Case({"rotary_pos_emb": True, "attn_dim_head": 64, "rotary_base_rescale_factor": 2.0}),
        "rotary_base_rescale_factor",
        {"rotary_base_rescale_factor": None},
    ),
    "positions with alibi, not declared": Refusal(
        Case(ALIBI), "pos_emb.emb.weight", {"use_abs_pos_emb": None}
    ),
    "a flag of theirs": Refusal(
        Case({"attn_head_scale": True}), "head_scale_params", {"attn_head_scale": None}
    ),
    "images of another size": Refusal(
        Case({}, kind="vit"), "its weights are [1, 16, 32]", {"image_size": 20}
    ),
}
