"""How each tensor of a grafted model is filled from those of the model that it is grafted onto."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from flagformer.interop.graft.heads import (
    HeadMap,
    divided_heads,
    head_counts,
    mapped_groups,
    mapped_heads,
)
from flagformer.interop.hugging_face.parts import Tensors

Rest = Callable[[Tensor, int, int], None]  # (tensor, dimension, first new index)
PARAM = r"\.(weight|bias)"
KINDS = ("attn", "mixer", "ff", "cross")


class Fill(NamedTuple):
    """The content of a tensor, or of a part of one.

    Attributes:
        source: the plain name of the old tensor.
        value: that tensor, or made of it; it may be smaller than the new one.
        how: how the rest is filled; empty if the tensor is kept as it is.
        rest: fills the rest; None: it keeps its initial values.
    """

    source: str
    value: Tensor
    how: str = ""
    rest: Rest | None = None

    def write(self, here: Tensor) -> None:
        """Write the new tensor in place."""
        corner = here[tuple(slice(size) for size in self.value.shape)]
        corner.copy_(self.value)
        if self.rest is not None:
            for dim, size in enumerate(self.value.shape):
                if size < here.shape[dim]:
                    self.rest(here, dim, size)


class Misfit(ValueError):
    """A tensor that cannot be made of the old one: its name and both shapes."""

    def __init__(self, name: str, there: Tensor, here: Tensor) -> None:
        self.name, self.there, self.here = name, list(there.shape), list(here.shape)
        super().__init__(f"tensor `{name}` would become {self.here}, and has shape {self.there}")


def fill_of(name: str, old: Tensors, new: Tensors) -> Fill | None:
    """The fill of a tensor of the new model; None for one that is initialised.

    Args:
        old: the tensors of the model with weights.
        new: those of the new model, for their shapes.

    Raises:
        Misfit: the tensor of that name has another shape, and no rule makes one of the other.
    """
    norm, adaptive, _ = name.partition(".to_scale_shift.bias")
    if adaptive and (fill := _adaptive(norm, old)) is not None:
        return fill
    source = _source(name, old, new)
    if source is None:
        return None
    there, here = old(source), new(name)
    if ".moe." in name and ".ff." in source:
        expanded = there.expand(here.shape[0], *there.shape)
        if expanded.shape != here.shape:
            raise Misfit(name, there, here)
        return Fill(source, expanded, "copied to each expert")
    if source != name and source.endswith("embed.weight"):
        return _untied(source, there, here, old)
    if there.shape == here.shape:
        return Fill(source, there)
    fill = _by_head(name, source, there, old, new) or _padded(name, source, there, here)
    if fill is None or any(a > b for a, b in zip(fill.value.shape, here.shape)):
        raise Misfit(name, there, here)
    return fill


def _adaptive(norm: str, old: Tensors) -> Fill | None:
    """The scale and shift of an adaptive norm, from the weight and bias of the norm in its place."""
    owner = norm.replace("attn_layers.final_norm", "norm")
    if f"{owner}.weight" not in old:
        return None
    prefix = next((half for half in ("enc", "dec") if norm.startswith(f"{half}.")), "")
    offset = old.settings.get(f"{prefix}_norm_weight_offset" if prefix else "norm_weight_offset", 0.0)
    scale = old(f"{owner}.weight") + (offset - 1)
    shift = old(f"{owner}.bias") if f"{owner}.bias" in old else torch.zeros_like(scale)
    return Fill(f"{owner}.weight", torch.cat([scale, shift]), "the weight minus one, and the bias")


def _source(name: str, old: Tensors, new: Tensors) -> str | None:
    """The plain name of the tensor that one of the new model is made of."""
    if name in old:
        return name
    layer, norm, param = name.rpartition(".in_norm.")
    if norm:  # sublayers that run in parallel share the norm of the first
        base = layer.rpartition(".")[0]
        for kind in KINDS:
            other = f"{base}.{kind}.in_norm.{param}"
            if other in old and other not in new:
                return other
    others = [
        re.sub(r"\.moe\.(up|gate|down)" + PARAM, r".ff.\1.\2", name),
        re.sub(r"\.fn\.to_out\.project" + PARAM, r".o.\1", name),
    ]
    if name.endswith("head.weight") and f"{name.removesuffix('weight')}narrow.weight" not in old:
        others.append(name.removesuffix("head.weight") + "embed.weight")
    return next((other for other in others if other in old), None)


def _untied(source: str, there: Tensor, here: Tensor, old: Tensors) -> Fill:
    """An output projection of its own, from the embedding that was read backwards."""
    prefix = source.removesuffix("embed.weight").replace(".", "_")
    factor = old.settings.get(f"{prefix}tie_embedding_scale")
    if factor is None or there.shape[1:] != here.shape[1:] or len(there) > len(here):
        raise Misfit(source, there, here)
    how = "a copy of the embedding"
    return Fill(
        source, there if factor == 1 else there * factor, how, None if len(there) == len(here) else mean
    )


def mean(here: Tensor, dim: int, start: int) -> None:
    """Set the rest of the rows to the mean of the first ones."""
    first = here.narrow(dim, 0, start)
    here.narrow(dim, start, here.shape[dim] - start).copy_(first.float().mean(dim, keepdim=True))


def zero(here: Tensor, dim: int, start: int) -> None:
    here.narrow(dim, start, here.shape[dim] - start).zero_()


def repeated(here: Tensor, dim: int, start: int) -> None:
    """Repeat the first rows."""
    for index in range(start, here.shape[dim]):
        here.select(dim, index).copy_(here.select(dim, index % start))


# (pattern of a plain name, dimension that may grow, text, rest)
GROWS: tuple[tuple[str, int, str, Rest | None], ...] = (
    (r"(.*\.)?(embed|head)" + PARAM, 0, "new rows are the mean of the others", mean),
    (r"(.*\.)?pos\.weight", 0, "new rows repeat the first ones", repeated),
    (r".*\.(ff|moe)\.(shared\.)?(up|gate)\.weight", -2, "new rows are initialised", None),
    (r".*\.(ff|moe)\.(shared\.)?(up|gate)\.bias", -1, "new numbers are initialised", None),
    (r".*\.(ff|moe)\.(shared\.)?down\.weight", -1, "new columns are zero", zero),
    (r".*\.ff\.fn\.gain\.weight", 0, "new numbers are one", None),
    (r".*\.fn\.to_out\.project" + PARAM, 0, "the gate is new", None),
    (r"(.*\.)?attn_layers\.residual\.weight", 0, "new rows are one", None),
)


def _padded(name: str, source: str, there: Tensor, here: Tensor) -> Fill | None:
    for pattern, dim, how, rest in GROWS:
        if re.fullmatch(pattern, name) and there.dim() == here.dim():
            shape = list(here.shape)
            shape[dim] = there.shape[dim]
            return Fill(source, there, how, rest) if shape == list(there.shape) else None
    return None


def _by_head(name: str, source: str, there: Tensor, old: Tensors, new: Tensors) -> Fill | None:
    """Parts of attention by head, in models with other numbers of heads."""
    found = re.fullmatch(
        r"(enc\.|dec\.)?(?:layers\.\d+\.(attn|cross)\.(q|k|v|o|q_norm|k_norm|sinks)(?:" + PARAM + ")?"
        r"|attn_layers\.position_bias\.(table|out\.weight|out\.bias))",
        name,
    )
    if found is None:
        return None
    heads = head_map(old, new, found[1] or "", found[2] == "cross")
    part = found[3] or found[5]
    if heads is None:
        return None
    if part in ("k", "v", "k_norm"):
        return Fill(
            source, mapped_groups(there, heads), "mean of heads" if heads.averages else "heads repeated"
        )
    if part == "o":
        return Fill(source, divided_heads(there, heads), "columns of heads copied and divided")
    return Fill(source, mapped_heads(there, heads, 1 if part == "table" else 0), "heads copied")


def head_map(old: Tensors, new: Tensors, plain: str, cross: bool) -> HeadMap | None:
    """The map of heads of a stack; None where there is none."""
    prefix = plain.replace(".", "_")
    before, after = (head_counts(tensors.settings, prefix, cross) for tensors in (old, new))
    if before is None or after is None or before == after:
        return None
    return HeadMap.of(before, after)
