"""The processes that train one model: `SingleProcess`, or the ranks of `torchrun` (`Distributed`).

Every rank generates the whole batch, which is a pure function of step and seed, and uses its own rows: data
is not communicated, and any number of ranks trains on the same rows. Only rank 0 reads the file, locks the
directory and writes to it; it broadcasts the results.
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

from flagformer.lab.data import draws
from flagformer.memory.slots import MemorySlots
from flagformer.ops.seed import seed_devices
from flagformer.stack.layers import AttentionLayers

Answer = TypeVar("Answer")
Parallel = Literal["ddp", "fsdp"]


class RemoteRankError(RuntimeError):
    """Rank 0 has failed, and reports the error."""


class ProcessGroup(ABC):
    """`rank` of `world` processes."""

    rank, world = 0, 1
    shards_parameters = False

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which writes."""
        return self.rank == 0

    def check(self, batch_size: int, accumulate: int) -> None:
        """Raise ValueError if a batch does not divide into equal parts."""
        if batch_size % (self.world * accumulate):
            raise ValueError(
                f"`batch_size` must be a multiple of ranks x `accumulate` = {self.world} x {accumulate}, "
                f"but is {batch_size}; all ranks must have equal parts of a step"
            )

    def share(self, rows: Tensor) -> Tensor:
        """This rank's rows of a batch [B, ...] -> [B / world, ...]."""
        return rows.chunk(self.world)[self.rank]

    def seed(self, seed: int, step: int) -> None:
        """Seed the ranks after the first differently, so that dropout differs between ranks."""
        if not self.is_first:
            seed_devices(draws("rank", self.rank, seed, step).initial_seed())

    @abstractmethod
    def wrap_model(self, model: nn.Module, device: torch.device) -> nn.Module:
        """Wrap the model for training on the device; its gradients are averaged over ranks."""

    @abstractmethod
    def accumulating(self, model: nn.Module, last: bool) -> contextlib.AbstractContextManager[None]:
        """Context for the forward and backward of a micro-batch; only the last one synchronises gradients."""

    @abstractmethod
    def total(self, value: Tensor) -> Tensor:
        """The sum over ranks."""

    @abstractmethod
    def on_rank_zero(self, action: Callable[[], Answer]) -> Answer:
        """Run `action` on rank 0 and return its result on all ranks; RemoteRankError if it raises there."""

    @abstractmethod
    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks, on all ranks."""

    @contextlib.contextmanager
    def rank_zero_context(self, context: contextlib.AbstractContextManager[Any]) -> Iterator[None]:
        """Enter `context` on rank 0; the other ranks wait for it."""
        with contextlib.ExitStack() as stack:
            self.on_rank_zero(lambda: stack.enter_context(context) and None)
            yield

    def clip(self, parameters: Iterable[Tensor], most: float) -> float:
        """Clip gradients to the norm `most` over all ranks; return the norm before clipping."""
        norm = nn.utils.clip_grad_norm_(parameters, most)
        return getattr(norm, "full_tensor", lambda: norm)().item()  # a sharded norm is reduced over ranks


class SingleProcess(ProcessGroup):
    """One process."""

    def wrap_model(self, model: nn.Module, device: torch.device) -> nn.Module:
        return model.to(device)

    def accumulating(self, model: nn.Module, last: bool) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def total(self, value: Tensor) -> Tensor:
        return value

    def on_rank_zero(self, action: Callable[[], Answer]) -> Answer:
        return action()

    def gather(self, value: Any) -> list[Any]:
        return [value]


class Distributed(ProcessGroup):
    """The ranks of an initialised torch process group.

    "ddp": every rank has the whole model, and gradients are averaged (`DistributedDataParallel`); those of
    the writers of memory slots, which rows of one segment do not use, are averaged apart. "fsdp":
    parameters, gradients and optimizer moments are sharded (`fully_shard`, FSDP2) and gathered sublayer by
    sublayer; a reversible stack, which recomputes sublayers in its backward, is gathered as a whole.
    """

    def __init__(self, parallel: Parallel) -> None:
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.parallel = parallel
        self.shards_parameters = parallel == "fsdp"
        self.apart: list[nn.Parameter] = []

    def wrap_model(self, model: nn.Module, device: torch.device) -> nn.Module:
        if self.parallel == "ddp":
            from torch.nn.parallel import DistributedDataParallel

            slots = [part for part in model.to(device).modules() if isinstance(part, MemorySlots)]
            self.apart = [own for part in slots for own in part.writer.parameters() if own.requires_grad]
            for parameter in self.apart:  # DDP waits for the gradient of each parameter that requires one
                parameter.requires_grad_(False)
            wrapped = DistributedDataParallel(model)
            for parameter in self.apart:
                parameter.requires_grad_(True)
            return wrapped
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(device.type, (self.world,))  # parameters are moved one by one
        for layers in [part for part in model.modules() if isinstance(part, AttentionLayers)]:
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
            for gradient in [own.grad for own in self.apart if last and own.grad is not None]:
                dist.all_reduce(gradient.div_(self.world))

    def total(self, value: Tensor) -> Tensor:
        dist.all_reduce(value)
        return value

    def on_rank_zero(self, action: Callable[[], Answer]) -> Answer:
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


SINGLE = SingleProcess()


def by_torchrun() -> bool:
    """Whether this process was started by `torchrun`."""
    return dist.is_available() and dist.is_torchelastic_launched()


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Initialise the process group of `torchrun` inside; each rank uses the GPU of its local rank."""
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def exit_rank() -> NoReturn:
    """Exit the process of a finished rank immediately.

    During interpreter shutdown torch's process groups abort about one process in twenty (torch 2.13, gloo),
    and `torchrun` would then report the run as failed.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
