"""Total and free memory of the machine, of a container, and of a device."""

from __future__ import annotations

import os
from pathlib import Path

import torch

GIB = 2**30
MEMINFO = Path("/proc/meminfo")
LIMITS = (  # of a container: its limit, its usage, and the entry of `memory.stat` that counts cached files
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "file"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        "total_cache",
    ),
)


def free_on(device: torch.device) -> int | None:
    """Free bytes for new tensors on a device; None where the system does not report them, and on the meta
    device."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    return free_memory() if device.type == "cpu" else None


def free_memory(swap: bool = True) -> int | None:
    """Free bytes, cached files included, within the limit of a container; None where the system does not
    report them. `swap`: whether to count free swap space."""
    free, more = of_machine("MemAvailable"), of_machine("SwapFree") if swap else 0
    found = [None if free is None else free + (more or 0)]
    found += [_of_container(Path(limit), Path(used), cached) for limit, used, cached in LIMITS]
    known = [size for size in found if size is not None]
    return min(known) if known else _physical()


def whole_memory() -> int | None:
    """Total bytes of the machine, or the limit of a container; None where the system does not report them."""
    found = [of_machine("MemTotal") or _physical(), *(_read(Path(limit)) for limit, _, _ in LIMITS)]
    known = [size for size in found if size is not None]
    return min(known) if known else None


def of_machine(name: str) -> int | None:
    """The entry `name` of /proc/meminfo, in bytes; None without one."""
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
    except (OSError, ValueError):  # there is no container, or its limit is "max"
        return None


def _physical() -> int | None:
    """The machine's total memory on systems without /proc."""
    names = getattr(os, "sysconf_names", {})
    if "SC_PHYS_PAGES" not in names or "SC_PAGE_SIZE" not in names:
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
