"""Models that both libraries can build, and how flags are said to each."""

from dataclasses import dataclass, field
from typing import Any

import torch
import x_transformers as peer
from torch import Tensor, nn

import flagformer

SIZES = {"dim": 32, "depth": 2, "heads": 4, "attn_dim_head": 16}
VOCABULARY, LENGTH, CONTEXT = 50, 48, 11
WRAPPER_FLAGS = (
    "use_abs_pos_emb", "scaled_sinu_pos_emb", "tie_embedding", "emb_dropout", "return_only_embed",
    "emb_dim", "post_emb_norm", "l2norm_embed", "emb_frac_gradient", "embed_num_tokens", "logits_dim",
)  # fmt: skip
PEER_LAYERS = {"decoder": peer.Decoder, "encoder": peer.Encoder, "prefix_decoder": peer.PrefixDecoder}


@dataclass(frozen=True)
class Case:
    """Flags of one model; `ours` and `theirs` hold what only one library says, or says otherwise.

    Attributes:
        padded: the second row ends early, by `mask`.
        prefix: PrefixDecoder's first tokens that all see.
    """

    flags: dict[str, Any]
    kind: str = "decoder"
    ours: dict[str, Any] = field(default_factory=dict)
    theirs: dict[str, Any] = field(default_factory=dict)
    padded: bool = False
    prefix: int | None = None

    def our_flags(self) -> dict[str, Any]:
        flags = {**SIZES, **self.flags, **self.ours}
        sizes = {"model": self.kind, "num_tokens": VOCABULARY, "max_seq_len": LENGTH}
        return {**sizes, **{name: value for name, value in flags.items() if value is not None}}

    def peer_flags(self) -> dict[str, Any]:
        """The same model in the peer's words: it rotates half a head and adds positions to ALiBi unasked."""
        flags = {**SIZES, **self.flags}
        if flags.get("rotary_pos_emb"):
            flags.setdefault("rotary_emb_dim", flags["attn_dim_head"])
        if flags.get("alibi_pos_bias") or flags.get("dynamic_pos_bias"):
            flags.setdefault("use_abs_pos_emb", False)
        flags.update(self.theirs)
        return {name: value for name, value in flags.items() if value is not None}


def build_peer(case: Case) -> nn.Module:
    """Every weight is moved away from its start, so that no gain is 1 and no bias 0."""
    flags = case.peer_flags()
    wrapper = {name: flags.pop(name) for name in WRAPPER_FLAGS if name in flags}
    torch.manual_seed(0)
    layers = PEER_LAYERS[case.kind](**flags, verbose=False)
    model = peer.TransformerWrapper(
        num_tokens=VOCABULARY, max_seq_len=LENGTH, attn_layers=layers, **wrapper
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def build_ours(case: Case) -> flagformer.TransformerWrapper:
    torch.manual_seed(1)
    return flagformer.build(case.our_flags()).eval()


def inputs(case: Case) -> tuple[Tensor, dict[str, Any], Tensor]:
    """ids, the call's keywords, and [B, T] bool: the positions whose logits count."""
    maker = torch.Generator().manual_seed(2)
    ids = torch.randint(VOCABULARY, (2, 40), generator=maker)
    real = torch.ones_like(ids, dtype=torch.bool)
    call: dict[str, Any] = {}
    if case.padded:
        real[1, 29:] = False
        call["mask"] = real
    if case.prefix is not None:
        call["prefix_attn_len"] = case.prefix
    if (
        "cross_attend" in case.flags
        or "only_cross" in case.flags
        or "c" in case.flags.get("custom_layers", ())
    ):
        width = case.flags.get("cross_attn_dim_context", SIZES["dim"])
        call["context"] = torch.randn(2, CONTEXT, width, generator=maker)
        call["context_mask"] = torch.arange(CONTEXT) < torch.tensor([[CONTEXT], [7]])
    kinds = case.flags.get("embed_num_tokens")
    if kinds:
        call["embed_ids"] = {name: ids % count for name, count in kinds.items()}
    return ids, call, real


def difference(ours: nn.Module, theirs: nn.Module, case: Case) -> float:
    """The largest difference of logits; gradients are on, as the checkpointed executor needs."""
    ids, call, real = inputs(case)
    return (ours(ids, **call) - theirs(ids, **call)).detach().abs()[real].max().item()


ROTARY = {"rotary_pos_emb": True}
ALIBI = {"alibi_pos_bias": True}
T5 = {"rel_pos_bias": True}
DYNAMIC = {"dynamic_pos_bias": True}
CROSS = {"cross_attend": True}
TALKING = {"attn_pre_talking_heads": True, "attn_post_talking_heads": True}
SCALE = {"use_layerscale": True, "layerscale_init_value": 0.7}

ALONE = {
    "learned positions": Case({"use_abs_pos_emb": True}),
    "no positions": Case({"use_abs_pos_emb": False}),
    "sinusoidal positions": Case({"scaled_sinu_pos_emb": True}),
    "rotary": Case(ROTARY),
    "rotary, half of a head": Case({**ROTARY, "rotary_emb_dim": 8}),
    "rotary, interpolated": Case({**ROTARY, "rotary_interpolation_factor": 2.5}),
    "rotary, rescaled base": Case({**ROTARY, "rotary_base_rescale_factor": 3.0}),
    "rotary with learned positions": Case(
        {**ROTARY, "use_abs_pos_emb": True}, theirs={"disable_abs_pos_emb": False}
    ),
    "alibi": Case(ALIBI),
    "alibi, 6 heads": Case({**ALIBI, "heads": 6}),
    "alibi on some heads": Case({**ALIBI, "alibi_num_heads": 3}),
    "alibi, both directions": Case(ALIBI, kind="encoder"),
    "t5": Case(T5),
    "t5, few buckets": Case({**T5, "rel_pos_num_buckets": 8, "rel_pos_max_distance": 20}),
    "t5, both directions": Case({**T5, "rel_pos_max_distance": 34}, kind="encoder"),
    "dynamic": Case(DYNAMIC),
    "dynamic, log distance": Case({**DYNAMIC, "dynamic_pos_bias_log_distance": True}),
    "dynamic, three layers": Case({**DYNAMIC, "dynamic_pos_bias_mlp_depth": 3}),
    "dynamic, normed": Case({**DYNAMIC, "dynamic_pos_bias_norm": True, "dynamic_pos_bias_mlp_depth": 1}),
    "rms norm": Case({"use_rmsnorm": True}),
    "scale norm": Case({"use_scalenorm": True}),
    "simple rms norm": Case({"use_simple_rmsnorm": True}),
    "no final norm": Case({"pre_norm_has_final_norm": False}),
    "xpos": Case({"rotary_xpos": True, "rotary_emb_dim": 16}),
    "xpos, strong": Case({"rotary_xpos": True, "rotary_emb_dim": 6, "rotary_xpos_scale_base": 20}),
    "scaled residual": Case({"scale_residual": True}),
    "scaled residual with a constant": Case({"scale_residual": True, "scale_residual_constant": 1.7}),
    "deep norm's constant": Case({"scale_residual_constant": 1.7, "pre_norm": False}),
    "gated residual": Case({"gate_residual": True}),
    "zero branches": Case({"zero_init_branch_output": True}),
    "start scaled by depth": Case({"depth_scale_residual": True}),
    "post norm": Case({"pre_norm": False}),
    "sandwich norm": Case({"sandwich_norm": True}),
    "grouped heads": Case({"attn_kv_heads": 2}),
    "grouped heads of 6": Case({"attn_kv_heads": 2, "heads": 6}),
    "one key head": Case({"attn_one_kv_head": True}),
    "one head": Case({"heads": 1, "attn_dim_head": 32}),
    "cosine attention": Case({"attn_qk_norm": True, "attn_qk_norm_scale": 4.0}),
    "qk rms norm": Case({"attn_qk_rmsnorm": True}),
    "cosine attention in parts": Case({"attn_qk_norm": True, "attn_qk_norm_groups": 2}),
    "cosine attention with gains": Case({"attn_qk_norm": True, "attn_qk_norm_dim_scale": True}),
    "soft clamp": Case({"attn_softclamp_logits": True, "attn_logit_softclamp_value": 0.3}),
    "talking heads": Case({}, ours={"attn_talking_heads": True}, theirs=TALKING),
    "sparse top k": Case({"attn_sparse_topk": 3}, theirs={"attn_sparse_topk": 3}),
    "learned sink": Case({"attn_head_learned_sink": True}),
    "head scale": Case({"attn_head_scale": True}),
    "gated heads": Case({"attn_gate_value_heads": True}),
    "gated values": Case({"attn_gate_values": True}),
    "gated values, swish": Case({"attn_gate_values": True, "attn_swiglu_values": True}),
    "attention on attention": Case({"attn_on_attn": True}),
    "memory": Case({"attn_num_mem_kv": 3}),
    "null key": Case({"attn_add_zero_kv": True}),
    "fused kernel": Case({"attn_flash": True}),
    "written kernel": Case({"attn_flash": False}),
    "checkpointed": Case({}, ours={"checkpoint": "sublayer"}),
    "gelu, wide": Case({"ff_mult": 3}),
    "glu": Case({"ff_glu": True}),
    "swish": Case({"ff_swish": True}),
    "relu squared": Case({"ff_relu_squared": True}),
    "norm after the activation": Case({"ff_post_act_ln": True}),
    "no bias": Case({"ff_no_bias": True}),
    "layer scale": Case(SCALE),
    "dropouts are off in eval": Case(
        {"attn_dropout": 0.3, "ff_dropout": 0.3, "emb_dropout": 0.3, "layer_dropout": 0.3}
    ),
    "tied embedding": Case({"tie_embedding": True}),
    "factorised embedding": Case({"emb_dim": 20}),
    "factorised sinusoids": Case({"emb_dim": 20, "scaled_sinu_pos_emb": True}),
    "normed embedding": Case({"post_emb_norm": True}),
    "unit embedding": Case({"l2norm_embed": True}),
    "share of the gradient": Case({"emb_frac_gradient": 0.25}),
    "token types": Case({"embed_num_tokens": {"type": 3, "side": 2}}),
    "other logits": Case({"logits_dim": 7}),
    "embeddings only": Case({"return_only_embed": True}, kind="encoder", padded=True),
    "macaron": Case({"macaron": True}),
    "custom layers": Case({"custom_layers": ("a", "f", "f", "a"), "depth": None}),
    "sandwich order": Case({"sandwich_coef": 1}),
    "order of execution": Case({"layers_execute_order": (0, 1, 2, 3, 2, 1)}),
    "par": Case({"par_ratio": 3, "depth": 4}),
    "shifted tokens": Case({"shift_tokens": 1}),
    "shifted tokens of both sides": Case({"shift_tokens": 2}, kind="encoder"),
    "shifted tokens in some layers": Case({"shift_tokens": (0, 2, 1, 0), "macaron": False}),
    "residual attention": Case({"residual_attn": True, "depth": 3}),
    "residual attention, both directions": Case({"residual_attn": True}, kind="encoder", padded=True),
    "residual cross-attention": Case({**CROSS, "cross_residual_attn": True, "depth": 3}),
    "tied layers": Case({"weight_tie_layers": True, "depth": 3}),
    "cross attention": Case(CROSS),
    "cross attention, wide context": Case({**CROSS, "cross_attn_dim_context": 20}),
    "cross attention only": Case({"only_cross": True}, theirs={"cross_attend": True}),
    "encoder": Case({}, kind="encoder", padded=True),
    "prefix decoder": Case({}, kind="prefix_decoder", prefix=7),
}

GATED = {"ff_glu": True, "ff_swish": True, "ff_post_act_ln": True}

TOGETHER = {
    "grouped heads with everything between": Case(
        {
            **ROTARY,
            "attn_kv_heads": 2,
            "attn_head_scale": True,
            "attn_gate_values": True,
            "attn_gate_value_heads": True,
            "attn_on_attn": True,
            "attn_head_learned_sink": True,
            "attn_qk_norm": True,
            "attn_qk_norm_dim_scale": True,
            "attn_num_mem_kv": 2,
        },
        ours={"attn_talking_heads": True},
        theirs=TALKING,
    ),
    "llama": Case({**ROTARY, **GATED, "use_rmsnorm": True, "attn_kv_heads": 2, "ff_post_act_ln": False}),
    "llama without biases, whose gate keeps one there": Case(
        {**ROTARY, "use_rmsnorm": True, "ff_glu": True}, theirs={"ff_no_bias": True}
    ),
    "grouped heads with t5": Case({**T5, "attn_kv_heads": 2, "attn_num_mem_kv": 2, "attn_add_zero_kv": True}),
    "grouped heads with dynamic": Case({**DYNAMIC, "attn_kv_heads": 2, "attn_one_kv_head": None}),
    "grouped heads with qk rms norm, turned": Case(
        {**ROTARY, "rotary_emb_dim": 6, "attn_kv_heads": 2, "attn_qk_rmsnorm": True}
    ),
    "turned heads beside memory": Case({**ROTARY, "attn_num_mem_kv": 3, "attn_qk_norm": True}),
    "alibi with memory and one key head": Case(
        {**ALIBI, "attn_num_mem_kv": 2, "attn_one_kv_head": True, "attn_add_zero_kv": True}
    ),
    "alibi beside learned positions": Case({**ALIBI, "use_abs_pos_emb": True}),
    "other heads in other layers": Case({"attn_kv_heads": (4, 2)}, ours={"attn_kv_heads": (4, 2)}),
    "macaron, post norm, scaled": Case({**SCALE, **GATED, "macaron": True, "pre_norm": False}),
    "tied layers, scaled": Case({**SCALE, "weight_tie_layers": True, "use_rmsnorm": True, **ROTARY}),
    "sandwich norm and order": Case({"sandwich_norm": True, "sandwich_coef": 1, "use_rmsnorm": True, **T5}),
    "cross attention with everything": Case(
        {**CROSS, **ROTARY, "attn_num_mem_kv": 2, "attn_qk_norm": True, "attn_kv_heads": 2, "macaron": True}
    ),
    "padded encoder with t5 and memory": Case(
        {**T5, "attn_num_mem_kv": 2, "pre_norm": False}, kind="encoder", padded=True
    ),
    "padded decoder, fused alibi": Case({**ALIBI, "attn_flash": True}, padded=True),
    "prefix decoder with t5": Case(T5, kind="prefix_decoder", prefix=5),
    "prefix decoder, rotary": Case({**ROTARY, "attn_kv_heads": 2}, kind="prefix_decoder", prefix=12),
    "tied embedding with sinusoids": Case({"tie_embedding": True, "scaled_sinu_pos_emb": True}),
}

CASES = {**ALONE, **TOGETHER}

# Flags without a case here, and why no comparison can hold them.
WITHOUT_PARITY = {
    "causal": "the classes fix it: every case is a decoder, an encoder or a prefix decoder",
    "resi_dual": "x-transformers 2.31.10 has it no more; tests/reference holds the formula",
    "resi_dual_scale": "goes with resi_dual",
    "reversible": "x-transformers has no such executor; tests/executors holds the formula",
    "reversible_exact": "goes with reversible",
    "ff_chunks": "x-transformers has none; the function is that without it, as tests/executors sees",
}
