"""Differences between the weights of x-transformers 1.27 and 2.31."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

OLD, NEW = "1.27", "2.31"
VERSIONS = (OLD, NEW)
UNIT_OFFSET, COSINE = "norm_add_unit_offset", "attn_qk_norm_scale"


@dataclass(frozen=True)
class Dialect:
    """The meaning of the stored weights of one version.

    Attributes:
        version: "1.27" or "2.31".
        unit_offset: `norm_add_unit_offset`, unless `flags` has it.
        flags: the arguments of the x-transformers model; None: unknown.
        prefix: prefix of the arguments of this encoder or decoder.
    """

    version: str
    unit_offset: bool = True
    flags: Mapping[str, Any] | None = None
    prefix: str = ""

    def half(self, prefix: str) -> Dialect:
        """Return the dialect for the arguments with `prefix`."""
        return replace(self, prefix=prefix)

    @property
    def offset(self) -> float:
        """The number that norms and LayerScale add to a stored weight."""
        if self.version == OLD:
            return 0.0
        return float((self.flags or {}).get(self.prefix + UNIT_OFFSET, self.unit_offset))

    def cosine(self, cross: bool) -> float | None:
        """Return the scale of `attn_qk_norm`, which in 1.27 multiplies learned scales too; None: unknown."""
        if self.flags is None:
            return None
        own = self.flags.get(self.prefix + COSINE, 10)
        return float(self.flags.get(f"{self.prefix}cross_{COSINE}", own) if cross else own)

    @property
    def interleaved_rotation(self) -> bool:
        """Whether rotated pairs are (2i, 2i + 1); in 1.27 and this library they are i and i + R / 2."""
        return self.version == NEW

    @property
    def absolute_scale(self) -> bool:
        """Whether ScaleNorm stores its scale itself; else it is divided by sqrt(D)."""
        return self.version == OLD

    @property
    def replaces_scores(self) -> bool:
        """Whether talking heads replace the scores by the mixed ones; else they are added."""
        return self.version == OLD

    @property
    def plain_tied_logits(self) -> bool:
        """Whether tied logits have no factor; else they are divided by sqrt(D)."""
        return self.version == OLD

    @property
    def biased_memory(self) -> bool:
        """Whether memory keys have the position bias of keys before the first token."""
        return self.version == OLD


def check_version(version: str | None) -> None:
    """Raise ValueError for an unknown version."""
    if version is not None and version not in VERSIONS:
        known = " or ".join(repr(name) for name in VERSIONS)
        raise ValueError(f"`version` must be {known}, or None to detect it, but is {version!r}")


def version_of(weights: Mapping[str, Tensor] | nn.Module) -> str:
    """Detect the version that wrote these weights.

    A module is recognised by its class, a state dict by the names of its LayerNorms and of weights that only
    one version has. A state dict without them (RMSNorm, ScaleNorm or no norm weights) is not recognised.

    Raises:
        ValueError: if the version cannot be detected.
    """
    if isinstance(weights, nn.Module):
        found = {_version_of_layers(module) for module in weights.modules()} - {None}
    elif any(key.endswith(".beta") for key in weights):  # 1.27 under torch below 2.1
        found = {OLD}
    else:
        found = {_version_of_key(key, value) for key, value in weights.items()} - {None}
    if len(found) == 1:
        return str(found.pop())
    why = "they have names of both versions" if found else "no name is specific to one version"
    raise ValueError(
        f"`version` of x-transformers must be passed for these weights ('1.27' or '2.31'): {why}"
    )


def _version_of_layers(module: Any) -> str | None:
    """Detect a stack by its attributes: ResiDual in 1.27, residual streams in 2.31."""
    if not hasattr(module, "layers") or not hasattr(module, "disable_abs_pos_emb"):
        return None
    return OLD if hasattr(module, "resi_dual") else NEW if hasattr(module, "num_residual_streams") else None


OLD_ENDS = ("to_r.weight", "to_v_gate.bias", "encoder.to_logits.weight")
NORM = re.compile(r"(layers\.\d+\.0\.\d|final_norm|post_emb_norm|patch_to_embedding\.[02]|\.ff\.1)\.(\w+)$")


def _version_of_key(key: str, value: Tensor) -> str | None:
    norm = NORM.search(key)
    if norm and norm[2] in ("weight", "gamma") and value.dim() == 1:
        return OLD if norm[2] == "weight" else NEW
    return OLD if key.endswith(OLD_ENDS) else NEW if key.endswith(".gamma") else None
