"""Contracts of slots: the base class, constructor arguments and methods that a component must have.

They are derived from the components of the catalogue.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flagformer.flags.errors import Finding, FlagError, nearest
from flagformer.flags.registry import Registry
from flagformer.flags.slots import SLOTS
from flagformer.flags.spec import Instance, Spec, asks_place

MANUAL = "`Your own components` in docs/flags.md"


@dataclass(frozen=True)
class Contract:
    """The interface of the components of a slot.

    Attributes:
        base: the base class of all known components.
        module: `nn.Module` where components must be modules; None where any object is accepted.
        built: the positional arguments of the constructor.
        methods: each method of `base`, with its positional arguments.
        names: further attributes that an instance must have.
    """

    base: type
    module: type | None
    built: tuple[str, ...]
    methods: Mapping[str, tuple[str, ...]]
    names: frozenset[str]

    @property
    def call(self) -> str:
        """The only method, which a plain function can implement; empty for contracts with more members."""
        return "" if self.names or len(self.methods) != 1 else next(iter(self.methods))

    @property
    def home(self) -> str:
        return f"{self.base.__module__}.{self.base.__name__}"


@functools.lru_cache(maxsize=128)
def contract_of(registry: Registry, slot: str) -> Contract:
    """Return the contract of a slot: its abstract class, or the class of its only component."""
    classes = [item.cls for item in registry.in_slot(slot)]
    shared = [one for one in classes[0].__mro__ if all(issubclass(other, one) for other in classes)]
    abstract = [one for one in shared if getattr(one, "__abstractmethods__", None)]
    base = (abstract or shared)[0]
    own = {name: value for name, value in vars(base).items() if _is_public(name)}
    methods = {name: _positional(value)[1:] for name, value in own.items() if inspect.isfunction(value)}
    names = {name for name in [*own, *inspect.get_annotations(base)] if _is_public(name)}
    names -= {*methods, "component"}
    if set(methods) in ({"forward"}, {"__call__"}):  # other attributes have defaults
        names -= {name for name, value in own.items() if not isinstance(value, property)}
    built = max((_positional(cls) for cls in classes), key=len)
    return Contract(base, _module_class(base), built, methods, frozenset(names))


def contract_error(contract: Contract, choice: Spec | Instance) -> str:
    """Return how a component breaks the contract; empty if no violation shows before it is built."""
    if isinstance(choice, Instance):
        return object_error(contract, choice.module)
    if not isinstance(choice.params, Mapping) or not all(isinstance(name, str) for name in choice.params):
        return f"Spec has the params {choice.params!r}: pass a dictionary with parameter names as keys"
    if isinstance(choice.cls, type):
        return class_error(contract, choice.cls, choice.params)
    return "" if _is_function(choice.cls) else f"Spec holds {choice.cls!r}, which is not a class"


def class_error(contract: Contract, cls: type, params: Mapping[str, Any]) -> str:
    """Return how a class breaks the contract; empty if no violation is found."""
    if contract.module is not None and not issubclass(cls, contract.module):
        return f"{cls.__name__} is not an nn.Module"
    given = {"place": None, **params} if asks_place(cls) else params
    if unknown := _unknown_parameter(cls, params):
        return unknown
    error = _signature_error(cls, contract.built, given)
    if error:
        shown = (*contract.built, *(f"{name}={value!r}" for name, value in params.items()))
        return f"the call {_called(cls.__name__, shown)} fails: {error}"
    missing = [name for name in contract.methods if not _implements(cls, name)]
    if missing:
        return f"{cls.__name__} has no {_listed(missing)}"
    return _method_error(contract, cls, cls.__name__)


def _unknown_parameter(cls: type, params: Mapping[str, Any]) -> str:
    """Return the error of a parameter that the constructor does not have; empty if all are known."""
    try:
        known = inspect.signature(cls).parameters
    except ValueError:  # classes written in C may have no signature
        return ""
    if any(one.kind is inspect.Parameter.VAR_KEYWORD for one in known.values()):
        return ""
    unknown = next((name for name in params if name not in known), None)
    if unknown is None:
        return ""
    own = [name for name, one in known.items() if one.kind is inspect.Parameter.KEYWORD_ONLY]
    hint = nearest(unknown, known).removesuffix("?") or (f"; it has {', '.join(own)}" if own else "")
    return f"{cls.__name__} has no parameter {unknown!r}{hint}"


def place_error(slot: str, choice: Spec | Instance) -> str:
    """Return the error of a component that asks for a `place` in a slot that has none; else empty."""
    if isinstance(choice, Instance) or SLOTS[slot].has_place or not asks_place(choice.cls):
        return ""
    return f"{choice.name} asks for a `place`, which components of sublayers and norms have"


def object_error(contract: Contract, value: Any) -> str:
    """Return how an object breaks the contract; empty if no violation is found."""
    name = getattr(value, "__name__", type(value).__name__) if hasattr(value, "__dict__") else ""
    subject = name or f"is {value!r}, which"
    if isinstance(value, functools.partial) and isinstance(value.func, type):
        return f"functools.partial returns a new {value.func.__name__} at each call: pass a Spec of the class"
    if contract.call and _is_function(value):
        error = _signature_error(value, contract.methods[contract.call])
        return f"the call {_called(name, contract.methods[contract.call])} fails: {error}" if error else ""
    if contract.module is not None and not isinstance(value, contract.module):
        return f"{subject} is not an nn.Module"
    own = getattr(value, "__dict__", {})
    missing = [
        name
        for name in contract.methods
        if _defined(name, type(value)) not in own and not _implements(type(value), name)
    ]
    missing += [one for one in sorted(contract.names) if not hasattr(value, one)]
    return f"{subject} has no {_listed(missing)}" if missing else _method_error(contract, value, name)


@dataclass(frozen=True)
class UserSlot:
    """A slot that a user fills.

    Attributes:
        typed: its name as typed.
        layer: the layer of the component in a list by layer.
    """

    typed: str
    contract: Contract
    layer: int | None = None

    def finding(self, error: str) -> Finding:
        where = "" if self.layer is None else f" at layer {self.layer}"
        wanted = "must be a Spec, a class or a module that meets the slot's contract"
        text = f"`{self.typed}`{where} {wanted}, but {error}"
        fix = "" if self.contract.call else f"derive a class from {self.contract.home}, "
        return Finding(self.typed, f"{text}; {fix}see {MANUAL}")

    def build(self, cls: Callable[..., Any], shapes: Sequence[Any], params: Mapping[str, Any]) -> Any:
        """Return `cls(*shapes, **params)`; raise FlagError if that fails or breaks the contract."""
        try:
            built = cls(*shapes, **params)
        except (TypeError, AttributeError) as error:
            shown = _called(cls.__name__, self.contract.built)
            raise FlagError([self.finding(f"the call {shown} fails: {error}")]) from error
        violation = object_error(self.contract, built)
        if violation:
            raise FlagError([self.finding(violation)])
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
    """Whether a class implements a method; the `forward` of `nn.Module`, which raises, does not count."""
    module = _module_class(cls)
    found = _static(cls, _defined(name, cls))
    unset = module is not None and found is vars(module).get("forward")
    return found is not None and not unset and not getattr(found, "__isabstractmethod__", False)


def _defined(method: str, cls: type) -> str:
    """Return the name of the method to define: `forward` for the call of a module."""
    return "forward" if method == "__call__" and _module_class(cls) is not None else method


def _static(cls: type, name: str) -> Any:
    """Return an attribute from the class bodies of the MRO, or None; the metaclass is not searched."""
    return next((vars(one)[name] for one in cls.__mro__ if name in vars(one)), None)


def _signature_error(
    function: Callable[..., Any], names: tuple[str, ...], params: Mapping[str, Any] | None = None
) -> str:
    """Return why a call with these arguments fails; empty if it is valid or the signature is unknown."""
    try:
        inspect.signature(function).bind(*names, **(params or {}))
    except ValueError:  # functions written in C may have no signature
        return ""
    except TypeError as error:
        return str(error)
    return ""


def _method_error(contract: Contract, component: Any, name: str) -> str:
    """Return the error of the first method that does not accept the arguments of the contract."""
    more = ("side",) if _reads_side(contract, component) else ()
    errors = (
        f"the call {name}.{_called(method, names)} fails: {error}"
        for method, names in ((method, (*names, *more)) for method, names in contract.methods.items())
        for error in [_signature_error(*_bound(component, method, names))]
        if error
    )
    return next(errors, "")


def _reads_side(contract: Contract, component: Any) -> bool:
    """Whether a norm or a branch declares that it also takes the inputs of its sublayer."""
    return hasattr(contract.base, "reads_side") and bool(getattr(component, "reads_side", False))


def _bound(component: Any, method: str, names: tuple[str, ...]) -> tuple[Callable[..., Any], tuple[str, ...]]:
    """Return a method and the names of its arguments, with `self` where it is looked up on a class."""
    of_class = isinstance(component, type)
    method = _defined(method, component if of_class else type(component))
    unbound = of_class and not isinstance(_static(component, method), (staticmethod, classmethod))
    return getattr(component, method), ("self", *names) if unbound else names


def _called(name: str, names: tuple[str, ...]) -> str:
    return f"{name}({', '.join(names)})"


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
