"""The type of a `data` block: one of `sources`, or a mixture of them."""

from typing import Annotated

from pydantic import Field

from flagformer.lab.data.mixture import Mixture
from flagformer.lab.data.sources import SingleSource

# `source` names the class, which pydantic puts into error locations.
DataConfig = Annotated[SingleSource | Mixture, Field(discriminator="source")]
