"""What the tests of mixers share: small mixers in fp64, and reading rows in blocks."""

import pytest
import torch

from flagformer.flow import Dims
from flagformer.mixer.gated_deltanet import GatedDeltaNet
from flagformer.mixer.mamba2 import Mamba2
from flagformer.mixer.short_convolution import ShortConvolution
from flagformer.mixer.tokens import BlockTokens

DIMS = Dims(dim=24, heads=4, dim_head=8, causal=True)
MIXERS = {
    "gated_deltanet": lambda: GatedDeltaNet(DIMS, dim_value=6, key_groups=2, chunk=16),
    "gated_deltanet_64": lambda: GatedDeltaNet(DIMS, kernel=3, chunk=64),
    "mamba2": lambda: Mamba2(DIMS, dim_value=12, key_groups=2, chunk=16),
    "mamba2_64": lambda: Mamba2(DIMS, kernel=2, chunk=64),
    "short_convolution": lambda: ShortConvolution(DIMS),
    "short_convolution_2": lambda: ShortConvolution(DIMS, kernel=2),
}
EVERY = pytest.mark.parametrize("name", MIXERS)


def close(one, two, most=1e-9):
    """fp64: relative to the largest of both."""
    assert one.shape == two.shape
    one, two = one.detach(), two.detach()
    assert (one - two).abs().max() <= most * max(1.0, float(two.abs().max()))


def mixer(name, seed=0):
    torch.manual_seed(seed)
    return MIXERS[name]().double()


def rows(batch, length, seed=1):
    return torch.randn(
        batch, length, DIMS.dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )


def start(model, x):
    return model.initial_state(x.shape[0], x.dtype, x.device)


def whole(model, x, tokens=None):
    return model.mix(x, tokens or BlockTokens(), start(model, x))


def read(model, x, blocks, valid=None, state=None):
    """Outputs of consecutive blocks, and the state after them."""
    assert sum(blocks) == x.shape[1]
    state = start(model, x) if state is None else state
    masks = [None] * len(blocks) if valid is None else valid.split(blocks, 1)
    outputs = []
    for block, mask in zip(x.split(blocks, 1), masks):
        out, state = model.mix(block, BlockTokens(mask), state)
        outputs.append(out)
    return torch.cat(outputs, 1), state


def pieces(length, sizes):
    """Blocks of the sizes in turns, as many as fit, and the rest."""
    blocks = []
    while sum(blocks) < length:
        blocks.append(min(sizes[len(blocks) % len(sizes)], length - sum(blocks)))
    return blocks
