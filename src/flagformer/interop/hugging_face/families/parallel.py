"""Attention and feedforward in parallel: GPT-NeoX and Pythia, GPT-J, Phi 1 to 2, Cohere 1 and 2."""

from __future__ import annotations

from flagformer.interop.hugging_face.errors import ConversionError
from flagformer.interop.hugging_face.families.gpt2 import BIASED, FIELDS, HEAD
from flagformer.interop.hugging_face.families.layernorm import NO_GATE, NORMS
from flagformer.interop.hugging_face.families.llama import BIASES, LLAMA, NO_BIASES, A, L, P
from flagformer.interop.hugging_face.family import Family
from flagformer.interop.hugging_face.fields import (
    Config,
    Field,
    Fields,
    Flags,
    activation,
    derived,
    names,
    on,
    under,
)
from flagformer.interop.hugging_face.rope import FULL, SLIDING, kinds_of, rope, windows
from flagformer.interop.hugging_face.settings import collapse
from flagformer.interop.hugging_face.tensors import Flat, Groups, Rule

BLOCK = on("parallel_block")
BUFFERS = r".*\.(attn|attention)(\.attention)?\.(bias|masked_bias|rotary_emb\.inv_freq)"
N = "gpt_neox.layers.{i}."
MLP = "mlp.dense_h_to_4h.{p} ff.up.{p}, mlp.dense_4h_to_h.{p} ff.down.{p}"
# Of NeoX and Persimmon.
NEOX_SIZES = {
    **names("vocab_size num_tokens, hidden_size dim, num_hidden_layers depth"),
    **names("num_attention_heads heads, intermediate_size ff_inner_dim"),
    " head": HEAD,
    "layer_norm_eps": Field("norm_eps", 1e-5),
}


def neox_layer(layer: str, attention: str) -> dict[str, Rule | str]:
    """The tensors of a layer, whose name ends with a dot, with q, k and v of each head together."""
    return {
        **under(layer, L, f"{MLP}, {attention}.dense.{{p}} attn.o.{{p}}"),
        **under(
            layer, L, "input_layernorm.{p} attn.in_norm.{p}, post_attention_layernorm.{p} ff.in_norm.{p}"
        ),
        f"{layer}{attention}.query_key_value.{{p}}": Groups(*(L + f"attn.{n}.{{p}}" for n in "qkv")),
    }


NEOX = Family(
    "gpt_neox",
    "GPTNeoXForCausalLM",
    {
        **NEOX_SIZES,
        "max_position_embeddings": Field("max_seq_len", 2048),
        "hidden_act": activation("ff_activation", "gelu"),
        "attention_bias": Field("attn_qkv_bias attn_out_bias", True),
        "use_parallel_residual": Field("parallel_block parallel_block_own_norms", True),
        "rope_parameters": rope(1e4, partial=0.25),
    },
    {
        **names("gpt_neox.embed_in.weight embed.weight, embed_out.weight head.weight"),
        "gpt_neox.final_layer_norm.{p}": "norm.{p}",
        **neox_layer(N, "attention"),
    },
    fixed=on("norm_bias"),
    inert="hidden_dropout",
    tied=("embed_out.weight", "gpt_neox.embed_in.weight"),
    prefix="gpt_neox.",
    drop=(BUFFERS,),
)


def _rotated(config: Config, flags: Flags) -> Flags:
    width = config["rotary_dim"]
    if not isinstance(width, int) or not 0 < width <= flags["attn_dim_head"]:
        text = f"config `rotary_dim` must be between 1 and {flags['attn_dim_head']}, the width of a head"
        raise ConversionError([f"{text}, but is {width!r}"])
    return {"rotary_pos_emb": True, "rotary_emb_dim": None if width == flags["attn_dim_head"] else width}


J = "transformer.h.{i}."
GPTJ = Family(
    "gptj",
    "GPTJForCausalLM",
    {
        **FIELDS,
        "n_positions": Field("max_seq_len", 2048),
        "rotary_dim": Fields({"rotary_dim": 64}, _rotated, lambda f: {"rotary_dim": f["rotary_emb_dim"]}),
    },
    {
        **names("transformer.wte.weight embed.weight, lm_head.{p} head.{p}, transformer.ln_f.{p} norm.{p}"),
        J + "ln_1.{p}": L + "attn.in_norm.{p}",
        **{f"{J}attn.{n}_proj.{{p}}": L + f"attn.{n[0]}.{{p}}" for n in ("q", "k", "v", "out")},
        **under(J, L, "mlp.fc_in.{p} ff.up.{p}, mlp.fc_out.{p} ff.down.{p}"),
    },
    fixed={**BLOCK, **on("norm_bias logits_bias rotary_interleaved")},
    inert="""attn_pdrop embd_pdrop resid_pdrop summary_activation summary_first_dropout summary_type
        summary_proj_to_labels summary_use_proj n_ctx task_specific_params gradient_checkpointing rotary
        scale_attn_weights tokenizer_class""",
    tied=("lm_head.weight", "transformer.wte.weight"),
    prefix="transformer.",
    drop=(BUFFERS,),
)
HEAD_NORMS = {
    "attn_qk_layernorm": True,
    "attn_qk_layernorm_weight": "shared",
    "attn_qk_layernorm_bias": True,
}


def head_norms(default: bool) -> Fields:
    """`qk_layernorm`: LayerNorm of queries and keys with weights and biases that all heads share."""
    return Fields(
        {"qk_layernorm": default},
        lambda c, f: {**HEAD_NORMS, "attn_qk_layernorm_eps": f["norm_eps"]} if c["qk_layernorm"] else {},
        lambda f: {"qk_layernorm": bool(f.get("attn_qk_layernorm"))},
    )


QK_LAYERNORMS = {A + f"{n}_layernorm.{{p}}": L + f"attn.{n}_norm.{{p}}" for n in "qk"}
PHI = LLAMA.but(
    model_type="phi",
    architecture="PhiForCausalLM",
    fixed={**BIASED, **BLOCK, "logits_bias": True, "use_rmsnorm": ..., "ff_glu": ...},
    inert="embd_pdrop resid_pdrop",
    fields={
        **NO_BIASES,
        "rms_norm_eps": ...,
        "layer_norm_eps": Field("norm_eps", 1e-5),
        "hidden_act": activation("ff_activation", "gelu_new"),
        "rope_parameters": rope(1e4, partial=0.5),
        "qk_layernorm": head_norms(False),
    },
    tensors={
        **NORMS,
        **NO_GATE,
        **QK_LAYERNORMS,
        P + "post_attention_layernorm.{p}": ...,
        "model.norm.{p}": ...,
        "model.final_layernorm.{p}": "norm.{p}",
        "lm_head.bias": "head.bias",
        A + "o_proj.{p}": ...,
        A + "dense.{p}": L + "attn.o.{p}",
        **{P + f"mlp.{n}_proj.{{p}}": ... for n in ("up", "down")},
        P + "mlp.fc1.{p}": L + "ff.up.{p}",
        P + "mlp.fc2.{p}": L + "ff.down.{p}",
    },
)
COHERE = LLAMA.but(
    model_type="cohere",
    architecture="CohereForCausalLM",
    fixed={**BLOCK, **on("rotary_interleaved ff_no_bias"), "use_rmsnorm": ...},
    tensors={
        P + "post_attention_layernorm.weight": ...,
        **{A + f"{n}_norm.weight": Flat(L + f"attn.{n}_norm.weight") for n in "qk"},
    },
    fields={
        **NO_BIASES,
        "attention_bias": BIASES["attention_bias"],
        "rms_norm_eps": ...,
        "layer_norm_eps": Field("norm_eps", 1e-5),
        "max_position_embeddings": Field("max_seq_len", 8192),
        "logit_scale": Field("logits_scale", 0.0625),
        "use_qk_norm": Fields(
            {"use_qk_norm": False},
            lambda c, f: (
                {"attn_qk_layernorm": True, "attn_qk_layernorm_eps": f["norm_eps"]}
                if c["use_qk_norm"]
                else {}
            ),
            lambda f: {"use_qk_norm": bool(f.get("attn_qk_layernorm"))},
        ),
        "rope_parameters": rope(5e5),
    },
)


def _three_of_four(config: Config, depth: int) -> list[str]:
    period = config.get("sliding_window_pattern") or 4
    return [SLIDING if (i + 1) % period else FULL for i in range(depth)]


COHERE2 = COHERE.but(
    model_type="cohere2",
    architecture="Cohere2ForCausalLM",
    fields={
        "use_qk_norm": ...,
        "rope_parameters": ...,
        "sliding_window": windows(4096, _three_of_four, used=False),
        " rotated": derived(lambda f: {"rotary_pos_emb": collapse(kind == SLIDING for kind in kinds_of(f))}),
        " rope": rope(1e4),
    },
    tensors={A + f"{n}_norm.weight": ... for n in "qk"},
)
FAMILIES = [NEOX, GPTJ, PHI, COHERE, COHERE2]
