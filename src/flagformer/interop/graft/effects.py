"""The flags with which a grafted model computes another function from the start, with the reasons."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from flagformer.flags import ANY, CATALOGUE, Component
from flagformer.interop.graft.heads import HeadMap, head_counts
from flagformer.interop.hugging_face.settings import ABSENT, Settings, at

CROSS = "cross_attn_value_dim_head"  # a setting of every cross-attention
ORDERS = ("weight_tie_layers", "sandwich_coef", "par_ratio", "layers_execute_order", "custom_layers")
# The slot `norm`, and the flags that select its components.
NORMS = (
    "norm",
    "use_rmsnorm",
    "use_scalenorm",
    "use_simple_rmsnorm",
    "adaptive_layernorm",
    "adaptive_rmsnorm",
)
REPLACED: tuple[tuple[list[str], list[str]], ...] = (
    ([], ["adaptive_layernorm"]),
    (["use_rmsnorm"], ["adaptive_rmsnorm"]),
)
# Residual streams and norms with which a sublayer changes the stream even if its output is zero.
STREAMS = ("gate_residual", "resi_dual", "reversible")
Reason = Callable[[Settings, Settings, str], str]


def effects(old: Settings, new: Settings) -> dict[str, str]:
    """Flag -> why the function changes, for the settings of two models."""
    found = {}
    for name in dict.fromkeys([*new, *old]):
        if not _is_equal(name, old, new):
            reason = _reason(name, old, new)
            if reason:
                found[typed(name)] = reason
    return found


def changed_settings(old: Settings, new: Settings, given: Collection[str]) -> list[str]:
    """The settings that differ, as `name` is this in place of that; given flags first."""
    found = []
    for name in sorted(new, key=lambda name: typed(name) not in given):
        if not _is_equal(name, old, new):
            before = f" in place of {old[name]!r}" if name in old else ""
            found.append(f"`{typed(name)}` is {new[name]!r}{before}")
    return found


def _is_equal(name: str, old: Settings, new: Settings) -> bool:
    """Whether a setting is equal in the layers that both models have."""
    return all(before == after for before, after in _pairs(old.get(name, ABSENT), new.get(name, ABSENT)))


def _pairs(before: Any, after: Any) -> list[tuple[Any, Any]]:
    """(old, new) value of each layer that both models have; one pair where no value is by layer."""
    count = min((len(value) for value in (before, after) if isinstance(value, tuple)), default=1)
    return [(at({"": before}, "", layer), at({"": after}, "", layer)) for layer in range(count)]


def _reason(name: str, old: Settings, new: Settings) -> str:
    flag, prefix = bare(name)
    if name.startswith(f"{prefix}cross_") and f"{prefix}{CROSS}" not in old:
        return ""  # of cross-attention that is added
    if flag in RULES:
        return RULES[flag](old, new, prefix)
    before, after = old.get(name), new.get(name)
    if CATALOGUE.selected_by(flag):
        return _selected(name, flag, before, after)
    if name not in new or name not in old:
        return ""  # a parameter of a component that was added or removed
    if flag in CATALOGUE.names() and _is_neutral(CATALOGUE.param(flag).flag.neutral, before, after):
        return ""
    return f"`{typed(name)}` is {after!r} in place of {before!r}"


def _is_neutral(neutral: Any, before: Any, after: Any) -> bool:
    """Whether a flag only adds parameters without effect, in the layers where it changes."""
    return neutral is not None and all(
        b == a or a == neutral or (neutral is ANY and not b) for b, a in _pairs(before, after)
    )


def _selected(name: str, flag: str, before: Any, after: Any) -> str:
    """The reason for a component that was added, removed or replaced."""
    if set(_items(flag, before)) - set(_items(flag, after)):
        return f"`{typed(name)}` is {after!r} in place of {before!r}"
    missing = [item.name for item in _items(flag, after) if not item.starts_neutral]
    return f"`{typed(name)}`: {missing[0]} has no neutral start" if missing else ""


def _items(flag: str, value: Any) -> list[Component]:
    """The components that a flag selects, in any layer."""
    values = value if isinstance(value, tuple) else (value,)
    found = [item for item in CATALOGUE.selected_by(flag) for one in values if item.is_selected_by(one)]
    return list(dict.fromkeys(found))


def typed(name: str) -> str:
    """The name of a setting as users type it: flags of cross-attention alone have no further prefix."""
    flag, prefix = bare(name)
    own = name.removeprefix(prefix) != flag and not flag.startswith("attn_")
    return prefix + flag if own else name


def bare(name: str) -> tuple[str, str]:
    """(flag, prefix) of a setting: `dec_` of a half, and `cross_` of cross-attention is left out."""
    prefix = next((one for one in ("enc_", "dec_") if name.startswith(one)), "")
    flag = name.removeprefix(prefix)
    known = flag in CATALOGUE.names() or flag in RULES
    return (flag if known else flag.removeprefix("cross_")), prefix


def _positions(old: Settings, new: Settings, prefix: str) -> str:
    name = f"{prefix}use_abs_pos_emb"
    return f"`{name}`: learned positions are removed" if old.get(name) else ""


def _norms(settings: Settings, prefix: str) -> list[str]:
    """The flags that select the norm."""
    return [name for name in NORMS if settings.get(prefix + name)]


def _rmsnorm(old: Settings, new: Settings, prefix: str) -> str:
    if old.get(f"{prefix}use_rmsnorm") and _norms(new, prefix) == ["adaptive_rmsnorm"]:
        return ""
    return f"`{prefix}use_rmsnorm` is {new.get(f'{prefix}use_rmsnorm')!r}"


def _adaptive(old: Settings, new: Settings, prefix: str) -> str:
    """Adaptive norms start with the scale and shift of the norm of the same kind."""
    if (_norms(old, prefix), _norms(new, prefix)) in REPLACED:
        return ""
    return f"`{prefix}{'` and `'.join(_norms(new, prefix)) or 'norm'}` is another norm"


def _context(old: Settings, new: Settings, prefix: str) -> str:
    width = new.get(f"{prefix}cross_attn_dim_context")
    return f"`{prefix}cross_attn_dim_context` is {width!r}" if f"{prefix}{CROSS}" in old else ""


def _slots(old: Settings, new: Settings, prefix: str) -> str:
    """Memory slots are read by cross-attention, whose output starts at zero if it is new."""
    name = f"{prefix}num_memory_slots"
    return f"`{name}` is {new.get(name)!r}" if f"{prefix}{CROSS}" in old else ""


def _vocabulary(old: Settings, new: Settings, prefix: str) -> str:
    count = new[f"{prefix}num_tokens"] - old[f"{prefix}num_tokens"]
    return f"`{prefix}num_tokens`: {count:,} new tokens have a share of the probability"


def _depth(old: Settings, new: Settings, prefix: str) -> str:
    orders = [name for name in ORDERS if new.get(prefix + name)]
    if orders:
        return f"`{prefix}depth` changes the order of `{prefix}{orders[0]}`"
    streams = [name for name in STREAMS if new.get(prefix + name)]
    streams += ["pre_norm"] if new.get(f"{prefix}pre_norm") is False else []
    streams += ["scale_residual_constant"] if new.get(f"{prefix}scale_residual_constant", 1.0) != 1.0 else []
    streams += ["ff_pkm"] if _any(new.get(f"{prefix}ff_pkm")) else []
    if streams:
        return f"`{prefix}depth`: new layers change the stream under `{prefix}{streams[0]}`"
    return ""


def _heads(old: Settings, new: Settings, prefix: str) -> str:
    for cross in (False, True):
        before, after = (head_counts(settings, prefix, cross) for settings in (old, new))
        if before is None or after is None or before == after:
            continue
        heads = HeadMap.of(before, after)
        if heads is not None and heads.averages:
            return f"`{prefix}attn_kv_heads`: key/value heads are means of {len(heads.groups[0])}"
        if heads is not None and not heads.even and _any(new.get(f"{prefix}attn_qk_rmsnorm_all_heads")):
            return f"`{prefix}heads`: the norm of all heads counts some heads more often"
    return ""


def _slopes(old: Settings, new: Settings, prefix: str) -> str:
    reason = _heads(old, new, prefix)
    if not reason and new.get(f"{prefix}alibi_pos_bias"):
        return f"`{prefix}heads`: slopes of `{prefix}alibi_pos_bias` depend on the number of heads"
    return reason


def _inner(old: Settings, new: Settings, prefix: str) -> str:
    if _any(new.get(f"{prefix}ff_post_act_ln")):
        return f"`{prefix}ff_inner_dim`: the norm of `{prefix}ff_post_act_ln` reads new numbers"
    return ""


def _experts(old: Settings, new: Settings, prefix: str) -> str:
    """Experts that are copies of a feedforward compute it, if their weights sum to one."""
    if _any(old.get(f"{prefix}ff_moe")):
        return f"`{prefix}ff_moe` is {new.get(f'{prefix}ff_moe')!r} in place of {old[f'{prefix}ff_moe']!r}"
    norm, scale = new.get(f"{prefix}moe_normalize_weights"), new.get(f"{prefix}moe_weight_scale", 1.0)
    if norm is False or scale != 1 or _any(new.get(f"{prefix}moe_weight_input")):
        return f"`{prefix}ff_moe`: the weights of a token's experts do not sum to one"
    return ""


def _tied(old: Settings, new: Settings, prefix: str) -> str:
    if new.get(f"{prefix}tie_embedding"):
        return f"`{prefix}tie_embedding`: the embedding replaces the output projection"
    if old.get(f"{prefix}emb_dim") != old.get(f"{prefix}dim", old.get("dim")):
        return f"`{prefix}tie_embedding`: the output projection is initialised"
    return ""


def _tied_scale(old: Settings, new: Settings, prefix: str) -> str:
    if not (new.get(f"{prefix}tie_embedding") and old.get(f"{prefix}tie_embedding")):
        return ""
    return f"`{prefix}tie_embedding_scale` is another one"


def _mixers(old: Settings, new: Settings, prefix: str) -> str:
    """Mixers next to attention start at zero; those in place of attention do not."""
    name = f"{prefix}mixer"
    for layer, (before, after) in enumerate(_pairs(old.get(name), new.get(name))):
        here, there = (set(str(one or "attention").split(" + ")) for one in (before, after))
        if not here <= there:
            return f"`{name}`: {' + '.join(sorted(here - there))} of layer {layer} is replaced"
    return ""


def _nothing(old: Settings, new: Settings, prefix: str) -> str:
    return ""


def _any(value: Any) -> bool:
    return any(value) if isinstance(value, tuple) else bool(value)


def _logits(old: Settings, new: Settings, prefix: str) -> str:
    if new.get(f"{prefix}logits_dim") == new.get(f"{prefix}num_tokens"):
        return ""
    return f"`{prefix}logits_dim` is {new.get(f'{prefix}logits_dim')!r}"


RULES: Mapping[str, Reason] = {
    "num_tokens": _vocabulary, "logits_dim": _logits, "max_seq_len": _nothing, "depth": _depth,
    "heads": _slopes, "attn_kv_heads": _heads, "ff_inner_dim": _inner, "moe_shared_inner_dim": _nothing,
    "ff_moe": _experts, "tie_embedding": _tied, "tie_embedding_scale": _tied_scale, "mixer": _mixers,
    "use_abs_pos_emb": _positions, "use_rmsnorm": _rmsnorm, "adaptive_layernorm": _adaptive,
    "adaptive_rmsnorm": _adaptive, "cross_attn_dim_context": _context,
    "num_memory_slots": _slots,
}  # fmt: skip
