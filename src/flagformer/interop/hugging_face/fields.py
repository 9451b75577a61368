"""Rules between fields of a config and flags, in both directions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

from flagformer.interop.hugging_face.errors import ConversionError

Flags = dict[str, Any]
Config = dict[str, Any]
REQUIRED: Any = object()
FAULTS = (KeyError, IndexError, TypeError, ValueError, ArithmeticError, AttributeError)


@dataclass(frozen=True)
class Field:
    """One field, and one or several flags of its value.

    Attributes:
        flags: their names, separated by spaces.
        default: the default of the family's config class.
        values: a word of the field -> the value of the flags; None: the value itself.
        absent: flags -> the value that None stands for.
        also: the name of the field in other versions.
    """

    flags: str
    default: Any = REQUIRED
    values: Mapping[Any, Any] | None = None
    absent: Callable[[Flags], Any] | None = None
    also: str = ""

    def names(self, name: str) -> list[str]:
        return [name, self.also] if self.also else [name]

    def load(self, name: str, config: MutableMapping[str, Any], flags: Flags) -> None:
        """Remove the field from `config` and set its flags."""
        given = [config.pop(one) for one in self.names(name) if one in config]
        value = given[0] if given else self.default
        if value is REQUIRED and self.absent is None:
            raise ConversionError([f"config `{name}` is missing"])
        if value in (None, REQUIRED) and self.absent is not None:
            value = self.absent(flags)
        if self.values is not None:
            if not isinstance(value, str | bool | int | None) or value not in self.values:
                known = ", ".join(map(repr, self.values))
                raise ConversionError([f"config `{name}` must be one of {known}, but is {value!r}"])
            value = self.values[value]
        flags |= dict.fromkeys(self.flags.split(), value)

    def save(self, name: str, flags: Flags, config: Config) -> None:
        """Add the field to `config`."""
        flag = self.flags.split()[0]
        value = flags.get(flag)
        words = [] if self.values is None else [word for word, meant in self.values.items() if meant == value]
        nothing = value is None and self.default is not None and self.absent is None
        if isinstance(value, tuple) or (nothing if self.values is None else not words):
            raise ConversionError([f"flag `{flag}`: {value!r} has no place in config `{name}`"])
        config[name] = words[0] if words else value


@dataclass(frozen=True)
class Fields:
    """Several fields and several flags, by two functions.

    Attributes:
        fields: name -> default of the family's config class.
        to_flags: (values of the fields, flags so far) -> flags.
        to_fields: flags -> values of the fields.
        old: fields of earlier versions, which are read and never written.
    """

    fields: Mapping[str, Any]
    to_flags: Callable[[Config, Flags], Flags]
    to_fields: Callable[[Flags], Config]
    old: tuple[str, ...] = ()

    def names(self, name: str) -> list[str]:
        return [*self.fields, *self.old]

    def load(self, name: str, config: MutableMapping[str, Any], flags: Flags) -> None:
        """Remove the fields from `config` and set their flags."""
        given = {one: config.pop(one) for one in self.old if one in config}
        given = {one: config.pop(one, default) for one, default in self.fields.items()} | given
        try:
            flags |= self.to_flags(given, flags)
        except ConversionError:
            raise
        except FAULTS as error:
            shown = ", ".join(f"`{one}`: {value!r}" for one, value in given.items())
            text = f"config {shown} cannot be read ({type(error).__name__}: {error})"
            raise ConversionError([text]) from None

    def save(self, name: str, flags: Flags, config: Config) -> None:
        """Add the fields to `config`."""
        try:
            config |= self.to_fields(flags)
        except ConversionError:
            raise
        except FAULTS:
            shown = ", ".join(f"`{one}`" for one in self.fields)
            raise ConversionError([f"the flags of the model have no place in config {shown}"]) from None


FieldRule = str | Field | Fields


def as_field(rule: FieldRule) -> Field | Fields:
    return Field(rule) if isinstance(rule, str) else rule


def names(text: str) -> dict[str, Any]:
    """Plain renames, separated by commas: "hidden_size dim, num_hidden_layers depth"."""
    return dict(pair.split() for pair in text.split(",") if pair.strip())


def under(there: str, here: str, text: str) -> dict[str, Any]:
    """`names` with a prefix on each side."""
    return {there + name: here + own for name, own in names(text).items()}


def on(text: str) -> Flags:
    """Flags that are True."""
    return dict.fromkeys(text.split(), True)


def derived(rule: Callable[[Flags], Flags]) -> Fields:
    """Flags without a field of their own, which follow from other flags."""
    return Fields({}, lambda config, flags: rule(flags), lambda flags: {})


def activation(flags: str, default: str, more: Mapping[str, str] | None = None) -> Field:
    """A field with the name of an activation.

    Args:
        default: the word of the config class, which is also written where several mean the same.
        more: further words, or other meanings.
    """
    known = {
        "silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_new": "gelu_tanh",
        "gelu_pytorch_tanh": "gelu_tanh", "gelu_fast": "gelu_tanh", "relu": "relu", "relu2": "relu2",
        "quick_gelu": "quick_gelu", "tanh": "tanh", "sigmoid": "sigmoid", "mish": "mish",
    }  # fmt: skip
    known |= more or {}
    return Field(flags, default, {default: known[default], **known})


def square(name: str, default: float) -> Fields:
    """A field n that scales scores by n ** -0.5."""

    def save(flags: Flags) -> Config:
        number = flags["attn_scale"] ** -2
        near = round(number)
        return {name: near if abs(number - near) < 1e-6 * number else number}

    return Fields({name: default}, lambda config, flags: {"attn_scale": config[name] ** -0.5}, save)
