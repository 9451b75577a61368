"""The audit: runs every check on one model and restores the model's state afterwards."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from flagformer.audit.attempts import one_line
from flagformer.audit.calls.choose import calls_of
from flagformer.audit.check_result import CheckResult
from flagformer.audit.checks import run
from flagformer.audit.checks.every import AS_IT_IS, COMPARING, NAMES
from flagformer.audit.further import PRECISIONS, further, worse
from flagformer.audit.locate import Build, FaultLocator
from flagformer.audit.perturb import perturbed_parameters
from flagformer.audit.preserve import preserve_module, threads_for
from flagformer.audit.report import AuditReport
from flagformer.audit.subject import Settings, Subject, checked, device_of, module_of
from flagformer.flags import CATALOGUE

MIN_LENGTH, DEFAULT_LENGTH = 8, 32


def audit(
    model: Callable[..., Any],
    *,
    num_tokens: int | None = None,
    seq_len: int | None = None,
    causal: bool | None = None,
    checks: Iterable[str] | None = None,
    seed: int = 0,
    rebuild: Build | None = None,
    precision: str = "fp32",
) -> AuditReport:
    """Check a causal language model for silent faults.

    Logits depend on no later token, and not on length, padding, packing or other rows; a cache gives the
    logits of the full forward; eval mode is deterministic; every parameter gets a gradient; all values are
    finite under bf16. A check whose argument the model does not accept is "not applicable", but a cache that
    a Hugging Face config claims (`use_cache`) and that cannot be checked fails. Rotary positions are checked
    across the lengths in such a config. Models of this library are also audited briefly in longer rows, one
    length for each algorithm for long rows, up to `max_seq_len`. Modes, gradients, buffers, weights, random
    states and the number of threads (one for a small model on CPU) are restored.

    Args:
        model: any callable `ids [B, T] -> logits [B, T, V]`: a model of this library, an `nn.Module`, a
            Hugging Face model, an x-transformers `TransformerWrapper`, or a function.
        num_tokens: the size of the vocabulary; default: the model's, or the width of its logits.
        seq_len: tokens per row, at least 8; default 32, or the model's longest input if that is shorter.
        causal: False for a bidirectional model; default: the model's setting, else True.
        checks: names of the checks to run, default all: sensitivity, determinism, future_leak, length,
            right_padding, left_padding, packing, batch, cache, gradients, finite.
        seed: of the ids and of every forward.
        rebuild: a function flags -> model, to find the flag at fault in a model that has `flags`; default
            `flagformer.build` for models of this library.
        precision: "fp32", "bf16" or "fp16", the precision of training. Determinism, leaks and finite training
            are checked under autocast in that precision; with "fp32" only the last, in bf16.

    Raises:
        ValueError: for invalid arguments, or a model that does not turn ids into logits.
    """
    began = time.perf_counter()
    model = getattr(model, "_orig_mod", model)
    names = _names(checks)
    if not callable(model):
        raise ValueError(f"`model` must be a callable ids -> logits, but is {type(model).__name__}")
    with preserve_module(module_of(model)), threads_for(module_of(model)):
        settings = _settings(model, num_tokens, seq_len, causal, seed)
        settings = replace(settings, precision=_precision(precision))
        results = run_checks(model, settings, names)
        results = _with_culprits(model, results, settings, rebuild)
    return AuditReport(describe(model), tuple(results), time.perf_counter() - began)


def run_checks(
    model: Callable[..., Any], settings: Settings, names: Iterable[str] = NAMES
) -> list[CheckResult]:
    """Run the named checks on a model and leave it in eval mode; call it inside `preserve_module`."""
    module, selected = module_of(model), set(names)
    if module is not None:
        module.eval()
    results = _run_once(model, settings, selected)
    for longer, repeated in further(settings, calls_of(model), selected):
        again = {result.check: result for result in _run_once(model, longer, repeated)}
        results = [
            worse(first, again[first.check], longer) if first.check in again else first for first in results
        ]
    return results


def _run_once(model: Callable[..., Any], settings: Settings, names: set[str]) -> list[CheckResult]:
    module = module_of(model)
    with perturbed_parameters(module, settings.seed):
        subject = Subject(model, settings)
        results = [run(check, subject) for check in COMPARING if check.__name__ in names]
    subject = Subject(model, settings)
    return results + [run(check, subject) for check in AS_IT_IS if check.__name__ in names]


def _precision(name: str) -> torch.dtype | None:
    if name not in PRECISIONS:
        raise ValueError(f"`precision` must be one of {', '.join(PRECISIONS)}, but is {name!r}")
    return PRECISIONS[name]


def describe(model: Callable[..., Any]) -> str:
    """The model's class, or a function's name, and its size."""
    module = module_of(model)
    if module is None:
        return getattr(model, "__name__", type(model).__name__)
    count = sum(parameter.numel() for parameter in module.parameters())
    return f"{type(module).__name__} ({count:,} parameters)"


def _names(checks: Iterable[str] | None) -> tuple[str, ...]:
    names = NAMES if checks is None else tuple([checks] if isinstance(checks, str) else checks)
    unknown = [name for name in names if name not in NAMES]
    if unknown or not names:
        raise ValueError(f"`checks` must be names among {', '.join(NAMES)}, but is {list(names)}")
    return names


def _settings(
    model: Callable[..., Any], num_tokens: int | None, seq_len: int | None, causal: bool | None, seed: int
) -> Settings:
    calls = calls_of(model)
    longest = calls.longest()
    length = seq_len if seq_len is not None else min(DEFAULT_LENGTH, longest or DEFAULT_LENGTH)
    if length < MIN_LENGTH:
        raise ValueError(f"`seq_len` must be at least {MIN_LENGTH}, but is {length}")
    if longest is not None and length > longest:
        raise ValueError(f"`seq_len` must be at most the model's longest input, {longest}, but is {length}")
    probe = torch.zeros(2, length, dtype=torch.long, device=device_of(module_of(model)))
    width = _probe(model, probe).shape[-1]
    count = num_tokens or calls.num_tokens() or width
    if count < 2:
        raise ValueError(f"`num_tokens` must be at least 2, so that a token can be changed, but is {count}")
    return Settings(count, length, causal, seed)


def _probe(model: Callable[..., Any], ids: Tensor) -> Tensor:
    module = module_of(model)
    if module is not None:
        module.eval()
    try:
        with torch.no_grad():
            output = calls_of(model).forward(ids)
    except Exception as error:
        raise ValueError(
            f"`model` must turn ids [B, T] into logits [B, T, V], but for ids of shape {list(ids.shape)} "
            f"it raised {one_line(error)}"
        ) from error
    return checked(output, ids)


def _with_culprits(
    model: Callable[..., Any], results: list[CheckResult], settings: Settings, rebuild: Build | None
) -> list[CheckResult]:
    """The results, with the flag at fault for failed ones if the model can be rebuilt from flags."""
    flags = getattr(model, "flags", None)
    if not isinstance(flags, Mapping) or not any(result.failed for result in results):
        return results
    if rebuild is None and _is_ours(model):
        from flagformer.models.build import build

        rebuild, flags = build, _non_default(flags)
    if rebuild is None:
        return results

    def rerun(other: Callable[..., Any], check: str) -> CheckResult:
        if isinstance(other, nn.Module):
            other.to(device_of(module_of(model)))
        return run_checks(other, settings, [check])[0]

    locate = FaultLocator(flags, rebuild, rerun, settings.seed)
    return [locate(result) if result.failed else result for result in results]


def _is_ours(model: Callable[..., Any]) -> bool:
    return type(model).__module__.partition(".")[0] == "flagformer"


def _non_default(flags: Mapping[str, Any]) -> dict[str, Any]:
    """The flags that differ from their defaults; removing the others changes nothing."""
    known = set(CATALOGUE.names())
    return {name: v for name, v in flags.items() if name not in known or v != CATALOGUE.default_value(name)}
