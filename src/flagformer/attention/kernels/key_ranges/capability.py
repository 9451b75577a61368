"""Whether attention to key ranges runs."""

from __future__ import annotations

from torch import Tensor

from flagformer.ops.lengths import use_long_path


def is_supported(q: Tensor) -> bool:
    """Whether the operators run for queries [B, H, T, K], and are faster: long rows on CPU, in every dtype.

    Exported programs and transforms of `torch.func` never use them. The meta device, on which sizes and
    FLOPs are estimated, is treated as a CPU.
    """
    return use_long_path(q.shape[2]) and q.device.type in ("cpu", "meta")
