"""The calling convention of a model, inferred from its signature and module name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flagformer.audit.calls import Calls, keywords_of
from flagformer.audit.calls.hugging_face import HuggingFaceCalls
from flagformer.audit.calls.plain import PlainCalls
from flagformer.audit.calls.vectors import VectorCalls
from flagformer.audit.calls.x_transformers import XTransformersCalls


def calls_of(model: Callable[..., Any]) -> Calls:
    accepts = keywords_of(model)
    if type(model).__module__.partition(".")[0] == "x_transformers":
        return XTransformersCalls(model)
    if {"input_ids", "attention_mask"} <= accepts:
        return HuggingFaceCalls(model)
    return VectorCalls(model) if hasattr(model, "dim_in") else PlainCalls(model)
