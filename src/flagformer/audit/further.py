"""A shorter repetition of the checks in longer rows, and in the precision of training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from flagformer.audit.calls import Calls
from flagformer.audit.check_result import CheckResult
from flagformer.audit.subject import Settings

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
# Checks that compare runs of one shape, which differ only by the order of sums. Other shapes round
# differently, and in half precision rounding decides which expert, cluster or key is chosen.
OF_ONE_SHAPE = ("determinism", "future_leak")
ONCE = ("sensitivity", "gradients")  # not repeated in longer rows


def further(settings: Settings, calls: Calls, wanted: set[str]) -> Iterator[tuple[Settings, set[str]]]:
    """Settings and the names of the checks to run under them."""
    longer = [length for length in calls.long_rows() if length > settings.seq_len]
    for length in longer:
        yield replace(settings, seq_len=length, brief=True), wanted - {*ONCE}
    if settings.precision is not None:
        for length in (settings.seq_len, *longer):
            yield replace(settings, seq_len=length, brief=True, cast=True), wanted & {*OF_ONE_SHAPE}


def worse(first: CheckResult, again: CheckResult, settings: Settings) -> CheckResult:
    """The first result, unless only the further one failed."""
    if first.failed or not again.failed:
        return first
    return replace(again, words=f"{settings.words}: {again.words}")
