"""Token shift, one dimension of one token at a time."""

import pytest
import torch

import flagformer
from flagformer.flow import AttentionBias, Causal, Dims, Layout, OutputCollector, SideInputs
from flagformer.input_mixer.token_shift import TokenShift

D, T = 7, 6


def shifted(x, shifts, layout, later):
    bias = AttentionBias(() if later else (Causal(),), None, layout, layout)
    side = SideInputs(bias, None, None, None, None, OutputCollector(), layout)
    return TokenShift(Dims(dim=D, causal=not later), shifts=shifts)(x, side)


def expected(x, shifts, later, meets):
    """Group i of token t comes from token t - move if that exists; else it is zero."""
    moves = list(range(-shifts if later else 0, shifts + 1))
    width = D // len(moves)
    want = x.clone()
    for t in range(T):
        for d in range(width * len(moves)):
            move = moves[d // width]
            if move:
                want[t, d] = x[t - move, d] if 0 <= t - move < T and meets(t, t - move) else 0.0
    return want


@pytest.mark.parametrize("shifts", [0, 1, 2, 6])
@pytest.mark.parametrize("later", [False, True])
def test_shift(shifts, later):
    if later and 2 * shifts + 1 > D:
        return
    x = torch.randn(1, T, D)
    layout = Layout.arange(T, x.device)
    assert torch.equal(shifted(x, shifts, layout, later)[0], expected(x[0], shifts, later, lambda t, s: True))


@pytest.mark.parametrize("later", [False, True])
def test_no_shift_across_segments_or_from_padding(later):
    x = torch.randn(1, T, D)
    packed = Layout.packed(torch.tensor([[2, 3]]), T)  # one padding index at the end
    segment = [0, 0, 1, 1, 1, 2]
    got = shifted(x, 1, packed, later)[0, :5]
    want = expected(x[0], 1, later, lambda t, s: segment[t] == segment[s])
    assert torch.equal(got, want[:5])
    left = Layout.left_padded(torch.tensor([2]), T)
    got = shifted(x, 2, left, later)[0, 2:]
    assert torch.equal(got, expected(x[0], 2, later, lambda t, s: s >= 2)[2:])


def test_each_sublayer_can_have_its_own_shift():
    layers = flagformer.Decoder(dim=8, heads=2, depth=2, shift_tokens=(0, 3, 0, 1))
    assert [getattr(s.input_mixer, "shifts", 0) for s in layers.sublayers] == [0, 3, 0, 1]


def test_more_parts_than_dimensions_are_refused():
    with pytest.raises(flagformer.FlagError, match="`shift_tokens` must leave a dimension"):
        flagformer.Encoder(dim=8, heads=2, depth=1, shift_tokens=4)


@torch.no_grad()
def test_a_rejected_block_leaves_no_trace():
    """Speculative decoding: tokens are read, removed by `truncate`, and replaced."""
    torch.manual_seed(0)
    model = (
        flagformer.build(
            {"num_tokens": 9, "max_seq_len": 12, "dim": 12, "heads": 2, "depth": 2, "shift_tokens": 2}
        )
        .double()
        .eval()
    )
    ids = torch.randint(9, (2, 8))
    state = model.init_state(2, 12)
    model(ids[:, :4], state=state)
    model((ids[:, 4:7] + 1) % 9, state=state)
    state.truncate(4)
    got = model(ids[:, 4:], state=state)
    torch.testing.assert_close(got, model(ids)[:, 4:])
    state.reorder(torch.tensor([1, 1]))
    again = model.init_state(2, 12)
    model(ids[[1, 1]], state=again)
    step = torch.tensor([[3], [5]])
    torch.testing.assert_close(model(step, state=state), model(step, state=again))
