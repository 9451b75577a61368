"""The base of the blocks of a study or training file."""

from pydantic import BaseModel, ConfigDict


class Block(BaseModel):
    """Unknown keys are errors, and instances are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
