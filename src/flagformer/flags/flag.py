"""Flags and components, and the decorator that declares them.

A component is a class that fills a slot. Its keyword-only constructor parameters with an annotation
`Annotated[type, Flag(name, doc)]` are its flags, which take their type and default from there.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

T = TypeVar("T", bound=type)
# What components may need, and others may lack.
NEEDS = {
    "scores": "the attention scores, as a tensor",
    "learned_bias": "a gradient for the position bias",
    "same_keys": "all heads attend to the same keys",
    "token_bias": "biases of scores that depend on the tokens between a query and a key",
    "all_pairs": "the scores of all query-key pairs",
    "own_keys": "separate projections of keys and queries",
    "cached_values": "values that are cached as they are",
    "value_rotation": "a rotation that also applies to values",
    "head_keys": "the keys of each head before their rotation",
    "carry": "tensors that pass from one sublayer to a later one",
    "stream": "a residual stream that changes by more than sums",
    "output_projection": "one output projection in a feedforward",
    "zero_output": "sublayers whose output is zero",
    "inserted_tokens": "tokens inserted between those of a row",
}
# `Component.when`: all values except None, False and 0 select the component.
ANY: Any = ...


@dataclass(frozen=True)
class Flag:
    """One setting.

    Args:
        name: as users type it, for example `rotary_emb_dim`.
        doc: one line, without the name.
        choices: the allowed values; empty: all values of the type.
        ge: numbers must be at least this.
        lt: numbers must be below this.
        example: a value for tests, with an effect on a small model and other than the default.
        example_with: further flags that tests set with it, apart from the selector of its component.
        neutral: the value for which a graft adds parameters that start without effect, such as biases of
            zero; `ANY`: all values; None: there is none.
    """

    name: str
    doc: str
    choices: tuple[Any, ...] = ()
    ge: float | None = None
    lt: float | None = None
    example: Any = None
    example_with: Mapping[str, Any] = field(default_factory=dict, hash=False)
    neutral: Any = None


@dataclass(frozen=True)
class Param:
    """A constructor parameter that is a flag."""

    argument: str
    flag: Flag
    type: Any
    default: Any
    required: bool


@dataclass(frozen=True)
class Requirement:
    """A value that another flag must have: `flag` must have `value`, for the given `reason`."""

    flag: str
    value: Any
    reason: str

    def say(self, prefix: str = "") -> str:
        """Return the requirement as a user types it."""
        return f"`{prefix}{self.flag}={self.value!r}`"


@dataclass(frozen=True)
class Component:
    """A class with its slot, the flag that selects it, and its requirements.

    Attributes:
        select: the flag that selects this component; None for the default of its slot.
        when: the value of `select` that selects it; `ANY`: all values except None, False and 0.
        needs: keys of `NEEDS` that all components of the same sublayer and of the stack must serve.
        lacks: the needs that it cannot serve, each with the reason.
        requires: values that other flags must have, each with its reason.
        kind: the kind of attention that it is for ("a" or "c"); empty: both.
    """

    cls: type
    slot: str
    select: str | None = None
    when: Any = ANY
    doc: str = ""
    paper: str = ""
    needs: frozenset[str] = frozenset()
    lacks: Mapping[str, str] = field(default_factory=dict, hash=False)
    requires: tuple[Requirement, ...] = ()
    kind: str = ""
    params: tuple[Param, ...] = field(default=(), compare=False)

    @property
    def name(self) -> str:
        return self.cls.__name__

    @property
    def starts_neutral(self) -> bool:
        """Whether a graft of it can keep the function of a model.

        Such a class has a method `init_neutral() -> float`, which sets its parameters so that the model
        computes the same as without it, except for the returned factor of its output: a graft divides the
        projection next to it by that. 0: not with these flags.
        """
        return hasattr(self.cls, "init_neutral")

    def is_selected_by(self, value: Any) -> bool:
        if self.when is ANY:
            return value is not None and value is not False and value != 0
        return type(value) is type(self.when) and value == self.when

    def say(self) -> str:
        """Return how a user selects this component: `pre_norm=False`, `rotary_pos_emb`."""
        if self.select is None:
            return self.name
        return self.select if self.when is ANY else f"{self.select}={self.when!r}"


def read_params(cls: type) -> tuple[Param, ...]:
    """Return the flags among the parameters of a constructor, in their order."""
    hints = get_type_hints(getattr(cls, "__init__"), include_extras=True)  # noqa: B009  mypy refuses `cls.__init__`
    params = []
    for argument, parameter in inspect.signature(cls).parameters.items():
        hint = hints.get(argument)
        if get_origin(hint) is not Annotated:
            continue
        kind, *extras = get_args(hint)
        for flag in (extra for extra in extras if isinstance(extra, Flag)):
            required = parameter.default is inspect.Parameter.empty
            params.append(Param(argument, flag, kind, None if required else parameter.default, required))
    return tuple(params)


def component(
    slot: str,
    *,
    select: str | None = None,
    when: Any = ANY,
    paper: str = "",
    needs: Iterable[str] = (),
    lacks: Mapping[str, str] = MappingProxyType({}),
    requires: Iterable[Requirement] = (),
    kind: str = "",
) -> Callable[[T], T]:
    """Declare that a class fills `slot`. It is registered only if the catalogue lists it.

    Raises:
        ValueError: for a need that `NEEDS` does not list.
    """
    unknown = sorted({*needs, *lacks} - NEEDS.keys())
    if unknown:
        raise ValueError(f"{unknown[0]!r} is not a need of a component; they are: {', '.join(NEEDS)}")

    def declare(cls: T) -> T:
        doc = (inspect.getdoc(cls) or "").split("\n\n")[0].replace("\n", " ")
        cls.component = Component(  # type: ignore[attr-defined]
            cls, slot, select, when, doc, paper, frozenset(needs), dict(lacks), tuple(requires),
            kind, read_params(cls),
        )  # fmt: skip
        return cls

    return declare
