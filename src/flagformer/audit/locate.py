"""The flag that is likely at fault: the first one without which the failed check passes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from flagformer.audit.check_result import CheckResult
from flagformer.flags import FlagError, Instance, Spec
from flagformer.ops.seed import seed_devices

Build = Callable[[dict[str, Any]], Callable[..., Any]]
Rerun = Callable[[Callable[..., Any], str], CheckResult]


class FaultLocator:
    """Rebuilds the model without one flag at a time, from the same seed, and reruns the failed check.

    Args:
        flags: the flags that build the model.
        build: flags -> model; raises ValueError for flags that cannot be built.
        rerun: a model and a check's name -> its result.
    """

    def __init__(self, flags: Mapping[str, Any], build: Build, rerun: Rerun, seed: int) -> None:
        self.flags, self.build, self.rerun, self.seed = dict(flags), build, rerun, seed

    def __call__(self, result: CheckResult) -> CheckResult:
        """The result with the flag at fault, or with the reason why none is named."""
        repeated = self._rerun(self.flags, result.check)
        if repeated is None or not repeated.failed:
            words = "a new model built from the same flags passes: the fault is in the weights"
            return dataclasses.replace(result, flag_words=words)
        tried = 0
        for name, fewer in self._without_one():
            cured = self._rerun(fewer, result.check)
            tried += cured is not None
            if cured is not None and cured.passed:
                flag = f"{name}={_repr(self.flags[name])}"
                removed = [other for other in self.flags if other not in fewer and other != name]
                dependent = f" (and {', '.join(removed)}, which need it)" if removed else ""
                words = f"the check passes without {flag}{dependent}"
                return dataclasses.replace(result, flag=flag, flag_words=words)
        words = f"the check also fails without each one of the {tried} flags that can be removed"
        return dataclasses.replace(result, flag_words=words)

    def _without_one(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for name in reversed(self.flags):
            yield name, {other: value for other, value in self.flags.items() if other != name}

    def _rerun(self, flags: dict[str, Any], check: str) -> CheckResult | None:
        """The check's result for a model with these flags; None if it cannot be built.

        Flags that need the removed one are removed with it.
        """
        while True:
            seed_devices(self.seed)
            try:
                return self.rerun(self.build(dict(flags)), check)
            except FlagError as error:
                rejected = {finding.flag for finding in error.findings} & set(flags)
                if not rejected or len(flags) == len(self.flags):
                    return None
                for name in rejected:
                    del flags[name]
            except ValueError:
                return None


def _repr(value: Any) -> str:
    return value.describe() if isinstance(value, (Spec, Instance)) else repr(value)
