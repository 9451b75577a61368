"""The rules of muP for every parameter, from its shape and that of the base model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

import flagformer
from flagformer.attention.gates.head_scale import HeadScale
from flagformer.attention.qk_norm.layernorm import HeadNorm
from flagformer.attention.qk_norm.norms import RMSQKNorm
from flagformer.branch.scale import LayerScale
from flagformer.embedding.tokens import TokenEmbedding
from flagformer.feedforward.dense import Gain
from flagformer.feedforward.experts import Experts
from flagformer.lab.train.mup.multipliers import base_flags, depth_ratio
from flagformer.lab.train.mup.settings import Mup
from flagformer.norm.layernorm import LayerNorm
from flagformer.norm.rmsnorm import RMSNorm
from flagformer.norm.scalenorm import ScaleNorm
from flagformer.ops.linear import PartialBias
from flagformer.position.absolute import Sinusoidal

# vectors that start with a number that the width does not change
VECTORS = (LayerNorm, RMSNorm, nn.LayerNorm, RMSQKNorm, HeadNorm, HeadScale, LayerScale, Gain)
# a number that starts at a power of the width
POWERS = (ScaleNorm, Sinusoidal)


class Rule(NamedTuple):
    """The rule of one parameter.

    Attributes:
        role: `embedding`, `vector`, `input` (only its outputs grow), `matrix` (both grow), `output` (only its
            inputs grow) or `fixed`.
        init: factor of the initial values.
        rate: factor of the learning rate of AdamW; the product of rate and weight decay is kept.
    """

    role: str
    init: float
    rate: float


def rules(flags: Mapping[str, Any], mup: Mup, model: nn.Module | None = None) -> dict[str, Rule]:
    """The rule of every parameter by its name (arXiv:2203.03466, table 3; arXiv:2310.02244, table 1).

    With n the inputs of a weight over those of the base model: matrices have rates 1/n; outputs also start
    1/sqrt(n) times as large as torch's; embeddings and biases start as in the base model. With `base.depth`,
    rates of the layers also have the factor sqrt(base depth / depth).

    Args:
        flags: all flags of the model, with its multipliers.
        model: the model; None: one on torch's meta device.

    Raises:
        ValueError: a module has parameters that grow and no rule.
    """
    with torch.device("meta"):
        small = flagformer.build(base_flags(flags, mup))
        large = flagformer.build(dict(flags)) if model is None else model
    bases = dict(small.named_modules())
    in_layers = depth_ratio(flags, mup) ** 0.5
    found: dict[str, Rule] = {}
    known = {id(parameter): name for name, parameter in large.named_parameters()}
    for path, module in large.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            whole = f"{path}.{name}" if path else name
            if known.get(id(parameter)) != whole:
                continue  # shared
            rule = _rule(whole, name, module, bases[path])
            layers = ".sublayers." in f".{whole}"
            found[whole] = rule._replace(rate=rule.rate * in_layers) if layers else rule
    return found


def scale_initial(model: nn.Module, found: Mapping[str, Rule]) -> None:
    """Multiply the initial values of a new model by the factors of its rules."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if found[name].init != 1:
                parameter.mul_(found[name].init)


def _rule(whole: str, name: str, module: nn.Module, base: nn.Module) -> Rule:
    """The rule of `module.name`, whose module in the base model is `base`."""
    mine, small = getattr(module, name), getattr(base, name)
    if isinstance(module, TokenEmbedding) and isinstance(base, TokenEmbedding):
        return Rule("embedding", base.std / module.std, 1.0)
    if isinstance(module, POWERS):
        raise ValueError(_no_rule(whole, module, "starts at a power of the width"))
    if isinstance(module, PartialBias) and isinstance(base, PartialBias):
        return Rule("vector", base.bound / module.bound, 1.0)
    if isinstance(module, nn.Linear | Experts):
        return _linear(name, module, base)
    if isinstance(module, VECTORS):
        return Rule("vector", 1.0, 1.0)
    if mine.shape == small.shape:
        return Rule("fixed", 1.0, 1.0)
    grows = f"grows from {list(small.shape)} to {list(mine.shape)}"
    raise ValueError(_no_rule(whole, module, grows))


def _linear(name: str, module: Any, base: Any) -> Rule:
    """A weight [out, in] or [experts, out, in], or its bias; torch's initial values have the deviation
    1/sqrt(3 in)."""
    outs, ins = (
        mine / small for mine, small in zip(module.weight.shape[-2:], base.weight.shape[-2:], strict=True)
    )
    if name == "bias":
        return Rule("vector", ins**0.5, 1.0)
    if ins == 1:
        return Rule("input" if outs != 1 else "fixed", 1.0, 1.0)
    return Rule("matrix", 1.0, 1 / ins) if outs != 1 else Rule("output", ins**-0.5, 1 / ins)


def _no_rule(whole: str, module: nn.Module, why: str) -> str:
    return (
        f"`train.mup` has no rule for `{whole}` of {type(module).__name__}, which {why}; leave one of "
        "them out"
    )
