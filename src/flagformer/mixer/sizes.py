"""The flags that several mixers share."""

from __future__ import annotations

from typing import Annotated

from flagformer.flags import Finding, Flag, FlagError, Requirement

CAUSAL = Requirement("causal", True, "a mixer reads the tokens of a row in their order")

Kernel = Annotated[
    int, Flag("mixer_kernel", "tokens W that the causal convolution of a mixer reads", ge=2, example=3)
]
Chunk = Annotated[
    int, Flag("mixer_chunk", "tokens of a row that a mixer computes in parallel", ge=1, example=3)
]
Heads = Annotated[int | None, Flag("mixer_heads", "heads H of a mixer; None: `heads`", ge=1, example=6)]
DimKey = Annotated[
    int | None,
    Flag("mixer_dim_key", "width K of the keys of a mixer; None: `attn_dim_head`", ge=1, example=12),
]
DimValue = Annotated[
    int | None,
    Flag("mixer_dim_value", "width V of the values of a mixer; None: `attn_dim_head`", ge=1, example=3),
]
KeyGroups = Annotated[
    int | None,
    Flag(
        "mixer_key_groups",
        "groups of heads that share keys and queries; None: one per head in gated DeltaNet, one in Mamba 2",
        ge=1,
        example=2,
    ),
]
NormEps = Annotated[
    float | None,
    Flag(
        "mixer_norm_eps",
        "added to the mean square of a mixer's norm; None: 1e-6 in gated DeltaNet, 1e-5 in Mamba 2",
        ge=1e-12,
        lt=1,
        example=0.25,
    ),
]


def check_groups(groups: int, heads: int) -> int:
    """Return `groups`; raise FlagError unless it divides the number of heads."""
    if heads % groups:
        text = f"`mixer_key_groups` must divide the {heads} heads of the mixer, but is {groups}"
        raise FlagError([Finding("mixer_key_groups", text)])
    return groups
