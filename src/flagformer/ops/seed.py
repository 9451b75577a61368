"""Seeding of the devices that this process has."""

import torch


def seed_devices(seed: int) -> None:
    """Seed torch's generators as `torch.manual_seed` does, at no cost without an accelerator.

    `torch.manual_seed` stores one formatted call stack for CUDA, XPU and MTIA each, also where none of them
    exists: 1 ms, which an audit pays for every forward.
    """
    if torch.accelerator.is_available():
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)
