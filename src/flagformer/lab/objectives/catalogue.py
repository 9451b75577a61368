"""All objectives. To add one, write its file, its import and its name in `KnownObjective`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag

from flagformer.lab.data import Source
from flagformer.lab.imports import KNOWN, OWN, ByPath, tag_of
from flagformer.lab.objectives import PAIRS, Objective
from flagformer.lab.objectives.image_classification import ImageClassification
from flagformer.lab.objectives.masked_diffusion import MaskedDiffusion
from flagformer.lab.objectives.masked_lm import MaskedLM
from flagformer.lab.objectives.next_token import NextToken
from flagformer.lab.objectives.prefix_lm import PrefixLM
from flagformer.lab.objectives.regression import Regression
from flagformer.lab.objectives.sequence_classification import SequenceClassification
from flagformer.lab.objectives.sequence_to_sequence import SequenceToSequence
from flagformer.lab.objectives.span_corruption import SpanCorruption

KnownObjective = Annotated[
    NextToken | PrefixLM | MaskedLM | MaskedDiffusion | SequenceClassification | SequenceToSequence |
    SpanCorruption | Regression | ImageClassification, Field(discriminator="name"),
]  # fmt: skip
# The type of an `objective` block; `name` selects the class, or is the import path of an own one.
ObjectiveConfig = Annotated[
    Annotated[KnownObjective, Tag(KNOWN)] | Annotated[Objective, ByPath(Objective, "name"), Tag(OWN)],
    Discriminator(tag_of("name")),
]
OF_FORM: dict[str, type[Objective]] = {"images": ImageClassification, "vectors": Regression}
OF_KIND: dict[str, type[Objective]] = {
    "decoder": NextToken,
    "prefix_decoder": NextToken,
    "encoder": MaskedLM,
    "classifier": SequenceClassification,
    "continuous": Regression,
    "vit": ImageClassification,
}


def default_objective(source: Source, flags: Mapping[str, Any]) -> Objective:
    """The objective of a file without `objective`, by the data and `model`.

    Encoder-decoders predict the target of a pair, or on text removed spans; a `routing_lm` predicts the next
    token with `causal: true`, else masked tokens.
    """
    kind = flags["model"]
    if source.form != "ids":
        return OF_FORM[source.form]()
    if kind in PAIRS:
        return SequenceToSequence() if source.has_pairs and not source.is_bytes else SpanCorruption()
    if kind == "routing_lm":
        return NextToken() if flags.get("causal") is True else MaskedLM()
    return OF_KIND.get(kind, NextToken)()
