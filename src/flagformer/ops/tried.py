"""Private operators of torch, and the versions of torch with which they were tested."""

from __future__ import annotations

from typing import Any

import torch
from packaging.specifiers import SpecifierSet
from packaging.version import Version

# Fused attention on CPU, called by its private name, which also returns the log-sum-exp.
WITH_SUMS = SpecifierSet("==2.13.*", prereleases=True)


def has_sums(version: str = torch.__version__) -> bool:
    """Whether the private fused attention on CPU was tested with this torch; other versions use the dense
    form."""
    return Version(version) in WITH_SUMS


HAS_SUMS = has_sums()


def private(name: str) -> Any:
    """The operator `aten::name`; None if this torch does not have it."""
    return getattr(torch.ops.aten, name, None)
