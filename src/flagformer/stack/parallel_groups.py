"""The groups of sublayers of a plan that run in parallel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import nn

from flagformer.flags import Finding, FlagError, Resolved
from flagformer.flags.needs import declared
from flagformer.ops.identity import identity
from flagformer.residual import Residual
from flagformer.residual.parallel_streams import ParallelStreams


@dataclass(frozen=True)
class ParallelGroups:
    """The group of each sublayer module; without parallel ones each is a group of its own.

    Attributes:
        ids: the index of the group of each module, ascending.
        own_norms: whether each module of a group has its own input norm.
    """

    ids: tuple[int, ...]
    own_norms: bool = False

    @staticmethod
    def of(plan: Any) -> ParallelGroups:
        """The groups of a plan; plans of your own may have none."""
        ids = getattr(plan, "groups", range(len(plan.kinds)))
        return ParallelGroups(tuple(ids), getattr(plan, "own_norms", False))

    @property
    def are_parallel(self) -> bool:
        return len(set(self.ids)) < len(self.ids)

    @property
    def first(self) -> tuple[int, ...]:
        """The index of the first module of the group of each module."""
        return tuple(map(self.ids.index, self.ids))

    @property
    def is_last(self) -> tuple[bool, ...]:
        return (*(one != other for one, other in pairwise(self.ids)), True)

    @property
    def shares_norm(self) -> tuple[bool, ...]:
        """Whether each module shares the norm of its input with others."""
        return tuple(self.ids.count(group) > 1 and not self.own_norms for group in self.ids)

    def wrap_residual(self, residual: Residual) -> Residual:
        return ParallelStreams(residual, self.ids, self.is_last) if self.are_parallel else residual


def refuse_equal_norms(resolved: Resolved, sublayers: Sequence[Any], groups: ParallelGroups) -> None:
    """Raise FlagError for own norms where a sublayer has no norm of its input, or all of these are equal."""
    norms = [sublayer.in_norm for sublayer in sublayers]
    if not groups.own_norms or any(isinstance(norm, nn.Module) and norm.state_dict() for norm in norms):
        return
    slot, why = "norm", "norms without parameters are equal"
    if all(norm is identity for norm in norms):
        slot, why = "norm_position", "sublayers then read the stream without a norm"
    other = declared(slot, resolved.stack[slot][0]).say()
    text = f"`parallel_block_own_norms` and `{other}` cannot be combined, because {why}"
    raise FlagError([Finding("parallel_block_own_norms", f"{text}; leave `parallel_block_own_norms` out")])
