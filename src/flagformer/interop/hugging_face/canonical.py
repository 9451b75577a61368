"""One form for flags that can be set in several ways, such as `attn_one_kv_head` and `attn_kv_heads=1`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Settings = dict[str, Any]
# Flags without a part in the function of inference.
INERT = (
    "attn_dropout", "attn_flash", "attn_z_loss_weight", "checkpoint", "cross_attn_tokens_dropout",
    "disable_abs_pos_emb", "emb_dropout", "emb_frac_gradient", "ff_chunks", "ff_dropout", "layer_dropout",
    "layerscale_init_value", "mixer_chunk", "moe_balance_bias_rate", "moe_balance_choices", "moe_loss_coef",
    "moe_sequence_loss_coef", "moe_z_loss_coef", "resi_dual_scale",
)  # fmt: skip

# Flags of norms without an epsilon by default, and of the user's own.
NO_EPSILON = ("use_rmsnorm", "use_scalenorm", "use_simple_rmsnorm", "adaptive_rmsnorm", "norm")


def attention(given: Mapping[str, Any]) -> Settings:
    """The settings of an attention sublayer; `given` holds the sizes of the model too."""
    found = dict(given)
    heads, width = found["heads"], found["attn_dim_head"]
    groups = 1 if found.pop("attn_one_kv_head", None) else found.get("attn_kv_heads")
    if not found.get("attn_kv_rank"):
        found["attn_kv_heads"] = groups or heads
    bias = found.pop("attn_bias", False)
    for name in ("attn_qkv_bias", "attn_out_bias"):
        found[name] = bias if found.get(name) is None else found[name]
    _fill(found, attn_scale=width**-0.5, rotary_emb_dim=width)
    if found.get("attn_kv_rank"):
        _fill(found, attn_rope_dim=found.get("rotary_emb_dim", 0))
    found["attn_value_dim_head"] = found.get("attn_value_dim_head") or width
    return _active(found)


def feedforward(given: Mapping[str, Any]) -> Settings:
    """The settings of a feedforward; `given` holds the sizes of the model too."""
    found = dict(given)
    swish, squared = found.pop("ff_swish", None), found.pop("ff_relu_squared", None)
    named = found.get("ff_activation") or "gelu"
    if "activation" not in found and not found.get("ff_pkm"):
        found["ff_activation"] = "silu" if swish else "relu2" if squared else named
    mult = found.pop("ff_mult", None)
    if "ff_inner_dim" in found and found["ff_inner_dim"] is None:
        found["ff_inner_dim"] = max(int(found["dim"] * mult), 1)
    if found.get("ff_moe"):
        found["ff_glu"] = bool(found.get("ff_glu"))
        _fill(
            found, moe_normalize_weights=found["moe_top_k"] > 1, moe_top_groups=found["moe_num_groups"],
            moe_shared_inner_dim=found["ff_inner_dim"],
        )  # fmt: skip
    return _active(found)


def mixer(given: Mapping[str, Any]) -> Settings:
    """The settings of a mixer; `given` holds the sizes of the model too."""
    found = dict(given)
    if found.get("mixer_norm", True):
        _fill(found, mixer_norm_eps={"gated_deltanet": 1e-6, "mamba2": 1e-5}.get(found.get("mixer", "")))
    return _active(found)


def whole(given: Mapping[str, Any]) -> Settings:
    """The settings of the model and its stack."""
    found = dict(given)
    if found.get("custom_layers"):
        found["custom_layers"] = "".join(found["custom_layers"])
    _fill(found, emb_dim=found["dim"], logits_dim=found.get("num_tokens"))
    width = found.get("emb_dim", found["dim"])
    scale = found.get("embedding_scale")
    found["embedding_scale"] = width**0.5 if scale is True else float(scale or 1)
    _fill(found, tie_embedding_scale=width**-0.5)
    found["residual_scale"] = found.get("residual_scale") or 1.0
    if not any(found.get(name) for name in NO_EPSILON):
        _fill(found, norm_eps=1e-5)
    return _active(found)


def _fill(found: Settings, **fixed: Any) -> None:
    """Replace None by the value that it means."""
    for name, value in fixed.items():
        if name in found and found[name] is None:
            found[name] = value


def _active(found: Settings) -> Settings:
    return {name: value for name, value in found.items() if name not in INERT}
