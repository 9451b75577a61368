"""Arithmetic that autocast must leave alone."""

from __future__ import annotations

import torch


def no_autocast(device: torch.device) -> torch.autocast:
    """A context without casts, on any device (the meta device knows no autocast of its own)."""
    return torch.autocast("cpu" if device.type == "meta" else device.type, enabled=False)
