"""The type of a `data` block: one of `sources`, a mixture of them, or an own class by its import path."""

from typing import Annotated

from pydantic import Discriminator, Field, Tag

from flagformer.lab.data.mixture import Mixture
from flagformer.lab.data.sources import OwnSource, SingleSource
from flagformer.lab.imports import KNOWN, OWN, tag_of

KnownSource = Annotated[SingleSource | Mixture, Field(discriminator="source")]
# `source` names the class, which pydantic puts into error locations.
DataConfig = Annotated[
    Annotated[KnownSource, Tag(KNOWN)] | Annotated[OwnSource, Tag(OWN)], Discriminator(tag_of("source"))
]
