"""GPT-2, GPT-BigCode, GPT-Neo, OPT and BLOOM: LayerNorm with bias, and no rotary positions."""

from __future__ import annotations

from flagformer.interop.hugging_face.errors import ConversionError
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
from flagformer.interop.hugging_face.rope import WINDOW
from flagformer.interop.hugging_face.settings import at, collapse
from flagformer.interop.hugging_face.tensors import Cat, Groups, Transposed

L = "layers.{i}."
BIASED = on("norm_bias attn_qkv_bias attn_out_bias")
HEAD = derived(lambda f: {"attn_dim_head": f["dim"] // f["heads"]})
SCALE = Fields(
    {"scale_attn_weights": True},
    lambda c, f: {"attn_scale": None if c["scale_attn_weights"] else 1.0},
    lambda f: {"scale_attn_weights": f.get("attn_scale") != 1.0},
)
H = "transformer.h.{i}."
# GPT-J's too.
FIELDS = {
    **names("vocab_size num_tokens, n_embd dim, n_layer depth, n_head heads"),
    " head": HEAD,
    "n_positions": Field("max_seq_len", 1024),
    "n_inner": Field("ff_inner_dim", None, absent=lambda f: 4 * f["dim"]),
    "layer_norm_epsilon": Field("norm_eps", 1e-5),
    "activation_function": activation("ff_activation", "gelu_new"),
}
GPT2 = Family(
    "gpt2",
    "GPT2LMHeadModel",
    {**FIELDS, "scale_attn_weights": SCALE},
    {
        **under("transformer.", "", "wte.weight embed.weight, wpe.weight pos.weight, ln_f.{p} norm.{p}"),
        "lm_head.weight": "head.weight",
        **under(H, L, "ln_1.{p} attn.in_norm.{p}, ln_2.{p} ff.in_norm.{p}"),
        H + "attn.c_attn.{p}": Transposed(Cat(*(L + f"attn.{n}.{{p}}" for n in "qkv"))),
        H + "attn.c_proj.{p}": Transposed(L + "attn.o.{p}"),
        H + "mlp.c_fc.{p}": Transposed(L + "ff.up.{p}"),
        H + "mlp.c_proj.{p}": Transposed(L + "ff.down.{p}"),
    },
    fixed={**BIASED, "use_abs_pos_emb": True},
    must={"scale_attn_by_inverse_layer_idx": False},
    inert="""attn_pdrop embd_pdrop resid_pdrop reorder_and_upcast_attn summary_activation
        summary_first_dropout summary_proj_to_labels summary_type summary_use_proj n_ctx task_specific_params
        gradient_checkpointing""",
    tied=("lm_head.weight", "transformer.wte.weight"),
    prefix="transformer.",
    drop=(r".*\.attn\.(bias|masked_bias)",),
    missing="`scale_attn_by_inverse_layer_idx`",
)


def _same_width(config: Config, flags: Flags) -> Flags:
    if config["word_embed_proj_dim"] not in (None, flags["dim"]):
        raise ConversionError(["config `word_embed_proj_dim` must be `hidden_size`"])
    return {}


O = "model.decoder.layers.{i}."  # noqa: E741
OPT = Family(
    "opt",
    "OPTForCausalLM",
    {
        **names("vocab_size num_tokens, hidden_size dim, num_hidden_layers depth"),
        **names("num_attention_heads heads, ffn_dim ff_inner_dim"),
        " head": HEAD,
        "max_position_embeddings": Field("max_seq_len", 2048),
        "activation_function": activation("ff_activation", "relu"),
        "enable_bias": Fields(
            {"enable_bias": True},
            lambda c, f: {
                "attn_qkv_bias": c["enable_bias"],
                "attn_out_bias": c["enable_bias"],
                "ff_no_bias": not c["enable_bias"],
            },
            lambda f: {"enable_bias": f["attn_out_bias"]},
        ),
        "word_embed_proj_dim": Fields(
            {"word_embed_proj_dim": None}, _same_width, lambda f: {"word_embed_proj_dim": f["dim"]}
        ),
    },
    {
        "model.decoder.embed_tokens.weight": "embed.weight",
        "model.decoder.embed_positions.weight": "pos.weight",
        "model.decoder.final_layer_norm.{p}": "norm.{p}",
        "lm_head.weight": "head.weight",
        **{f"{O}self_attn.{n}_proj.{{p}}": L + f"attn.{n[0]}.{{p}}" for n in ("q", "k", "v", "out")},
        O + "self_attn_layer_norm.{p}": L + "attn.in_norm.{p}",
        O + "final_layer_norm.{p}": L + "ff.in_norm.{p}",
        O + "fc1.{p}": L + "ff.up.{p}",
        O + "fc2.{p}": L + "ff.down.{p}",
    },
    fixed={"norm_bias": True, "use_abs_pos_emb": True, "abs_pos_emb_offset": 2},
    must={
        "do_layer_norm_before": True,
        "_remove_final_layer_norm": False,
        "layer_norm_elementwise_affine": True,
    },
    inert="dropout init_std layerdrop activation_dropout activation_function_dropout",
    tied=("lm_head.weight", "model.decoder.embed_tokens.weight"),
    prefix="model.",
    missing="OPT 350M (post-norm, projected embeddings)",
)
BLOOM = Family(
    "bloom",
    "BloomForCausalLM",
    {
        "vocab_size": "num_tokens",
        "hidden_size": Field("dim", 64, also="n_embed"),
        "n_layer": Field("depth", 2),
        "n_head": Field("heads", 8),
        " head": HEAD,
        " inner": derived(lambda f: {"ff_inner_dim": 4 * f["dim"]}),
        " positions": derived(lambda f: {"max_seq_len": 2048}),
        "layer_norm_epsilon": Field("norm_eps post_emb_norm_eps", 1e-5),
    },
    {
        **under("transformer.", "", "word_embeddings.weight embed.weight, ln_f.{p} norm.{p}"),
        "transformer.word_embeddings_layernorm.{p}": "embed_norm.{p}",
        "lm_head.weight": "head.weight",
        **under(H, L, "input_layernorm.{p} attn.in_norm.{p}, post_attention_layernorm.{p} ff.in_norm.{p}"),
        **under(H, L, "self_attention.dense.{p} attn.o.{p}"),
        **under(H, L, "mlp.dense_h_to_4h.{p} ff.up.{p}, mlp.dense_4h_to_h.{p} ff.down.{p}"),
        H + "self_attention.query_key_value.{p}": Groups(*(L + f"attn.{n}.{{p}}" for n in "qkv")),
    },
    fixed={**BIASED, **on("alibi_pos_bias post_emb_norm post_emb_norm_bias"), "ff_activation": "gelu_tanh"},
    must={"apply_residual_connection_post_layernorm": False},
    inert="""hidden_dropout slow_but_exact seq_length skip_bias_add skip_bias_add_qkv unk_token_id
        masked_softmax_fusion offset_alibi bias_dropout_fusion attention_softmax_in_fp32""",
    tied=("lm_head.weight", "transformer.word_embeddings.weight"),
    prefix="transformer.",
)
GPT_BIGCODE = GPT2.but(
    model_type="gpt_bigcode",
    architecture="GPTBigCodeForCausalLM",
    fixed={"attn_kv_heads": 1},
    must={"multi_query": True},
    inert=GPT2.inert
    + """ attention_softmax_in_fp32 scale_attention_softmax_in_fp32 num_key_value_heads inference_runner
        validate_runner_input pre_allocate_kv_cache max_sequence_length max_batch_size pad_key_length""",
    fields={"activation_function": activation("ff_activation", "gelu_pytorch_tanh")},
    tensors={
        H + "attn.c_attn.{p}": Cat(*(L + f"attn.{n}.{{p}}" for n in "qkv")),
        H + "attn.c_proj.{p}": L + "attn.o.{p}",
        H + "mlp.c_fc.{p}": L + "ff.up.{p}",
        H + "mlp.c_proj.{p}": L + "ff.down.{p}",
    },
    missing="`multi_query: false`",
)


def _windows_of(config: Config, flags: Flags) -> Flags:
    pairs = config["attention_types"]
    if sum(len(block) * times for block, times in pairs) > flags["depth"]:
        raise ConversionError([f"config `attention_types` has more than {flags['depth']} layers"])
    kinds = [kind for block, times in pairs for _ in range(times) for kind in block]
    if len(kinds) != flags["depth"] or set(kinds) - {"global", "local"}:
        text = f"config `attention_types` must hold 'global' or 'local' for each of {flags['depth']} layers"
        raise ConversionError([f"{text}, but holds {kinds}"])
    if config["attention_layers"] not in (None, kinds):
        raise ConversionError(["config `attention_layers` and `attention_types` differ"])
    return {WINDOW: collapse(config["window_size"] - 1 if kind == "local" else None for kind in kinds)}


def _types_of(flags: Flags) -> Config:
    past = [at(flags, WINDOW, layer) for layer in range(flags["depth"])]
    kinds = ["global" if one is None else "local" for one in past]
    width = next((one + 1 for one in past if one is not None), 256)
    return {"attention_types": [[kinds, 1]], "attention_layers": kinds, "window_size": width}


GPT_NEO = GPT2.but(
    model_type="gpt_neo",
    architecture="GPTNeoForCausalLM",
    fixed={"attn_qkv_bias": False, "attn_scale": 1.0},
    must={"scale_attn_by_inverse_layer_idx": False},
    inert=GPT2.inert + " resid_dropout embed_dropout",
    fields={
        **dict.fromkeys(GPT2.fields, ...),
        **names("vocab_size num_tokens, hidden_size dim, num_layers depth, num_heads heads"),
        " width": HEAD,
        "max_position_embeddings": Field("max_seq_len", 2048),
        "intermediate_size": Field("ff_inner_dim", None, absent=lambda f: 4 * f["dim"]),
        "layer_norm_epsilon": Field("norm_eps", 1e-5),
        "activation_function": activation("ff_activation", "gelu_new"),
        "attention_types": Fields(
            {"attention_types": [[["global", "local"], 12]], "attention_layers": None, "window_size": 256},
            _windows_of,
            _types_of,
        ),
    },
    tensors={
        H + "attn.c_attn.{p}": ...,
        H + "attn.c_proj.{p}": ...,
        **{H + f"attn.attention.{n}_proj.{{p}}": L + f"attn.{n[0]}.{{p}}" for n in ("q", "k", "v", "out")},
        H + "mlp.c_fc.{p}": L + "ff.up.{p}",
        H + "mlp.c_proj.{p}": L + "ff.down.{p}",
    },
    drop=(r".*\.attn\.attention\.(bias|masked_bias)",),
    missing="",
)
FAMILIES = [GPT2, GPT_BIGCODE, GPT_NEO, OPT, BLOOM]
