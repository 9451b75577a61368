"""Positions of the norms: three per sublayer, and one after the last sublayer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from flagformer.flags import Flag, component

NORM_OF_ZERO = {"zero_output": "the norm of a zero output has an unbounded gradient"}
Final = Annotated[bool, Flag("pre_norm_has_final_norm", "norm of the stream after the last sublayer")]
First = Annotated[bool, Flag("pre_norm_has_first_norm", "norm of the input of the first sublayer")]


@dataclass(frozen=True)
class Placement:
    """Contract of the slot `norm_position`: the positions that have a norm.

    Attributes:
        before: the input of a sublayer.
        branch: its output, before the residual sum.
        after: the stream after the residual sum.
        final: the stream after the last sublayer.
        first: the input of the first sublayer, where `before` is set.
    """

    before: bool = True
    branch: bool = False
    after: bool = False
    final: bool = True
    first: bool = True


@component("norm_position", paper="arXiv:2002.04745")
class PreNorm(Placement):
    """Norm before each sublayer and after the last.

    With `pre_norm_has_first_norm=False` the first sublayer has none, as in ModernBERT (arXiv:2412.13663),
    which norms the embeddings.
    """

    def __init__(self, *, final: Final = True, first: First = True) -> None:
        super().__init__(final=final, first=first)


@component("norm_position", select="pre_norm", when=False, paper="arXiv:1706.03762", needs={"stream"})
class PostNorm(Placement):
    """Norm of the stream after each sublayer, as in the original transformer."""

    def __init__(self) -> None:
        super().__init__(before=False, after=True, final=False)


@component(
    "norm_position",
    select="sandwich_norm",
    paper="arXiv:2105.13290, section 2.3",
    lacks=NORM_OF_ZERO,
)
class SandwichNorm(Placement):
    """Norm before each sublayer and of its output (CogView)."""

    def __init__(self, *, final: Final = True) -> None:
        super().__init__(branch=True, final=final)


@component(
    "norm_position",
    select="res_post_norm",
    paper="arXiv:2111.09883, section 3.2",
    lacks=NORM_OF_ZERO,
)
class BranchNorm(Placement):
    """Norm of each sublayer's output, and none of its input (Swin V2; the reordered norm of OLMo 2)."""

    def __init__(self, *, final: Final = True) -> None:
        super().__init__(before=False, branch=True, final=final)


@component("norm_position", select="resi_dual", paper="arXiv:2304.14802, section 3.2", needs={"stream"})
class DualNorm(Placement):
    """Norm of the stream after each sublayer, and a final norm of the second stream."""

    def __init__(self) -> None:
        super().__init__(before=False, after=True)
