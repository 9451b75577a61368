"""Every flag of the catalogue with a value for tests; choices and their pairs come from the library."""

from functools import cache

from flagformer.flags import CATALOGUE, SLOTS
from flagformer.flags.names import is_per_layer
from flagformer.flags.slots import PER_LAYER
from flagformer.lab.reference import choices
from flagformer.lab.reference.selectors import partners
from flagformer.ops.lengths import LONG

# A model in which every choice has an effect and which still runs in a millisecond.
TINY = {"num_tokens": 11, "max_seq_len": 16, "dim": 16, "heads": 4, "attn_dim_head": 8}
SIZES = {"num_tokens", "max_seq_len", "dim", "depth", "heads", "attn_dim_head", "causal"}
# Values that differ from the default, for flags without a rule or an example in their declaration.
VALUES = {
    "alibi_num_heads": 3,
    "attn_dropout": 0.2,
    "attn_logit_softclamp_value": 0.7,
    "attn_qk_norm_groups": 2,
    "attn_qk_norm_scale": 4.0,
    "attn_z_loss_weight": 0.1,
    "commitment_factor": 0.5,
    "cross_attn_dim_context": 6,
    "dynamic_pos_bias_mlp_depth": 1,
    "emb_dim": 12,
    "embed_num_tokens": {"kind": 3},
    "emb_dropout": 0.2,
    "emb_frac_gradient": 0.5,
    "ff_chunks": 2,
    "ff_dropout": 0.2,
    "ff_mult": 1.5,
    "kmeans_ema_decay": 0.5,
    "layerscale_init_value": 0.5,
    "mem_update_attn_heads": 2,
    "memory_temperature": 0.5,
    "memory_update": "bmn",
    "local_attn_radius_blocks": 2,
    "local_attn_window_size": 2,
    "logits_dim": 7,
    "num_mem_updates": 2,
    "memory_tokens_interspersed_every": 3,
    "moe_loss_coef": 0.5,
    "moe_num_experts": 3,
    "moe_z_loss_coef": 0.5,
    "moe_top_k": 3,
    "pkm_num_keys": 6,
    "rel_pos_max_distance": 24,
    "rel_pos_num_buckets": 6,
    "resi_dual_scale": 0.25,
    "rotary_base_rescale_factor": 4.0,
    "rotary_emb_dim": 4,
    "rotary_interpolation_factor": 2.0,
    "rotary_xpos_scale_base": 5,
    "routing_selection": "leaky",
    "context_selection": "leaky",
    "context_window_size": 3,
    "cluster_num_mem_kv": 2,
    "scale_residual_constant": 0.5,
    "shift_mem_down": 1,
    "window_size": 2,
}
# Flags whose models have other inputs in training, or that no causal model has:
# the tests of the inventory, of the z-loss and of cluster top-k check them.
OTHER_INPUTS = {
    "embed_num_tokens", "attn_z_loss_weight", "routing_selection", "context_selection", "cluster_num_mem_kv",
}  # fmt: skip
# A query attends to few others: not every token affects every logit of a bidirectional model.
SEES_LITTLE = {
    "only_cross", "attn_sparse_topk", "cross_attn_sparse_topk", "num_clusters", "context_num_clusters",
    *(item.select for item in CATALOGUE if item.slot == "window" and item.select),
}  # fmt: skip
# Flags whose graph needs both blocks of a small model: orders of modules, inter-layer state.
ORDERS = {
    "weight_tie_layers", "sandwich_coef", "layers_execute_order", "par_ratio", "residual_attn",
    "cross_residual_attn", "shift_mem_down", "mixer",
}  # fmt: skip


# The value of a layer without a choice, where it is not None.
UNSET = {"mixer": "attention"}


def one_block(flags):
    """The same flags with one block, which has every sublayer of a second one, where the order allows it."""
    layers = any(is_per_layer(name, value, CATALOGUE) for name, value in flags.items())
    return flags if layers or ORDERS & set(flags) or "depth" not in flags else {**flags, "depth": 1}


def for_graphs(flags):
    """The flags of one block with a length for the paths of long rows."""
    return one_block({**flags, "max_seq_len": LONG + 64})


@cache
def tunings():
    """name -> flags, for each flag that tunes a component: the flag, and the component's selector.

    A flag of several components has its own name with the first, and one more for each other.
    """
    chosen = {name for choice in choices() for name in choice.flags}
    found = {}
    for item in CATALOGUE:
        for param in item.params:
            name = param.flag.name
            if name not in chosen | SIZES:
                if name in OTHER_INPUTS:
                    continue
                key = name if name not in found else f"{name} of {item.name}"
                found[key] = {**_owner(item, name), **partners(item, param), name: _value(param)}
    return found


@cache
def by_layer():
    """`SLOT by layer` -> flags of two layers, for each slot of the sublayers: a component in the first, and
    another, or the default, in the second."""
    found = {}
    for slot in (slot for slot in SLOTS.values() if slot.scope in PER_LAYER):
        mine = [c for c in choices() if c.component and c.component.slot == slot.name]
        own = [c for c in mine if CATALOGUE.scope(next(iter(c.flags))) in PER_LAYER and c.name not in ORDERS]
        first, *others = own or [None]
        if first is not None:
            found[f"{slot.name} by layer"] = _mixed(first, *(c for c in others[:1] if _is_other(c, first)))
    return found


def _is_other(choice, first):
    return choice.flags.keys() != first.flags.keys() and not choice.extra


def _mixed(first, second=None):
    """The flags of the first choice in the first of two layers, and of the second in the other."""
    count = 4 if CATALOGUE.scope(next(iter(first.flags))) == "branch" else 2
    flags = {**first.extra}
    for choice, layer in ((first, 0), (second, 1)):
        for name, value in (choice.flags if choice else {}).items():
            flags[name] = tuple(value if index == layer else UNSET.get(name) for index in range(count))
    return flags


@cache
def cross_forms():
    """`cross_attn_...` -> flags, for each attention flag: set for cross-attention only."""
    forms = {}
    for name in CATALOGUE.crossed():
        chosen = next((choice.flags for choice in choices() if name in choice.flags), None)
        for value in [tunings()[name][name]] if chosen is None else [chosen[name]]:
            forms[f"cross_{name}"] = {"cross_attend": True, f"cross_{name}": value}
            owner = {k: v for k, v in tunings().get(name, {}).items() if k != name}
            forms[f"cross_{name}"] |= {f"cross_{k}": v for k, v in owner.items()}
    return forms


def _owner(item, name):
    """The selector of the component that the flag tunes; empty if a default component has it too."""
    if item.select is None or any(owner.select is None for owner, _ in CATALOGUE.params_named(name)):
        return {}
    return next(
        dict(c.flags)
        for c in choices()
        if item.select in c.flags and item.is_selected_by(c.flags[item.select])
    )


def _value(param):
    if param.flag.name in VALUES:
        return VALUES[param.flag.name]
    if param.flag.example is not None:
        return param.flag.example
    assert param.type in (bool, bool | None), f"declare `Flag(example=...)` for `{param.flag.name}`"
    return not param.default
