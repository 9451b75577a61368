"""Generation with a causal model.

Prompts are left-padded (`prompts`), tokens are generated one by one (`loop`), each drawn (`sampling`) from
filtered logits (`filters`). This package does not depend on how a model is built.
"""

from flagformer.generation.align import align_condition, align_token_ids
from flagformer.generation.beam import search
from flagformer.generation.contrast import Amateur, ContrastiveDecoding, contrast, read_settings
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
from flagformer.generation.loop import CausalModel, StoppingCriteria, decode, evaluating
from flagformer.generation.prompts import PromptLike, Prompts, read_prompts
from flagformer.generation.sampling import Sampler

__all__ = [
    "FILTERS",
    "Amateur",
    "CausalModel",
    "ContrastiveDecoding",
    "LogitsFilter",
    "PromptLike",
    "Prompts",
    "Sampler",
    "StoppingCriteria",
    "align_condition",
    "align_token_ids",
    "bind_filter",
    "contrast",
    "decode",
    "evaluating",
    "find_filter",
    "is_number",
    "min_p",
    "read_prompts",
    "read_settings",
    "search",
    "top_a",
    "top_k",
    "top_p",
]
