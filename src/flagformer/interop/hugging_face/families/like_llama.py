"""More families that differ from Llama in a few lines: GLM, ERNIE 4.5, Seed-OSS, EXAONE 4, MiniMax M2, ..."""

from __future__ import annotations

from flagformer.interop.hugging_face.families.gemma import GEMMA2
from flagformer.interop.hugging_face.families.llama import LLAMA, MISTRAL, NO_BIASES, A, L, P
from flagformer.interop.hugging_face.families.moe import MIXTRAL, M
from flagformer.interop.hugging_face.families.olmo import OLMO2
from flagformer.interop.hugging_face.families.qwen import QK_NORMS, SHARED_QK_NORM
from flagformer.interop.hugging_face.fields import (
    Config,
    Field,
    Fields,
    Flags,
    activation,
    derived,
    on,
)
from flagformer.interop.hugging_face.rope import FULL, SLIDING, WINDOW, kinds_of, rope, windows
from flagformer.interop.hugging_face.settings import at, collapse
from flagformer.interop.hugging_face.tensors import Cat

FUSED_GATE = {
    **{P + f"mlp.{n}_proj.{{p}}": ... for n in ("gate", "up")},
    P + "mlp.gate_up_proj.weight": Cat(L + "ff.gate.weight", L + "ff.up.weight"),
}
HELIUM = LLAMA.but(
    model_type="helium",
    architecture="HeliumForCausalLM",
    fixed=on("rotary_interleaved"),
    fields={
        "attention_bias": Field("attn_qkv_bias", False),
        "num_key_value_heads": Field("attn_kv_heads", 20, absent=lambda f: f["heads"]),
        "head_dim": Field("attn_dim_head", 128),
        "max_position_embeddings": Field("max_seq_len", 4096),
        "rms_norm_eps": Field("norm_eps", 1e-8),
        "rope_parameters": rope(1e5),
    },
)
GLM = LLAMA.but(
    model_type="glm",
    architecture="GlmForCausalLM",
    fixed=on("rotary_interleaved ff_no_bias"),
    tensors=FUSED_GATE,
    fields={
        "mlp_bias": ...,
        "attention_bias": Field("attn_qkv_bias", True),
        "num_key_value_heads": Field("attn_kv_heads", 2, absent=lambda f: f["heads"]),
        "head_dim": Field("attn_dim_head", 128, absent=lambda f: f["dim"] // f["heads"]),
        "max_position_embeddings": Field("max_seq_len", 131072),
        "rms_norm_eps": Field("norm_eps", 0.00000015625),
        "rope_parameters": rope(1e4, partial=0.5),
    },
)
GLM4 = GLM.but(
    model_type="glm4",
    architecture="Glm4ForCausalLM",
    fixed=on("sandwich_norm"),
    tensors={
        P + "post_self_attn_layernorm.weight": L + "attn.branch_norm.weight",
        P + "post_mlp_layernorm.weight": L + "ff.branch_norm.weight",
    },
)
ERNIE = LLAMA.but(
    model_type="ernie4_5",
    architecture="Ernie4_5ForCausalLM",
    fixed=on("rotary_interleaved"),
    fields={
        **NO_BIASES,
        "use_bias": Fields(
            {"use_bias": False},
            lambda c, f: {
                "attn_qkv_bias": c["use_bias"], "attn_out_bias": c["use_bias"],
                "ff_no_bias": not c["use_bias"],
            },
            lambda f: {"use_bias": f["attn_out_bias"]},
        ),
        "num_key_value_heads": Field("attn_kv_heads", 2, absent=lambda f: f["heads"]),
        "head_dim": Field("attn_dim_head", 128, absent=lambda f: f["dim"] // f["heads"]),
        "max_position_embeddings": Field("max_seq_len", 131072),
        "rms_norm_eps": Field("norm_eps", 1e-5),
        "rope_parameters": rope(5e5),
    },
)  # fmt: skip
SEED_OSS = LLAMA.but(
    model_type="seed_oss",
    architecture="SeedOssForCausalLM",
    inert="residual_dropout",
    fields={
        "attention_bias": Field("attn_qkv_bias", True),
        "attention_out_bias": Field("attn_out_bias", False),
        "num_key_value_heads": Field("attn_kv_heads", 8, absent=lambda f: f["heads"]),
        "head_dim": Field("attn_dim_head", 128, absent=lambda f: f["dim"] // f["heads"]),
        "max_position_embeddings": Field("max_seq_len", 524288),
    },
)
ARCEE = LLAMA.but(
    model_type="arcee",
    architecture="ArceeForCausalLM",
    fixed={"ff_glu": ...},
    tensors={P + "mlp.gate_proj.{p}": ...},
    fields={
        "hidden_act": activation("ff_activation", "relu2"),
        "max_position_embeddings": Field("max_seq_len", 4096),
        "rms_norm_eps": Field("norm_eps", 1e-5),
    },
)
MINISTRAL = MISTRAL.but(
    model_type="ministral",
    architecture="MinistralForCausalLM",
    fields={"sliding_window": windows(4096, used=False)},
)
CWM_ROPE = {
    "rope_type": "llama3", "rope_theta": 1e6, "factor": 16.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip


def _first_of_four(config: Config, depth: int) -> list[str]:
    return [SLIDING if i % 4 else FULL for i in range(depth)]


CWM = LLAMA.but(
    model_type="cwm",
    architecture="CwmForCausalLM",
    fields={
        "attention_bias": ...,
        "num_key_value_heads": Field("attn_kv_heads", 8, absent=lambda f: f["heads"]),
        "head_dim": Field("attn_dim_head", 128, absent=lambda f: f["dim"] // f["heads"]),
        "max_position_embeddings": Field("max_seq_len", 131072),
        "rms_norm_eps": Field("norm_eps", 1e-5),
        "rope_parameters": rope(1e6, default=CWM_ROPE),
        "sliding_window": windows(8192, _first_of_four, used=False),
    },
)


def _periodic(config: Config, depth: int) -> list[str]:
    period = config.get("sliding_window_pattern", 4) if config["sliding_window"] else 1
    return [SLIDING if (i + 1) % period else FULL for i in range(depth)]


def _rotated(flags: Flags) -> Flags:
    """With windows, layers that attend to all tokens have no rotation."""
    if not any(at(flags, WINDOW, layer) for layer in range(flags["depth"])):
        return {}
    return {"rotary_pos_emb": collapse(kind == SLIDING for kind in kinds_of(flags))}


EXAONE4 = OLMO2.but(
    model_type="exaone4",
    architecture="Exaone4ForCausalLM",
    fixed={"attn_qk_rmsnorm_all_heads": ..., "attn_qk_rmsnorm_weight": "shared"},
    fields={
        "attention_bias": ...,
        "num_key_value_heads": Field("attn_kv_heads", 32),
        "rope_parameters": ...,
        "sliding_window": windows(4096, _periodic, used=False),
        " rotated": derived(_rotated),
        " rope": rope(1e4),
    },
)
GRANITE_MOE = MIXTRAL.but(
    model_type="granitemoe",
    architecture="GraniteMoeForCausalLM",
    tensors={
        **{name: ... for name in MIXTRAL.tensors if "block_sparse" in name},  # type: ignore[union-attr]
        P + "block_sparse_moe.router.layer.weight": M + "router.weight",
        P + "block_sparse_moe.input_linear.weight": Cat(M + "gate.weight", M + "up.weight", dim=1),
        P + "block_sparse_moe.output_linear.weight": M + "down.weight",
    },
    fields={
        "attention_bias": Field("attn_qkv_bias attn_out_bias", False),
        "head_dim": ...,
        " head": derived(lambda f: {"attn_dim_head": f["dim"] // f["heads"]}),
        "num_key_value_heads": Field("attn_kv_heads", None, absent=lambda f: f["heads"]),
        "max_position_embeddings": Field("max_seq_len", 2048),
        "rms_norm_eps": Field("norm_eps", 1e-6),
        "rope_parameters": ...,
        " rope": rope(1e4),
        "sliding_window": ...,
        "embedding_multiplier": Field("embedding_scale", 1.0),
        "attention_multiplier": Field("attn_scale", 1.0),
        "residual_multiplier": Field("residual_scale", 1.0),
        "logits_scaling": Fields(
            {"logits_scaling": 1.0},
            lambda c, f: {"logits_scale": 1 / c["logits_scaling"]},
            lambda f: {"logits_scaling": 1 / f["logits_scale"]},
        ),
    },
)
MINIMAX_M2 = MIXTRAL.but(
    model_type="minimax_m2",
    architecture="MiniMaxM2ForCausalLM",
    fixed={
        **on("moe_balance_bias attn_qk_rmsnorm attn_qk_rmsnorm_all_heads"),
        "moe_router": "sigmoid",
    },
    must={
        "scoring_func": "sigmoid", "use_qk_norm": True, "qk_norm_type": "per_layer", "use_routing_bias": True,
        "shared_intermediate_size": 0, "num_mtp_modules": 0,
    },
    tensors={**QK_NORMS, P + "block_sparse_moe.e_score_correction_bias": M + "balance"},
    fields={
        "head_dim": Field("attn_dim_head", 128, absent=lambda f: f["dim"] // f["heads"]),
        "max_position_embeddings": Field("max_seq_len", 196608),
        "rms_norm_eps": Field("norm_eps attn_qk_rmsnorm_eps", 1e-6),
        "rope_parameters": rope(5e6, partial=1.0, dims="rotary_dim"),
        "num_local_experts": Field("moe_num_experts", 256, also="num_experts"),
        "num_experts_per_tok": Field("moe_top_k", 8),
        "sliding_window": ...,
    },
)  # fmt: skip
VAULT_GEMMA = GEMMA2.but(
    model_type="vaultgemma",
    architecture="VaultGemmaForCausalLM",
    fixed={"sandwich_norm": ...},
    tensors={
        P + "post_attention_layernorm.weight": ...,
        P + "post_feedforward_layernorm.weight": ...,
    },
)
HUNYUAN = LLAMA.but(
    model_type="hunyuan_v1_dense",
    architecture="HunYuanDenseV1ForCausalLM",
    fixed={**SHARED_QK_NORM, **on("rotary_before_qk_rmsnorm ff_no_bias")},
    inert="eod_token_id",
    tensors={
        A + "query_layernorm.weight": L + "attn.q_norm.weight",
        A + "key_layernorm.weight": L + "attn.k_norm.weight",
    },
    fields={
        "mlp_bias": ...,
        "rms_norm_eps": Field("norm_eps attn_qk_rmsnorm_eps", 1e-5),
        "rope_parameters": rope(1e4, alpha=True),
    },
)
FAMILIES = [
    HELIUM, GLM, GLM4, ERNIE, SEED_OSS, ARCEE, MINISTRAL, CWM, EXAONE4, GRANITE_MOE, MINIMAX_M2, VAULT_GEMMA,
    HUNYUAN,
]  # fmt: skip
