"""What FSDP2 (`fully_shard`) asks of a model: it gathers the parameters of a module for its forward alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

Given = ParamSpec("Given")
Found = TypeVar("Found")
Module = TypeVar("Module", bound=nn.Module)


def as_forward(
    method: Callable[Concatenate[Module, Given], Found],
) -> Callable[Concatenate[Module, Given], Found]:
    """A method that reads parameters: where its module is sharded, they are gathered as for the forward.

    Neither the module's forward nor another such method of the same module may call it: the inner call would
    free the parameters that the outer one still reads.
    """

    @wraps(method)
    def call(self: Module, /, *args: Given.args, **how: Given.kwargs) -> Found:
        if not _is_fsdp(self):
            return method(self, *args, **how)
        from torch.distributed.fsdp import register_fsdp_forward_method

        name = f"_{method.__name__}_as_forward"
        if name not in self.__dict__:
            self.__dict__[name] = method.__get__(self)
            register_fsdp_forward_method(self, name)
        with outside_inference_mode():
            found: Found = self.__dict__[name](*args, **how)
        return found

    return call


def as_session(
    method: Callable[Concatenate[Module, Given], Found],
) -> Callable[Concatenate[Module, Given], Found]:
    """`as_forward`, for a method that runs many forwards and keeps no graph: at its end all is sharded that
    was at its beginning, also what FSDP2 leaves gathered for a backward."""

    @wraps(method)
    def call(self: Module, /, *args: Given.args, **how: Given.kwargs) -> Found:
        parts: list[Any] = [part for part in self.modules() if _is_fsdp(part) and any(_held_shards(part))]
        try:
            return as_forward(method)(self, *args, **how)
        finally:
            for part in parts:
                part.reshard()

    return call


@contextmanager
def without_gradient(*models: Any) -> Iterator[None]:
    """Inference mode; for models that FSDP2 has sharded `torch.no_grad`, as training gathers into the same
    tensors, and those of inference mode cannot be trained."""
    sharded = [model for model in models if is_sharded(model)]
    for model in sharded:
        refuse_sharded_above(model)
    with outside_inference_mode(always=True) if sharded else torch.inference_mode():
        yield


@contextmanager
def outside_inference_mode(always: bool = False) -> Iterator[None]:
    """In place of inference mode, `torch.no_grad`; `always`: also where gradients are recorded."""
    with ExitStack() as entered:
        if always or torch.is_inference_mode_enabled():
            entered.enter_context(torch.inference_mode(False))
            entered.enter_context(torch.no_grad())
        yield


def is_sharded(model: Any) -> bool:
    """Whether `fully_shard` was applied to the model, a part of it, or a module around it."""
    parts = model.modules() if isinstance(model, nn.Module) else ()
    return any(_is_fsdp(part) or any(_shards(part)) for part in parts)


def _is_fsdp(part: nn.Module) -> bool:
    return hasattr(type(part), "unshard")


def refuse_sharded_above(part: nn.Module, path: str = "") -> None:
    """ValueError for parameters that a module around the model gathers, in its own forward alone.

    A module with hooks sees to its DTensors itself (tensor parallelism).
    """
    if _is_fsdp(part):
        return
    for name in () if part._forward_pre_hooks else _shards(part):
        raise ValueError(
            f"parameters of this model must be gathered, but `{path}{name}` is a shard of a module around "
            "the model, which gathers it in its own forward alone; call `unshard()` of that module before "
            "and `reshard()` afterwards, or apply `fully_shard` to the model itself"
        )
    for name, child in part.named_children():
        refuse_sharded_above(child, f"{path}{name}.")


def _held_shards(part: nn.Module) -> Iterator[str]:
    """Those that FSDP2 gathers with the module: of modules below it that are not sharded apart, too."""
    yield from _shards(part)
    for child in part.children():
        if not _is_fsdp(child):
            yield from _held_shards(child)


def _shards(part: nn.Module) -> Iterator[str]:
    """Names of the module's own parameters that are DTensors."""
    return (name for name, one in part._parameters.items() if hasattr(one, "full_tensor"))


def laid_out(value: Tensor, like: Tensor) -> Tensor:
    """`value`, the same on every rank, on the device of `like` and sharded as `like` is."""
    value = value.to(like.device)
    if not hasattr(like, "full_tensor"):
        return value
    from torch.distributed.tensor import distribute_tensor  # seconds, that most programs do without

    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)  # type: ignore
