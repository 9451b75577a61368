"""The decode state: its contents, reordering, truncation, and the errors of misuse."""

import re

import pytest
import torch
from core_models import B, S, T, context, ids, make, shared

from flagformer import Decoder, PrefixDecoder


def close(one, other):
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


FLAGS = [
    {"rotary_pos_emb": True},
    {},
    {"rel_pos_bias": True, "attn_num_mem_kv": 2},
    {"weight_tie_layers": True},
]


@torch.no_grad()
@pytest.mark.parametrize("flags", FLAGS)
def test_reordered_rows_continue_like_their_sources(flags):
    model, x = make(**flags), ids()
    starts = torch.tensor([0, 2])
    state = model.init_state(B, T, seq_start_pos=starts)
    model(x[:, :5], state=state)
    order = torch.tensor([1, 1])
    state.reorder(order)
    got = model(x[:, 5:], state=state)
    want = model(torch.cat([x[order, :5], x[:, 5:]], dim=1), seq_start_pos=starts[order])[:, 5:]
    close(got, want)
    assert (got[1] - model(x, seq_start_pos=starts)[0, 5:]).abs().max() > 1e-4


@torch.no_grad()
def test_reordered_rows_keep_their_context():
    model, x = shared("cross"), ids()
    mask = torch.arange(S) < torch.tensor([[S], [2]])
    state = model.init_state(B, T)
    model(x[:, :5], state=state, context=context(), context_mask=mask)
    order = torch.tensor([1, 0])
    state.reorder(order)
    got = model(x[:, 5:], state=state)
    rows = torch.cat([x[order, :5], x[:, 5:]], dim=1)
    close(got, model(rows, context=context()[order], context_mask=mask[order])[:, 5:])


@torch.no_grad()
@pytest.mark.parametrize("flags", FLAGS)
def test_truncated_state_forgets(flags):
    model, x = make(**flags), ids()
    state = model.init_state(B, T)
    model(x[:, :4], state=state)
    model((x[:, 4:7] + 1) % 11, state=state)  # a rejected speculation
    state.truncate(4)
    assert state.length == 4
    close(model(x[:, 4:], state=state), model(x)[:, 4:])


@torch.no_grad()
def test_size_in_bytes():
    state = make(rotary_pos_emb=True).init_state(3, 7)
    assert (
        state.size_bytes() == 2 * 2 * 3 * 4 * 7 * 8 * 4
    )  # k and v, layers, rows, heads, tokens, head dim, fp32
    assert make(rotary_pos_emb=True, attn_kv_heads=2).init_state(3, 7).size_bytes() == state.size_bytes() // 2
    assert (
        make(rotary_pos_emb=True, weight_tie_layers=True).init_state(3, 7).size_bytes() == state.size_bytes()
    )
    half = make(rotary_pos_emb=True).bfloat16().init_state(3, 7)
    assert half.size_bytes() == state.size_bytes() // 2
    crossing = shared("cross")
    state = crossing.init_state(B, T)
    before = state.size_bytes()
    crossing(ids(), state=state, context=context())
    assert state.size_bytes() == before + 2 * 2 * B * 4 * S * 8 * 4


@torch.no_grad()
def test_context_is_projected_once():
    model, x = shared("cross"), ids()
    mask = torch.arange(S) < torch.tensor([[S], [2]])
    want = model(x, context=context(), context_mask=mask)
    for later in ({}, {"context": context()}, {"context": context(), "context_mask": mask}):
        state = model.init_state(B, T)
        first = model(x[:, :4], state=state, context=context(), context_mask=mask)
        close(torch.cat([first, model(x[:, 4:], state=state, **later)], dim=1), want)


@torch.no_grad()
def test_decoding_works_with_gradients_enabled():
    """With autograd enabled, a session gives the same logits."""
    model, x = shared("rotary"), ids()
    want = model(x)
    with torch.enable_grad():
        state = model.init_state(B, T)
        got = [model(x[:, i : i + 1], state=state) for i in range(T)]
    close(torch.cat(got, dim=1).detach(), want)


@torch.no_grad()
def test_failed_block_leaves_the_state_unchanged():
    model, x = shared("rotary"), ids()
    state = model.init_state(B, T)
    model(x[:, :4], state=state)
    with pytest.raises(ValueError, match="ids from 0"):
        model(x[:, 4:] + 11, state=state)
    assert state.length == 4
    close(model(x[:, 4:], state=state), model(x)[:, 4:])


@torch.no_grad()
def test_many_small_windows():
    """Steps and blocks through every window length, with left padding."""
    model, x = make(rotary_pos_emb=True, attn_add_zero_kv=True), ids()
    starts = torch.tensor([0, 3])
    for window in range(1, T + 2):
        want = model(x, window=window, seq_start_pos=starts)
        for blocks in ((1,) * T, (4, 3, 2)):
            state = model.init_state(B, T, window=window, seq_start_pos=starts)
            got = torch.cat(
                [model(x[:, state.length : state.length + n], state=state) for n in blocks], dim=1
            )
            close(got[0], want[0])
            close(got[1, 3:], want[1, 3:])


YES = torch.ones(B, T, dtype=torch.bool)
WRONG = [
    ({"mask": YES}, "`mask` cannot be given with `state`"),
    ({"pos": torch.arange(T)}, "`pos` cannot be given with `state`"),
    ({"seq_lens": [[9], [9]]}, "`seq_lens` cannot be given with `state`"),
    ({"seq_start_pos": torch.tensor([0, 1])}, "`seq_start_pos` cannot be given with `state`"),
    ({"window": 3}, "`window` cannot be passed with `state`: pass it to `init_state`"),
    ({"x": ids()[:1]}, "`state` holds 0 of 9 tokens of 2 rows; `x` with 9 more of 1 rows does not fit"),
    ({"x": torch.zeros(B, 10).long()}, "`x` with 10 more of 2 rows does not fit: init_state(batch, length)"),
]


@pytest.mark.parametrize(("how", "text"), WRONG, ids=lambda value: value if isinstance(value, str) else "")
def test_misuse_in_a_call(how, text):
    model = shared("rotary")
    with pytest.raises(ValueError, match=re.escape(text)):
        model(**{"x": ids(), "state": model.init_state(B, T), **how})


@pytest.mark.parametrize(
    "other",
    [
        {"depth": 1},
        {"attn_kv_heads": 2},
        {"heads": 2},
        {"attn_dim_head": 4},
        {"attn_value_dim_head": 4},
        {"attn_value_dim_head": (None, 12)},
    ],
)
def test_state_of_another_model(other):
    text = re.escape("`state` must come from `init_state` of this model, but other layers made it")
    with pytest.raises(ValueError, match=text):
        shared("rotary")(ids(), state=make(rotary_pos_emb=True, **other).init_state(B, T))


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ({"batch": 0}, "`batch` must be a whole number of at least 1, but is 0"),
        ({"length": -1}, "`length` must be a whole number of at least 1, but is -1"),
        ({"length": 2.0}, "`length` must be a whole number of at least 1, but is 2.0"),
        ({"window": 0}, "`window` must be a whole number of at least 1, but is 0"),
        ({"seq_start_pos": torch.tensor([1])}, "`seq_start_pos` must be 2 integers, one per row"),
        ({"seq_start_pos": torch.tensor([-1, 0])}, "`seq_start_pos` must hold indices of at least 0"),
    ],
)
def test_misuse_of_init_state(how, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        shared("rotary").init_state(**{"batch": B, "length": T, **how})


@pytest.mark.parametrize("kind", ["encoder"])
def test_acausal_layers_have_no_state(kind):
    assert not shared(kind).can_cache
    with pytest.raises(ValueError, match="only causal layers can be decoded step by step"):
        shared(kind).init_state(B, T)


@torch.no_grad()
@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda state: state.truncate(5), "`length` must be between 0 and the state's 4, but is 5"),
        (lambda state: state.truncate(-1), "`length` must be between 0 and the state's 4, but is -1"),
        (
            lambda state: state.reorder(torch.tensor([0, 2])),
            "`index` must hold rows from 0 to 1, but is [0, 2]",
        ),
        (lambda state: state.reorder(torch.tensor([0])), "`index` must be 2 row numbers"),
        (lambda state: state.reorder(torch.tensor([0.0, 1.0])), "but is torch.float32 of shape [2]"),
    ],
)
def test_misuse_of_a_state(call, text):
    model = shared("rotary")
    state = model.init_state(B, T)
    model(ids()[:, :4], state=state)
    with pytest.raises(ValueError, match=re.escape(text)):
        call(state)


@pytest.mark.parametrize("width", [3, 8, 12])
def test_a_state_caches_values_of_their_own_dim(width):
    state = make(attn_value_dim_head=(width, None), attn_kv_heads=(2, 4)).init_state(B, T)
    numbers = 2 * B * T * (8 + width) + 4 * B * T * (8 + 8)
    assert state.size_bytes() == 4 * numbers  # fp32


@torch.no_grad()
def test_learned_positions_end_in_decoding_too():
    model = shared("decoder")
    state = model.init_state(1, 20)
    model(torch.zeros(1, 16, dtype=torch.long), state=state)
    with pytest.raises(ValueError, match="position 16 is beyond the learned positions"):
        model(torch.zeros(1, 1, dtype=torch.long), state=state)


@torch.no_grad()
def test_cross_attention_takes_its_context_once():
    model = shared("cross")
    state = model.init_state(B, T)
    with pytest.raises(ValueError, match="`context` is required"):
        model(ids(), state=state)
    model(ids()[:, :4], state=state, context=context())
    with pytest.raises(ValueError, match="`context_mask` must come with the `context`"):
        model(ids()[:, 4:], state=state, context_mask=torch.ones(B, S, dtype=torch.bool))


@torch.no_grad()
def test_refused_calls_leave_the_state_unchanged():
    layers = PrefixDecoder(dim=16, depth=1, heads=2)
    x, state = torch.randn(B, 3, 16), layers.init_state(B, T)
    with pytest.raises(ValueError, match="`attn_mask` must have shape"):
        layers(x, state=state, prefix_attn_len=torch.tensor([2]), attn_mask=torch.ones(2, 2).bool())
    assert state.prefix is None
    assert state.length == 0
    layers(x, state=state, prefix_attn_len=torch.tensor([2]))
    assert state.prefix is not None
    assert state.length == 3


@torch.no_grad()
@pytest.mark.parametrize("name", ["mask", "seq_start_pos"])
def test_layers_refuse_padding_with_a_state(name):
    layers = Decoder(dim=16, depth=1, heads=2)
    padding = {"mask": torch.ones(B, 3).bool(), "seq_start_pos": torch.zeros(B, dtype=torch.long)}
    with pytest.raises(ValueError, match=f"`{name}` cannot be given with `state`"):
        layers(torch.randn(B, 3, 16), state=layers.init_state(B, T), **{name: padding[name]})
