"""Feedforwards: dense, gated, product keys, mixtures of experts."""

import numpy as np
from oracle_norms import gelu, layer_norm, linear, sigmoid, silu, softmax

BEST, HEADS, WIDTH = 32, 4, 128
NAMED = {
    "gelu": gelu,
    "gelu_tanh": lambda x: x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    "quick_gelu": lambda x: x * sigmoid(1.702 * x),
    "relu": lambda x: np.maximum(x, 0),
    "relu2": lambda x: np.maximum(x, 0) ** 2,
    "silu": silu,
    "mish": lambda x: x * np.tanh(np.log1p(np.exp(x))),
    "tanh": np.tanh,
    "sigmoid": sigmoid,
    "identity": lambda x: x,
}


def feedforward(settings, module, weights, prefix, x):
    """[T, D] -> [T, D]."""
    if settings.of("ff_moe", module):
        return _experts(settings, module, weights, prefix, x)
    if settings.of("ff_pkm", module):
        return _product_keys(weights, f"{prefix}.memory", x)
    inner = linear(x, weights, f"{prefix}.w_in")
    inner = _inner(settings, module, weights, prefix, inner) * weights.get(f"{prefix}.gain.weight", 1.0)
    if settings.of("ff_post_act_ln", module):
        inner = layer_norm(inner, weights[f"{prefix}.norm.weight"])
    return linear(inner, weights, f"{prefix}.w_out")


def _inner(settings, module, weights, prefix, inner):
    """The inner units: activated, or those of a gated linear unit, values first (2002.05202)."""
    act = _activation(settings, module, weights, prefix)
    if not settings.of("ff_glu", module):
        return act(inner)
    values, gates = np.split(inner, 2, -1)
    limit = settings.of("ff_glu_limit", module) or np.inf
    values, gates = np.clip(values, -limit, limit), np.minimum(gates, limit)
    return (values + settings.of("ff_glu_offset", module)) * act(gates)


def _activation(settings, module, weights, prefix):
    if settings.of("ff_xielu", module):
        p, n = (np.log1p(np.exp(weights[f"{prefix}.activation.alpha_{sign}"])) for sign in "pn")
        return lambda x: np.where(x > 0, p * x**2, (n + 0.5) * (np.expm1(np.minimum(x, -1e-6)) - x)) + x / 2
    if settings.of("ff_activation", module):
        return NAMED[settings.of("ff_activation", module)]
    if settings.of("ff_relu_squared", module):
        return lambda x: np.maximum(x, 0) ** 2
    return silu if settings.of("ff_swish", module) else gelu


def _experts(settings, module, weights, prefix, x):
    """arXiv:2006.16668: the most likely experts of each token, weighted by their scores."""
    logits = linear(x, weights, f"{prefix}.router")
    scores = sigmoid(logits) if settings.of("moe_router", module) == "sigmoid" else softmax(logits)
    out = np.zeros_like(x)
    for t, row in enumerate(scores):
        chosen = _best(settings, module, row + weights.get(f"{prefix}.balance_bias.bias", 0.0))
        share = row[chosen]
        normalized = settings.of("moe_normalize_weights", module)
        if len(chosen) > 1 if normalized is None else normalized:
            share = share / share.sum()
        share = share * settings.of("moe_weight_scale", module)
        for e, weight in zip(chosen, share):
            before, after = (weight, 1.0) if settings.of("moe_weight_input", module) else (1.0, weight)
            inner = weights[f"{prefix}.w_in.weight"][e] @ (before * x[t])
            inner = _inner(
                settings, module, weights, prefix, inner + _part(weights, f"{prefix}.w_in.bias", e)
            )
            found = weights[f"{prefix}.w_out.weight"][e] @ inner + _part(weights, f"{prefix}.w_out.bias", e)
            out[t] += after * found
    if settings.of("moe_num_shared_experts", module):
        shared = _inner(settings, module, weights, prefix, linear(x, weights, f"{prefix}.shared.w_in"))
        shared = linear(shared, weights, f"{prefix}.shared.w_out")
        gated = settings.of("moe_shared_gate", module)
        out += shared * (sigmoid(linear(x, weights, f"{prefix}.shared_gate")) if gated else 1.0)
    return out


def _best(settings, module, row):
    """The chosen experts, within the best groups (2412.19437)."""
    groups = np.split(row, settings.of("moe_num_groups", module))
    kept = settings.of("moe_top_groups", module) or len(groups)
    totals = np.array([np.sort(group)[-2:].sum() for group in groups])
    ranked = np.full((len(groups), len(groups[0])), -np.inf)
    for g in np.argsort(-totals, kind="stable")[:kept]:
        ranked[g] = groups[g]
    return np.argsort(-ranked.ravel(), kind="stable")[: settings.of("moe_top_k", module)]


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
