"""The multipliers of muP as flags of the model, so that saved models have them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flagformer.flow import Dims
from flagformer.lab.train.mup.settings import Mup

KINDS = ("decoder", "encoder")
SCALES = ("attn_scale", "tie_embedding_scale", "residual_scale")
# flags that make the size of activations depend on the width, with the reason
REFUSED = {
    "l2norm_embed": "embeddings of unit length have elements that shrink with the width",
    "mixer": "its state has no rule of muP",
    "num_memory_tokens": "memory tokens start with elements that shrink with the width",
}
# flags whose residual stream is no sum of branches
NO_SUM = {
    "pre_norm": False, "resi_dual": True, "gate_residual": True, "weight_tie_layers": True,
    "reversible": True,
}  # fmt: skip


def base_flags(flags: Mapping[str, Any], mup: Mup, *, keep_depth: bool = True) -> dict[str, Any]:
    """The flags of the base model; by default with the depth of the model."""
    sizes = {name: size for name, size in mup.base.items() if not (keep_depth and name == "depth")}
    return {**flags, **sizes}


def multipliers(flags: Mapping[str, Any], mup: Mup) -> dict[str, float]:
    """Flags that replace those of a model: `attn_scale` (1/K in place of 1/sqrt(K), where K differs),
    `tie_embedding_scale` (1/E in place of 1/sqrt(E)), `residual_scale` (1/sqrt(depth)).

    A flag that was set is the value of the base model. At the sizes of the base model there are none.

    Raises:
        ValueError: muP has no rule for this kind of model, or for one of its flags.
    """
    _refuse(flags, mup)
    base = base_flags(flags, mup)
    found: dict[str, float] = {}
    head, base_head = (one.get("attn_dim_head", Dims.dim_head) for one in (flags, base))
    if head != base_head and not flags.get("attn_qk_norm"):
        found["attn_scale"] = _number(flags, "attn_scale", base_head**-0.5) * base_head / head
    width, base_width = (one.get("emb_dim") or one["dim"] for one in (flags, base))
    if flags.get("tie_embedding") and width != base_width:
        scale = _number(flags, "tie_embedding_scale", base_width**-0.5)
        found["tie_embedding_scale"] = scale * base_width / width
    if (ratio := depth_ratio(flags, mup)) != 1:
        found["residual_scale"] = _number(flags, "residual_scale", 1.0) * ratio**0.5
    return found


def depth_ratio(flags: Mapping[str, Any], mup: Mup) -> float:
    """Depth of the base model / depth; 1 without `base.depth`."""
    return float(mup.base["depth"] / flags["depth"]) if "depth" in mup.base else 1.0


def _number(flags: Mapping[str, Any], name: str, default: float) -> float:
    value = flags.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"`{name}` must be one number with `train.mup`, but is {value!r}")
    return float(value)


def _refuse(flags: Mapping[str, Any], mup: Mup) -> None:
    kind = flags["model"]
    if kind not in KINDS:
        raise ValueError(
            f"`train.mup` must be left out with `model: {kind}`: its rules are those of one stack that reads "
            f"tokens ({', '.join(KINDS)})"
        )
    if not isinstance(flags.get("dim"), int):
        raise ValueError("`dim` must be set with `train.mup`, which compares it with `mup.base.dim`")
    for name, why in REFUSED.items():
        if flags.get(name):
            raise ValueError(f"`{name}` and `train.mup` cannot be combined, because {why}; leave one out")
    if flags.get("embedding_scale") is True:
        raise ValueError(
            "`embedding_scale` must be a number with `train.mup`, but is true: the root of the width makes "
            "embeddings grow with it"
        )
    if "depth" not in mup.base:
        return
    if not isinstance(flags.get("depth"), int):
        raise ValueError("`depth` must be set with `mup.base.depth`, which is compared with it")
    for name, value in NO_SUM.items():
        if name in flags and flags[name] == value and value is not None:
            raise ValueError(
                f"`{name}={value}` and `mup.base.depth` cannot be combined, because depth muP holds for "
                "a stream that is the sum of the branches of its layers; leave `depth` out of `mup.base`"
            )
