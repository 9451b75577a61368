"""A loss in chunks allocates one tensor of the size of the head's weight, and two of a chunk's logits."""

import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from flagformer.ops.cross_entropy import chunked_cross_entropy

V, D, CHUNKS, LENGTH = 1000, 64, 8, 16
BYTES = 4
WEIGHT, LOGITS, FEATURES = BYTES * V * D, BYTES * V * LENGTH, BYTES * D * CHUNKS * LENGTH


class Peak(TorchDispatchMode):
    """The peak bytes of operator outputs; views of arguments count zero."""

    def __init__(self):
        super().__init__()
        self.alive, self.most = {}, 0

    def __torch_dispatch__(self, operator, types, arguments=(), keywords=None):
        found = operator(*arguments, **(keywords or {}))
        given = {one.untyped_storage()._cdata for one in arguments if isinstance(one, torch.Tensor)}
        for one in found if isinstance(found, (tuple, list)) else [found]:
            if isinstance(one, torch.Tensor) and one.untyped_storage()._cdata not in given:
                storage = one.untyped_storage()
                self.alive[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.alive = {key: held for key, held in self.alive.items() if not held[0].expired()}
        self.most = max(self.most, sum(size for _, size in self.alive.values()))
        return found


def linear():
    torch.manual_seed(0)
    return nn.Linear(D, V)


class Adapted(nn.Module):
    """A frozen linear and two narrow ones."""

    def __init__(self):
        super().__init__()
        self.base = linear().requires_grad_(False)
        self.down, self.up = nn.Linear(D, 4, bias=False), nn.Linear(4, V, bias=False)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


def peak(head, autocast=False):
    """Of a forward and a backward."""
    x = torch.randn(1, CHUNKS * LENGTH, D, requires_grad=True)
    targets = torch.randint(V, x.shape[:2])
    with Peak() as seen, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        chunked_cross_entropy(head, x, targets, -100, CHUNKS).backward()
    return seen.most


# features: their gradient, its chunks during concatenation, autograd's copy, and small tensors
SMALL = 4 * FEATURES


def test_a_linear_head_has_one_gradient():
    assert peak(linear()) <= WEIGHT + 2 * LOGITS + SMALL


def test_with_gradient_accumulation():
    head = linear()
    for parameter in head.parameters():
        parameter.grad = torch.zeros_like(parameter)
    assert peak(head) <= WEIGHT + 2 * LOGITS + SMALL


def test_under_autocast():
    """The sum, the weight in half precision, and logits twice in half and once in full precision."""
    assert peak(linear(), autocast=True) <= WEIGHT + WEIGHT // 2 + 2 * LOGITS + SMALL


def test_a_frozen_weight_has_no_gradient():
    assert peak(linear().requires_grad_(False)) <= 2 * LOGITS + SMALL
    # an adapter: the base's logits, its own and their sum
    assert peak(Adapted()) <= 3 * LOGITS + 2 * BYTES * 4 * V + SMALL


def test_a_parametrized_head():
    """Its weight is computed for each chunk: the weight, its gradient, one of its original, and a sum."""
    head = nn.utils.parametrizations.weight_norm(linear())
    assert peak(head) <= 4 * WEIGHT + 2 * LOGITS + SMALL


def test_more_chunks_use_less_memory():
    sizes = []
    for chunks in (2, 8, 32):
        x, targets = torch.randn(1, 128, D), torch.randint(V, (1, 128))
        head = linear()
        with Peak() as seen:
            chunked_cross_entropy(head, x, targets, -100, chunks).backward()
        sizes.append(seen.most)
    assert sizes[0] - sizes[1] >= 1.9 * BYTES * V * (64 - 16)
    assert sizes[1] - sizes[2] >= 1.9 * BYTES * V * (16 - 4)


@pytest.mark.parametrize("keep", [True, False])
def test_a_backward_copies_only_before_another_one(keep):
    head, x = linear(), torch.randn(1, 128, D)
    loss = chunked_cross_entropy(head, x, torch.randint(V, (1, 128)), -100, CHUNKS)
    with Peak() as seen:
        loss.backward(retain_graph=keep)
    assert (seen.most >= WEIGHT) == keep
