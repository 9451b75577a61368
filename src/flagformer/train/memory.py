"""How much memory a trial takes, beyond what its process or device held before its model was built."""

from __future__ import annotations

import contextlib
import re
import sys
from pathlib import Path

import torch

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # of proc(5): resets VmHWM to VmRSS


class MemoryRise:
    """Counts from its construction on.

    On CUDA the bytes of tensors on `device`, as torch allocates them. Otherwise the resident memory of the
    process: Python, torch and data that were loaded before are not counted, code that the first steps load
    is. Where the system does not say what is resident now (macOS), only a rise beyond the earlier peak shows.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self.before: int | None = torch.cuda.memory_allocated(device)
            return
        with contextlib.suppress(OSError):  # a system that does not allow it keeps the earlier peak
            CLEAR.write_text(RESET_PEAK)
        now = _of_status("VmRSS")
        self.before = _peak() if now is None else now

    def peak(self) -> int | None:
        """Most bytes so far, beyond those held at the start; None where the system does not say."""
        if self.device.type == "cuda":
            peak: int | None = torch.cuda.max_memory_allocated(self.device)
        else:
            peak = _peak()
        return None if peak is None or self.before is None else max(0, peak - self.before)


def _of_status(name: str) -> int | None:
    """Bytes of a line of /proc/self/status."""
    try:
        found = re.search(rf"^{name}:\s+(\d+) kB$", STATUS.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def _peak() -> int | None:
    """Most bytes that were resident at once; not `getrusage` on Linux, which counts the parent's too."""
    peak = _of_status("VmHWM")
    if peak is not None:
        return peak
    try:
        import resource
    except ImportError:
        return None
    found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found if sys.platform == "darwin" else found * 1024
