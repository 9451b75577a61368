"""New parameters of a model: initial values, and starts without effect."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from flagformer.attention.attention import Attention
from flagformer.norm.adaptive import AdaptiveNorm

Factors = dict[nn.Module, float]


def initialise(model: nn.Module, names: Collection[str]) -> Factors:
    """Give the modules that own these tensors memory and initial values, without effect where they can.

    Args:
        model: on torch's meta device.
        names: of tensors of its state dict.

    Returns:
        each component with `init_neutral`, and the factor that it returned.
    """
    owners = {name.rpartition(".")[0] for name in names}
    modules = dict(model.named_modules())
    for path, module in modules.items():
        if path in owners:
            module.to_empty(device="cpu", recurse=False)
            module.reset_parameters()
    neutral = [one for path in owners if (one := _component(path, modules)) is not None]
    return {component: component.init_neutral() for component in dict.fromkeys(neutral)}


def _component(path: str, modules: Mapping[str, Any]) -> Any:
    """The module at a path or around it that can start without effect; None if there is none."""
    while path:
        if hasattr(modules[path], "init_neutral"):
            return modules[path]
        path = path.rpartition(".")[0]
    return None


@torch.no_grad()
def compensate(model: nn.Module, factors: Factors) -> None:
    """Divide output projections of attention by the factors with which its new gates start."""
    for module in model.modules():
        if not isinstance(module, Attention):
            continue
        for gate in module.gates:
            if factors.get(gate, 0.0) not in (0.0, 1.0):
                module.to_out.last.weight.div_(factors[gate])
        out: Any = module.to_out
        if factors.get(out, 1.0) != 1.0:
            for tensor in out.last.parameters():
                tensor.div_(factors[out])


def without_start(factors: Factors) -> Iterator[tuple[str, str]]:
    """(flag, reason) of each component that cannot start without effect under its flags."""
    for module, factor in factors.items():
        if factor == 0:
            component: Any = getattr(type(module), "component")  # noqa: B009
            yield component.select, f"{component.name} has no neutral start with these flags"


@torch.no_grad()
def silence(sublayer: Any) -> None:
    """Let a sublayer start with the output zero: its last norm has the weight zero, or its output projection.

    The gradient of the norm of a zero output would be unbounded.
    """
    norm = sublayer.branch_norm
    if isinstance(norm, AdaptiveNorm):
        norm.init_neutral()
        norm.to_scale_shift.bias[: norm.dim].fill_(-1)
        return
    tensors = list(norm.parameters()) if isinstance(norm, nn.Module) else []
    if tensors:
        offset = getattr(norm, "offset", 0.0)
        for name, tensor in norm.named_parameters():
            tensor.fill_(-offset if name == "weight" else 0.0)
        return
    for projection in _outputs(sublayer):
        for tensor in projection.parameters():
            tensor.zero_()


def _outputs(sublayer: Any) -> list[nn.Module]:
    """The output projections of a sublayer."""
    fn = sublayer.fn
    if sublayer.kind in ("a", "c"):
        return [fn.to_out.last]
    found = [getattr(part, "w_out", None) for part in (fn, getattr(fn, "shared", None))]
    return [projection for projection in found if projection is not None]


def as_dtype(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor, in that dtype if it holds floating-point numbers."""
    return tensor.to(dtype) if tensor.is_floating_point() else tensor
