"""A whole model of one row: token ids in, logits out."""

from math import sqrt
from typing import NamedTuple

import numpy as np
from oracle_attention import Attention
from oracle_feedforward import NAMED, feedforward
from oracle_masks import interleaved
from oracle_norms import layer_norm, linear, norm, unit
from oracle_positions import absolute
from oracle_residuals import run
from oracle_settings import Settings


class Reading(NamedTuple):
    """The output of a row.

    Attributes:
        logits: [T, V], or embeddings under `return_only_embed`.
        embeddings: [T, D] of the last layer.
        streams: [T, D] that each step read, before its norm.
    """

    logits: np.ndarray
    embeddings: np.ndarray
    streams: list


def read(flags, weights, ids, *, context=None, prefix=0, kinds=None, memories=None, first=0):
    """Run one row without padding.

    Args:
        flags: of `flagformer.build`.
        weights: the state dict in float64.
        ids: [T] integers.
        context: [S, D_context].
        prefix: number of tokens that every query may attend to (prefix decoders).
        kinds: name -> [T] ids of the extra embeddings.
        memories: step -> [M, D], the stream of earlier tokens at that step.
        first: number of tokens of earlier segments.
    """
    settings = Settings(flags)
    row = interleaved(settings, len(ids), first, prefix)
    tokens = _embedded(settings, weights, np.asarray(ids), first, kinds or {})
    x = tokens[np.minimum(row.token, len(ids) - 1)]
    for place in np.flatnonzero(row.memory >= 0):
        x[place] = weights["memory.tokens"][row.memory[place]]
    streams, carried, memories = [], {}, memories or {}

    def sublayer(step, module, stream):
        streams.append(stream[row.memory < 0])
        return _sublayer(settings, module, weights, carried, (stream, row, memories.get(step), context))

    x = run(settings, weights, x, sublayer)[row.memory < 0]
    return Reading(_logits(settings, weights, x), x, streams)


def _embedded(settings, weights, ids, first, kinds):
    table = weights["token_emb.weight"]
    x = (unit(table) if settings["l2norm_embed"] else table)[ids]
    scale = settings["embedding_scale"] or 1.0
    x = x * (sqrt(table.shape[-1]) if scale is True else scale)
    x = x + absolute(settings, weights, first + np.arange(len(ids)))
    if settings["num_token_types"]:
        x = x + weights["embedding.kinds.token_type_embed.weight"][0]
    for name, values in kinds.items():
        x = x + weights[f"embedding.kinds.{name}_embed.weight"][values]
    if settings["post_emb_norm"]:
        bias = weights.get("embedding.norm.bias", 0.0)
        x = layer_norm(x, weights["embedding.norm.weight"], bias, settings["post_emb_norm_eps"] or 1e-5)
    return linear(x, weights, "embedding.project") if "embedding.project.weight" in weights else x


def _sublayer(settings, module, weights, carried, given):
    """The output of one sublayer: `given` is its stream, the row, memories of it, the context."""
    stream, row, past, context = given
    prefix = f"attn_layers.sublayers.{module.index}"
    before = not (settings["pre_norm"] is False or settings["resi_dual"] or settings["res_post_norm"])
    count = 0 if past is None else len(past)
    x = stream if past is None else np.concatenate([past, stream])
    owner = prefix
    if settings["parallel_block"] and not settings["parallel_block_own_norms"]:
        first = next(group[0][1] for group in settings.groups if any(i == module.index for _, i in group))
        owner = f"attn_layers.sublayers.{first}"
    x = norm(settings, weights, f"{owner}.in_norm", x) if before else x
    x = _shifted(settings, module, x)
    past, x = (x[:count] if count else None), x[count:]
    if module.kind == "f":
        out = feedforward(settings, module, weights, f"{prefix}.fn", x)
    elif module.kind == "c":
        out = Attention(settings, module, weights, carried)(x, row, context=context)
    else:
        out = Attention(settings, module, weights, carried)(x, row, past)
    if settings["sandwich_norm"] or settings["res_post_norm"]:
        out = norm(settings, weights, f"{prefix}.branch_norm", out)
    if settings["macaron"] and module.kind == "f":
        out = out / 2
    out = out * (settings.of("residual_scale", module) or 1.0)
    return out * _layer_scale(settings, module, weights, prefix)


def _layer_scale(settings, module, weights, prefix):
    """arXiv:2103.17239."""
    names = [f"{prefix}.branch.weight", f"{prefix}.branch.0.weight", f"{prefix}.branch.1.weight"]
    found = next((weights[name] for name in names if name in weights), 1.0)
    return found if settings.of("use_layerscale", module) else 1.0


def _shifted(settings, module, x):
    """Each group of a token's dimensions comes from another token; zeros where there is none."""
    count = settings.of("shift_tokens", module)
    if not count:
        return x
    shifts = list(range(count + 1)) if settings.causal else list(range(-count, count + 1))
    width = x.shape[-1] // len(shifts)
    out = x.copy()
    for number, shift in enumerate(shifts):
        part = slice(number * width, (number + 1) * width)
        for t in range(len(x)):
            there = 0 <= t - shift < len(x)
            out[t, part] = x[t - shift, part] if there else 0.0
    return out


def _logits(settings, weights, x):
    if settings["return_only_embed"]:
        return x
    if settings["head_transform"]:
        x = NAMED[settings["head_transform"]](linear(x, weights, "head.transform.dense"))
        x, eps = x - x.mean(-1, keepdims=True), settings["head_transform_eps"] or 1e-5
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * weights["head.transform.norm.weight"]
        x = x + weights.get("head.transform.norm.bias", 0.0)
    if settings["tie_embedding"]:
        table = weights["token_emb.weight"]
        table = unit(table) if settings["l2norm_embed"] else table
        if "head.narrow.weight" in weights:
            x = linear(x, weights, "head.narrow")
        scale = settings["tie_embedding_scale"] or 1 / sqrt(table.shape[-1])
        logits = scale * x @ table.T + weights.get("head.add_bias.bias", 0.0)
    else:
        logits = linear(x, weights, "head.project")
    logits, cap = logits * (settings["logits_scale"] or 1.0), settings["logits_softcap"]
    return cap * np.tanh(logits / cap) if cap else logits
