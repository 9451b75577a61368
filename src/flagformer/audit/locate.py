"""Which flag is likely at fault: the first one whose removal cures the failed check."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from flagformer.audit.report import CheckResult
from flagformer.flags import FlagError, Instance, Spec

Build = Callable[[dict[str, Any]], Callable[..., Any]]
Rerun = Callable[[Callable[..., Any], str], CheckResult]


class FaultLocator:
    """Rebuilds the model without one flag at a time, from the same seed, and reruns the check that failed.

    Args:
        flags: the flags that build the model.
        build: flags -> model; raises ValueError for flags that cannot be built.
        rerun: a model and a check's name -> its result.
    """

    def __init__(self, flags: Mapping[str, Any], build: Build, rerun: Rerun, seed: int) -> None:
        self.flags, self.build, self.rerun, self.seed = dict(flags), build, rerun, seed

    def __call__(self, result: CheckResult) -> CheckResult:
        """The result with the flag at fault, or with words on why none is named."""
        again = self._again(self.flags, result.check)
        if again is None or not again.failed:
            words = "a model newly built from the same flags passes: the fault comes with its weights"
            return dataclasses.replace(result, flag_words=words)
        tried = 0
        for name, fewer in self._without_one():
            cured = self._again(fewer, result.check)
            tried += cured is not None
            if cured is not None and cured.passed:
                flag = f"{name}={_shown(self.flags[name])}"
                removed = [other for other in self.flags if other not in fewer and other != name]
                along = f" (and {', '.join(removed)}, which need it)" if removed else ""
                words = f"the check passes without {flag}{along}"
                return dataclasses.replace(result, flag=flag, flag_words=words)
        words = f"none of the {tried} flags that can be left out cures it"
        return dataclasses.replace(result, flag_words=words)

    def _without_one(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for name in reversed(self.flags):
            yield name, {other: value for other, value in self.flags.items() if other != name}

    def _again(self, flags: dict[str, Any], check: str) -> CheckResult | None:
        """The check's result for a model of these flags; None where they cannot be built.

        Flags that mean nothing without the one removed are removed with it.
        """
        while True:
            torch.manual_seed(self.seed)
            try:
                return self.rerun(self.build(dict(flags)), check)
            except FlagError as error:
                complained = {finding.flag for finding in error.findings} & set(flags)
                if not complained or len(flags) == len(self.flags):
                    return None
                for name in complained:
                    del flags[name]
            except ValueError:
                return None


def _shown(value: Any) -> str:
    return value.describe() if isinstance(value, (Spec, Instance)) else repr(value)
