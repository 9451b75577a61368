"""What a variant costs before it is trained, and whether it can be built at all.

FLOPs per token: the forward pass at the training length, as `torch.utils.flop_counter` counts it: two per
multiply-add of matrix products, attention counted in full (a causal kernel skips up to half of it),
element-wise work and embedding look-ups not counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import flagformer
from flagformer.flags import FlagError
from flagformer.study.file import Study
from flagformer.study.flags import flag_mistake
from flagformer.study.mistakes import Mistake, StudyFileError
from flagformer.study.source import Source


@dataclass(frozen=True)
class Cost:
    """Size and arithmetic of one variant."""

    params: int
    flops_per_token: int


def check_variants(study: Study, source: Source) -> dict[str, Cost]:
    """Builds every variant without memory or time (on torch's meta device) and reads the data once.

    Returns:
        variant -> Cost.

    Raises:
        StudyFileError: every variant that cannot be trained or tested, with the line of the flag or of the
            variant.
    """
    mistakes: list[Mistake] = []
    costs: dict[str, Cost] = {}
    first: dict[str, str] = {}
    for variant in study.compare:
        trial = study.trial(variant, study.seeds[0])
        same = first.setdefault(trial.id, variant)
        if same != variant:
            text = f"`compare.{variant}` has the same flags as `compare.{same}`; change one or leave it out"
            mistakes.append(source.mistake(("compare", variant), text))
        try:
            trial.check()
            costs[variant] = cost(trial.model_flags, study.data.seq_len)
        except FlagError as error:
            mistakes += [flag_mistake(source, variant, finding) for finding in error.findings]
        except (ValueError, OSError) as error:
            mistakes.append(_other_mistake(source, variant, str(error)))
    if mistakes:
        raise StudyFileError(mistakes)
    return costs


def cost(flags: dict[str, Any], seq_len: int) -> Cost:
    """Parameters and FLOPs per token of the model that `flags` build; shapes only, nothing is computed."""
    with torch.device("meta"):
        model = flagformer.build(flags).eval()
        ids = torch.zeros(1, seq_len, dtype=torch.long)
        # the math kernel is made of matrix products that the counter knows on every device
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model(ids)
    return Cost(model.num_params(), round(counter.get_total_flops() / seq_len))


def _other_mistake(source: Source, variant: str, message: str) -> Mistake:
    """At the key whose name the message starts with; the variant is named only where the key is its own."""
    name = message.removeprefix("`").partition("`")[0]
    for route in (("compare", variant, name), ("base", name), ("data", name), ("evaluate", name)):
        if route in source.lines or route in source.overrides:
            return source.mistake(
                route, f"variant `{variant}`: {message}" if route[0] == "compare" else message
            )
    return source.mistake(("data",), message)
