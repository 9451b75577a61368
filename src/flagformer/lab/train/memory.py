"""Peak memory of a trial, relative to its process or device before the model was built."""

from __future__ import annotations

import contextlib
import re
import sys
from pathlib import Path

import torch

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # of proc(5): resets VmHWM to VmRSS


class MemoryRise:
    """Measures the increase of memory since its construction.

    On CUDA: the bytes of tensors on `device`, as allocated by torch. Otherwise the resident memory of the
    process, without Python, torch and data loaded before, but with code loaded by the first steps. On systems
    that do not report current resident memory (macOS), only an increase of the earlier peak is measured.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self.before: int | None = torch.cuda.memory_allocated(device)
            return
        with contextlib.suppress(OSError):  # without permission the earlier peak remains
            CLEAR.write_text(RESET_PEAK)
        now = _of_status("VmRSS")
        self.before = _peak() if now is None else now

    def peak(self) -> int | None:
        """The peak increase in bytes; None if the system does not report it."""
        if self.device.type == "cuda":
            peak: int | None = torch.cuda.max_memory_allocated(self.device)
        else:
            peak = _peak()
        return None if peak is None or self.before is None else max(0, peak - self.before)


def _of_status(name: str) -> int | None:
    """The entry `name` of /proc/self/status in bytes."""
    try:
        found = re.search(rf"^{name}:\s+(\d+) kB$", STATUS.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def _peak() -> int | None:
    """Peak resident memory in bytes; not by `getrusage` on Linux, which includes the parent's."""
    peak = _of_status("VmHWM")
    if peak is not None:
        return peak
    try:
        import resource
    except ImportError:
        return None
    found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found if sys.platform == "darwin" else found * 1024
