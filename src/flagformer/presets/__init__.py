"""Named flag sets: published decoders in the words of this library.

`flagformer.build({**preset("llama"), "num_tokens": 256, "max_seq_len": 1024, "dim": 512, "depth": 6})`
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from flagformer.flags import nearest

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
    """A copy of the named flag set, to be completed with sizes and changed at will.

    Raises:
        ValueError: for an unknown name, with the known ones.
    """
    if name not in PRESETS:
        known = ", ".join(f"'{one}'" for one in PRESETS)
        raise ValueError(f"`name` must be one of {known}, but is {name!r}{nearest(name, PRESETS)}")
    return dict(PRESETS[name])
