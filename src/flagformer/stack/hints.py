"""Options of the layers that wrappers read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from flagformer.flags import Flag, component


@component("hints")
@dataclass(frozen=True, kw_only=True)
class WrapperHints:
    """Options for wrappers; the layers do not use them."""

    disable_abs_pos_emb: Annotated[
        bool | None,
        Flag(
            "disable_abs_pos_emb",
            "whether wrappers omit absolute positions; None: if the layers have relative ones",
        ),
    ] = None
