"""What a flag is, what a component is, and how a class declares both.

A component is a class that fills a slot. Its keyword-only constructor parameters, annotated with
`Annotated[type, Flag(name, doc)]`, are its flags: name, type, default and doc stand there once.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

T = TypeVar("T", bound=type)


@dataclass(frozen=True)
class Flag:
    """One setting as users type it.

    Args:
        name: the name users type, for example `rotary_emb_dim`.
        doc: one line, without the name.
        choices: the only values allowed; empty means any of the type.
        least: the smallest number allowed.
        below: numbers must stay under this one.
    """

    name: str
    doc: str
    choices: tuple[Any, ...] = ()
    ge: float | None = None
    lt: float | None = None


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
    """A declared constraint: `flag` must have `value`, because `reason`."""

    flag: str
    value: Any
    reason: str

    def say(self, prefix: str = "") -> str:
        """What is asked, as a user would type it."""
        name = f"{prefix}{self.flag}"
        return f"no `{name}`" if self.value is None else f"`{name}={self.value!r}`"


@dataclass(frozen=True)
class Component:
    """A class with its slot, the flag that selects it, and what it asks of others.

    Attributes:
        select: the flag that selects this filler; None for the one taken when nothing is said.
        when: the value of `select` that selects it; `...` means any value but None, False and 0.
        needs: what it asks of the attention kernel ("learned_bias", "scores") or the executor ("carry",
            "stream").
        supports: kernels and executors only: the needs this one can serve.
        requires: constraints that no rule can derive, each with its reason.
        kind: the only kind of attention that it fills ("a" or "c"); empty: both.
    """

    cls: type
    slot: str
    select: str | None = None
    when: Any = ...
    doc: str = ""
    paper: str = ""
    needs: frozenset[str] = frozenset()
    supports: frozenset[str] = frozenset()
    requires: tuple[Requirement, ...] = ()
    kind: str = ""
    params: tuple[Param, ...] = field(default=(), compare=False)

    @property
    def name(self) -> str:
        return self.cls.__name__

    def is_selected_by(self, value: Any) -> bool:
        if self.when is ...:
            return value is not None and value is not False and value != 0
        return type(value) is type(self.when) and value == self.when

    def say(self) -> str:
        """How a user selects this filler: `pre_norm=False`, `rotary_pos_emb`."""
        if self.select is None:
            return self.name
        return self.select if self.when is ... else f"{self.select}={self.when!r}"


def read_params(cls: type) -> tuple[Param, ...]:
    """The flags among a constructor's keyword parameters, in their order."""
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
    when: Any = ...,
    paper: str = "",
    needs: Iterable[str] = (),
    supports: Iterable[str] = (),
    requires: Iterable[Requirement] = (),
    kind: str = "",
) -> Callable[[T], T]:
    """Class decorator: declares that the class fills `slot`. The catalogue decides whether it is known."""

    def declare(cls: T) -> T:
        doc = (inspect.getdoc(cls) or "").split("\n\n")[0].replace("\n", " ")
        cls.component = Component(  # type: ignore[attr-defined]
            cls, slot, select, when, doc, paper, frozenset(needs), frozenset(supports), tuple(requires),
            kind, read_params(cls),
        )  # fmt: skip
        return cls

    return declare
