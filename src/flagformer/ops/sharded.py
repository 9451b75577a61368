"""Constants for parameters that FSDP2 may have sharded."""

from __future__ import annotations

from torch import Tensor


def laid_out(value: Tensor, like: Tensor) -> Tensor:
    """`value`, the same on every rank, on the device of `like` and sharded as `like` is."""
    value = value.to(like.device)
    if not hasattr(like, "full_tensor"):
        return value
    from torch.distributed.tensor import distribute_tensor  # seconds, that most programs do without

    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)  # type: ignore
