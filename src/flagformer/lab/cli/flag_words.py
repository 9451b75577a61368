"""The description of a flag, collected from the components that declare it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from flagformer.flags import CATALOGUE, SLOTS, Component
from flagformer.flags.names import CROSS, canonical
from flagformer.flags.slots import PER_LAYER
from flagformer.flags.values import type_name


@dataclass(frozen=True)
class Card:
    """The documentation of one flag.

    Attributes:
        kind: its type and its limits.
        standard: its default, as typed.
        slot: the slot it fills or tunes.
        papers: where it comes from.
        rules: what it needs and what it cannot be combined with, a sentence each.
    """

    name: str
    doc: str
    kind: str
    standard: str
    slot: str
    papers: tuple[str, ...] = ()
    rules: tuple[str, ...] = ()

    def holds(self, word: str) -> bool:
        text = " ".join((self.name, self.doc, self.slot, *self.papers)).lower()
        return word.lower() in text


def cards() -> list[Card]:
    """All flags: `model` first, then in the order of the catalogue."""
    return [_model_card(), *(card_of(name) for name in CATALOGUE.names())]


def find(word: str) -> tuple[list[Card], bool]:
    """The flag of that name and True, or all flags whose text contains the word and False."""
    every = cards()
    name = canonical(word, CATALOGUE)
    exact = [card for card in every if card.name == name]
    return (exact, True) if exact else ([card for card in every if card.holds(word)], False)


def known_words() -> list[str]:
    """Names, and words in names, as suggestions for a misspelt one."""
    names = ["model", *CATALOGUE.names(), *SLOTS]
    names += [CROSS + name for name in CATALOGUE.crossed()]
    parts = [part for name in names for part in name.split("_") if len(part) > 2]
    return list(dict.fromkeys([*names, *parts]))


def card_of(name: str) -> Card:
    owners, selects = owners_of(name), CATALOGUE.selected_by(name)
    return Card(
        name=name,
        doc=_doc(name),
        kind=_kind(name),
        standard=standard(name),
        slot=owners[0].slot,
        papers=tuple(dict.fromkeys(item.paper for item in selects or owners if item.paper)),
        rules=tuple(rules_of(name)),
    )


def owners_of(name: str) -> list[Component]:
    """The components that a flag selects or tunes."""
    tuned = [item for item, _ in CATALOGUE.params_named(name)]
    return list(dict.fromkeys([*CATALOGUE.selected_by(name), *tuned]))


def rules_of(name: str) -> Iterable[str]:
    """Constraints and conflicts, in sentences."""
    selects = CATALOGUE.selected_by(name)
    yield from _only_with(name)
    for item in selects:
        yield from _alternatives(item)
        for need in item.requires:
            yield f"`{item.say()}` needs {need.say()}, because {need.reason}"
        yield from _unserved(item)
    scope = CATALOGUE.scope(name)
    if name in CATALOGUE.crossed():
        yield f"applies to self- and cross-attention; `{CROSS}{name}` sets cross-attention separately"
    if scope in PER_LAYER:
        yield "a tuple (a list in YAML) with one value per layer sets each layer"


def _only_with(name: str) -> Iterable[str]:
    """The selectors that a parameter needs."""
    if CATALOGUE.selected_by(name):
        return
    owners = [item for item, _ in CATALOGUE.params_named(name)]
    if owners and all(item.select for item in owners):
        says = " or ".join(f"`{item.say()}`" for item in owners)
        yield f"has an effect only with {says}; an error without"


def _alternatives(item: Component) -> Iterable[str]:
    """The alternatives of a slot that takes one component."""
    if SLOTS[item.slot].many:
        return
    others = [o for o in CATALOGUE.in_slot(item.slot) if o.select and o.select != item.select]
    if others:
        says = ", ".join(f"`{other.say()}`" for other in others)
        yield f"`{item.say()}` fills `{item.slot}`, which takes one component: cannot be combined with {says}"


def _unserved(item: Component) -> Iterable[str]:
    """The components that lack a need of this one, or have a need that it lacks."""
    for one in (one for one in CATALOGUE if one.select):
        for other in (other for other in CATALOGUE if item in (one, other)):
            for need in sorted(other.needs & one.lacks.keys()):
                apart = other if item is one else one
                yield f"`{item.say()}` cannot be combined with `{apart.say()}`, because {one.lacks[need]}"


def _kind(name: str) -> str:
    param = CATALOGUE.param(name)
    flag = param.flag
    said = type_name(param.type)
    if flag.choices:
        said = " | ".join(map(repr, flag.choices))
    if flag.ge is not None:
        said += f", at least {flag.ge:g}"
    if flag.lt is not None:
        said += f", below {flag.lt:g}"
    return said


def _doc(name: str) -> str:
    """The description of a parameter, or of what a selector selects, for each value if there are several."""
    selects = CATALOGUE.selected_by(name)
    tuned = [param.flag.doc for _, param in CATALOGUE.params_named(name)[:1]]
    whens = [f"{item.when!r}: " if item.when is not ... else "" for item in selects]
    chosen = [when + item.doc.rstrip(".") for when, item in zip(whens, selects, strict=True)]
    return "; ".join(tuned + chosen)


def standard(name: str) -> str:
    """The default as typed; for selectors the value that selects the default component."""
    declared = CATALOGUE.params_named(name)
    if any(param.required and item.select != name for item, param in declared):
        return "required"
    if declared:
        return repr(CATALOGUE.default_value(name))
    whens = [item.when for item in CATALOGUE.selected_by(name)]
    if len(whens) > 1:
        return "by need"
    return "False" if whens[0] is ... else repr(not whens[0])


def _model_card() -> Card:
    from flagformer.models.build import MODELS, ROUTING, WHOLE

    kinds: dict[str, type] = {**MODELS, **WHOLE, **ROUTING}
    docs = {kind: (cls.__doc__ or "").strip().splitlines()[0] for kind, cls in kinds.items()}
    doc = "; ".join(f"{kind}: {text.rstrip('.')}" for kind, text in docs.items())
    return Card("model", doc, " | ".join(map(repr, kinds)), repr(next(iter(MODELS))), "wrapper")
