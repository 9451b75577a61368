"""Translate the argument names of the package routing-transformer to flags."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from flagformer.flags import CATALOGUE, MODEL_SCOPES, Finding, nearest, open_slots
from flagformer.flags.groups import names_of_flags
from flagformer.flags.values import LARGEST

# Other names of a flag.
RENAMED = {
    "dim_head": "attn_dim_head",
    "weight_tie": "weight_tie_layers",
    "num_mem_kv": "attn_num_mem_kv",
    "use_scale_norm": "use_scalenorm",
    "receives_context": "cross_attend",
    "use_absolute_pos_emb": "use_abs_pos_emb",
    "rel_pos_emb": "rotary_pos_emb",
    "return_embeddings": "return_only_embed",
}
# Defaults of routing-transformer that differ from those of the flags.
DEFAULTS: dict[str, Any] = {
    "heads": 8, "dim_head": 64, "window_size": 64, "rel_pos_emb": True, "use_absolute_pos_emb": False,
    "n_local_attn_heads": 0,
}  # fmt: skip
# Names with another form of value.
TRANSLATED = {"pkm_layers": "ff_pkm", "moe_layers": "ff_moe", "ff_activation": "activation"}
# Translated one by one below.
OWN = ("causal", "depth", "max_seq_len", "shift_tokens", "pkm_layers", "moe_layers", "ff_activation")
# name -> (the only value accepted, the reason why others are refused)
REFUSED: dict[str, tuple[Any, str]] = {
    "attn_layer_dropout": (0.0, "there is no dropout of attention outputs; `layer_dropout` drops sublayers"),
    "use_rezero": (False, "there is no such residual; `use_layerscale` starts branches near zero"),
    "_register_kmeans_update": (
        None,
        "a backward does not update centroids: call `update_kmeans()` after each step of the optimizer",
    ),
}
# Values that equal the absence of the flag.
NEUTRAL: dict[str, Any] = {
    "reversible": False, "ff_chunks": 1, "shared_qk": None, "context_shared_qk": False,
    "context_window_size": None,
}  # fmt: skip
# Flags of a model with token ids.
MODEL_ONLY = (
    *(name for name in CATALOGUE.names({"model"}) if name != "max_seq_len"),
    *(slot.name for slot in open_slots({"model"})),
    "return_embeddings",
    "use_absolute_pos_emb",
)


def translate(given: Mapping[str, Any], prefix: str = "") -> tuple[dict[str, Any], list[Finding]]:
    """Names of routing-transformer, or of any flag -> flags for `flagformer.build` with `model`; and a
    finding for every unknown name or invalid value, which a valid one replaces in the flags.

    Args:
        prefix: the prefix that the user typed, for messages.
    """
    findings = _unknown(given, prefix)
    given = {name: value for name, value in given.items() if name in _known()}
    for name, (accepted, reason) in REFUSED.items():
        if given.get(name, accepted) != accepted:
            findings.append(Finding(prefix + name, f"`{prefix}{name}` cannot be given, because {reason}"))
    values = {**DEFAULTS, **{name: value for name, value in given.items() if name not in REFUSED}}
    clusters = _clusters(values, prefix, findings)
    flags = {RENAMED.get(name, name): value for name, value in values.items() if name not in OWN}
    for name, neutral in NEUTRAL.items():
        if name in flags and type(flags[name]) is type(neutral) and flags[name] == neutral:
            del flags[name]
    window = flags["window_size"]
    if "n_local_attn_heads" not in given:
        del flags["n_local_attn_heads"]
    if _any_local(values["n_local_attn_heads"]):
        if flags.get("local_attn_window_size") is None:
            flags["local_attn_window_size"] = window
    elif flags.get("local_attn_window_size") is None:
        flags.pop("local_attn_window_size", None)
    if clusters is None:
        del flags["window_size"]
    else:
        flags["num_clusters"] = clusters
    if "context_window_size" in flags:
        if not flags.get("cross_attend"):
            text = "has no effect without a context; set `{0}receives_context=True` too, or leave it out"
            text = f"`{prefix}context_window_size` {text.format(prefix)}"
            findings.append(Finding(prefix + "context_window_size", text))
            del flags["context_window_size"]
        else:
            flags.setdefault("context_num_clusters", clusters or _share(values))
    flags |= _feedforwards(values, prefix, findings)
    kind = "decoder" if values.get("causal") is True else "encoder"
    sizes: dict[str, Any] = {name: values[name] for name in ("depth", "max_seq_len") if name in values}
    return {"model": kind, **sizes, **flags}, findings


def as_typed(
    findings: Iterable[Finding],
    prefix: str = "",
    given: Collection[str] = frozenset(),
    bare: Collection[str] = frozenset(),
) -> list[Finding]:
    """Findings of a model with the names of routing-transformer, except for flags `given` by their own name.

    Args:
        bare: names that were typed without `prefix`.
    """
    names = {flag: name for name, flag in (RENAMED | TRANSLATED).items() if flag not in given}
    known = names_of_flags() - set(bare)

    def name(flag: str) -> str:
        return prefix + names.get(flag, flag) if flag in known else flag

    def typed(match: re.Match[str]) -> str:
        return f"`{name(match[1])}"

    return [Finding(name(one.flag), re.sub(r"`(\w+)", typed, one.message)) for one in findings]


def _known() -> set[str]:
    crossed = {f"cross_{name}" for name in CATALOGUE.names({"attention"}) if name.startswith("attn_")}
    slots = {slot.name for slot in open_slots(MODEL_SCOPES)}
    return {*CATALOGUE.names(MODEL_SCOPES), *crossed, *slots, *RENAMED, *OWN, *REFUSED, *NEUTRAL}


def _unknown(given: Mapping[str, Any], prefix: str) -> list[Finding]:
    known = _known()
    findings = []
    for name in given:
        if name not in known:
            hint = nearest(name, known).replace("`", f"`{prefix}", 1)
            findings.append(
                Finding(prefix + name, f"`{prefix}{name}` is not a flag of a routing model{hint}")
            )
        elif (word := (RENAMED | TRANSLATED).get(name)) in given:
            text = f"`{prefix}{name}` and `{prefix}{word}` cannot be combined"
            findings.append(Finding(prefix + name, f"{text}, because both set the same flag; keep one"))
    if not isinstance(given.get("causal", False), bool):
        text = f"`{prefix}causal` must be bool, but is {given['causal']!r}"
        findings.append(Finding(prefix + "causal", text))
    for name in ("dim", "depth", "max_seq_len"):
        if name not in given:
            findings.append(Finding(prefix + name, f"`{prefix}{name}` is required"))
    return findings


def is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < LARGEST


def _is_named(activation: Any) -> bool:
    """Whether an activation, or those of all layers, are given by name."""
    each = activation if isinstance(activation, (tuple, list)) else (activation,)
    return all(isinstance(one, str) or one is None for one in each)


def _any_local(heads: Any) -> bool:
    return any(heads) if isinstance(heads, (tuple, list)) else bool(heads)


def _share(values: Mapping[str, Any]) -> int:
    """The default number of clusters, one for each window; 1 if a size is invalid."""
    length, window = values.get("max_seq_len"), values["window_size"]
    return max(length // window, 1) if is_size(length) and is_size(window) else 1


def _clusters(values: Mapping[str, Any], prefix: str, findings: list[Finding]) -> int | None:
    """Clusters of the routing heads, by default `max_seq_len / window_size`; None without such heads."""
    heads, local = values["heads"], values["n_local_attn_heads"]
    length, window = values.get("max_seq_len"), values["window_size"]
    if all(share == heads for share in (local if isinstance(local, (tuple, list)) else (local,))):
        return values.get("num_clusters")
    if values.get("num_clusters") is not None:
        return values["num_clusters"]
    for name, value in (("max_seq_len", length), ("window_size", window)):
        if not is_size(value):
            text = f"`{prefix}{name}` must be a whole number of at least 1, below {LARGEST}, but is {value!r}"
            findings.append(Finding(prefix + name, text))
            return 1
    if length % window:
        text = (
            f"`{prefix}max_seq_len` must be a multiple of `{prefix}window_size` = {window}, as there is a"
            f" cluster for each window, but is {length}; or set `{prefix}num_clusters`"
        )
        findings.append(Finding(prefix + "max_seq_len", text))
    return _share(values)


def _feedforwards(values: Mapping[str, Any], prefix: str, findings: list[Finding]) -> dict[str, Any]:
    """Flags for layers with product-key memory or experts (counted from 1), activation, and token shift."""
    flags: dict[str, Any] = {}
    depth: int = values["depth"] if is_size(values.get("depth")) else 0
    for name, flag in (("pkm_layers", "ff_pkm"), ("moe_layers", "ff_moe")):
        layers = () if values.get(name) is None else values[name]
        layers = tuple(layers) if isinstance(layers, (tuple, list, range)) else (layers,)
        wrong = [layer for layer in layers if not is_size(layer) or layer > depth]
        if wrong:
            text = f"`{prefix}{name}` must hold layers from 1 to `{prefix}depth` = {depth}"
            findings.append(Finding(prefix + name, f"{text}, but holds {wrong[0]!r}"))
            flags[flag] = True  # so that its tuning flags are checked too
        elif layers:
            flags[flag] = tuple(layer in layers for layer in range(1, depth + 1))
    if (activation := values.get("ff_activation")) is not None:
        flags["ff_activation" if _is_named(activation) else "activation"] = activation
    if values.get("shift_tokens") not in (None, False):
        flags["shift_tokens"] = _as_numbers(values["shift_tokens"])
    return flags


def _as_numbers(shift: Any) -> Any:
    """True is one token; a list has a value for each layer."""
    if isinstance(shift, (tuple, list)):
        return tuple(map(_as_numbers, shift))
    return int(shift) if isinstance(shift, bool) else shift
