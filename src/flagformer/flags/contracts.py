"""What a class, module or function must offer to fill a slot, read from the slot's known fillers."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flagformer.flags.errors import Finding, FlagError
from flagformer.flags.registry import Registry
from flagformer.flags.spec import Instance, Spec

MANUAL = "`Fillers of your own` in docs/flags.md"


@dataclass(frozen=True)
class Contract:
    """What the model calls on the filler of a slot.

    Attributes:
        base: the class that all known fillers share.
        module: `nn.Module` where fillers must be modules; None where any object serves.
        built: the arguments of a filler's constructor, by position.
        methods: each method of `base`, and its arguments by position.
        names: what else must be there on an instance.
    """

    base: type
    module: type | None
    built: tuple[str, ...]
    methods: Mapping[str, tuple[str, ...]]
    names: frozenset[str]

    @property
    def call(self) -> str:
        """The one method of a contract that a plain function can meet; empty for other contracts."""
        return "" if self.names or len(self.methods) != 1 else next(iter(self.methods))

    @property
    def home(self) -> str:
        return f"{self.base.__module__}.{self.base.__name__}"


@functools.lru_cache(maxsize=128)
def contract_of(registry: Registry, slot: str) -> Contract:
    """The contract of a slot: its abstract class, or the class of its one filler."""
    classes = [item.cls for item in registry.in_slot(slot)]
    shared = [one for one in classes[0].__mro__ if all(issubclass(other, one) for other in classes)]
    abstract = [one for one in shared if getattr(one, "__abstractmethods__", None)]
    base = (abstract or shared)[0]
    own = {name: value for name, value in vars(base).items() if _is_public(name)}
    methods = {name: _positional(value)[1:] for name, value in own.items() if inspect.isfunction(value)}
    names = {name for name in [*own, *inspect.get_annotations(base)] if _is_public(name)}
    names -= {*methods, "component"}
    if set(methods) in ({"forward"}, {"__call__"}):  # the model asks for the rest with a standard value
        names -= {name for name, value in own.items() if not isinstance(value, property)}
    built = max((_positional(cls) for cls in classes), key=len)
    return Contract(base, _module_class(base), built, methods, frozenset(names))


def filler_fault(contract: Contract, filler: Spec | Instance) -> str:
    """Why a filler cannot be what fills the slot; empty where none is known before it is built."""
    if isinstance(filler, Instance):
        return object_fault(contract, filler.module)
    if not isinstance(filler.params, Mapping) or not all(isinstance(name, str) for name in filler.params):
        return f"Spec has the params {filler.params!r}: give a dictionary of names"
    if isinstance(filler.cls, type):
        return class_fault(contract, filler.cls, filler.params)
    return "" if _is_function(filler.cls) else f"Spec holds {filler.cls!r}, which is no class"


def class_fault(contract: Contract, cls: type, params: Mapping[str, Any]) -> str:
    """Why instances of a class cannot fill the slot; empty where nothing is known against it."""
    if contract.module is not None and not issubclass(cls, contract.module):
        return f"{cls.__name__} is no nn.Module"
    fault = _binding(cls, contract.built, params)
    if fault:
        shown = (*contract.built, *(f"{name}={value!r}" for name, value in params.items()))
        return f"{_called(cls.__name__, shown)}, as it is built, fails: {fault}"
    missing = [name for name in contract.methods if not _implements(cls, name)]
    if missing:
        return f"{cls.__name__} has no {_listed(missing)}"
    return _calls(contract, cls, cls.__name__)


def object_fault(contract: Contract, value: Any) -> str:
    """Why an object, built or given, cannot fill the slot; empty where nothing is known against it."""
    name = getattr(value, "__name__", type(value).__name__) if hasattr(value, "__dict__") else ""
    subject = name or f"is {value!r}, which"
    if isinstance(value, functools.partial) and isinstance(value.func, type):
        return f"functools.partial makes a {value.func.__name__} of what it gets: give a Spec of the class"
    if contract.call and _is_function(value):
        fault = _binding(value, contract.methods[contract.call])
        return f"{_called(name, contract.methods[contract.call])} fails: {fault}" if fault else ""
    if contract.module is not None and not isinstance(value, contract.module):
        return f"{subject} is no nn.Module"
    own = getattr(value, "__dict__", {})
    missing = [
        name
        for name in contract.methods
        if _defined(name, type(value)) not in own and not _implements(type(value), name)
    ]
    missing += [one for one in sorted(contract.names) if not hasattr(value, one)]
    return f"{subject} has no {_listed(missing)}" if missing else _calls(contract, value, name)


@dataclass(frozen=True)
class Place:
    """A slot as it was typed, and the contract of what fills it."""

    typed: str
    contract: Contract

    def finding(self, fault: str) -> Finding:
        what = f"`{self.typed}` must be a Spec, a class or a module that fills the slot, but {fault}"
        way = "" if self.contract.call else f"derive a class from {self.contract.home}, "
        return Finding(self.typed, f"{what}; {way}see {MANUAL}")

    def build(self, cls: Callable[..., Any], shapes: Sequence[Any], params: Mapping[str, Any]) -> Any:
        """An instance; FlagError where it cannot be built of `shapes`, or does not meet the contract."""
        try:
            built = cls(*shapes, **params)
        except (TypeError, AttributeError) as error:
            shown = _called(cls.__name__, self.contract.built)
            raise FlagError([self.finding(f"{shown}, as it is built, fails: {error}")]) from error
        fault = object_fault(self.contract, built)
        if fault:
            raise FlagError([self.finding(fault)])
        return built


def _is_function(value: Any) -> bool:
    return inspect.isroutine(value) or isinstance(value, functools.partial)


def _is_public(name: str) -> bool:
    return name == "__call__" or not name.startswith("_")


def _module_class(cls: type) -> type | None:
    """`nn.Module` among the bases of a class, found without importing torch."""
    return next((one for one in cls.__mro__ if one.__module__ == "torch.nn.modules.module"), None)


def _positional(function: Callable[..., Any]) -> tuple[str, ...]:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return tuple(name for name, one in inspect.signature(function).parameters.items() if one.kind in kinds)


def _implements(cls: type, name: str) -> bool:
    """Whether a class has a method that is neither abstract nor the `forward` that `nn.Module` raises in."""
    module = _module_class(cls)
    found = _static(cls, _defined(name, cls))
    unset = module is not None and found is vars(module).get("forward")
    return found is not None and not unset and not getattr(found, "__isabstractmethod__", False)


def _defined(method: str, cls: type) -> str:
    """The method to write for a call: a module's is `forward`."""
    return "forward" if method == "__call__" and _module_class(cls) is not None else method


def _static(cls: type, name: str) -> Any:
    """An attribute of a class as it stands in its body, or None; those of its metaclass are not its own."""
    return next((vars(one)[name] for one in cls.__mro__ if name in vars(one)), None)


def _binding(
    function: Callable[..., Any], names: tuple[str, ...], params: Mapping[str, Any] | None = None
) -> str:
    """Why a function cannot be called with that many arguments; empty where it can, or shows no signature."""
    try:
        inspect.signature(function).bind(*names, **(params or {}))
    except ValueError:  # written in C: it shows none
        return ""
    except TypeError as error:
        return str(error)
    return ""


def _calls(contract: Contract, filler: Any, name: str) -> str:
    """The first method that cannot be called as the model calls it."""
    faults = (
        f"{name}.{_called(method, names)} fails: {fault}"
        for method, names in contract.methods.items()
        for fault in [_binding(*_bound(filler, method, names))]
        if fault
    )
    return next(faults, "")


def _bound(filler: Any, method: str, names: tuple[str, ...]) -> tuple[Callable[..., Any], tuple[str, ...]]:
    """A method, and what it is called with: `self` too where it is looked up on a class."""
    of_class = isinstance(filler, type)
    method = _defined(method, filler if of_class else type(filler))
    plain = of_class and not isinstance(_static(filler, method), (staticmethod, classmethod))
    return getattr(filler, method), ("self", *names) if plain else names


def _called(name: str, names: tuple[str, ...]) -> str:
    return f"{name}({', '.join(names)})"


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
