"""Mamba 2, and Falcon-H1, whose layers have Mamba 2 and attention in parallel."""

from __future__ import annotations

from flagformer.interop.hugging_face.errors import ConversionError
from flagformer.interop.hugging_face.families.llama import BIASES, LLAMA, L, P
from flagformer.interop.hugging_face.family import Family
from flagformer.interop.hugging_face.fields import Config, Field, Fields, Flags, derived, names, on
from flagformer.interop.hugging_face.settings import at
from flagformer.interop.hugging_face.tensors import Column, Either, Rule
from flagformer.stack.plan import MAX_STEPS

X = L + "mixer."


def mixer(prefix: str) -> dict[str, Rule | str]:
    """The tensors of Mamba 2 under a prefix that ends with a dot."""
    return {
        prefix + "in_proj.weight": X + "fn.to_inner.weight",
        prefix + "conv1d.weight": Column(X + "fn.convolution.weight"),
        prefix + "conv1d.bias": X + "fn.convolution.bias",
        prefix + "dt_bias": X + "fn.decay.dt_bias",
        prefix + "A_log": X + "fn.decay.log_rate",
        prefix + "D": X + "fn.skip.weight",
        prefix + "norm.weight": X + "fn.norm.weight",
        prefix + "out_proj.weight": X + "down.weight",
    }


def _no_limit(config: Config, flags: Flags) -> Flags:
    limit = config["time_step_limit"]
    ends = [end.get("__float__") if isinstance(end, dict) else end for end in limit or (0.0, "Infinity")]
    if len(ends) != 2 or ends[0] != 0 or str(ends[1]).lower() not in ("infinity", "inf"):
        raise ConversionError([f"config `time_step_limit` must be 0 to infinity, but is {limit!r}"])
    return {}


# Steps are not limited.
STEPS = Fields({"time_step_limit": None}, _no_limit, lambda f: {})


def _only_mixers(config: Config, flags: Flags) -> Flags:
    count = config["num_hidden_layers"]
    if not isinstance(count, int) or not 0 < count <= MAX_STEPS:
        text = f"config `num_hidden_layers` must be 1 to {MAX_STEPS}, but is {count!r}"
        raise ConversionError([text])
    return {"custom_layers": "m" * count}


def _layers(flags: Flags) -> Config:
    found = flags.get("custom_layers") or ""
    if set(found) != {"m"}:
        raise ConversionError([f"flag `custom_layers`: {found or None!r} is not of mixers alone"])
    return {"num_hidden_layers": len(found)}


def _check_width(config: Config, flags: Flags) -> Flags:
    inner = flags["mixer_heads"] * flags["mixer_dim_value"]
    if config["expand"] * flags["dim"] != inner:
        text = f"config `expand` times `hidden_size` must be the width {inner} of all heads"
        raise ConversionError([f"{text}, but `expand` is {config['expand']!r}"])
    return {}


def _expand(flags: Flags) -> Config:
    inner = flags["mixer_heads"] * flags["mixer_dim_value"]
    if inner % flags["dim"]:
        text = f"flag `mixer_heads`: heads of a width of {inner} have no place, which must be a multiple of"
        raise ConversionError([f"{text} `dim` = {flags['dim']}"])
    return {"expand": inner // flags["dim"]}


MAMBA2 = Family(
    "mamba2",
    "Mamba2ForCausalLM",
    {
        **names("vocab_size num_tokens, hidden_size dim"),
        "num_hidden_layers": Fields({"num_hidden_layers": 64}, _only_mixers, _layers),
        "num_heads": Field("mixer_heads", 128),
        "head_dim": Field("mixer_dim_value", 64),
        "state_size": Field("mixer_dim_key", 128),
        "n_groups": Field("mixer_key_groups", 8),
        "conv_kernel": Field("mixer_kernel", 4),
        "layer_norm_epsilon": Field("norm_eps mixer_norm_eps", 1e-5),
        "expand": Fields({"expand": 2}, _check_width, _expand),
        "time_step_limit": STEPS,
        " length": derived(lambda f: {"max_seq_len": 1 << 20}),
    },
    {
        **names("backbone.embeddings.weight embed.weight, backbone.norm_f.weight norm.weight"),
        "lm_head.weight": "head.weight",
        "backbone.layers.{i}.norm.weight": X + "in_norm.weight",
        **mixer("backbone.layers.{i}.mixer."),
    },
    fixed={"mixer": "mamba2", **on("use_rmsnorm")},
    must={"use_bias": False, "use_conv_bias": True, "hidden_act": "silu"},
    inert="""residual_in_fp32 rescale_prenorm_residual chunk_size time_step_rank time_step_min time_step_max
        time_step_floor""",
    tied=("lm_head.weight", "backbone.embeddings.weight"),
    prefix="backbone.",
    missing="`use_bias`, `time_step_limit`; the config has no length, `max_seq_len` is 1,048,576",
)


def _heads(config: Config, flags: Flags) -> Flags:
    inner = config["mamba_d_ssm"]
    if inner is None:
        inner = int(config["mamba_expand"] * flags["dim"])
    count, width = config["mamba_n_heads"], config["mamba_d_head"]
    width = inner // count if width in (None, "auto") else width
    if count * width != inner:
        text = f"config `mamba_d_head` times `mamba_n_heads` must be `mamba_d_ssm` = {inner}"
        raise ConversionError([f"{text}, but they are {width} and {count}"])
    return {"mixer_heads": count, "mixer_dim_value": width}


HEADS = Fields(
    {"mamba_d_ssm": 1024, "mamba_n_heads": 128, "mamba_d_head": "auto", "mamba_expand": 2},
    _heads,
    lambda f: {
        "mamba_d_ssm": f["mixer_heads"] * f["mixer_dim_value"],
        "mamba_n_heads": f["mixer_heads"],
        "mamba_d_head": f["mixer_dim_value"],
    },
)
PARTS = ("gate", "value", "key", "query", "step")
MULTIPLIERS: Config = {
    "ssm_in_multiplier": 1.0, "ssm_multipliers": None, "ssm_out_multiplier": 1.0,
    "attention_in_multiplier": 1.0, "key_multiplier": 1.0, "attention_out_multiplier": 1.0,
    "mlp_multipliers": None,
}  # fmt: skip


def _multiplied(config: Config, flags: Flags) -> Flags:
    """A factor of the input of attention scales queries, keys and outputs; that of Mamba 2, all its parts."""
    first, key = config["attention_in_multiplier"], config["key_multiplier"]
    gate, down = config["mlp_multipliers"] or (1.0, 1.0)
    scales = [config["ssm_in_multiplier"] * one for one in config["ssm_multipliers"] or [1.0] * 5]
    if len(scales) != len(PARTS):
        raise ConversionError([f"config `ssm_multipliers` must hold 5 numbers, but holds {len(scales)}"])
    layer = (config["ssm_out_multiplier"], first * config["attention_out_multiplier"], down)
    return {
        "mixer_scales": None if set(scales) == {1.0} else dict(zip(PARTS, scales)),
        "attn_scale": flags["attn_dim_head"] ** -0.5 * first * first * key,
        "ff_glu_gate_scale": gate,
        "residual_scale": None if set(layer) == {1.0} else layer * flags["depth"],
    }


def _multipliers(flags: Flags) -> Config:
    scale = [at(flags, "residual_scale", i) or 1.0 for i in range(3)]
    return {
        "ssm_in_multiplier": 1.0,
        "ssm_multipliers": [(flags.get("mixer_scales") or {}).get(name, 1.0) for name in PARTS],
        "ssm_out_multiplier": scale[0],
        "attention_in_multiplier": 1.0,
        "key_multiplier": flags["attn_scale"] * flags["attn_dim_head"] ** 0.5,
        "attention_out_multiplier": scale[1],
        "mlp_multipliers": [flags.get("ff_glu_gate_scale", 1.0), scale[2]],
    }


def _norm(config: Config, flags: Flags) -> Flags:
    if not config["mamba_rms_norm"]:
        return {"mixer_norm": False}
    if config["mamba_norm_before_gate"]:
        raise ConversionError(["config `mamba_norm_before_gate`: a norm before the gate has no flag"])
    return {"mixer_norm": True, "mixer_norm_eps": flags["norm_eps"]}


FALCON_H1 = LLAMA.but(
    model_type="falcon_h1",
    architecture="FalconH1ForCausalLM",
    must={"mamba_conv_bias": True, "mamba_proj_bias": False, "projectors_bias": False, "hidden_act": "silu",
          "attention_bias": False},
    inert="num_logits_to_keep mamba_chunk_size layer_types layers_block_type mamba_use_mlp",
    fixed={**on("use_rmsnorm ff_glu"), "mixer": "mamba2 + attention", "ff_activation": "silu"},
    fields={
        "attention_bias": ...,
        "hidden_act": ...,
        "mlp_bias": BIASES["mlp_bias"],
        "num_key_value_heads": Field("attn_kv_heads", 8, absent=lambda f: f["heads"]),
        "max_position_embeddings": Field("max_seq_len", 8192),
        "rms_norm_eps": Field("norm_eps", 1e-5),
        "mamba_d_ssm": HEADS,
        "mamba_n_groups": Field("mixer_key_groups", 1),
        "mamba_d_state": Field("mixer_dim_key", 256),
        "mamba_d_conv": Field("mixer_kernel", 4),
        "mamba_rms_norm": Fields(
            {"mamba_rms_norm": False, "mamba_norm_before_gate": True},
            _norm,
            lambda f: {"mamba_rms_norm": bool(f.get("mixer_norm", True)), "mamba_norm_before_gate": False},
        ),
        "time_step_limit": STEPS,
        "embedding_multiplier": Field("embedding_scale", 1.0),
        "lm_head_multiplier": Field("logits_scale", 1.0),
        " multipliers": Fields(MULTIPLIERS, _multiplied, _multipliers),
    },
    tensors={
        "model.norm.weight": ...,
        "model.final_layernorm.weight": "norm.weight",
        P + "input_layernorm.weight": Either(X + "in_norm.weight", L + "attn.in_norm.weight"),
        P + "post_attention_layernorm.weight": ...,
        P + "pre_ff_layernorm.weight": L + "ff.in_norm.weight",
        **{P + f"mlp.{n}_proj.{{p}}": ... for n in ("gate", "up", "down")},
        **{P + f"feed_forward.{n}_proj.{{p}}": L + f"ff.{n}.{{p}}" for n in ("gate", "up", "down")},
        **mixer(P + "mamba."),
    },
    missing="`mamba_norm_before_gate` with `mamba_rms_norm`",
)  # fmt: skip
FAMILIES = [MAMBA2, FALCON_H1]
