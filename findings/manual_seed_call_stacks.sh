#!/usr/bin/env bash
# torch.manual_seed on a CPU build formats the whole Python call stack three times in each call.
# The guess: without an accelerator it seeds one generator, about a microsecond.
# Seen (torch 2.13.0 CPU): the seed of CUDA, XPU and MTIA is queued for the day that device is initialised, each with
# `traceback.format_stack()` of the caller. The price grows with the depth of the stack: 100 times that of
# `torch.default_generator.manual_seed` already in a script, more below a test runner or a training framework, where a
# loop that seeds every step or every comparison pays it each time. The draws are equal.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys
import time
import traceback

import torch

assert not torch.accelerator.is_available(), "this finding is about machines without an accelerator"
frames = []
plain = traceback.format_stack


def counted(*args, **keywords):
    depth, frame = 0, sys._getframe()
    while frame is not None:
        depth, frame = depth + 1, frame.f_back
    frames.append(depth)
    return plain(*args, **keywords)


def at_depth(depth, call):
    return call() if depth == 0 else at_depth(depth - 1, call)


traceback.format_stack = counted
for depth in (0, 20, 60):
    frames.clear()
    at_depth(depth, lambda: torch.manual_seed(0))
    print(f"{depth:2d} frames below the script: {len(frames)} stacks of {frames[0]} frames formatted")
    assert len(frames) == 3, frames
    assert min(frames) > depth, frames
traceback.format_stack = plain

frames.clear()
torch.default_generator.manual_seed(0)
assert not frames
one = torch.rand(5)
torch.manual_seed(0)
assert torch.equal(torch.rand(5), one)


def cost(call, count=200):
    began = time.process_time()
    for _ in range(count):
        call()
    return (time.process_time() - began) / count * 1e6


print(f"torch.manual_seed: {cost(lambda: torch.manual_seed(0)):.0f} us in a script, ", end="")
print(f"{at_depth(60, lambda: cost(lambda: torch.manual_seed(0))):.0f} us at 60 frames; ", end="")
print(f"default_generator.manual_seed: {cost(lambda: torch.default_generator.manual_seed(0)):.1f} us")
PYTHON
