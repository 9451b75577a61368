"""Mixtures of experts: Mixtral, Qwen 2 and 3 MoE, OLMoE, gpt-oss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flagformer.interop.hugging_face.errors import ConversionError
from flagformer.interop.hugging_face.families.llama import BIASES, LLAMA, NO_BIASES, A, L, P
from flagformer.interop.hugging_face.families.qwen import QK_NORMS, QWEN2, QWEN3
from flagformer.interop.hugging_face.fields import Config, Field, Fields, Flags, on
from flagformer.interop.hugging_face.rope import FULL, SLIDING, rope, windows
from flagformer.interop.hugging_face.settings import at, collapse
from flagformer.interop.hugging_face.tensors import Rule, Transposed, Zip

NO_FF = {P + f"mlp.{n}_proj.{{p}}": ... for n in ("gate", "up", "down")}
M = L + "moe."


def experts(prefix: str, gate: str, up: str, down: str) -> dict[str, Rule | str]:
    """Experts as single tensors in the file."""
    named = {"gate": gate, "up": up, "down": down}
    return {
        f"{prefix}experts.{{e}}.{there}.weight": f"{M}{here}.weight[{{e}}]" for here, there in named.items()
    }


def by_layer(
    fields: Config,
    is_dense: Callable[[Config, int], bool],
    to_fields: Callable[[list[int]], Config],
    also: str = "",
) -> Fields:
    """Which layers have experts, how many, and the widths.

    Args:
        fields: default of each field: the widths `intermediate_size` and `moe_intermediate_size`, the number
            of experts (the third), and those of `is_dense`.
        is_dense: (fields, layer) -> whether a layer has no experts.
        to_fields: numbers of the dense layers -> fields of `is_dense`.
        also: the name of the number of experts in other versions.

    Loading raises ConversionError where no layer has experts.
    """
    wide, narrow, count = list(fields)[:3]

    def load(config: Config, flags: Flags) -> Flags:
        dense = [is_dense(config, layer) for layer in range(flags["depth"])]
        if all(dense):
            said = " and ".join(f"`{name}`: {config[name]!r}" for name in list(fields)[3:])
            raise ConversionError([f"config {said} must leave a layer with experts"])
        return {
            "ff_moe": collapse(None if one else True for one in dense),
            "ff_inner_dim": collapse(config[wide] if one else config[narrow] for one in dense),
            "moe_num_experts": config.get(also, config[count]),
        }

    def save(flags: Flags) -> Config:
        layers = range(flags["depth"])
        dense = [layer for layer in layers if not at(flags, "ff_moe", layer)]
        sparse = next(layer for layer in layers if layer not in dense)
        return {
            wide: at(flags, "ff_inner_dim", dense[0] if dense else sparse),
            narrow: at(flags, "ff_inner_dim", sparse),
            count: at(flags, "moe_num_experts", sparse),
            **to_fields(dense),
        }

    return Fields(fields, load, save, (also,) if also else ())


MIXTRAL = LLAMA.but(
    model_type="mixtral",
    architecture="MixtralForCausalLM",
    inert="router_jitter_noise",
    fixed={**on("ff_moe ff_no_bias"), "moe_normalize_weights": True},
    tensors={
        **NO_FF,
        **experts(P + "block_sparse_moe.", gate="w1", up="w3", down="w2"),
        P + "block_sparse_moe.gate.weight": M + "router.weight",
    },
    fields={
        **NO_BIASES,
        "num_key_value_heads": Field("attn_kv_heads", 8, absent=lambda f: f["heads"]),
        "max_position_embeddings": Field("max_seq_len", 131072),
        "rms_norm_eps": Field("norm_eps", 1e-5),
        "rope_parameters": rope(1e6),
        "num_local_experts": Field("moe_num_experts", 8, also="num_experts"),
        "num_experts_per_tok": Field("moe_top_k", 2),
        "sliding_window": windows(None, types=False, used=False),
    },
)
SPARSE: dict[str, Any] = {"decoder_sparse_step": 1, "mlp_only_layers": None}


def is_dense(config: Config, layer: int) -> bool:
    if layer in (config["mlp_only_layers"] or []):
        return True
    return bool((layer + 1) % config["decoder_sparse_step"])


def dense_layers(dense: list[int]) -> Config:
    return {"decoder_sparse_step": 1, "mlp_only_layers": dense}


GATED = {
    **experts(P + "mlp.", gate="gate_proj", up="up_proj", down="down_proj"),
    P + "mlp.gate.weight": M + "router.weight",
}
ROUTER = {
    "num_experts_per_tok": Field("moe_top_k", 8),
    "norm_topk_prob": Field("moe_normalize_weights", False),
}
QWEN3_MOE = QWEN3.but(
    model_type="qwen3_moe",
    architecture="Qwen3MoeForCausalLM",
    tensors=GATED,
    fields={
        **ROUTER,
        "head_dim": Field("attn_dim_head", absent=lambda f: f["dim"] // f["heads"]),
        "num_key_value_heads": Field("attn_kv_heads", 4),
        "intermediate_size": by_layer(
            {"intermediate_size": 6144, "moe_intermediate_size": 768, "num_local_experts": 128, **SPARSE},
            is_dense,
            dense_layers,
            "num_experts",
        ),
        "sliding_window": windows(4096, types=False),
    },
)


def _odd(config: Config, depth: int) -> list[str]:
    """Windows in every second layer below `max_window_layers`."""
    used = config["use_sliding_window"]
    last = config["max_window_layers"]
    return [SLIDING if used and not i % 2 and i < last else FULL for i in range(depth)]


SHARED = "mlp.shared_expert."
QWEN2_MOE = QWEN2.but(
    model_type="qwen2_moe",
    architecture="Qwen2MoeForCausalLM",
    fixed={"attn_qkv_bias": ..., "moe_num_shared_experts": 1, "moe_shared_gate": True},
    tensors={
        **GATED,
        **{P + SHARED + f"{n}_proj.weight": M + f"shared.{n}.weight" for n in ("gate", "up", "down")},
        P + "mlp.shared_expert_gate.weight": M + "shared_gate.weight",
    },
    fields={
        **ROUTER,
        "num_experts_per_tok": Field("moe_top_k", 4),
        "qkv_bias": Field("attn_qkv_bias", True),
        "num_key_value_heads": Field("attn_kv_heads", 16, absent=lambda f: f["heads"]),
        "intermediate_size": by_layer(
            {"intermediate_size": 5632, "moe_intermediate_size": 1408, "num_experts": 60, **SPARSE},
            is_dense,
            dense_layers,
            "num_local_experts",
        ),
        "shared_expert_intermediate_size": Field("moe_shared_inner_dim", 5632),
        "sliding_window": windows(4096, _odd),
    },
)
OLMOE = LLAMA.but(
    model_type="olmoe",
    architecture="OlmoeForCausalLM",
    fixed=on("ff_moe ff_no_bias attn_qk_rmsnorm attn_qk_rmsnorm_all_heads"),
    must={"clip_qkv": None},
    tensors={**NO_FF, **GATED, **QK_NORMS},
    fields={
        **ROUTER,
        "mlp_bias": ...,
        "max_position_embeddings": Field("max_seq_len", 4096),
        "rms_norm_eps": Field("norm_eps attn_qk_rmsnorm_eps", 1e-5),
        "num_experts": Field("moe_num_experts", 64, also="num_local_experts"),
    },
    missing="`clip_qkv`",
)
OSS_YARN = {
    "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0,
    "original_max_position_embeddings": 4096, "truncate": False,
}  # fmt: skip


def _alternate(config: Config, depth: int) -> list[str]:
    return [FULL if i % 2 else SLIDING for i in range(depth)]


GPT_OSS = MIXTRAL.but(
    model_type="gpt_oss",
    architecture="GptOssForCausalLM",
    inert="experts_per_token initial_context_length",
    fixed={
        **on("attn_head_learned_sink moe_router_bias"),
        "ff_no_bias": False,
        "ff_activation": "quick_gelu",
        "ff_glu_offset": 1.0,
    },
    must={"swiglu_alpha": 1.702, "hidden_act": "silu"},
    fields={
        "hidden_act": ...,
        "intermediate_size": Field("ff_inner_dim", 2880),
        "attention_bias": Field(BIASES["attention_bias"].flags, True),
        "head_dim": Field("attn_dim_head", 64, absent=lambda f: f["dim"] // f["heads"]),
        "num_local_experts": Field("moe_num_experts", 128, also="num_experts"),
        "num_experts_per_tok": Field("moe_top_k", 4),
        "swiglu_limit": Field("ff_glu_limit", 7.0),
        "rope_parameters": rope(150000.0, default=OSS_YARN),
        "sliding_window": windows(128, _alternate, used=False),
    },
    tensors={
        **{name: ... for name in MIXTRAL.tensors if "block_sparse" in name},  # type: ignore[union-attr]
        A + "sinks": L + "attn.sinks",
        P + "mlp.router.{p}": M + "router.{p}",
        P + "mlp.experts.gate_up_proj": Transposed(Zip(M + "gate.weight", M + "up.weight", dim=1)),
        P + "mlp.experts.gate_up_proj_bias": Zip(M + "gate.bias", M + "up.bias", dim=1),
        P + "mlp.experts.down_proj": Transposed(M + "down.weight"),
        P + "mlp.experts.down_proj_bias": M + "down.bias",
    },
    missing="weights in MXFP4 (quantized files are refused by name)",
)
FAMILIES = [MIXTRAL, QWEN2_MOE, QWEN3_MOE, OLMOE, GPT_OSS]
