"""The calling convention of a model, inferred from its signature and module name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flagformer.audit.calls import Calls, keywords_of
from flagformer.audit.calls.hugging_face import HuggingFaceCalls
from flagformer.audit.calls.pairs import PairCalls
from flagformer.audit.calls.plain import PlainCalls
from flagformer.audit.calls.row_outputs import ImageCalls, RowCalls, SegmentCalls
from flagformer.audit.calls.vectors import VectorCalls
from flagformer.audit.calls.x_transformers import XTransformersCalls
from flagformer.wrappers.classifier import SequenceClassifier
from flagformer.wrappers.memformer import Memformer
from flagformer.wrappers.routing import RoutingTransformerLM
from flagformer.wrappers.routing_pair import RoutingTransformerEncDec
from flagformer.wrappers.vit import ViTransformerWrapper
from flagformer.wrappers.xtransformer import XTransformer


def calls_of(model: Callable[..., Any]) -> Calls:
    accepts = keywords_of(model)
    if type(model).__module__.partition(".")[0] == "x_transformers":
        return XTransformersCalls(model)
    if isinstance(model, Memformer) and model.decoder is None:
        return SegmentCalls(model)
    if isinstance(model, XTransformer | Memformer | RoutingTransformerEncDec):
        return PairCalls(model)
    if isinstance(model, SequenceClassifier):
        return RowCalls(model)
    if isinstance(model, ViTransformerWrapper):
        return ImageCalls(model)
    if isinstance(model, RoutingTransformerLM):
        return PlainCalls(model.net)
    if {"input_ids", "attention_mask"} <= accepts:
        return HuggingFaceCalls(model)
    return VectorCalls(model) if hasattr(model, "dim_in") else PlainCalls(model)
