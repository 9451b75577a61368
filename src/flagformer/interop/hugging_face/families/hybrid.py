"""Attention in some layers and mixers in others: LFM2, Qwen 3 Next."""

from __future__ import annotations

from collections.abc import Callable

from flagformer.interop.hugging_face.errors import ConversionError
from flagformer.interop.hugging_face.families.gpt2 import HEAD
from flagformer.interop.hugging_face.families.llama import LLAMA, NO_BIASES, A, L, P
from flagformer.interop.hugging_face.families.moe import QWEN2_MOE, SPARSE, by_layer, dense_layers, is_dense
from flagformer.interop.hugging_face.families.qwen import EPS, QK_NORMS, SHARED_QK_NORM
from flagformer.interop.hugging_face.fields import Config, Field, Fields, Flags, on
from flagformer.interop.hugging_face.rope import FULL, rope
from flagformer.interop.hugging_face.tensors import ByHead, Column, Either, PerHead

X = L + "mixer."
IN_NORM = Either(L + "attn.in_norm.weight", X + "in_norm.weight")
ATTENTION = "attention"


def layers(
    mixer: str,
    kind: str,
    sizes: dict[str, tuple[str, int]],
    default: Callable[[Config, int], list[str]],
    old: tuple[str, ...],
    more: Callable[[Flags], Flags] = lambda flags: {},
) -> Fields:
    """`layer_types`, and the sizes of a mixer.

    Args:
        mixer: its name in `mixer`.
        kind: its name in `layer_types`.
        sizes: field -> its flag, and the default of the config class.
        default: (fields, depth) -> the kinds of a file without `layer_types`.
        old: fields of earlier versions, which `default` reads.
        more: flags so far -> further flags of the mixer.
    """

    def to_flags(config: Config, flags: Flags) -> Flags:
        depth = flags["depth"]
        found = config["layer_types"] or default(config, depth)
        if len(found) != depth or set(found) - {kind, FULL} or FULL not in found:
            text = f"config `layer_types` must hold {FULL!r} or {kind!r} for each of {depth} layers"
            raise ConversionError([f"{text}, and {FULL!r} for one at least, but is {found!r}"])
        if kind not in found:
            return {}
        mixers = tuple(mixer if one == kind else ATTENTION for one in found)
        return {"mixer": mixers, **more(flags), **{flag: config[name] for name, (flag, _) in sizes.items()}}

    def to_fields(flags: Flags) -> Config:
        names = flags.get("mixer") or [ATTENTION] * flags["depth"]
        return {
            "layer_types": [FULL if name == ATTENTION else kind for name in names],
            **{name: flags.get(flag) or usual for name, (flag, usual) in sizes.items()},
        }

    usual = {name: value for name, (_, value) in sizes.items()}
    return Fields({"layer_types": None, **usual}, to_flags, to_fields, old)


def _width(config: Config, flags: Flags) -> Flags:
    width: int = config["block_ff_dim"] if "block_ff_dim" in config else config["intermediate_size"]
    if config["block_auto_adjust_ff_dim"]:
        width = int(2 * width / 3)
        if config["block_ffn_dim_multiplier"] is not None:
            unit = config["block_multiple_of"]
            width = -(-int(config["block_ffn_dim_multiplier"] * width) // unit) * unit
    return {"ff_inner_dim": width}


WIDTH = Fields(
    {
        "intermediate_size": 12288, "block_multiple_of": 256, "block_ffn_dim_multiplier": 1.0,
        "block_auto_adjust_ff_dim": True,
    },
    _width,
    lambda f: {"intermediate_size": f["ff_inner_dim"], "block_auto_adjust_ff_dim": False},
    ("block_ff_dim",),
)  # fmt: skip


def _full(config: Config, depth: int) -> list[str]:
    chosen = config.get("full_attn_idxs")
    return [FULL if chosen is None or i in chosen else "conv" for i in range(depth)]


LFM2 = LLAMA.but(
    model_type="lfm2",
    architecture="Lfm2ForCausalLM",
    fixed={**SHARED_QK_NORM, "ff_no_bias": True, "ff_activation": "silu"},
    must={"conv_bias": False, "block_use_swiglu": True, "use_pos_enc": True},
    inert="""conv_dim conv_dim_out block_dim block_out_dim block_norm_eps block_mlp_init_scale num_heads
        block_use_xavier_init""",
    fields={
        **NO_BIASES,
        "hidden_act": ...,
        "head_dim": ...,
        "rms_norm_eps": ...,
        "rope_parameters": ...,
        " head": HEAD,
        "num_key_value_heads": Field("attn_kv_heads", 8),
        "intermediate_size": WIDTH,
        "max_position_embeddings": Field("max_seq_len", 128000),
        "norm_eps": Field("norm_eps attn_qk_rmsnorm_eps", 1e-5),
        "layer_types": layers(
            "short_convolution", "conv", {"conv_L_cache": ("mixer_kernel", 3)}, _full, ("full_attn_idxs",)
        ),
        " rope": rope(1e6),
    },
    tensors={
        "model.norm.weight": ...,
        "model.embedding_norm.weight": "norm.weight",
        P + "input_layernorm.weight": ...,
        P + "post_attention_layernorm.weight": ...,
        P + "operator_norm.weight": IN_NORM,
        P + "ffn_norm.weight": L + "ff.in_norm.weight",
        A + "o_proj.{p}": ...,
        A + "out_proj.weight": L + "attn.o.weight",
        **{A + f"{n}_layernorm.weight": L + f"attn.{n}_norm.weight" for n in "qk"},
        **{P + f"mlp.{n}_proj.{{p}}": ... for n in ("gate", "up", "down")},
        P + "feed_forward.w1.weight": L + "ff.gate.weight",
        P + "feed_forward.w3.weight": L + "ff.up.weight",
        P + "feed_forward.w2.weight": L + "ff.down.weight",
        P + "conv.in_proj.weight": X + "up.weight",
        P + "conv.out_proj.weight": X + "down.weight",
        P + "conv.conv.weight": Column(X + "fn.convolution.weight"),
    },
    missing="`conv_bias`",
)
LINEAR = "linear_attention"
D = P + "linear_attn."
SIZES = {
    "linear_conv_kernel_dim": ("mixer_kernel", 4),
    "linear_key_head_dim": ("mixer_dim_key", 128),
    "linear_value_head_dim": ("mixer_dim_value", 128),
    "linear_num_key_heads": ("mixer_key_groups", 16),
    "linear_num_value_heads": ("mixer_heads", 32),
}


def _three_of_four(config: Config, depth: int) -> list[str]:
    period = config.get("full_attention_interval", 4)
    return [LINEAR if (i + 1) % period else FULL for i in range(depth)]


QWEN3_NEXT = QWEN2_MOE.but(
    model_type="qwen3_next",
    architecture="Qwen3NextForCausalLM",
    fixed={
        **SHARED_QK_NORM,
        **on("attn_gate_values"),
        "norm_weight_offset": 1.0,
        "attn_qk_rmsnorm_weight_offset": 1.0,
        "ff_activation": "silu",
    },
    must={"attention_bias": False, "hidden_act": "silu"},
    fields={
        "hidden_act": ...,
        "qkv_bias": ...,
        "rms_norm_eps": EPS,
        "sliding_window": ...,
        "head_dim": Field("attn_dim_head", 256),
        "num_key_value_heads": Field("attn_kv_heads", 2),
        "max_position_embeddings": Field("max_seq_len", 32768),
        "rope_parameters": rope(1e4, partial=0.25),
        "num_experts_per_tok": Field("moe_top_k", 10),
        "norm_topk_prob": Field("moe_normalize_weights", True),
        "intermediate_size": by_layer(
            {"intermediate_size": 5632, "moe_intermediate_size": 512, "num_experts": 512, **SPARSE},
            is_dense,
            dense_layers,
            "num_local_experts",
        ),
        "shared_expert_intermediate_size": Field("moe_shared_inner_dim", 512),
        "layer_types": layers(
            "gated_deltanet",
            LINEAR,
            SIZES,
            _three_of_four,
            ("full_attention_interval",),
            lambda f: {"mixer_norm_eps": f["norm_eps"]},
        ),
    },
    tensors={
        **QK_NORMS,
        P + "input_layernorm.weight": IN_NORM,
        A + "q_proj.{p}": ...,
        A + "q_proj.weight": PerHead(
            ByHead(L + "attn.q.weight"), ByHead(L + "attn.fn.gates.0.to_gate.weight")
        ),
        D + "in_proj_qkvz.weight": PerHead(*(X + f"{n}.weight" for n in ("q", "k", "v", "gate"))),
        D + "in_proj_ba.weight": PerHead(X + "beta.weight", X + "step.weight"),
        D + "conv1d.weight": Column(X + "fn.convolution.weight"),
        D + "dt_bias": X + "fn.decay.dt_bias",
        D + "A_log": X + "fn.decay.log_rate",
        D + "norm.weight": X + "fn.norm.weight",
        D + "out_proj.weight": X + "down.weight",
    },
    missing="`attention_bias`",
)
FAMILIES = [LFM2, QWEN3_NEXT]
