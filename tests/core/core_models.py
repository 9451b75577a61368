"""Small models, one of each kind, and inputs for them."""

from functools import cache

import torch

from perturbed_models import perturbed

SMALL = {"num_tokens": 11, "max_seq_len": 16, "dim": 16, "depth": 2, "heads": 4, "attn_dim_head": 8}
T, B, S = 9, 2, 5


def make(**flags):
    return perturbed({**SMALL, **flags}, seed=1).eval()


@cache
def shared(kind):
    """One cached model of a kind, for all tests that do not modify it."""
    flags = {
        "decoder": {},
        "rotary": {"rotary_pos_emb": True},
        "encoder": {"model": "encoder"},
        "prefix": {"model": "prefix_decoder"},
        "cross": {"cross_attend": True, "cross_attn_dim_context": 6},
        "only_cross": {"only_cross": True},
    }
    return make(**flags[kind])


def ids(seed=0):
    return torch.randint(11, (B, T), generator=torch.Generator().manual_seed(seed))


def context(width=6):
    return torch.randn(B, S, width, generator=torch.Generator().manual_seed(3))
