"""One model of a checkpoint with several parts: Gemma 3, Llama 4, Mistral 3, LLaVA, CLIP.

One rule: where the model type of a config has no table and the config has a `text_config`, the model is the
decoder of that config. Its tensors are those under `language_model` or `text_model`, and the output
projection; all others (images, sounds, projections between parts) are left out and named in
`model.source.dropped`. A part can be named: "text", or "vision" for the model of `vision_config`, whose
tensors are under `vision_tower` or `vision_model`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from flagformer.interop.hugging_face.errors import ConversionError
from flagformer.interop.hugging_face.families import families, family_of
from flagformer.interop.hugging_face.family import Family

FIELDS = {"text": "text_config", "vision": "vision_config"}
INSIDE = {
    "text": re.compile(r"(?:model\.)?(?:language_model|text_model)\.(.+)"),
    "vision": re.compile(r"(?:model\.)?(?:vision_tower|vision_model)\.(.+)"),
}
# Fields of generation that earlier versions wrote into nested configs.
GENERATION = """bad_words_ids begin_suppress_tokens cross_attention_hidden_size decoder_start_token_id
    diversity_penalty do_sample early_stopping encoder_no_repeat_ngram_size exponential_decay_length_penalty
    finetuning_task forced_bos_token_id forced_eos_token_id length_penalty max_length min_length
    no_repeat_ngram_size num_beam_groups num_beams num_return_sequences output_scores prefix pruned_heads
    remove_invalid_values repetition_penalty return_dict_in_generate sep_token_id suppress_tokens
    task_specific_params temperature tf_legacy_loss tie_encoder_decoder tokenizer_class top_k top_p
    torchscript typical_p use_bfloat16"""
# Model types of text configs that say none.
USUAL = {"gemma3": "gemma3_text", "llama4": "llama4_text", "llava": "llama", "mistral3": "mistral"}
# Fields that the config around may set for its text.
SHARED = ("tie_word_embeddings", "pad_token_id", "bos_token_id", "eos_token_id")


class Part(NamedTuple):
    """The part of a checkpoint that is the model.

    Attributes:
        config: its config, with the fields that the whole config sets for it.
        family: the table of that config.
        name: "text" or "vision" where there are other parts, else "".
    """

    config: Mapping[str, Any]
    family: Family
    name: str

    def names(self, files: Iterable[str]) -> dict[str, str]:
        """Name of a tensor of the part, as a file of the part alone has it -> name in the files."""
        if not self.name:
            return {name: name for name in files}
        return {name: there for there in files for name in self._name(there)}

    def _name(self, there: str) -> list[str]:
        head = self.family.tied[:1]
        inside = INSIDE[self.name].fullmatch(there)
        if inside is None:
            return [there] if there in head else []
        name = inside[1]
        return [name if name in head else self.family.prefix + name.removeprefix(self.family.prefix)]


def part_of(config: Mapping[str, Any], name: str | None = None) -> Part:
    """The part of a config that is the model: the whole of it, or its `text_config`.

    Args:
        name: of a nested config, "text" or "vision"; None: by the rule.

    Raises:
        ConversionError: for a model type without a table, of the config or of its part, and for a part that
            the config lacks.
        ValueError: for another name.
    """
    if name not in (None, *FIELDS):
        raise ValueError(f"`part` must be one of {', '.join(map(repr, FIELDS))} or None, but is {name!r}")
    part = name or "text"
    kind, field = config.get("model_type"), FIELDS[part]
    inner = config.get(field)
    known = isinstance(kind, str) and kind in families()
    if name is None and (known or not isinstance(inner, dict)):
        return Part(config, family_of(kind).of_class(config.get("architectures")), "")
    if not isinstance(inner, dict):
        raise ConversionError([f"config `{field}` is missing, which `part={name!r}` reads"])
    of_text = part == "text"
    given = {one: config[one] for one in SHARED if config.get(one) is not None and of_text}
    named = {"model_type": USUAL.get(str(kind))} if of_text else {}
    unread = GENERATION.split()
    whole = {**named, **{one: value for one, value in inner.items() if one not in unread}, **given}
    try:
        family = family_of(whole.get("model_type"))
    except ConversionError as error:
        raise ConversionError([f"config `{field}`: {reason}" for reason in error.reasons]) from None
    return Part({**whole, "architectures": [family.architecture]}, family, part)
