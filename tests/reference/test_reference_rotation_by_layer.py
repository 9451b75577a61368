"""Rotations of each layer, against stacks of one layer; made once a forward for equal flags."""

import pytest
import torch

import flagformer
from flagformer.position.none import NoRotation
from flagformer.position.rotary import Rotary

D, H, K, DEPTH = 16, 2, 8, 4
BASE = {"dim": D, "heads": H, "attn_dim_head": K, "depth": DEPTH}
MIXED = {
    "rotary_pos_emb": (True, True, True, False),
    "rotary_base": (100.0, 1000.0, 100.0, None),
    "rotary_emb_dim": (None, 4, None, None),
    "rotary_interleaved": (False, True, False, None),
    "rotary_scaling": (None, {"rope_type": "linear", "factor": 3.0}, None, None),
}


def layers_of(cls=flagformer.Decoder, **flags):
    torch.manual_seed(0)
    return cls(**{**BASE, **flags}).double().eval()


def test_layers_with_equal_rotations_share_one():
    layers = layers_of(**MIXED)
    assert [type(rotation) for rotation in layers.rotations] == [Rotary, Rotary, NoRotation]
    used = [sublayer.fn.source.rotation for sublayer in layers.sublayers if sublayer.kind == "a"]
    assert [list(layers.rotations).index(rotation) for rotation in used] == [0, 1, 0, 2]
    calls = []
    for rotation in layers.rotations:
        rotation.cos_sin = lambda *given, made=rotation.cos_sin: calls.append(made) or made(*given)
    layers(torch.randn(1, 5, D, dtype=torch.float64))
    assert len(calls) == 3


@pytest.mark.parametrize("kind", [flagformer.Decoder, flagformer.Encoder])
def test_each_layer_has_its_own_rotation(kind):
    """One layer of the mixed stack after another, each in a stack of that layer's flags."""
    mixed = layers_of(kind, **MIXED)
    h = x = torch.randn(2, 7, D, dtype=torch.float64)
    for layer in range(DEPTH):
        own = {name: value[layer] for name, value in MIXED.items() if value[layer] is not None}
        rotated = {name: value for name, value in own.items() if own["rotary_pos_emb"]}
        single = layers_of(kind, **{**BASE, **rotated, "depth": 1, "pre_norm_has_final_norm": False})
        state = mixed.sublayers.state_dict()
        for i in (0, 1):
            prefix = f"{2 * layer + i}."
            part = {n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)}
            single.sublayers[i].load_state_dict(part)
        h = single(h)
    torch.testing.assert_close(mixed(x), mixed.final_norm(h), rtol=1e-10, atol=1e-10)


def test_cached_padded_and_with_memories():
    """Steps with a state, padding in front, and memories give what one forward gives."""
    model = flagformer.build(
        {**BASE, **MIXED, "num_tokens": 11, "max_seq_len": 0, "max_mem_len": 8}
    ).double().eval()  # fmt: skip
    ids = torch.randint(11, (2, 9))
    whole = model(ids)
    state = model.init_state(2, 9)
    parts = [model(ids[:, i:j], state=state) for i, j in ((0, 4), (4, 5), (5, 9))]
    torch.testing.assert_close(torch.cat(parts, 1), whole)
    padded = torch.cat([torch.zeros(2, 3, dtype=torch.long), ids], 1)
    torch.testing.assert_close(model(padded, seq_start_pos=torch.tensor([3, 3]))[:, 3:], whole)
    first, mems = model(ids[:, :5], return_mems=True)
    torch.testing.assert_close(torch.cat([first, model(ids[:, 5:], mems=mems)], 1), whole)


def test_no_layer_rotates_context():
    layers = layers_of(cross_attend=True, **MIXED)
    kinds = [type(s.fn.source).__name__ for s in layers.sublayers if s.kind == "c"]
    assert kinds == ["CrossAttentionInputs"] * DEPTH
    layers(torch.randn(1, 3, D, dtype=torch.float64), context=torch.randn(1, 4, D, dtype=torch.float64))


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ({"rotary_pos_emb": (True, False)}, "has 2 values"),
        ({"rotary_pos_emb": (True, True, False, False), "rotary_base": (9.0,) * 4}, "no effect at layer 2"),
        ({"rotary_pos_emb": True, "only_cross": True}, "needs self-attention"),
    ],
)
def test_rotations_that_fit_no_layer_are_refused(flags, text):
    with pytest.raises(flagformer.FlagError, match=text):
        flagformer.Decoder(**{**BASE, **flags})
