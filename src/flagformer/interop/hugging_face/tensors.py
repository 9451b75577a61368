"""Rules between tensors of a file and of a model: pairs of views, so that loading copies one way and saving
the other, no rule is written twice and no bit changes.

A rule is a name with the placeholders {i} (layer), {e} (expert) and {p} ("weight" or "bias"), or one of the
classes below, which nest: `Transposed(Cat("layers.{i}.attn.q.{p}", ...))`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from flagformer.interop.hugging_face.parts import Tensors

Place = Mapping[str, Any]  # the values of the placeholders
Shape = tuple[int, ...]
# (view into the file's tensor, view into the model's, plain name of the model's; "" for a constant)
Pair = tuple[Tensor, Tensor, str]


class Rule:
    """Contract of a rule."""

    def names(self) -> list[str]:
        """Plain names with placeholders of the model's tensors."""
        raise NotImplementedError

    def chosen(self, own: Tensors, place: Place) -> Rule:
        """The rule that fits a model."""
        return self

    def shape(self, own: Tensors, place: Place) -> Shape:
        """The shape of the file's tensor."""
        raise NotImplementedError

    def pairs(self, file: Tensor, own: Tensors, place: Place) -> Iterator[Pair]:
        raise NotImplementedError


class One(Rule):
    """A tensor by name, or one of a stack: "layers.{i}.ff.up.weight[{e}]"."""

    def __init__(self, text: str) -> None:
        self.name, _, row = text.partition("[")
        self.row = row.removesuffix("]")

    def names(self) -> list[str]:
        return [self.name]

    def _own(self, own: Tensors, place: Place) -> Tensor:
        tensor = own(self.name.format(**place))
        return tensor[int(self.row.format(**place))] if self.row else tensor

    def shape(self, own: Tensors, place: Place) -> Shape:
        return tuple(self._own(own, place).shape)

    def pairs(self, file: Tensor, own: Tensors, place: Place) -> Iterator[Pair]:
        yield file, self._own(own, place), self.name.format(**place)


class OfHead(One):
    """The weights [K] of one head in the file, of [H * K] in the model.

    Args:
        head: the placeholder of the head's number, "h" (queries) or "g" (keys and values).
    """

    def __init__(self, text: str, head: str) -> None:
        super().__init__(text)
        self.head = head

    def _own(self, own: Tensors, place: Place) -> Tensor:
        return super()._own(own, place).view(-1, own.settings["attn_dim_head"])[place[self.head]]


class Constant(Rule):
    """A number in the file that the class stores and never changes.

    Args:
        value: the number.
        near: the name of a tensor of the same layer of the model; the number has its dtype.
    """

    def __init__(self, value: float, near: str) -> None:
        self.value, self.near = value, near

    def names(self) -> list[str]:
        return [self.near]

    def shape(self, own: Tensors, place: Place) -> Shape:
        return ()

    def pairs(self, file: Tensor, own: Tensors, place: Place) -> Iterator[Pair]:
        yield file, torch.full_like(file, self.value), ""


class _Around(Rule):
    """Base of rules around another."""

    def __init__(self, part: Rule | str) -> None:
        self.part = as_rule(part)

    def names(self) -> list[str]:
        return self.part.names()


class Transposed(_Around):
    """Matrices [I, O] in the file, as those of `Conv1D`; biases are as they are."""

    def shape(self, own: Tensors, place: Place) -> Shape:
        shape = self.part.shape(own, place)
        return (*shape[:-2], shape[-1], shape[-2]) if len(shape) > 1 else shape

    def pairs(self, file: Tensor, own: Tensors, place: Place) -> Iterator[Pair]:
        yield from self.part.pairs(file.transpose(-1, -2) if file.dim() > 1 else file, own, place)


class Row(_Around):
    """[1, N] in the file, [N] in the model."""

    def shape(self, own: Tensors, place: Place) -> Shape:
        return (1, *self.part.shape(own, place))

    def pairs(self, file: Tensor, own: Tensors, place: Place) -> Iterator[Pair]:
        yield from self.part.pairs(file[0], own, place)


class Patches(_Around):
    """The weights of a convolution [D, C, height, width] in the file, [D, height * width * C] here."""

    def shape(self, own: Tensors, place: Place) -> Shape:
        size = own.settings["patch_size"]
        pixels = (size, size) if isinstance(size, int) else tuple(size)
        return (self.part.shape(own, place)[0], own.settings["channels"], *pixels)

    def pairs(self, file: Tensor, own: Tensors, place: Place) -> Iterator[Pair]:
        for there, here, name in self.part.pairs(file.permute(0, 2, 3, 1), own, place):
            yield there, here.unflatten(1, there.shape[1:]), name


class Either(Rule):
    """The first of several rules whose tensors the model has."""

    def __init__(self, *parts: Rule | str) -> None:
        self.parts = [as_rule(part) for part in parts]

    def names(self) -> list[str]:
        return self.parts[0].names()

    def chosen(self, own: Tensors, place: Place) -> Rule:
        for part in self.parts:
            if all(name.format(**place) in own for name in part.names()):
                return part
        return self.parts[0]


class Column(_Around):
    """[C, 1, W] in the file, as weights of `Conv1d`, [C, W] in the model."""

    def shape(self, own: Tensors, place: Place) -> Shape:
        channels, width = self.part.shape(own, place)
        return (channels, 1, width)

    def pairs(self, file: Tensor, own: Tensors, place: Place) -> Iterator[Pair]:
        yield from self.part.pairs(file[:, 0], own, place)


class ByHead(_Around):
    """[H K, ...] in the model as [H, K, ...], for `PerHead`."""

    def shape(self, own: Tensors, place: Place) -> Shape:
        rows, *rest = self.part.shape(own, place)
        heads = own.settings["heads"]
        return (heads, rows // heads, *rest)

    def pairs(self, file: Tensor, own: Tensors, place: Place) -> Iterator[Pair]:
        for there, here, name in self.part.pairs(file, own, place):
            yield there, here.unflatten(0, (own.settings["heads"], -1)), name


class JoinedGroups(_Around):
    """[G * n, ...] in the file, [G, n, ...] in the model, by group of heads of a mixer."""

    def shape(self, own: Tensors, place: Place) -> Shape:
        groups, rows, *rest = self.part.shape(own, place)
        return (groups * rows, *rest)

    def pairs(self, file: Tensor, own: Tensors, place: Place) -> Iterator[Pair]:
        groups = self.part.shape(own, place)[0]
        yield from self.part.pairs(file.unflatten(0, (groups, -1)), own, place)


class Flat(_Around):
    """[H, K] in the file, [H * K] in the model; K is the width of a head."""

    def shape(self, own: Tensors, place: Place) -> Shape:
        (count,) = self.part.shape(own, place)
        width = own.settings["attn_dim_head"]
        return (count // width, width)

    def pairs(self, file: Tensor, own: Tensors, place: Place) -> Iterator[Pair]:
        yield from self.part.pairs(file.flatten(), own, place)


class Cat(Rule):
    """Several tensors, concatenated in the file."""

    def __init__(self, *parts: Rule | str, dim: int = 0) -> None:
        self.parts, self.dim = [as_rule(part) for part in parts], dim

    def names(self) -> list[str]:
        return [name for part in self.parts for name in part.names()]

    def _shapes(self, own: Tensors, place: Place) -> list[Shape]:
        return [part.shape(own, place) for part in self.parts]

    def shape(self, own: Tensors, place: Place) -> Shape:
        shapes = self._shapes(own, place)
        whole = list(shapes[0])
        whole[self.dim] = sum(shape[self.dim] for shape in shapes)
        return tuple(whole)

    def pairs(self, file: Tensor, own: Tensors, place: Place) -> Iterator[Pair]:
        sizes = [shape[self.dim] for shape in self._shapes(own, place)]
        for part, piece in zip(self.parts, file.split(sizes, self.dim)):
            yield from part.pairs(piece, own, place)


class Zip(Cat):
    """Several tensors of equal shape, whose rows alternate in the file (rows: the dimension `dim`)."""

    def pairs(self, file: Tensor, own: Tensors, place: Place) -> Iterator[Pair]:
        rows = file.unflatten(self.dim, (-1, len(self.parts)))
        for index, part in enumerate(self.parts):
            yield from part.pairs(rows.select(self.dim + 1, index), own, place)


class PerHead(Cat):
    """Tensors [H, n, ...], concatenated in each head: [H * (n + m), ...] in the file."""

    def __init__(self, *parts: Rule | str) -> None:
        super().__init__(*parts, dim=1)

    def shape(self, own: Tensors, place: Place) -> Shape:
        heads, width, *rest = super().shape(own, place)
        return (heads * width, *rest)

    def pairs(self, file: Tensor, own: Tensors, place: Place) -> Iterator[Pair]:
        heads = super().shape(own, place)[0]
        yield from super().pairs(file.unflatten(0, (heads, -1)), own, place)


class Groups(Cat):
    """Queries, keys and values by group of heads: the queries of each key head, its key, its value."""

    def pairs(self, file: Tensor, own: Tensors, place: Place) -> Iterator[Pair]:
        settings = own.settings
        groups, width = settings["attn_kv_heads"], settings["attn_dim_head"]
        per = settings["heads"] // groups
        heads = file.unflatten(0, (groups, per + 2, width))
        pieces = (heads[:, :per], heads[:, per], heads[:, per + 1])
        for index, (part, piece) in enumerate(zip(self.parts, pieces)):
            [(_, tensor, name)] = part.pairs(piece, own, place)
            yield piece, tensor.unflatten(0, (groups, width) if index else (groups, per, width)), name


def as_rule(part: Rule | str) -> Rule:
    return One(part) if isinstance(part, str) else part
