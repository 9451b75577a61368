"""The config of a model of flags."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from flagformer.interop.hugging_face.own import MODEL_TYPE
from flagformer.interop.hugging_face.pretrained.requirement import load_transformers

PreTrainedConfig: Any = load_transformers().PreTrainedConfig
# Fields that tools of transformers read -> the flag that sets them.
DERIVED = {
    "vocab_size": "num_tokens",
    "hidden_size": "dim",
    "num_hidden_layers": "depth",
    "max_position_embeddings": "max_seq_len",
}


class FlagformerConfig(PreTrainedConfig):
    """Flags as a config of transformers.

    Attributes:
        flags: the flat flags of a causal language model, as `flagformer.build` takes them.
        vocab_size: `num_tokens`.
        hidden_size: `dim`.
        num_hidden_layers: `depth`.
        max_position_embeddings: `max_seq_len`.
        tie_word_embeddings: `tie_embedding`.

    All fields but `flags` follow from the flags, and so do the properties `logit_scale` (`logits_scale`) and
    `final_logit_softcapping` (`logits_softcap`).

    Raises:
        ValueError: for a field that differs from its flag, and for flags that JSON cannot hold.
    """

    model_type = MODEL_TYPE
    keys_to_ignore_at_inference = ["cache", "past_key_values"]  # noqa: RUF012 - as in all configs

    flags: dict[str, Any] | None = None
    vocab_size: int | None = None
    hidden_size: int | None = None
    num_hidden_layers: int | None = None
    max_position_embeddings: int | None = None
    tie_word_embeddings: bool | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.flags is not None:
            self.flags = plain(self.flags)
            for name, value in derived(self.flags).items():
                given = getattr(self, name)
                if given is not None and given != value:
                    flag = DERIVED.get(name, "tie_embedding")
                    raise ValueError(
                        f"`{name}` must be {value!r} by the flag `{flag}`, but is {given!r}: change `flags`"
                    )
                setattr(self, name, value)
        super().__post_init__(**kwargs)

    @property
    def logit_scale(self) -> float | None:
        """`logits_scale`: the factor of logits, for trainers that compute them from embeddings."""
        return (self.flags or {}).get("logits_scale")

    @property
    def final_logit_softcapping(self) -> float | None:
        """`logits_softcap`: logits are cap * tanh(logits / cap)."""
        return (self.flags or {}).get("logits_softcap")


def derived(flags: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that follow from flags."""
    found = {name: flags[flag] for name, flag in DERIVED.items() if flag in flags}
    return {**found, "tie_word_embeddings": bool(flags.get("tie_embedding", False))}


def plain(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Flags as JSON holds them; ValueError for classes and modules."""
    try:
        found: dict[str, Any] = json.loads(json.dumps(dict(flags)))
    except TypeError as error:
        raise ValueError(
            f"`flags` must be plain values, which `config.json` can hold, but {error}: name a class by its "
            "import path (`norm='mylab.norms:MyNorm'`)"
        ) from None
    return found
