"""Sampling from a causal model.

Prompts are lined up (`prompts`), tokens follow one by one (`loop`), each drawn (`sampling`) from filtered
logits (`filters`). Nothing here knows how a model is built.
"""

from flagformer.generation.along import line_up
from flagformer.generation.filters import (
    FILTERS,
    LogitsFilter,
    bind_filter,
    find_filter,
    min_p,
    top_a,
    top_k,
    top_p,
)
from flagformer.generation.loop import CausalModel, Ending, decode, evaluating
from flagformer.generation.prompts import PromptLike, Prompts, read_prompts
from flagformer.generation.sampling import Sampler

__all__ = [
    "FILTERS",
    "CausalModel",
    "Ending",
    "LogitsFilter",
    "PromptLike",
    "Prompts",
    "Sampler",
    "bind_filter",
    "decode",
    "evaluating",
    "find_filter",
    "line_up",
    "min_p",
    "read_prompts",
    "top_a",
    "top_k",
    "top_p",
]
