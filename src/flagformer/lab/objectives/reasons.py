"""Reasons why objectives refuse kinds of model, and the sizes of models of one row of tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flagformer.lab.data import Source

SEES_TARGETS = "it attends to the tokens that it would predict"
EARLIER_ONLY = "a token attends to earlier tokens only"
ONE_OUTPUT = "it has one output a row"
TWO_TEXTS = "it reads a source and a target"
ONE_TEXT = "it reads one row of tokens"
VECTORS = "it reads vectors, not token ids"
IMAGES = "it reads images"
TOKENS = "it reads token ids"
CAUSAL_ROUTING = "with `causal: true` a token attends to earlier tokens only"
BIDIRECTIONAL_ROUTING = f"without `causal: true` {SEES_TARGETS}"

# The kinds that read neither one row of tokens nor give a logit for each of its tokens.
OF_OTHER_ROWS = {
    "classifier": ONE_OUTPUT,
    "xtransformer": TWO_TEXTS,
    "routing_encdec": TWO_TEXTS,
    "memformer": TWO_TEXTS,
    "continuous": VECTORS,
    "vit": IMAGES,
}


def needs_ids(source: Source) -> str:
    """The reason why data without token ids cannot be used; empty for ids."""
    return "" if source.form == "ids" else f"its rows are {source.form}, not token ids"


def token_sizes(num_tokens: int, longest: int, flags: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The vocabulary and the length of a model, or of one half; a model with the names of routing-transformer
    reads a multiple of its window."""
    if flags["model"].startswith("routing"):
        default = 256 if prefix else 64
        window = flags.get(f"{prefix}window_size", default)
        if isinstance(window, int) and not isinstance(window, bool) and window > 0:
            longest = -(-longest // window) * window
    return {f"{prefix}num_tokens": num_tokens, f"{prefix}max_seq_len": longest}
