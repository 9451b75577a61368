"""Operators that torch may change without notice, and the versions of torch with which they were tried."""

from __future__ import annotations

from typing import Any

import torch
from packaging.specifiers import SpecifierSet
from packaging.version import Version

# Fused attention of a CPU, called by its private name so that its sums can be read.
WITH_SUMS = SpecifierSet("==2.13.*", prereleases=True)


def has_sums(version: str = torch.__version__) -> bool:
    """Whether this torch is one whose fused attention of a CPU was tried; others take the dense form."""
    return Version(version) in WITH_SUMS


HAS_SUMS = has_sums()


def private(name: str) -> Any:
    """The operator `aten::name`; None where this torch has none."""
    return getattr(torch.ops.aten, name, None)
