"""Memory of one call: bytes saved for the backward, and the peak of the process (Linux)."""

import ctypes
import gc
import sys
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


def return_freed_memory() -> None:
    """Make the allocator return freed memory, so that the peak is that of live tensors."""
    if sys.platform != "linux":
        raise SystemExit("the peak of a process is read from /proc, which only Linux has")
    libc = ctypes.CDLL("libc.so.6")
    libc.mallopt(M_MMAP_THRESHOLD, 1 << 16)
    libc.mallopt(M_TRIM_THRESHOLD, 1 << 16)


def peak(call: Callable[[], object]) -> int:
    """The peak growth of the process in bytes during the call."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    before = _status("VmRSS")
    CLEAR.write_text("5")  # the high-water mark is reset
    call()
    return _status("VmHWM") - before


def live(call: Callable[[], object]) -> int:
    """The peak bytes of all live tensors during the call: the same in each run."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    found = profiler.profiler.kineto_results.events()
    events = [event for event in found if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(accumulate((event.nbytes() for event in events), initial=0))


def held(call: Callable[[], object]) -> int:
    """The growth of the process in bytes after the call, while its result, a graph, is alive."""
    gc.collect()
    libc = ctypes.CDLL("libc.so.6")
    libc.malloc_trim(0)
    before = _status("VmRSS")
    graph = call()
    libc.malloc_trim(0)
    after = _status("VmRSS")
    del graph
    return after - before


def saved(call: Callable[[], object], model: nn.Module) -> int:
    """Bytes of the tensors that a forward saves for the backward, each once, without parameters.

    Tensors that a library stores outside autograd are missing here: `held` includes them.
    """
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    seen: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept = call()
    total = sum(size for place, size in seen.items() if place not in own)
    del kept
    return total


def _status(name: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024
