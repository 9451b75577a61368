"""The costs of variants before training, and a check that they can be built.

FLOPs per token: the forward pass at the training length, as `torch.utils.flop_counter` counts it: two per
multiply-add of matrix products, without element-wise operations and embedding look-ups. Attention counts the
keys that are computed (windows of long rows, blocks of local and routing heads); a causal kernel, which skips
up to half of them, counts in full. `dense_flops_per_token` counts all keys for every head.

Sizes and FLOPs are those of the CPU kernels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import flagformer
from flagformer.flags import FlagError
from flagformer.lab.objectives import Inputs, Objective
from flagformer.lab.objectives.next_token import NextToken
from flagformer.lab.study.config_errors import ConfigError, StudyFileError, key_of
from flagformer.lab.study.counting import AttentionFlops, FusedOnMeta
from flagformer.lab.study.design import Study
from flagformer.lab.study.flags import flag_mistake
from flagformer.lab.study.sizes import active_params, body_params
from flagformer.lab.study.source import Source
from flagformer.lab.train.config import Trial

NEXT_TOKEN = NextToken()
ADAMW = 4  # fp32 tensors of a weight's size: itself, its gradient and AdamW's two moments


@dataclass(frozen=True)
class Cost:
    """Size and arithmetic of one variant.

    Attributes:
        params: all parameters; `body` excludes token and position embeddings, `active` counts one row of each
            embedding table and the experts that a token chooses.
        flops_per_token: of a forward pass at the training length.
        dense_flops_per_token: the same, if every head computed the scores of all keys of the row.
        saved_bytes: the tensors that autograd saves for the backward of one micro-batch, in fp32, without
            parameters; shared storage counts once.
        memory_bytes: `saved_bytes`, the largest recomputation, weights, gradients and AdamW's moments: a
            lower bound for training.
    """

    params: int
    body: int
    active: int
    flops_per_token: int
    dense_flops_per_token: int
    saved_bytes: int
    memory_bytes: int


def check_variants(study: Study, source: Source) -> dict[str, Cost]:
    """Build every variant on torch's meta device, which takes no memory, and read the data once.

    Returns:
        variant -> Cost of its first candidate.

    Raises:
        StudyFileError: for all variants that cannot be trained or tested, with the line of the flag or of
            the variant.
    """
    mistakes: list[ConfigError] = []
    costs: dict[str, Cost] = {}
    for variant in study.compare:
        built: list[Any] = []
        for tuned in study.candidates:
            trial = study.trial(variant, study.seeds[0], tuned)
            if (trial.start, trial.flags) in built:
                continue
            built.append((trial.start, trial.flags))
            try:
                model = trial.check()
                if variant not in costs:
                    costs[variant] = cost(trial, model)
            except FlagError as error:
                mistakes += [flag_mistake(source, variant, finding) for finding in error.findings]
            except (ValueError, OSError) as error:
                mistakes.append(_other_mistake(source, variant, str(error)))
            except (RuntimeError, MemoryError, OverflowError) as error:  # sizes that torch cannot represent
                text = f"variant `{variant}` cannot be built: {' '.join(str(error).split())}"
                mistakes.append(source.mistake(("compare", variant), text))
    if mistakes:
        raise StudyFileError(mistakes)
    return costs


def cost(trial: Trial, model: Any = None) -> Cost:
    """Size, FLOPs and memory of a trial's model, from shapes alone.

    Args:
        model: the model on torch's meta device; None: build it.
    """
    seq_len, objective = trial.source.seq_len, trial.trained_by
    with torch.device("meta"):
        model = flagformer.build(trial.model_flags) if model is None else model
        segment = trial.train.segment
        one = objective.example(trial.source, 1, seq_len)
        flops, dense = forward_flops(model.eval(), one, segment, objective)
        saved = saved_bytes(model.train(), micro_batch(trial), segment, objective)
        again = recomputed_bytes(model, micro_batch(trial), segment, objective)
    params = sum(parameter.numel() for parameter in model.parameters())
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    return Cost(
        params,
        body_params(model),
        active_params(model),
        round(flops / seq_len),
        round(dense / seq_len),
        saved,
        ADAMW * size + saved + again,
    )


def micro_batch(trial: Trial) -> Inputs:
    """Example inputs of one forward and backward of training."""
    rows = max(1, trial.train.batch_size // trial.train.accumulate)
    return trial.trained_by.example(trial.source, rows, trial.source.seq_len)


def forward_flops(
    model: nn.Module,
    inputs: Tensor | Inputs,
    segment: int | None = None,
    objective: Objective = NEXT_TOKEN,
) -> tuple[int, int]:
    """FLOPs of one forward pass with eager attention, and the same if every head computed the scores of all
    keys of the row."""
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.requires_grad_(False)  # the counter would follow the graph of learned inputs of a module
    # the math kernel consists of matrix products, which the counter supports on every device
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), AttentionFlops(model) as counted:
        objective.ask(model, _as_inputs(inputs), segment, losses=False)
    for parameter in learned:
        parameter.requires_grad_()
    return counted.total, counted.total + counted.more


def saved_bytes(
    model: nn.Module,
    inputs: Tensor | Inputs,
    segment: int | None = None,
    objective: Objective = NEXT_TOKEN,
) -> int:
    """Bytes that autograd saves for one micro-batch and its loss, without parameters."""
    saved = SavedTensors(model)
    with saved, FusedOnMeta():
        logits = objective.ask(model, _as_inputs(inputs), segment, losses=True).logits
        objective.losses(logits, objective.example_targets(logits)).sum()
    return saved.size


def recomputed_bytes(
    model: nn.Module,
    inputs: Tensor | Inputs,
    segment: int | None = None,
    objective: Objective = NEXT_TOKEN,
) -> int:
    """Bytes that autograd saves while a backward recomputes one sublayer, the maximum over sublayers; 0 if
    the executor does not recompute."""
    stacks: list[Any] = [
        part for part in model.modules() if hasattr(getattr(part, "executor", None), "sequential")
    ]
    saved, before, sizes = SavedTensors(model), [0], [0]
    hooks: list[Any] = []
    for stack in stacks:
        for sublayer in stack.sublayers:
            hooks += [
                sublayer.register_forward_pre_hook(lambda *args: before.append(saved.size)),
                sublayer.register_forward_hook(lambda *args: sizes.append(saved.size - before.pop())),
            ]
    executors = [stack.executor for stack in stacks]
    try:
        for stack in stacks:
            stack.executor = stack.executor.sequential
        if stacks:
            with saved, FusedOnMeta():
                objective.ask(model, _as_inputs(inputs), segment, losses=True)
    finally:
        for stack, executor in zip(stacks, executors, strict=True):
            stack.executor = executor
        for hook in hooks:
            hook.remove()
    return max(sizes)


def _as_inputs(inputs: Tensor | Inputs) -> Inputs:
    return (inputs,) if isinstance(inputs, Tensor) else inputs


class SavedTensors(torch.autograd.graph.saved_tensors_hooks):
    """Counts the bytes of the storages that autograd saves inside in `size`, without a model's parameters."""

    def __init__(self, model: nn.Module) -> None:
        self.parameters = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
        self.tensors: dict[int, Tensor] = {}  # kept alive, as addresses of freed tensors are reused
        self.size = 0
        super().__init__(self._count, lambda tensor: tensor)

    def _count(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.parameters and storage._cdata not in self.tensors:
            self.tensors[storage._cdata] = tensor
            self.size += storage.nbytes()
        return tensor


def _other_mistake(source: Source, variant: str, message: str) -> ConfigError:
    """The error at the key that the message starts with; the variant is named only if it sets the key."""
    own = ("compare", variant, key_of(message))
    if source.has(own):
        return source.mistake(own, f"variant `{variant}`: {message}")
    return source.mistake_of(message)
