"""Every parameter gets a gradient."""

from __future__ import annotations

import random
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flagformer.audit.check_result import CheckResult, must_be
from flagformer.audit.preserve import preserve_parameters
from flagformer.audit.subject import NotApplicable, Subject, checked
from flagformer.ops.seed import seed_devices

STEPS = 6
STEP_SIZE = 0.02
SHOWN = 6


def gradients(subject: Subject) -> CheckResult:
    """Every trainable parameter gets a non-zero gradient within a few small training steps.

    More than one step, because parameters after a gate that is initialised to zero get their gradient only
    once the gate has changed; the product of two zeros never changes, and is reported.
    """
    module = subject.module
    if module is None:
        raise NotApplicable("a plain function has no parameters")
    trainable = {name: p for name, p in module.named_parameters() if p.requires_grad}
    if not trainable:
        raise NotApplicable("no parameter requires a gradient")
    waiting = dict(trainable)
    with subject.training(True), preserve_parameters(trainable.values()):
        for step in range(STEPS):
            module.zero_grad()
            if not _backward(subject, step):
                break
            waiting = {name: p for name, p in waiting.items() if not _has_gradient(p)}
            if not waiting:
                break
            _move(trainable)
    names = tuple(waiting)
    if not names:
        return must_be("gradients", True, f"all {len(trainable)} parameters get a gradient")
    return must_be("gradients", False, _describe(names, len(trainable)), parameters=names)


def loss_of(subject: Subject, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Logits, and the mean cross entropy of the next token, or of the token itself for encoders."""
    logits = checked(subject.calls.learn(ids), ids)
    inputs, targets = (logits, ids) if subject.why_not_causal else (logits[:, :-1], ids[:, 1:])
    return logits, F.cross_entropy(inputs.flatten(0, 1).float(), targets.flatten())


def _backward(subject: Subject, step: int) -> bool:
    """Run one backward pass; return False if nothing requires a gradient."""
    seed = subject.settings.seed + step
    seed_devices(seed)
    random.seed(seed)
    ids = subject.random_ids(subject.settings.rows, subject.settings.seq_len)
    with torch.enable_grad(), torch.autocast(subject.device.type, enabled=False):
        _, loss = loss_of(subject, ids)
        if loss.requires_grad:
            loss.backward()
    return loss.requires_grad


def _has_gradient(parameter: nn.Parameter) -> bool:
    gradient = parameter.grad
    if gradient is None:
        return False
    values = gradient.coalesce().values() if gradient.is_sparse else gradient
    return bool(values.count_nonzero() > 0)


@torch.no_grad()
def _move(trainable: Mapping[str, nn.Parameter]) -> None:
    """A descent step with a largest change of STEP_SIZE."""
    for parameter in trainable.values():
        if _has_gradient(parameter) and parameter.grad is not None and not parameter.grad.is_sparse:
            parameter.sub_(STEP_SIZE * parameter.grad / parameter.grad.abs().max())


def _describe(names: tuple[str, ...], total: int) -> str:
    shown = ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
    return f"{len(names)} of {total} parameters got no gradient in {STEPS} steps: {shown}"
