"""What the tests of mixers share: every mixer of the catalogue, small and in fp64; reading rows in blocks."""

from functools import partial

import pytest
import torch

from flagformer.flags import CATALOGUE
from flagformer.flow import Dims
from flagformer.mixer.tokens import BlockTokens

DIMS = Dims(dim=24, heads=4, dim_head=8, causal=True)
NAMES = [item.when for item in CATALOGUE.in_slot("sequence_mixer")]
# Two settings of each mixer, by the arguments that it has.
VARIANTS = {"": {"dim_value": 6, "key_groups": 2, "chunk": 16}, "_64": {"kernel": 3, "chunk": 64}}


def built(item, values):
    own = {param.argument for param in item.params}
    return item.cls(DIMS, **{name: value for name, value in values.items() if name in own})


MIXERS = {
    f"{item.when}{suffix}": partial(built, item, values)
    for item in CATALOGUE.in_slot("sequence_mixer")
    for suffix, values in VARIANTS.items()
}
EVERY = pytest.mark.parametrize("name", MIXERS)


def settings(chunk):
    """The flags of a model of each mixer, by its name."""
    values = {"mixer_key_groups": 2, "mixer_chunk": chunk}
    own = {
        item.when: {param.flag.name for param in item.params} for item in CATALOGUE.in_slot("sequence_mixer")
    }
    return {
        name: {"mixer": name, **{flag: value for flag, value in values.items() if flag in own[name]}}
        for name in NAMES
    }


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
        # contiguous, as in a model: else a Linear with a bias rounds its product and its sum in bf16
        out, state = model.mix(block.contiguous(), BlockTokens(mask), state)
        outputs.append(out)
    return torch.cat(outputs, 1), state


def pieces(length, sizes):
    """Blocks of the sizes in turns, as many as fit, and the rest."""
    blocks = []
    while sum(blocks) < length:
        blocks.append(min(sizes[len(blocks) % len(sizes)], length - sum(blocks)))
    return blocks
