"""Memory that a machine has, and that a device has free."""

from __future__ import annotations

import os
from pathlib import Path

import torch

GIB = 2**30
MEMINFO = Path("/proc/meminfo")
LIMITS = (  # of a container: its limit, its usage, and what of the usage is cached files
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "file"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        "total_cache",
    ),
)


def free_on(device: torch.device) -> int | None:
    """Bytes that new tensors on a device can have; None where the system does not say, and where tensors take
    none (meta)."""
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + held
    return free_memory() if device.type == "cpu" else None


def free_memory(swap: bool = True) -> int | None:
    """Bytes that can be had, cached files included, within the limit of a container; None where the system
    does not say. `swap`: whether those on disk count."""
    free, more = of_machine("MemAvailable"), of_machine("SwapFree") if swap else 0
    found = [None if free is None else free + (more or 0)]
    found += [_of_container(Path(limit), Path(used), cached) for limit, used, cached in LIMITS]
    known = [size for size in found if size is not None]
    return min(known) if known else _physical()


def whole_memory() -> int | None:
    """Bytes of this machine, or the limit of a container; None where the system does not say."""
    found = [of_machine("MemTotal") or _physical(), *(_read(Path(limit)) for limit, _, _ in LIMITS)]
    known = [size for size in found if size is not None]
    return min(known) if known else None


def of_machine(name: str) -> int | None:
    """A line of /proc/meminfo, in bytes; None where there is none."""
    try:
        lines = MEMINFO.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), None)


def _of_container(limit: Path, used: Path, cached: str) -> int | None:
    most, taken = _read(limit), _read(used)
    if most is None or taken is None:
        return None
    try:
        lines = (used.parent / "memory.stat").read_text().splitlines()
    except OSError:
        lines = []
    free = most - taken
    return max(0, free + sum(int(line.split()[1]) for line in lines if line.startswith(f"{cached} ")))


def _read(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # there is no container, or it says "max"
        return None


def _physical() -> int | None:
    """All of the machine's memory, where /proc does not exist."""
    names = getattr(os, "sysconf_names", {})
    if "SC_PHYS_PAGES" not in names or "SC_PAGE_SIZE" not in names:
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
