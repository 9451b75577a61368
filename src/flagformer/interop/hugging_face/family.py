"""A family of published models: one table for its config and its tensors, read in both directions."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any, NamedTuple

import torch

from flagformer.flags import CATALOGUE, FlagError
from flagformer.interop.hugging_face.errors import ConversionError
from flagformer.interop.hugging_face.fields import Config, FieldRule, Flags, as_field
from flagformer.interop.hugging_face.parts import Tensors, parts_of
from flagformer.interop.hugging_face.settings import Settings, at, settings_of
from flagformer.interop.hugging_face.tensors import Place, Rule, Shape, as_rule
from flagformer.models.build import build

# Fields without a part in the function of inference, in every family.
INERT = """architectures auto_map transformers_version dtype torch_dtype _name_or_path use_cache id2label
    label2id output_attentions output_hidden_states return_dict problem_type initializer_range bos_token_id
    eos_token_id pad_token_id attention_dropout output_router_logits router_aux_loss_coef classifier_dropout
    forced_eos_token_id chunk_size_feed_forward model_type tie_word_embeddings _attn_implementation"""
MUST = {"is_encoder_decoder": False, "is_decoder": False, "add_cross_attention": False, "pretraining_tp": 1}
TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id")
MOST = 1_000_000  # layers or experts
TensorTable = Mapping[str, Rule | str]


class Instance(NamedTuple):
    """A tensor of the file: its name, its rule, the values of the rule's placeholders, and its shape."""

    name: str
    rule: Rule
    place: Place
    shape: Shape


@dataclass(frozen=True)
class Family:
    """One model type of transformers.

    Attributes:
        model_type: `model_type` of its configs.
        architecture: the class that is written to `architectures`.
        fields: name of a config field -> flag, `Field` or `Fields`, in the order of reading. Names of rules
            that stand for no single field begin with a space or are empty.
        tensors: name in the file -> name in the model or rule; or a function of flags that returns them.
        fixed: flags that the family always has.
        must: fields that have one value.
        inert: fields without a part in the function, separated by spaces; `export` writes them back.
        tied: names in the file of the output projection and of the token embedding; the file decides.
        drop: regular expressions of tensors without a part in the function.
        prefix: of names, which files of bare models leave out.
        old: parts of names in earlier files -> those of today.
        also: other classes of transformers whose files the table reads.
        others: tables of other classes of the model type; `architectures` of the config selects one.
        written: fields that `export` always writes with these values.
        missing: what the table does not cover, for the documentation.
    """

    model_type: str
    architecture: str
    fields: Mapping[str, FieldRule]
    tensors: TensorTable | Callable[[Settings], TensorTable]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    must: Mapping[str, Any] = field(default_factory=dict)
    inert: str = ""
    tied: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    prefix: str = ""
    old: Mapping[str, str] = field(default_factory=dict)
    also: tuple[str, ...] = ()
    others: tuple[Family, ...] = ()
    written: Mapping[str, Any] = field(default_factory=dict)
    missing: str = ""

    @property
    def tied_flags(self) -> Flags:
        """The flags of a model whose output projection is the token embedding."""
        prefix = "dec_" if self.fixed.get("model") == "xtransformer" else ""
        return {f"{prefix}{name}": value for name, value in TIED.items()}

    @property
    def kind(self) -> str:
        """The flag `model`."""
        return str(self.fixed.get("model", "decoder"))

    def of_class(self, architectures: Any) -> Family:
        """The table of a class of transformers; ConversionError for one without a table.

        Args:
            architectures: that field of a config; without it, and for decoders, the first table is taken.
        """
        tables = (self, *self.others)
        if (self.kind == "decoder" and not self.others) or not architectures:
            return self
        said = architectures if isinstance(architectures, list) else [architectures]
        for table in tables:
            if table.architecture in said or set(table.also).intersection(map(str, said)):
                return table
        known = ", ".join(repr(name) for table in tables for name in (table.architecture, *table.also))
        raise ConversionError([f"config `architectures` must name one of {known}, but is {architectures!r}"])

    def of_kind(self, settings: Settings, architectures: Any) -> Family:
        """The table of a kind of model; the one of `architectures` where several are of it."""
        tables = [table for table in (self, *self.others) if table.kind == settings["model"]] or [self]
        classes = settings.get("num_classes")
        tables = [table for table in tables if ("num_classes" in table.fixed) == (classes is None)] or tables
        bare = bool(settings.get(BARE))
        tables = [table for table in tables if bool(table.fixed.get(BARE)) == bare] or tables
        said = (None, settings.get("pooling"))
        tables = [table for table in tables if table.fixed.get("pooling") in said] or tables
        named = [table for table in tables if table.architecture in (architectures or ())]
        return (named or tables)[0]

    def but(self, **kwargs: Any) -> Family:
        """A relative: entries are added or replaced, and `...` removes one."""
        for name in ("fields", "fixed", "must", "tensors"):
            if name in kwargs and isinstance(kwargs[name], dict):
                merged = {**getattr(self, name), **kwargs[name]}
                kwargs[name] = {key: value for key, value in merged.items() if value is not ...}
        return replace(self, **kwargs)

    def flags_of(self, config: Mapping[str, Any], most: int = MOST) -> Flags:
        """The flags of a config; a field that the table does not know raises ConversionError.

        Args:
            most: the largest number of layers and experts.
        """
        rest, why, flags = dict(config), [], dict(self.fixed)
        rules = {name: as_field(rule) for name, rule in self.fields.items()}
        read = {one for name, rule in rules.items() for one in rule.names(name)}
        for name in f"{INERT} {self.inert}".split():
            if name not in read:
                rest.pop(name, None)
        for name, value in {**MUST, **self.must}.items():
            given = rest.pop(name, value)
            if given != value:
                why.append(f"config `{name}` must be {value!r} in {self.model_type}, but is {given!r}")
        try:
            for name, rule in rules.items():
                rule.load(name, rest, flags)
                _refuse_many(flags, most)
        except ConversionError as error:  # later rules may need these flags
            raise ConversionError([*why, *error.reasons]) from None
        why += [
            f"config `{name}`: {value!r} is not known to the table of {self.model_type}"
            for name, value in rest.items()
        ]
        if why:
            raise ConversionError(why)
        return _without_defaults({"model": "decoder", **flags})

    def build(self, flags: Flags, device: str = "meta") -> Any:
        """The model of these flags; invalid ones raise ConversionError."""
        try:
            with torch.device(device):
                return build(flags)
        except FlagError as error:
            reasons = [f"config of {self.model_type}: {finding.message}" for finding in error.findings]
            raise ConversionError(reasons) from None
        except (RuntimeError, ArithmeticError, MemoryError, TypeError) as error:
            text = f"no model can be built from the sizes of the config of {self.model_type}"
            raise ConversionError([f"{text} ({error})"]) from None

    def config_of(self, settings: Settings, original: Mapping[str, Any] | None = None) -> Config:
        """The config of a model; flags that have no place raise ConversionError.

        Args:
            original: the config that the model was loaded from. Its words are kept where they still say the
                same, and token ids always.
        """
        mine = bool(original) and original.get("model_type") == self.model_type  # type: ignore[union-attr]
        rest = dict(original or {})
        if not mine:  # token ids of the config class may lie outside the vocabulary
            rest = {**{name: rest.get(name) for name in TOKENS}, **self.must}
        config: Config = {}
        for name, given in self.fields.items():
            rule = as_field(given)
            said = {one: rest.pop(one) for one in rule.names(name) if one in rest}
            own: Config = {}
            rule.save(name, settings, own)
            config |= said if mine and _says_the_same(rule, name, said, settings, own) else own
        config = {**rest, **config, "model_type": self.model_type, "architectures": [self.architecture]}
        if self.tied:
            config["tie_word_embeddings"] = self._is_tied(settings)
        config |= self.written
        self._refuse_changed(config, settings)
        return config

    def _is_tied(self, settings: Settings) -> bool:
        return bool(settings.get(next(iter(self.tied_flags))))

    def _refuse_changed(self, config: Config, settings: Settings) -> None:
        """Read the config again: what does not come back equal has no place."""
        flags = self.flags_of(json.loads(json.dumps(config)))
        if self.tied and self._is_tied(settings):
            flags |= self.tied_flags
        again = settings_of(self.build(flags))
        why = [
            f"flag `{name}`: {settings.get(name)!r} has no place in {self.model_type}, which would read"
            f" {again.get(name)!r}"
            for name in dict.fromkeys([*settings, *again])
            if settings.get(name) != again.get(name)
        ]
        if why:
            raise ConversionError(why)

    def instances(self, own: Tensors, most: int = MOST) -> list[Instance]:
        """The tensors of the file for these tensors of a model; what has no place raises ConversionError."""
        table = self.tensors(own.settings) if callable(self.tensors) else self.tensors
        why, found, placed = [], [], set()
        for pattern, target in table.items():
            for place in _places(pattern, own.settings, most):
                rule = as_rule(target).chosen(own, place)
                names = [name.format(**place) for name in rule.names()]
                there = [name in own for name in names]
                if all(there):
                    name = pattern.format(**place)
                    found.append(Instance(name, rule, place, rule.shape(own, place)))
                    placed.update(names)
                elif any(there):
                    why.append(
                        f"tensor `{pattern.format(**place)}` of {self.model_type} needs all of {names}"
                    )
        why += [
            f"tensor `{name}` has no place in {self.model_type}" for name in own.parts if name not in placed
        ]
        if why:
            raise ConversionError(why)
        return found


MANY = {"depth": "layers", "enc_depth": "layers", "dec_depth": "layers", "moe_num_experts": "experts"}
TIED = {"tie_embedding": True, "tie_embedding_scale": 1.0}
BARE = "return_only_embed"  # the flag of models without logits


def tensors_of(model: Any) -> Tensors:
    """The tensors of a model by plain name."""
    return Tensors(parts_of(model), model.state_dict(), settings_of(model))


def _places(pattern: str, settings: Settings, most: int) -> Iterator[Place]:
    """The values of the placeholders in a name."""
    depth = _depth(settings)
    experts = max((at(settings, "moe_num_experts", layer) or 0 for layer in range(depth)), default=0)
    over: dict[str, Any] = {
        "i": range(depth),
        "d": range(settings.get("dec_depth", 0)),
        "e": range(experts),
        "h": range(settings.get("heads") or 0),
        "g": range(settings.get("attn_kv_heads") or 0),
        "p": ("weight", "bias"),
    }
    keys = [key for key in over if f"{{{key}}}" in pattern]
    if any(len(over[key]) > most for key in keys):
        raise ConversionError([f"tensor `{pattern}` is needed more often than the files have tensors"])
    for values in product(*(over[key] for key in keys)):
        yield dict(zip(keys, values))


def _depth(settings: Settings) -> int:
    """The number of layers; with `custom_layers`, of sublayers."""
    if settings.get("custom_layers"):
        return len(settings["custom_layers"])
    depth: int = settings["depth"] if "depth" in settings else settings["enc_depth"]
    return depth


def _refuse_many(flags: Flags, most: int) -> None:
    for name, what in MANY.items():
        value = flags.get(name)
        if isinstance(value, int) and value > most:
            raise ConversionError(
                [f"the config has {value} {what}, more than the files have tensors ({most})"]
            )


def _without_defaults(flags: Flags) -> Flags:
    """Flags of unselected components may not be set, so that defaults are left out."""

    def is_default(name: str, value: Any) -> bool:
        if isinstance(value, tuple):
            return all(is_default(name, one) for one in value)
        name = name.removeprefix("enc_").removeprefix("dec_") if pair else name
        return value is None or (name in known and type(value) is not dict and value == default(name))

    known, default, pair = CATALOGUE.names(), CATALOGUE.default_value, flags["model"] == "xtransformer"
    return {name: value for name, value in flags.items() if not is_default(name, value)}


def _says_the_same(rule: Any, name: str, said: Config, settings: Settings, own: Config) -> bool:
    """Whether the fields of the original config are read as the flags of the model."""
    read, again = dict(settings), Config()
    try:
        rule.load(name, dict(said), read)
        rule.save(name, read, again)
    except ConversionError:
        return False
    return bool(again == own)
