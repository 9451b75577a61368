"""Whether fused attention with a relative bias runs: it calls private operators of torch."""

from __future__ import annotations

from typing import Any

import torch
from packaging.specifiers import SpecifierSet
from packaging.version import Version

# The versions of torch with which the private operators were tested.
TESTED = SpecifierSet("==2.13.*", prereleases=True)


def is_tested(version: str = torch.__version__) -> bool:
    """Whether the private operators were tested with this version of torch."""
    return Version(version) in TESTED


def private_operator(name: str) -> Any:
    """The operator `aten::name`; None if this torch does not have it."""
    return getattr(torch.ops.aten, name, None)


# Fused attention on CPU, called by its private name, which also returns the log-sum-exp.
fused = private_operator("_scaled_dot_product_flash_attention_for_cpu")
fused_backward = private_operator("_scaled_dot_product_flash_attention_for_cpu_backward")
HAS_OPERATORS = is_tested() and fused is not None and fused_backward is not None


def is_supported(device: torch.device) -> bool:
    """Whether the operators run on this device, for every floating-point dtype.

    They have no rules for transforms of `torch.func`, which callers check. The meta device, on which sizes
    and FLOPs are estimated, is treated as a CPU.
    """
    return HAS_OPERATORS and device.type in ("cpu", "meta")
