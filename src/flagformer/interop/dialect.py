"""In what x-transformers 1.27 and 2.31 differ, as far as weights hold it."""

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
    """What the stored numbers of one version mean.

    Attributes:
        version: "1.27" or "2.31".
        unit_offset: `norm_add_unit_offset` where `said` has none.
        said: the arguments that x-transformers was built with; None: nobody said them.
        prefix: what stands in front of those of this half.
    """

    version: str
    unit_offset: bool = True
    said: Mapping[str, Any] | None = None
    prefix: str = ""

    def half(self, prefix: str) -> Dialect:
        """The same for the arguments behind `prefix`."""
        return replace(self, prefix=prefix)

    @property
    def offset(self) -> float:
        """What norms and LayerScale add to a stored gain."""
        if self.version == OLD:
            return 0.0
        return float((self.said or {}).get(self.prefix + UNIT_OFFSET, self.unit_offset))

    def cosine(self, cross: bool) -> float | None:
        """The factor of `attn_qk_norm`, which in 1.27 multiplies its learned gains too; None: not said."""
        if self.said is None:
            return None
        own = self.said.get(self.prefix + COSINE, 10)
        return float(self.said.get(f"{self.prefix}cross_{COSINE}", own) if cross else own)

    @property
    def turns_neighbours(self) -> bool:
        """Rotated pairs are (2i, 2i + 1), where 1.27 and this library pair i and i + R / 2."""
        return self.version == NEW

    @property
    def whole_lengths(self) -> bool:
        """ScaleNorm stores the length itself, not a multiple of sqrt(D)."""
        return self.version == OLD

    @property
    def replaces_scores(self) -> bool:
        """Talking heads put the mixed scores in place of the scores, and do not add them."""
        return self.version == OLD

    @property
    def plain_tied_logits(self) -> bool:
        """Logits of a tied embedding are not divided by sqrt(D)."""
        return self.version == OLD

    @property
    def biased_memory(self) -> bool:
        """Memory keys get the position bias of keys in front of the first token."""
        return self.version == OLD


def check_version(version: str | None) -> None:
    """ValueError for a version that is not known."""
    if version is not None and version not in VERSIONS:
        known = " or ".join(repr(name) for name in VERSIONS)
        raise ValueError(f"`version` must be {known}, or None to find out, but is {version!r}")


def version_of(weights: Mapping[str, Tensor] | nn.Module) -> str:
    """Which version wrote these weights.

    A module tells by its class. A state dict tells by the names of its LayerNorms, and by what one version
    alone has; one without any of that (RMSNorm, ScaleNorm or no gains at all) does not tell.

    Raises:
        ValueError: when it does not show.
    """
    if isinstance(weights, nn.Module):
        found = {_version_of_layers(module) for module in weights.modules()} - {None}
    elif any(key.endswith(".beta") for key in weights):  # 1.27 under torch below 2.1
        found = {OLD}
    else:
        found = {_version_of_key(key, value) for key, value in weights.items()} - {None}
    if len(found) == 1:
        return str(found.pop())
    why = "marks of both are there" if found else "norms without the mark of either"
    raise ValueError(f"`version` must say which x-transformers wrote these weights ('1.27' or '2.31'): {why}")


def _version_of_layers(module: Any) -> str | None:
    """Stacks of 1.27 know ResiDual, those of 2.31 know residual streams."""
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
