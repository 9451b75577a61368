"""Feedforwards: dense, gated, product keys, mixtures of experts."""

import numpy as np
from oracle_norms import gelu, layer_norm, linear, silu, softmax

BEST, HEADS, WIDTH = 32, 4, 128


def feedforward(settings, module, weights, prefix, x):
    """[T, D] -> [T, D]."""
    act = _activation(settings, module)
    if settings.of("ff_moe", module):
        return _experts(act, weights, prefix, x)
    if settings.of("ff_pkm", module):
        return _product_keys(weights, f"{prefix}.memory", x)
    inner = linear(x, weights, f"{prefix}.w_in")
    if settings.of("ff_glu", module):
        values, gates = np.split(inner, 2, -1)
        inner = values * act(gates) * weights.get(f"{prefix}.gain.weight", 1.0)
    else:
        inner = act(inner)
    if settings.of("ff_post_act_ln", module):
        inner = layer_norm(inner, weights[f"{prefix}.norm.weight"])
    return linear(inner, weights, f"{prefix}.w_out")


def _activation(settings, module):
    if settings.of("ff_relu_squared", module):
        return lambda x: np.maximum(x, 0) ** 2
    return silu if settings.of("ff_swish", module) else gelu


def _experts(act, weights, prefix, x):
    """arXiv:2006.16668: the two most likely experts of each token, weighted by their probabilities."""
    chances = softmax(linear(x, weights, f"{prefix}.router"))
    out = np.zeros_like(x)
    for t, row in enumerate(chances):
        chosen = np.argsort(-row, kind="stable")[:2]
        for e in chosen:
            inner = weights[f"{prefix}.w_in.weight"][e] @ x[t]
            inner = act(inner + _part(weights, f"{prefix}.w_in.bias", e))
            found = weights[f"{prefix}.w_out.weight"][e] @ inner + _part(weights, f"{prefix}.w_out.bias", e)
            out[t] += row[e] / row[chosen].sum() * found
    return out


def _part(weights, name, index):
    return weights[name][index] if name in weights else 0.0


def _product_keys(weights, prefix, x):
    """arXiv:1907.05242: values of the best pairs of half keys; values of four heads are summed."""
    queries = linear(x, weights, f"{prefix}.to_queries").reshape(len(x), 2, HEADS, WIDTH)
    queries = layer_norm(queries, weights[f"{prefix}.norm.weight"], weights[f"{prefix}.norm.bias"])
    halves = np.einsum("tphd,hnpd->thpn", queries, weights[f"{prefix}.keys"])
    pairs = halves[:, :, 0, :, None] + halves[:, :, 1, None, :]
    pairs = pairs.reshape(len(x), HEADS, -1)
    out = np.zeros_like(x)
    for t in range(len(x)):
        for h in range(HEADS):
            best = np.argsort(-pairs[t, h], kind="stable")[: min(BEST, halves.shape[-1])]
            share = softmax(pairs[t, h][best])
            out[t] += np.einsum("n,nd->d", share, weights[f"{prefix}.values.weight"][best])
    return out
