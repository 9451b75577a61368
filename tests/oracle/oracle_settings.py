"""The flags of the model and of each sublayer, and the order of sublayers: plain Python."""

from typing import NamedTuple

DEFAULTS = {
    "model": "decoder", "heads": 8, "attn_dim_head": 64, "pre_norm": True, "pre_norm_has_final_norm": True,
    "scale_residual_constant": 1.0, "resi_dual_scale": 1.0, "rotary_interpolation_factor": 1.0,
    "rotary_base_rescale_factor": 1.0, "rotary_xpos_scale_base": 512, "rel_pos_num_buckets": 32,
    "rel_pos_max_distance": 128, "attn_qk_norm_groups": 1, "attn_logit_softclamp_value": 50.0,
    "window_size": 64, "context_window_size": 64, "routing_selection": "recent",
    "context_selection": "nearest", "cluster_num_mem_kv": 0, "local_attn_window_size": 256,
    "local_attn_radius_blocks": 1, "attn_num_mem_kv": 0, "n_local_attn_heads": 0,
    "shift_tokens": 0, "shift_mem_down": 0, "ff_glu_offset": 0.0, "moe_top_k": 2, "moe_num_groups": 1,
    "moe_weight_scale": 1.0, "moe_num_shared_experts": 0, "attn_qk_layernorm_eps": 1e-5,
    "num_mem_updates": 1, "mem_update_attn_heads": 8, "memory_update": "gru",
}  # fmt: skip
OF_ALL_SUBLAYERS = {"shift_tokens", "use_layerscale", "residual_scale"}


class Module(NamedTuple):
    """A sublayer: its index, its kind (a, c or f) and its index among those of its kind."""

    index: int
    kind: str
    ordinal: int


class Settings:
    """Flags of one stack and its wrapper, by name."""

    def __init__(self, flags):
        self.flags = flags
        self.modules = _modules(_kinds(self))
        self.order = _order(self, len(self.modules))

    def __getitem__(self, name):
        value = self.flags.get(name)
        return DEFAULTS.get(name) if value is None else value

    def of(self, name, module):
        """The value of a flag in one sublayer; `cross_` forms take precedence, tuples are per layer."""
        cross = f"cross_{name}"
        value = self.flags[cross] if module.kind == "c" and cross in self.flags else self.flags.get(name)
        if isinstance(value, tuple | list):
            value = value[module.index if name in OF_ALL_SUBLAYERS else module.ordinal]
        return DEFAULTS.get(name) if value is None else value

    @property
    def groups(self):
        """The steps of each group of sublayers that read the same stream, with their modules: a parallel
        block, or one sublayer."""
        size = len(_block(self)) if self["parallel_block"] else 1
        steps = list(enumerate(self.order))
        return [steps[first : first + size] for first in range(0, len(steps), size)]

    @property
    def causal(self):
        return self["model"] in ("decoder", "prefix_decoder")

    @property
    def looks_ahead(self):
        """Whether some query attends to later tokens: in prefix decoders those of the prefix."""
        return self["model"] != "decoder"

    @property
    def absolute(self):
        """The absolute positions: "learned", "sinusoidal" or None."""
        if self["scaled_sinu_pos_emb"]:
            return "sinusoidal"
        said, relative = self.flags.get("use_abs_pos_emb"), self.flags.get("disable_abs_pos_emb")
        if said is None and relative is None:
            names = ("rotary_pos_emb", "rotary_xpos", "alibi_pos_bias", "rel_pos_bias", "dynamic_pos_bias")
            relative = any(self[name] for name in names)
        return "learned" if (not relative if said is None else said) else None


def _kinds(settings):
    """The kinds of sublayers in order, as in the papers of their orders."""
    if settings["custom_layers"]:
        return tuple(settings["custom_layers"])
    block = _block(settings)
    depth, first, ratio = settings["depth"], settings["sandwich_coef"], settings["par_ratio"]
    if settings["weight_tie_layers"]:
        return tuple(block)
    if first:
        return tuple("a" * first + block * (depth - first) + "f" * first)
    if ratio:
        return _par(block, depth, ratio)
    return tuple(block * depth)


def _block(settings):
    block = "cf" if settings["only_cross"] else "acf" if settings["cross_attend"] else "af"
    return "f" + block if settings["macaron"] else block


def _par(block, depth, ratio):
    """Pay attention when required: an attention every few sublayers, in the first two thirds."""
    count = depth * len(block)
    attention = block.replace("f", "")
    parts, reach = count // ratio, count * 2 // 3
    width = (reach + reach // parts) // parts
    head = (attention + "f" * (width - len(attention))) * parts
    return tuple(head + "f" * (count - len(head)))


def _modules(kinds):
    return [Module(i, kind, kinds[:i].count(kind)) for i, kind in enumerate(kinds)]


def _order(settings, count):
    if settings["layers_execute_order"]:
        return tuple(settings["layers_execute_order"])
    return tuple(range(count)) * (settings["depth"] if settings["weight_tie_layers"] else 1)
