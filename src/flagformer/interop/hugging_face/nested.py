"""The text decoder of a checkpoint with several parts: Gemma 3, Llama 4, Mistral 3, LLaVA.

One rule: where the model type of a config has no table and the config has a `text_config`, the model is the
decoder of that config. Its tensors are those under `language_model` or `text_model`, and the output
projection; all others (images, sounds, projections between parts) are left out and named in
`model.source.dropped`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from flagformer.interop.hugging_face.errors import ConversionError
from flagformer.interop.hugging_face.families import families, family_of
from flagformer.interop.hugging_face.family import Family

TEXT = "text_config"
INSIDE = re.compile(r"(?:model\.)?(?:language_model|text_model)\.(.+)")
# Model types of text configs that say none.
USUAL = {"gemma3": "gemma3_text", "llama4": "llama4_text", "llava": "llama", "mistral3": "mistral"}
# Fields that the config around may set for its text.
SHARED = ("tie_word_embeddings", "pad_token_id", "bos_token_id", "eos_token_id")


class Part(NamedTuple):
    """The part of a checkpoint that is the model.

    Attributes:
        config: its config, with the fields that the whole config sets for it.
        family: the table of that config.
        nested: whether there are other parts.
    """

    config: Mapping[str, Any]
    family: Family
    nested: bool

    def names(self, files: Iterable[str]) -> dict[str, str]:
        """Name of a tensor of the part, as a file of the part alone has it -> name in the files."""
        if not self.nested:
            return {name: name for name in files}
        return {name: there for there in files for name in self._name(there)}

    def _name(self, there: str) -> list[str]:
        head = self.family.tied[:1]
        inside = INSIDE.fullmatch(there)
        if inside is None:
            return [there] if there in head else []
        name = inside[1]
        return [name if name in head else self.family.prefix + name.removeprefix(self.family.prefix)]


def part_of(config: Mapping[str, Any]) -> Part:
    """The part of a config that is the model: the whole of it, or its `text_config`.

    Raises:
        ConversionError: for a model type without a table, of the config or of its text.
    """
    kind, text = config.get("model_type"), config.get(TEXT)
    known = isinstance(kind, str) and kind in families()
    if known or not isinstance(text, dict):
        return Part(config, family_of(kind).of_class(config.get("architectures")), nested=False)
    given = {name: config[name] for name in SHARED if name in config}
    named = {"model_type": USUAL.get(str(kind))}
    whole = {**named, **text, **{name: value for name, value in given.items() if value is not None}}
    try:
        family = family_of(whole["model_type"])
    except ConversionError as error:
        raise ConversionError([f"config `{TEXT}`: {reason}" for reason in error.reasons]) from None
    return Part({**whole, "architectures": [family.architecture]}, family, nested=True)
