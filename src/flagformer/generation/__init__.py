"""Sampling from a causal model.

Prompts are lined up (`prompts`), tokens follow one by one (`loop`), each drawn (`sampling`) from filtered
logits (`filters`). Nothing here knows how a model is built.
"""

from flagformer.generation.along import line_up
from flagformer.generation.beam import search
from flagformer.generation.contrast import Against, Amateur, contrast, read_settings
from flagformer.generation.filters import (
    FILTERS,
    LogitsFilter,
    bind_filter,
    find_filter,
    is_number,
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
    "Against",
    "Amateur",
    "CausalModel",
    "Ending",
    "LogitsFilter",
    "PromptLike",
    "Prompts",
    "Sampler",
    "bind_filter",
    "contrast",
    "decode",
    "evaluating",
    "find_filter",
    "is_number",
    "line_up",
    "min_p",
    "read_prompts",
    "read_settings",
    "search",
    "top_a",
    "top_k",
    "top_p",
]
