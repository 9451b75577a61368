"""Which pairs of choices run where: all in `make matrix`, a sample that their names decide in `make test`."""

from zlib import crc32

from flagformer.reference import choices, pairs

PAIRS = {f"{first.name} x {second.name}": (first, second) for first, second in pairs()}
# Choices of which any two are in every run.
ALWAYS = {
    "model=encoder", "model=prefix_decoder", "use_abs_pos_emb=True", "use_abs_pos_emb=False",
    "scaled_sinu_pos_emb", "cross_attend", "only_cross", "macaron", "custom_layers", "sandwich_coef",
    "weight_tie_layers", "use_rmsnorm", "pre_norm=False", "sandwich_norm", "checkpoint", "rotary_pos_emb",
    "alibi_pos_bias", "rel_pos_bias", "dynamic_pos_bias", "attn_kv_heads", "attn_one_kv_head", "attn_qk_norm",
    "attn_qk_rmsnorm", "attn_num_mem_kv", "attn_add_zero_kv", "attn_flash=True", "attn_flash=False", "ff_glu",
    "ff_swish", "ff_relu_squared", "use_layerscale", "layer_dropout", "tie_embedding",
}  # fmt: skip
# Every choice is in so many pairs at least that are run with all checks, those of graphs too.
EACH = 4


def sampled():
    """name -> whether its graphs are made too, for the pairs of `make test`."""
    full = {name for choice in choices() for name in drawn(choice.name)}
    always = {name for name, pair in PAIRS.items() if {choice.name for choice in pair} <= ALWAYS}
    return {name: name in full for name in PAIRS if name in full | always}


def drawn(choice):
    """The pairs of a choice that are run in full: those whose names give the smallest numbers."""
    mine = [name for name, pair in PAIRS.items() if choice in (pair[0].name, pair[1].name)]
    return sorted(mine, key=lambda name: crc32(name.encode()))[:EACH]
