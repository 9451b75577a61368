"""All checks, in the order in which they run and are shown."""

from __future__ import annotations

from flagformer.audit.checks import Check
from flagformer.audit.checks.batch import batch
from flagformer.audit.checks.cache import cache
from flagformer.audit.checks.determinism import determinism
from flagformer.audit.checks.finite import finite
from flagformer.audit.checks.future_leak import future_leak
from flagformer.audit.checks.gradients import gradients
from flagformer.audit.checks.length import length
from flagformer.audit.checks.packing import packing
from flagformer.audit.checks.padding import left_padding, right_padding
from flagformer.audit.checks.sensitivity import sensitivity

COMPARING: tuple[Check, ...] = (
    sensitivity, determinism, future_leak, length, right_padding, left_padding, packing, batch, cache,
)  # fmt: skip
AS_IT_IS: tuple[Check, ...] = (gradients, finite)
NAMES = tuple(check.__name__ for check in COMPARING + AS_IT_IS)
