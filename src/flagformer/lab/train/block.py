"""The base of the blocks of a study or training file."""

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, model_serializer


class Block(BaseModel):
    """Unknown keys are errors, and instances are immutable.

    Attributes:
        added: settings of later versions. At their defaults they are left out of `model_dump`, so that ids of
            trials stay.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    added: ClassVar[tuple[str, ...]] = ()

    @model_serializer(mode="wrap")
    def _without_added(self, dump: Any) -> dict[str, Any]:
        found: dict[str, Any] = dump(self)
        for name in self.added:
            if getattr(self, name) == type(self).model_fields[name].default:
                found.pop(name, None)
        return found
