"""Mixers in a model: plans, refusals, decode states and generation."""

import pytest
import torch
from mixer_models import settings

import flagformer
from flagformer import AutoregressiveWrapper, Decoder, Encoder, FlagError
from flagformer.audit import audit
from flagformer.mixer.cache import KEPT
from flagformer.mixer.mamba2 import Mamba2

SIZES = {"dim": 16, "heads": 4, "attn_dim_head": 8}
BASE = {"num_tokens": 11, "max_seq_len": 64, "depth": 4, **SIZES}
HYBRID = "3 gated_deltanet : 1 attention"
SETTINGS = {
    **settings(chunk=8),
    "hybrid": {"mixer": HYBRID, "rotary_pos_emb": True},
    "each": {"mixer": ("mamba2", "attention", "short_convolution", "gated_deltanet")},
    "in parallel": {
        "mixer": "1 mamba2 + attention : 1 attention + gated_deltanet", "rotary_pos_emb": True,
        "mixer_chunk": 8,
    },
    "parallel blocks": {
        "mixer": "1 short_convolution + attention : 1 gated_deltanet", "parallel_block": True,
    },
    "interleaved": {
        "mixer": HYBRID, "num_memory_tokens": 2, "memory_tokens_interspersed_every": 3,
    },
}  # fmt: skip
EVERY = pytest.mark.parametrize("name", SETTINGS)


def model(name, **flags):
    torch.manual_seed(0)
    return flagformer.build({**BASE, **SETTINGS[name], **flags}).double().eval()


def ids(rows, length, seed=1):
    return torch.randint(11, (rows, length), generator=torch.Generator().manual_seed(seed))


def close(one, two):
    assert (one - two).abs().max() < 1e-9


def refused(**flags):
    with pytest.raises(FlagError) as error:
        flagformer.build({**BASE, **flags})
    return str(error.value)


def order(**flags):
    sublayers = Decoder(**{**SIZES, "depth": 4, **flags}).sublayers
    return [type(sublayer.fn).__name__ for sublayer in sublayers if sublayer.kind in "am"]


D, M, S, A = "GatedDeltaNet", "Mamba2", "ShortConvolution", "Attention"


def test_plans():
    assert order(mixer="gated_deltanet") == [D] * 4
    assert order(mixer=HYBRID) == [D, D, D, A]
    assert order(mixer="mamba2 : attention") == [M, A, M, A]
    assert order(mixer="attention") == [A] * 4
    assert order(mixer=("mamba2", "attention", "short_convolution", "gated_deltanet")) == [M, A, S, D]
    assert order(mixer="1 mamba2 : 1 attention", macaron=True) == [M, A, M, A]
    assert order(mixer="3 mamba2 : 2 attention", sandwich_coef=1, depth=5) == [M, M, M, A, A]
    assert order(mixer="mamba2", weight_tie_layers=True) == [M]
    assert order(depth=None, custom_layers="mfafmf", mixer=("mamba2", "gated_deltanet")) == [M, A, D]
    assert order(depth=None, custom_layers="mfaf", sequence_mixer=Mamba2) == [M, A]
    assert order(mixer="mamba2", cross_attend=True) == [M] * 4
    assert order(mixer="1 mamba2 + attention : 1 gated_deltanet") == [M, A, D, M, A, D]
    assert order(mixer=("attention+mamba2", "attention", "mamba2", "attention")) == [A, M, A, M, A]
    assert order(mixer="3 mamba2 + short_convolution : 1 attention") == [M, S, M, S, M, S, A]
    assert order(mixer="mamba2 + attention", weight_tie_layers=True) == [M, A]
    assert order(depth=None, custom_layers="mfafm", mixer="mamba2 + short_convolution") == [M, S, A, M, S]
    sizes = [s.fn.heads for s in Decoder(**SIZES, depth=2, mixer="mamba2", mixer_heads=(2, 4)).sublayers[::2]]
    assert sizes == [2, 4]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"mixer": "gated_deltnet"}, "did you mean `gated_deltanet`"),
        (
            {"mixer": "2 mamba2 : 1 attention"},
            "repeats 3 layers, which does not divide the number of layers, 4",
        ),
        ({"mixer": "three mamba2"}, "must be a name or a pattern"),
        ({"mixer": ("mamba2", "attention")}, "has 2 names for 4 layers"),
        ({"mixer": "mamba2", "only_cross": True}, "no self-attention to replace"),
        ({"custom_layers": "mf", "depth": None}, "`mixer` must name a mixer"),
        ({"custom_layers": "mf", "depth": None, "mixer": "attention"}, "must name a mixer for each 'm'"),
        ({"mixer": "mamba2", "sequence_mixer": Mamba2}, "`mixer` and `sequence_mixer` cannot be combined"),
        ({"mixer": "mamba2", "model": "encoder"}, "`model=decoder` (it is `model=encoder`)"),
        ({"mixer": "mamba2", "model": "prefix_decoder"}, "`model=decoder` (it is `model=prefix_decoder`)"),
        ({"mixer": HYBRID, "max_mem_len": 4}, "`max_mem_len` and `mixer` cannot be combined"),
        ({"mixer": "mamba2", "num_memory_tokens": 2}, "`num_memory_tokens` and `mixer` cannot be combined"),
        ({"mixer": "mamba2", "rotary_pos_emb": True}, "`rotary_pos_emb` needs self-attention"),
        ({"mixer": "mamba2", "attn_num_mem_kv": 1}, "no attention sublayer (`mixer`)"),
        ({"mixer": "mamba2", "attn_z_loss_weight": 0.1}, "no attention"),
        ({"mixer": "mamba2", "mixer_key_groups": 3}, "`mixer_key_groups` must divide the 4 heads"),
        ({"mixer": "short_convolution", "mixer_chunk": 4}, "`mixer_chunk` has no effect here"),
        ({"mixer_kernel": 3}, "`mixer_kernel` has no effect here"),
        ({"mixer": "mamba2 + "}, "must be a name or a pattern"),
        ({"mixer": "attention + attention"}, "must join different sublayers by '+'"),
        ({"mixer": "mamba2 + attenton"}, "must be made of"),
        ({"mixer": "mamba2 + attention", "layers_execute_order": tuple(range(12))}, "joins by '+'"),
    ],
)
def test_what_cannot_be_is_refused_by_name(flags, words):
    assert words in refused(**flags)


def test_a_mixer_of_your_own_needs_causal_layers():
    with pytest.raises(FlagError, match="needs `causal=True`, because a mixer reads the tokens"):
        Encoder(**SIZES, custom_layers="mf", sequence_mixer=type("Mine", (Mamba2,), {"component": None}))


@EVERY
def test_arguments_for_attention_alone_are_refused(name):
    net, tokens = model(name), ids(2, 9)
    for argument, value in (("attn_mask", torch.ones(9, 9, dtype=torch.bool)), ("window", 3)):
        with pytest.raises(ValueError, match=f"`{argument}` is for attention"):
            net(tokens, **{argument: value})
    with pytest.raises(ValueError, match="`window` is for attention"):
        net.attn_layers.init_state(2, 9, window=3)
    layers = net.attn_layers
    with pytest.raises(ValueError, match="`mems` is for attention"):
        layers(torch.randn(2, 9, 16).double(), mems=[torch.randn(2, 3, 16).double()])


def test_generation_within_a_window_is_refused_with_the_way_out():
    net = AutoregressiveWrapper(model("gated_deltanet", max_seq_len=16))
    with pytest.raises(ValueError, match="restrict_to_max_seq_len=False"):
        net.generate(ids(1, 10), 12)
    assert net.generate(ids(1, 10), 12, restrict_to_max_seq_len=False).shape[1] == 12


@EVERY
@pytest.mark.parametrize("starts", [None, [0, 7, 3]])
@pytest.mark.parametrize("kept", [20, 22, 24])
def test_truncated_tokens_leave_no_trace(name, starts, kept):
    """Twice, at the beginning of the last block, within it and within what remains of it."""
    net, tokens = model(name), ids(3, 40)
    starts = None if starts is None else torch.tensor(starts)
    state = net.init_state(3, 40, seq_start_pos=starts)
    with torch.no_grad():
        net(tokens[:, :20], state=state)
        draft = torch.cat([tokens[:, 20:kept], ids(3, 25 - kept, seed=2)], dim=1)
        net(draft, state=state)
        state.truncate(kept)
        first = net(tokens[:, kept : kept + 3], state=state)
        state.truncate(kept + 1)
        rest = net(tokens[:, kept + 1 :], state=state)
        want = net(tokens, seq_start_pos=starts)
    close(first, want[:, kept : kept + 3])
    close(rest, want[:, kept + 1 :])


def test_what_a_recurrent_state_cannot_forget_is_refused():
    net = model("hybrid", max_seq_len=400)
    state = net.init_state(1, 300)
    with torch.no_grad():
        net(ids(1, 10), state=state)
        net(ids(1, 4), state=state)
        with pytest.raises(ValueError, match=r"must keep the first \[10\] tokens"):
            state.truncate(9)
        state.truncate(0)
        tokens = ids(1, KEPT + 5)
        got = net(tokens, state=state)
        close(got, net(tokens))
        with pytest.raises(ValueError, match="can only forget all"):
            state.truncate(KEPT)


@EVERY
def test_sessions_in_turns_and_reordered_rows(name):
    net, one, two = model(name), ids(3, 30), ids(2, 30, seed=2)
    states, outs = [net.init_state(3, 30), net.init_state(2, 30)], ([], [])
    index = torch.tensor([2, 0, 0])
    with torch.no_grad():
        for block in ((0, 10), (10, 11), (11, 20)):
            for state, tokens, out in zip(states, (one, two), outs):
                out.append(net(tokens[:, slice(*block)], state=state))
        close(torch.cat(outs[0], 1), net(one[:, :20]))
        close(torch.cat(outs[1], 1), net(two[:, :20]))
        states[0].truncate(15)
        states[0].reorder(index)
        close(net(one[index, 15:], state=states[0]), net(one[index])[:, 15:])


@EVERY
def test_generation_with_a_cache_is_generation_without(name):
    net = AutoregressiveWrapper(model(name))
    prompts = ids(2, 9)
    for how in ({}, {"prompt_lens": torch.tensor([9, 4])}):
        outs = [net.generate(prompts, 8, temperature=0.0, cache_kv=cached, **how) for cached in (True, False)]
        assert torch.equal(*outs)
        beams = [net.beam_search(prompts, 6, 3, cache_kv=cached, **how) for cached in (True, False)]
        assert torch.equal(*beams)


def test_the_decode_state_grows_by_attention_alone():
    sizes = {name: [model(name).init_state(1, n).size_bytes() for n in (8, 64)] for name in SETTINGS}
    assert sizes["gated_deltanet"][0] == sizes["gated_deltanet"][1]
    grown = sizes["hybrid"][1] - sizes["hybrid"][0]
    whole = flagformer.build({**BASE, "rotary_pos_emb": True}).double()
    both = [whole.init_state(1, n).size_bytes() for n in (8, 64)]
    assert grown * 4 == both[1] - both[0]


@EVERY
def test_the_audit_finds_nothing(name):
    torch.manual_seed(0)
    net = flagformer.build({**BASE, **SETTINGS[name]}).double()
    report = audit(net)
    assert report.passed, str(report)


@EVERY
def test_zero_initialised_branches_add_nothing(name):
    net = model(name, zero_init_branch_output=True)
    x = torch.randn(2, 9, 16, dtype=torch.float64)
    close(net.attn_layers(x), net.attn_layers.final_norm(x))
    model(name, depth_scale_residual=True).attn_layers.reset_parameters()
