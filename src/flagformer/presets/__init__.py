"""Named flag sets: published decoders in the words of this library, and published models with their sizes.

`flagformer.build({**preset("llama"), "num_tokens": 256, "max_seq_len": 1024, "dim": 512, "depth": 6})`
`flagformer.build(preset("llama-3.2-1b"))`
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from flagformer.flags import nearest
from flagformer.interop.hugging_face.families import family_of
from flagformer.interop.hugging_face.sizes import SIZES, Size

MANY = "; `flagformer presets` lists them all"
PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        # Radford et al. 2019: learned positions, GELU, the embedding read backwards
        "gpt2": {"use_abs_pos_emb": True, "tie_embedding": True},
        # arXiv:2302.13971
        "llama": {
            "rotary_pos_emb": True,
            "use_rmsnorm": True,
            "ff_glu": True,
            "ff_swish": True,
            "ff_no_bias": True,
            "ff_mult": 8 / 3,
        },
        # arXiv:2211.05100: ALiBi with a tied embedding
        "bloom": {"alibi_pos_bias": True, "tie_embedding": True},
        # arXiv:1910.10683, its decoder alone: bucketed bias, RMS norm, no biases; GEGLU for ReLU (v1.1)
        "t5": {"rel_pos_bias": True, "use_rmsnorm": True, "ff_glu": True, "ff_no_bias": True},
    }
)


def preset(name: str) -> dict[str, Any]:
    """A copy of the named flag set, to be changed at will.

    Args:
        name: of a flag set, such as "llama", to be completed with sizes; or of a published model, such as
            "llama-3.2-1b", with its sizes. `flagformer presets` lists them all.

    Raises:
        ValueError: for an unknown name.
    """
    if name in PRESETS:
        return dict(PRESETS[name])
    if name not in SIZES:
        known = ", ".join(f"'{one}'" for one in PRESETS)
        text = f"`name` must be one of {known} or of a published model, but is {name!r}"
        raise ValueError(f"{text}{nearest(str(name), [*PRESETS, *SIZES]) or MANY}")
    return published_flags(SIZES[name])


def published_flags(size: Size) -> dict[str, Any]:
    """The flags of a published model."""
    family = family_of(size.model_type).of_class(size.config.get("architectures"))
    tied = family.tied_flags if size.config.get("tie_word_embeddings") else {}
    return {**family.flags_of(size.config), **tied}
