"""Support for FSDP2 (`fully_shard`), which gathers the parameters of a module only for its forward."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

P = ParamSpec("P")
R = TypeVar("R")
Module = TypeVar("Module", bound=nn.Module)


def as_forward(
    method: Callable[Concatenate[Module, P], R],
) -> Callable[Concatenate[Module, P], R]:
    """Decorate a method that reads parameters: if the module is sharded, gather them as for its forward.

    Do not call the method from the module's forward or from another such method of the same module: the
    inner call would free parameters that the outer one still needs.
    """

    @wraps(method)
    def call(self: Module, /, *args: P.args, **how: P.kwargs) -> R:
        if not _is_fsdp(self):
            return method(self, *args, **how)
        from torch.distributed.fsdp import register_fsdp_forward_method

        name = f"_{method.__name__}_as_forward"
        if name not in self.__dict__:
            self.__dict__[name] = method.__get__(self)
            register_fsdp_forward_method(self, name)
        with outside_inference_mode():
            result: R = self.__dict__[name](*args, **how)
        return result

    return call


def as_session(
    method: Callable[Concatenate[Module, P], R],
) -> Callable[Concatenate[Module, P], R]:
    """`as_forward` for a method that runs many forwards without a graph: at its end all modules that were
    sharded before are sharded again, also those that FSDP2 leaves gathered for a backward."""

    @wraps(method)
    def call(self: Module, /, *args: P.args, **how: P.kwargs) -> R:
        parts: list[Any] = [part for part in self.modules() if _is_fsdp(part) and any(_gathered_shards(part))]
        try:
            return as_forward(method)(self, *args, **how)
        finally:
            for part in parts:
                part.reshard()

    return call


@contextmanager
def without_gradient(*models: Any) -> Iterator[None]:
    """Inference mode, or `torch.no_grad` for models that FSDP2 has sharded: training gathers into the same
    tensors, and inference tensors cannot be trained."""
    sharded = [model for model in models if is_sharded(model)]
    for model in sharded:
        refuse_sharded_above(model)
    with outside_inference_mode(always=True) if sharded else torch.inference_mode():
        yield


@contextmanager
def outside_inference_mode(always: bool = False) -> Iterator[None]:
    """`torch.no_grad` in place of inference mode; `always`: also where gradients are recorded."""
    with ExitStack() as entered:
        if always or torch.is_inference_mode_enabled():
            entered.enter_context(torch.inference_mode(False))
            entered.enter_context(torch.no_grad())
        yield


def is_sharded(model: Any) -> bool:
    """Whether `fully_shard` was applied to the model, a submodule, or a module that contains it."""
    parts = model.modules() if isinstance(model, nn.Module) else ()
    return any(_is_fsdp(part) or any(_shards(part)) for part in parts)


def is_gathered_inside(part: nn.Module) -> bool:
    """Whether `fully_shard` was applied to the module or a submodule."""
    return any(_is_fsdp(one) for one in part.modules())


def _is_fsdp(part: nn.Module) -> bool:
    return hasattr(type(part), "unshard")


def refuse_sharded_above(part: nn.Module, path: str = "") -> None:
    """Raise ValueError for parameters that a module around the model gathers only for its own forward.

    A module with forward hooks handles its DTensors itself (tensor parallelism).
    """
    if _is_fsdp(part):
        return
    for name in () if part._forward_pre_hooks else _shards(part):
        raise ValueError(
            f"parameters of this model must be gathered, but `{path}{name}` is a shard of a module around "
            "the model, which gathers it only for its own forward; call `unshard()` of that module before "
            "and `reshard()` afterwards, or apply `fully_shard` to the model itself"
        )
    for name, child in part.named_children():
        refuse_sharded_above(child, f"{path}{name}.")


def _gathered_shards(part: nn.Module) -> Iterator[str]:
    """Names of the DTensors that FSDP2 gathers with the module, its own and those of submodules without
    `fully_shard`."""
    yield from _shards(part)
    for child in part.children():
        if not _is_fsdp(child):
            yield from _gathered_shards(child)


def _shards(part: nn.Module) -> Iterator[str]:
    """Names of the module's own parameters that are DTensors."""
    return (name for name, one in part._parameters.items() if hasattr(one, "full_tensor"))


def gather_with(owner: Any, part: nn.Module) -> None:
    """Gather the parameters of a submodule that another module reads, if they are sharded with `owner`; they
    are freed after the backward, or with the next forward of `owner`."""
    if _is_fsdp(owner) and not _is_fsdp(part) and any(_shards(part)):
        owner.unshard()


def laid_out(value: Tensor, like: Tensor) -> Tensor:
    """`value`, which is the same on every rank, on the device of `like` and sharded like it."""
    value = value.to(like.device)
    if not hasattr(like, "full_tensor"):
        return value
    from torch.distributed.tensor import distribute_tensor  # the import takes seconds

    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)  # type: ignore
