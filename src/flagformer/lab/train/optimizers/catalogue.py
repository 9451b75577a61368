"""All optimizers. To add one, write its file, its import and its name in `KnownOptimizer`."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag, TypeAdapter
from pydantic_core import core_schema

from flagformer.lab.imports import KNOWN, OWN, tag_of
from flagformer.lab.train.optimizers import Optimizer
from flagformer.lab.train.optimizers.adafactor import Adafactor
from flagformer.lab.train.optimizers.adamw import AdamW
from flagformer.lab.train.optimizers.lion import Lion
from flagformer.lab.train.optimizers.muon import Muon
from flagformer.lab.train.optimizers.own import Own
from flagformer.lab.train.optimizers.schedulefree import ScheduleFree

KnownOptimizer = Annotated[AdamW | Muon | Lion | Adafactor | ScheduleFree, Field(discriminator="name")]
NAME = "name alone"  # the tag of an optimizer without settings


class ByName:
    """The type of an optimizer that is given by its name alone, for pydantic."""

    def __get_pydantic_core_schema__(self, kind: Any, handler: Any) -> core_schema.CoreSchema:
        return core_schema.no_info_after_validator_function(_of_name, core_schema.str_schema())


def _of_name(name: str) -> Any:
    return TypeAdapter(OptimizerConfig).validate_python({"name": name})


def _tag(value: Any) -> str:
    return NAME if isinstance(value, str) else tag_of("name")(value)


# The type of `train.optimizer`: a name, an import path, or a mapping with `name`.
OptimizerConfig = Annotated[
    Annotated[Optimizer, ByName(), Tag(NAME)]
    | Annotated[KnownOptimizer, Tag(KNOWN)]
    | Annotated[Own, Tag(OWN)],
    Discriminator(_tag),
]
