"""The processes that train one model together: `Alone`, one process, and those that `torchrun` starts.

Every rank draws the whole batch, which is a pure function of step and seed, and keeps its own rows: nothing
is sent to share data out, and any number of ranks trains on the same rows. Rank 0 alone reads the file,
holds the directory and writes to it; the others hear what came of it.
"""

from __future__ import annotations

import contextlib
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from flagformer.data import draws

Answer = TypeVar("Answer")
Parallel = Literal["ddp", "fsdp"]


class RemoteRankError(RuntimeError):
    """Rank 0 has failed, and says why."""


class ProcessGroup(ABC):
    """`rank` of `world` processes."""

    rank, world = 0, 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes."""
        return self.rank == 0

    def check(self, batch_size: int, accumulate: int) -> None:
        """ValueError if a batch does not divide into equal parts."""
        if batch_size % (self.world * accumulate):
            raise ValueError(
                f"`batch_size` must be a multiple of ranks x `accumulate` = {self.world} x {accumulate}, "
                f"but is {batch_size}; ranks would not have equal parts of a step"
            )

    def share(self, rows: Tensor) -> Tensor:
        """This rank's rows of a batch [B, ...] -> [B / world, ...]."""
        return rows.chunk(self.world)[self.rank]

    def seed(self, seed: int, step: int) -> None:
        """Gives ranks behind the first their own random numbers, or all would drop the same places."""
        if not self.is_first:
            torch.manual_seed(draws("rank", self.rank, seed, step).initial_seed())

    @abstractmethod
    def spread(self, model: nn.Module, device: torch.device) -> nn.Module:
        """The model to be called in training, on the device; its gradients are the mean over ranks."""

    @abstractmethod
    def accumulating(self, model: nn.Module, last: bool) -> contextlib.AbstractContextManager[None]:
        """Around the forward and backward of a micro-batch: gradients meet in the last one only."""

    @abstractmethod
    def total(self, value: Tensor) -> Tensor:
        """The sum over ranks."""

    @abstractmethod
    def by_first(self, action: Callable[[], Answer]) -> Answer:
        """What `action` returns on rank 0; Elsewhere on the others where it raises there."""

    @abstractmethod
    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks, on all of them."""

    @contextlib.contextmanager
    def first_holds(self, context: contextlib.AbstractContextManager[Any]) -> Iterator[None]:
        """Rank 0 is in `context`, the others wait until it is."""
        with contextlib.ExitStack() as stack:
            self.by_first(lambda: stack.enter_context(context) and None)
            yield

    def clip(self, parameters: Iterable[Tensor], most: float) -> float:
        """Clips gradients to the norm `most` over all ranks; returns what it was."""
        norm = nn.utils.clip_grad_norm_(parameters, most)
        return getattr(norm, "full_tensor", lambda: norm)().item()  # a sharded one is summed over ranks


class SingleProcess(ProcessGroup):
    """One process."""

    def spread(self, model: nn.Module, device: torch.device) -> nn.Module:
        return model.to(device)

    def accumulating(self, model: nn.Module, last: bool) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def total(self, value: Tensor) -> Tensor:
        return value

    def by_first(self, action: Callable[[], Answer]) -> Answer:
        return action()

    def gather(self, value: Any) -> list[Any]:
        return [value]


class Distributed(ProcessGroup):
    """The ranks of a process group that has been joined.

    "ddp": each holds the model and sums gradients (`DistributedDataParallel`). "fsdp": each holds a part of
    every parameter, its gradient and its moments (`fully_shard`, FSDP2), and gathers a sublayer's when it is
    computed; reversible layers, which compute sublayers again in their backward, are gathered whole.
    """

    def __init__(self, parallel: Parallel) -> None:
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.parallel = parallel

    def spread(self, model: nn.Module, device: torch.device) -> nn.Module:
        if self.parallel == "ddp":
            from torch.nn.parallel import DistributedDataParallel

            return DistributedDataParallel(model.to(device))
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(device.type, (self.world,))  # parameters move there piece by piece
        layers: Any = model.attn_layers
        for part in [layers] if layers.flags.get("reversible") else layers.sublayers:
            fully_shard(part, mesh=mesh)
        fully_shard(model, mesh=mesh)
        return model

    @contextlib.contextmanager
    def accumulating(self, model: Any, last: bool) -> Iterator[None]:
        if self.parallel == "fsdp":
            model.set_requires_gradient_sync(last)
            yield
        else:
            with contextlib.nullcontext() if last else model.no_sync():
                yield

    def total(self, value: Tensor) -> Tensor:
        dist.all_reduce(value)
        return value

    def by_first(self, action: Callable[[], Answer]) -> Answer:
        answer: list[Any] = [None]
        if not self.is_first:
            dist.broadcast_object_list(answer, src=0)
            if answer[0] is None:
                raise RemoteRankError("rank 0 has failed")
            return answer[0][0]
        try:
            answer = [(action(),)]
        finally:
            dist.broadcast_object_list(answer, src=0)
        return answer[0][0]

    def gather(self, value: Any) -> list[Any]:
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, value)
        return found


ALONE = SingleProcess()


def inner(model: nn.Module) -> Any:
    """The model itself, without what DistributedDataParallel wraps around it."""
    wrapped = getattr(model, "module", None)
    return wrapped if isinstance(wrapped, nn.Module) else model


def by_torchrun() -> bool:
    """Whether `torchrun` has started this process."""
    return dist.is_available() and dist.is_torchelastic_launched()


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Joins the other ranks of `torchrun` for as long as it lasts; each takes the GPU of its number."""
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def leave() -> NoReturn:
    """Ends the process of a rank that is done, at once.

    When the interpreter takes torch's groups down itself, about one process in twenty aborts (torch 2.13,
    gloo): after its work, but `torchrun` then calls the whole run failed.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
