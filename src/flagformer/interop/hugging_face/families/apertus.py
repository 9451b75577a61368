"""Apertus: a learned activation, and norms of queries and keys."""

from __future__ import annotations

from flagformer.interop.hugging_face.families.layernorm import NO_GATE
from flagformer.interop.hugging_face.families.llama import LLAMA, L, P
from flagformer.interop.hugging_face.families.qwen import QK_NORMS, SHARED_QK_NORM
from flagformer.interop.hugging_face.fields import Field, on
from flagformer.interop.hugging_face.rope import rope
from flagformer.interop.hugging_face.tensors import Constant

SCALED = {
    "rope_type": "llama3", "rope_theta": 12e6, "factor": 8.0, "original_max_position_embeddings": 8192,
    "low_freq_factor": 1.0, "high_freq_factor": 4.0,
}  # fmt: skip
ACTIVATION = L + "ff.activation.alpha_"
APERTUS = LLAMA.but(
    model_type="apertus",
    architecture="ApertusForCausalLM",
    fixed={**SHARED_QK_NORM, **on("ff_xielu ff_no_bias"), "ff_glu": ...},
    must={"hidden_act": "xielu"},
    fields={
        "mlp_bias": ...,
        "hidden_act": ...,
        "max_position_embeddings": Field("max_seq_len", 65536),
        "rms_norm_eps": Field("norm_eps attn_qk_rmsnorm_eps", 1e-5),
        "rope_parameters": rope(12e6, default=SCALED),
    },
    tensors={
        **NO_GATE,
        **QK_NORMS,
        P + "input_layernorm.weight": ...,
        P + "post_attention_layernorm.weight": ...,
        P + "attention_layernorm.weight": L + "attn.in_norm.weight",
        P + "feedforward_layernorm.weight": L + "ff.in_norm.weight",
        **{P + f"mlp.act_fn.alpha_{n}": ACTIVATION + n for n in "pn"},
        P + "mlp.act_fn.beta": Constant(0.5, ACTIVATION + "n"),
        P + "mlp.act_fn.eps": Constant(-1e-6, ACTIVATION + "n"),
    },
)
FAMILIES = [APERTUS]
