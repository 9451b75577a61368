"""What the layers ask of the wrapper around them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from flagformer.flags import Flag, component


@component("hints")
@dataclass(frozen=True, kw_only=True)
class WrapperHints:
    """Read by wrappers; the layers themselves do nothing with it."""

    disable_abs_pos_emb: Annotated[
        bool | None,
        Flag(
            "disable_abs_pos_emb",
            "whether wrappers leave out absolute positions; None: where the layers know relative ones",
        ),
    ] = None
