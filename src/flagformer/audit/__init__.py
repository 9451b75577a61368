"""Checks a causal language model for silent faults: `flagformer.audit(model)`.

The package itself is callable, so that `flagformer.audit(model)` works whether or not `flagformer.audit` was
imported as a module before.
"""

from __future__ import annotations

import inspect
import sys
import types

from flagformer.audit.check_result import CheckResult
from flagformer.audit.report import AuditFailed, AuditReport
from flagformer.audit.run import audit

__all__ = ["AuditFailed", "AuditReport", "CheckResult", "audit"]


class _CallableModule(types.ModuleType):
    """A module whose call is `audit`."""

    __call__ = staticmethod(audit)


__signature__ = inspect.signature(audit)
sys.modules[__name__].__class__ = _CallableModule
