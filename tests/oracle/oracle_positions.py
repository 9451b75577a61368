"""Positions: rotations of queries and keys, biases of scores, vectors added to tokens."""

from math import log, log2, sqrt

import numpy as np
from oracle_norms import layer_norm, linear, silu, unit


def absolute(settings, weights, positions):
    """[T, E]: arXiv:1706.03762, learned vectors or scaled sines and cosines."""
    if settings.absolute == "learned":
        table = weights["pos_emb.table.weight"]
        rows = positions + (settings["abs_pos_emb_offset"] or 0)
        return (unit(table) if settings["l2norm_embed"] else table)[rows]
    if settings.absolute == "sinusoidal":
        half = (settings["emb_dim"] or settings["dim"]) // 2
        angles = positions[:, None] * 10000.0 ** (-np.arange(half) / half)
        return weights["pos_emb.scale"] * np.concatenate([np.sin(angles), np.cos(angles)], -1)
    return 0.0


def rotated(of, x, positions, side):
    """arXiv:2104.09864, 2212.10554: x [H, T, K] rotated by position.

    `of` gives a flag of the layer; `side` is 1 for queries, -1 for keys.
    """
    if not (of("rotary_pos_emb") or of("rotary_xpos")):
        return x
    dim = of("rotary_emb_dim") or of("attn_dim_head")
    base = of("rotary_base") or 10000.0
    if of("rotary_base_rescale_factor") != 1:
        base *= of("rotary_base_rescale_factor") ** (dim / (dim - 2))
    out = x.copy()
    for i in range(dim // 2):
        angle = positions * base ** (-2 * i / dim) / of("rotary_interpolation_factor")
        first, second = (2 * i, 2 * i + 1) if of("rotary_interleaved") else (i, i + dim // 2)
        a, b = x[..., first], x[..., second]
        size = 1.0
        if of("rotary_xpos"):
            zeta = (2 * i + 0.4 * dim) / (1.4 * dim)
            size = zeta ** (side * positions / of("rotary_xpos_scale_base"))
        out[..., first] = (a * np.cos(angle) - b * np.sin(angle)) * size
        out[..., second] = (b * np.cos(angle) + a * np.sin(angle)) * size
    return out


def bias(settings, weights, queries, keys):
    """[H, T, S] added to the scores, from the positions of queries and keys; zeros without a scheme."""
    heads = settings["heads"]
    offsets = queries[:, None] - keys[None, :]
    if settings["alibi_pos_bias"]:
        count = settings["alibi_num_heads"] or heads
        slopes = _slopes(count) + [0.0] * (heads - count)
        scale = settings["attn_dim_head"] ** -0.5 if settings["alibi_before_scale"] else 1.0
        return -scale * np.array(slopes)[:, None, None] * abs(offsets)
    if settings["rel_pos_bias"]:
        table = weights["attn_layers.position_bias.table"]
        found = table[np.vectorize(lambda d: _bucket(settings, d))(offsets)]
        return (settings["rel_pos_bias_scale"] or sqrt(settings["attn_dim_head"])) * found.transpose(2, 0, 1)
    if settings["dynamic_pos_bias"]:
        distances, back = np.unique(offsets, return_inverse=True)
        return _perceptron(settings, weights, distances)[back.reshape(offsets.shape)].transpose(2, 0, 1)
    return np.zeros((heads, *offsets.shape))


def _slopes(count):
    """arXiv:2108.12409: geometric; else those of the power below and every second of the one above."""
    if log2(count).is_integer():
        return [2 ** (-8 * h / count) for h in range(1, count + 1)]
    below = 2 ** int(log2(count))
    return _slopes(below) + _slopes(2 * below)[0::2][: count - below]


def _bucket(settings, distance):
    """arXiv:1910.10683: half of the buckets hold one distance each, the others grow logarithmically."""
    buckets, first = settings["rel_pos_num_buckets"], 0
    if settings.looks_ahead:
        buckets //= 2
        first = buckets if distance < 0 else 0
        distance = abs(distance)
    distance, exact = max(distance, 0), buckets // 2
    if distance < exact:
        return first + distance
    share = log(distance / exact) / log(settings["rel_pos_max_distance"] / exact)
    return first + min(exact + int(share * (buckets - exact) + 1e-9), buckets - 1)


def _perceptron(settings, weights, distances):
    """arXiv:2108.00154: [distances, H]."""
    x = distances[:, None].astype(float)
    if settings["dynamic_pos_bias_log_distance"]:
        x = np.sign(x) * np.log(abs(x) + 1)
    prefix = "attn_layers.position_bias"
    for i in range(settings["dynamic_pos_bias_mlp_depth"] or 2):
        x = linear(x, weights, f"{prefix}.hidden.{i}.0")
        if settings["dynamic_pos_bias_norm"]:
            x = layer_norm(x, weights[f"{prefix}.hidden.{i}.1.weight"])
        x = silu(x)
    return linear(x, weights, f"{prefix}.out")
