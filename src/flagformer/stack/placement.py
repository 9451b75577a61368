"""Where a sublayer is normed: three places, and one after the last sublayer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from flagformer.flags import Flag, component

Final = Annotated[bool, Flag("pre_norm_has_final_norm", "norm of the stream behind the last sublayer")]


@dataclass(frozen=True)
class Placement:
    """Contract of the slot `placement`: which of the places hold a norm.

    Attributes:
        before: of what the sublayer reads.
        branch: of what it adds.
        after: of the stream behind it.
        final: of the stream behind the last one.
    """

    before: bool = True
    branch: bool = False
    after: bool = False
    final: bool = True


@component("norm_position", paper="arXiv:2002.04745")
class PreNorm(Placement):
    """Norm before each sublayer and after the last."""

    def __init__(self, *, final: Final = True) -> None:
        super().__init__(final=final)


@component("norm_position", select="pre_norm", when=False, paper="arXiv:1706.03762", needs={"stream"})
class PostNorm(Placement):
    """Norm of the stream after each sublayer, as in the first transformer."""

    def __init__(self) -> None:
        super().__init__(before=False, after=True, final=False)


@component("norm_position", select="sandwich_norm", paper="arXiv:2105.13290, section 2.3")
class SandwichNorm(Placement):
    """Norm before each sublayer and of what it adds (CogView)."""

    def __init__(self, *, final: Final = True) -> None:
        super().__init__(branch=True, final=final)


@component("norm_position", select="resi_dual", paper="arXiv:2304.14802, section 3.2", needs={"stream"})
class DualNorm(Placement):
    """Norm of the stream after each sublayer, and once of the sum that the second stream keeps."""

    def __init__(self) -> None:
        super().__init__(before=False, after=True)
