"""XL memories against x-transformers 2.31.10: the same logits and the same returned memories."""

import pytest
import torch
import x_transformers as peer
from parity_case import NEW, Case
from parity_peer import build_peer

from flagformer import XLAutoregressiveWrapper, build
from flagformer.interop.x_transformers import load_x_transformers

# As in test_x_transformers_parity: fp32 rounding over two layers, with memories as another input.
TOLERANCE = 1e-5
MEMORY = {"max_mem_len": 12}
SCHEMES = {
    "rotary": {"rotary_pos_emb": True},
    "alibi": {"alibi_pos_bias": True, "use_abs_pos_emb": False},
    "t5": {"rel_pos_bias": True},
    "dynamic": {"dynamic_pos_bias": True, "use_abs_pos_emb": False},
    "xpos": {"rotary_xpos": True, "rotary_emb_dim": 16},
    "no positions": {"use_abs_pos_emb": False},
}
MODELS = {
    **{name: Case({**flags, **MEMORY}) for name, flags in SCHEMES.items()},
    "post norm": Case({**SCHEMES["rotary"], **MEMORY, "pre_norm": False}),
    "sandwich norm": Case({**SCHEMES["t5"], **MEMORY, "sandwich_norm": True}),
    "grouped heads": Case({**SCHEMES["rotary"], **MEMORY, "attn_kv_heads": 2}),
    "memory keys": Case({**SCHEMES["alibi"], **MEMORY, "attn_num_mem_kv": 3}),
    "residual attention": Case({**SCHEMES["rotary"], **MEMORY, "residual_attn": True}),
    "cosine attention": Case({**SCHEMES["rotary"], **MEMORY, "attn_qk_norm": True}),
    "tied layers": Case({**SCHEMES["t5"], **MEMORY, "weight_tie_layers": True, "depth": 3}),
    "gated residual": Case({**SCHEMES["t5"], **MEMORY, "gate_residual": True}),
    "encoder": Case({**SCHEMES["t5"], **MEMORY}, kind="encoder"),
    "memories of layers above": Case({**SCHEMES["rotary"], **MEMORY, "shift_mem_down": 1, "depth": 3}),
    "memories of two layers above": Case({**SCHEMES["t5"], **MEMORY, "shift_mem_down": 2, "depth": 3}),
}


def both(case):
    theirs = build_peer(case.kind, case.peer_flags(NEW))
    return load_x_transformers(theirs, build(case.our_flags(NEW)).eval()), theirs


def segments():
    return torch.randint(50, (2, 40), generator=torch.Generator().manual_seed(2)).split((14, 13, 13), dim=1)


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_same_logits_and_memories(name):
    """Segments are longer than memories: x-transformers shifts older ones a second time."""
    ours, theirs = both(MODELS[name])
    mems = their_mems = None
    for segment in segments():
        logits, mems = ours(segment, mems=mems, return_mems=True)
        their_logits, their_mems = theirs(segment, mems=their_mems, return_mems=True)
        assert (logits - their_logits).abs().max() < TOLERANCE
        assert len(mems) == len(their_mems)
        for one, other in zip(mems, their_mems):
            assert one.shape == other.shape
            assert (one - other).abs().max() < TOLERANCE
    # the peer's memories are valid inputs here
    got, want = ours(segments()[1], mems=their_mems), theirs(segments()[1], mems=their_mems)
    assert (got - want).abs().max() < TOLERANCE


@torch.no_grad()
def test_same_masks_of_memories():
    ours, theirs = both(MODELS["t5"])
    first, second, _ = segments()
    real = torch.arange(12) >= torch.tensor([[0], [5]])
    _, mems = theirs(first, return_mems=True)
    got = ours(second, mems=mems, mem_masks=[real] * 2)
    want = theirs(second, mems=mems, mem_masks=[real] * 2, mask=torch.ones_like(second, dtype=torch.bool))
    assert (got - want).abs().max() < TOLERANCE


@torch.no_grad()
def test_same_loss_and_tokens_over_segments():
    case = Case({**SCHEMES["rotary"], "max_mem_len": 48})
    ours, theirs = both(case)
    text = torch.cat([*segments(), *segments(), *segments()], dim=1)
    one, other = XLAutoregressiveWrapper(ours), peer.XLAutoregressiveWrapper(theirs)
    assert (one(text) - other(text)).abs() < TOLERANCE
    start = text[:, :60]
    want = other.generate(start, 9, temperature=0.0)
    assert torch.equal(one.generate(start, 9, temperature=0.0), want)
