"""Norms over the last dimension and pointwise functions, in numpy float64."""

from math import erf, sqrt

import numpy as np

GUARD = 1e-12


def layer_norm(x, gain, bias=0.0, eps=1e-5):
    """arXiv:1607.06450: zero mean, unit variance."""
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) * gain + bias


def unit_rms(x, eps=None):
    """Unit root mean square; without epsilon the length is at least 1e-12."""
    if eps is None:
        return sqrt(x.shape[-1]) * unit(x)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps)


def unit(x):
    """x / max(|x|, 1e-12)."""
    return x / np.maximum(np.sqrt((x**2).sum(-1, keepdims=True)), GUARD)


def norm(settings, weights, prefix, x):
    """The norm selected by the flags, with the weight under the prefix."""
    gain = weights.get(f"{prefix}.weight", 1.0) + (settings["norm_weight_offset"] or 0.0)
    eps = settings["norm_eps"]
    if settings["use_rmsnorm"] or settings["use_simple_rmsnorm"]:
        return unit_rms(x, eps) * gain
    if settings["use_scalenorm"]:
        return unit_rms(x, eps) / sqrt(x.shape[-1]) * gain
    return layer_norm(x, gain, weights.get(f"{prefix}.bias", 0.0), 1e-5 if eps is None else eps)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def silu(x):
    return x * sigmoid(x)


def gelu(x):
    """arXiv:1606.08415 in its exact form."""
    return x * 0.5 * (1 + np.vectorize(erf)(x / sqrt(2)))


def softmax(scores, extra=None):
    """Softmax over the last dimension; minus infinity masks; fully masked rows are zeros.

    `extra` is a score whose weight is dropped.
    """
    top = scores.max(-1, keepdims=True)
    top = np.where(np.isfinite(top), top, 0.0)
    powers = np.exp(scores - top)
    total = powers.sum(-1, keepdims=True)
    if extra is not None:
        total = total + np.exp(extra - top)
    return np.divide(powers, total, out=np.zeros_like(powers), where=total > 0)


def softpick(scores):
    """relu(e^s - 1) / (sum of |e^s - 1| over unmasked keys + 1e-6), each divided by e^max(0, largest)."""
    top = np.maximum(scores.max(-1, keepdims=True), 0.0)
    above = np.exp(scores - top) - np.exp(-top)
    total = np.where(np.isneginf(scores), 0.0, np.abs(above)).sum(-1, keepdims=True)
    return np.maximum(above, 0.0) / (total + 1e-6)


def linear(x, weights, prefix):
    """x W^T + b, without b if the model has none."""
    return np.einsum("ti,oi->to", x, weights[f"{prefix}.weight"]) + weights.get(f"{prefix}.bias", 0.0)
