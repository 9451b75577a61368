"""`flags/typed.py`: a TypedDict with the flags of AttentionLayers, for editors and type checkers."""

from __future__ import annotations

import textwrap
from typing import Any, Literal, get_args, get_origin

from flagformer.flags import LAYER_SCOPES, open_slots
from flagformer.lab.reference.entries import Entry, entries, with_crossed

WIDTH = 105
LONGEST = 80  # characters of a type of choices in an annotation
HEAD = '''"""The flags of AttentionLayers as a type, for editors and type checkers.

Generated from the catalogue by `python -m flagformer.lab.reference`; do not edit.
"""

from typing import Any, Literal, TypedDict


class Flags(TypedDict, total=False):
    """Every flag is optional here; a missing one raises `flagformer.FlagError` at construction."""

'''


def typed_source() -> str:
    """Return the text of the module: a field and its doc for each flag, then a field for each slot."""
    found = with_crossed(entries(LAYER_SCOPES))
    fields = [line for entry in found for line in _field(entry)]
    names = "".join(text for entry in found for text in _names(entry))
    slots = [slot.name for slot in open_slots(LAYER_SCOPES)]
    lines = ["    # a Spec, a class or a module in place of the component that the flags select"]
    lines += [f"    {name}: Any" for name in slots]
    return HEAD.replace("\n\nclass", f"{names}\n\nclass", 1) + "\n".join([*fields, *lines]) + "\n"


def _field(entry: Entry) -> list[str]:
    """Return the annotation and the docstring that follows it."""
    doc = f"{entry.param.flag.doc} (cross-attention only)" if entry.is_cross_form else entry.param.flag.doc
    text = textwrap.wrap(f'"""{doc}"""', WIDTH, initial_indent="    ", subsequent_indent="    ")
    return [*_annotation(entry.name, _type(entry)), *text]


def _annotation(name: str, kind: str) -> list[str]:
    """Return the annotation in one line, or in parentheses where it is too long."""
    if len(name) + len(kind) + 6 <= WIDTH + 5:
        return [f"    {name}: {kind}"]
    return [f"    {name}: (", f"        {kind}", "    )"]


def _names(entry: Entry) -> list[str]:
    """Return the types of choices that are too long for an annotation, each with a name."""
    return [
        f"\n{_name(entry)} = Literal[\n    {text.removeprefix('Literal[').removesuffix(']')}\n]\n"
        for text in (_type_text(kind) for kind in entry.kinds)
        if len(text) > LONGEST
    ]


def _name(entry: Entry) -> str:
    return "".join(word.capitalize() for word in entry.name.split("_"))


def _type(entry: Entry) -> str:
    plain = [_type_text(kind) for kind in entry.kinds if kind is not type(None)]
    plain = [_name(entry) if len(text) > LONGEST else text for text in plain]
    none = ["None"] if type(None) in entry.kinds else []
    layers = [f"tuple[{' | '.join([*plain, 'None'])}, ...]"] if entry.per_layer else []
    return " | ".join(plain + layers + none)


def _type_text(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return f"Literal[{', '.join(repr(value) for value in get_args(kind))}]".replace("'", '"')
    if get_origin(kind) is tuple:
        return f"tuple[{_type_text(get_args(kind)[0])}, ...]"
    if get_origin(kind) is dict:
        return f"dict[{', '.join(map(_type_text, get_args(kind)))}]"
    return str(kind.__name__)
