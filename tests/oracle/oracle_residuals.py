"""The residual stream: the input of each sublayer, and the addition of its output."""

import numpy as np
from oracle_norms import norm, sigmoid


def run(settings, weights, x, sublayer):
    """Run `sublayer(step, module, stream) -> out` over the steps; return the normed final stream."""
    if settings["reversible"]:
        return _reversible(settings, weights, x, sublayer)
    summed = settings["resi_dual_scale"] * x
    for group in settings.groups:
        out = sum(sublayer(step, settings.modules[index], x) for step, index in group)
        summed = summed + settings["resi_dual_scale"] * out
        index = group[-1][1]
        x = _joined(settings, weights, index // len(group), x, out)
        if settings["pre_norm"] is False or settings["resi_dual"]:
            x = norm(settings, weights, f"attn_layers.sublayers.{index}.out_norm", x)
    if settings["resi_dual"]:
        return x + norm(settings, weights, "attn_layers.final_norm", summed)
    return _last(settings, weights, x)


def _last(settings, weights, x):
    if settings["pre_norm"] is False or not settings["pre_norm_has_final_norm"]:
        return x
    return norm(settings, weights, "attn_layers.final_norm", x)


def _reversible(settings, weights, x, sublayer):
    """arXiv:1707.04585: two streams, updated alternately; the output is their mean."""
    before = x
    for group in settings.groups:
        out = sum(sublayer(step, settings.modules[index], x) for step, index in group)
        before, x = x, before + out
    return _last(settings, weights, (x + before) / 2)


def _joined(settings, weights, index, x, out):
    prefix = "attn_layers.residual.inner" if settings["parallel_block"] else "attn_layers.residual"
    if settings["gate_residual"]:
        read = out @ weights[f"{prefix}.of_out.{index}.weight"].T + weights[f"{prefix}.of_out.{index}.bias"]
        kept = x @ weights[f"{prefix}.of_stream.{index}.weight"].T
        kept = kept + weights[f"{prefix}.of_stream.{index}.bias"]
        (reset, keep, new), (reset_h, keep_h, new_h) = np.split(read, 3, -1), np.split(kept, 3, -1)
        keep = sigmoid(keep + keep_h)
        return keep * x + (1 - keep) * np.tanh(new + sigmoid(reset + reset_h) * new_h)
    gain = weights[f"{prefix}.weight"][index] if settings["scale_residual"] else 1.0
    return settings["scale_residual_constant"] * gain * x + out
