"""Models of mixers at many lengths: chunked, recurrent and cached forms agree, in fp64.

Cached: a prompt in one call and in pieces, padded on the left, in two sessions in turns, with beams, and
after drafts that are rolled back. Packed documents are those of rows of their own.
"""

from functools import cache

import pytest
import torch
from mixer_models import settings

from flagformer import AutoregressiveWrapper
from flagformer.mixer.cache import KEPT
from perturbed_models import perturbed

LENGTHS = [1, 7, 15, 63, 286, 300]
MORE, MOST = 5, 400
SIZES = {
    "num_tokens": 11, "max_seq_len": MOST, "dim": 16, "depth": 2, "heads": 4, "attn_dim_head": 4,
    "use_abs_pos_emb": False,
}  # fmt: skip
SETTINGS = {
    **settings(chunk=16),
    "in parallel": {"mixer": "mamba2 + attention", "mixer_chunk": 16, "rotary_pos_emb": True},
    "hybrid": {"mixer": "1 gated_deltanet : 1 attention", "mixer_chunk": 64, "rotary_pos_emb": True},
}
EVERY = pytest.mark.parametrize("name", SETTINGS)
AT = pytest.mark.parametrize("length", LENGTHS)


@cache
def model(name, **flags):
    """The same weights whatever the chunk."""
    return perturbed({**SIZES, **SETTINGS[name], **flags}, 1, torch.float64).eval()


def ids(rows, length, seed=1):
    return torch.randint(11, (rows, length), generator=torch.Generator().manual_seed(seed))


def close(one, two):
    assert one.shape == two.shape
    assert (one - two).abs().max() < 1e-9 * max(1.0, float(two.abs().max()))


def pieces(length):
    """A block of every kind, as far as they go: one token, a few, a chunk, more than are kept, the rest."""
    blocks = []
    for size in (1, 3, 16, KEPT + 8, 17):
        if sum(blocks) + size < length:
            blocks.append(size)
    return [*blocks, length - sum(blocks)]


def read(net, state, tokens, blocks):
    return torch.cat([net(part, state=state) for part in tokens.split(blocks, dim=1)], dim=1)


@torch.no_grad()
@EVERY
@AT
def test_chunked_is_recurrent_is_cached(name, length):
    net, tokens = model(name), ids(2, length)
    want = net(tokens)
    if "mixer_chunk" in SETTINGS[name]:
        close(model(name, mixer_chunk=1)(tokens), want)
    for blocks in ([length], pieces(length), [1] * length):
        close(read(net, net.init_state(2, length), tokens, blocks), want)


@torch.no_grad()
@EVERY
@AT
def test_left_padding(name, length):
    """Whole, and cached in one call and in pieces, with tokens after the prompt."""
    net, tokens = model(name), ids(3, length + MORE)
    starts = torch.tensor([0, length // 2, length - 1])
    alone = [net(tokens[row : row + 1, start:])[0] for row, start in enumerate(starts.tolist())]
    found = [net(tokens, seq_start_pos=starts)]
    for blocks in ([length, *[1] * MORE], [*pieces(length), MORE]):
        state = net.init_state(3, length + MORE, seq_start_pos=starts)
        found.append(read(net, state, tokens, blocks))
    for logits in found:
        for row, start in enumerate(starts.tolist()):
            close(logits[row, start:], alone[row])


@torch.no_grad()
@EVERY
@AT
def test_packed_documents(name, length):
    net, tokens = model(name), ids(1, length + MORE + 1)
    lengths = [[length, MORE, 1]]
    got, start = net(tokens, seq_lens=lengths), 0
    for count in lengths[0]:
        close(got[:, start : start + count], net(tokens[:, start : start + count]))
        start += count


@torch.no_grad()
@EVERY
@AT
def test_two_sessions_in_turns(name, length):
    net, texts = model(name), [ids(2, length + MORE), ids(1, length + MORE, seed=2)]
    states, parts = [net.init_state(len(text), length + MORE) for text in texts], ([], [])
    for block in [*pieces(length), 1, MORE - 1]:
        for state, text, part in zip(states, texts, parts):
            part.append(net(text[:, state.length : state.length + block], state=state))
    for part, text in zip(parts, texts):
        close(torch.cat(part, dim=1), net(text))


@torch.no_grad()
@EVERY
@AT
def test_beams(name, length):
    """With a state and without, and rows of different lengths as alone."""
    wrapper, prompts = AutoregressiveWrapper(model(name)), ids(2, length)
    lens = torch.tensor([length, (length + 1) // 2])
    got = wrapper.beam_search(prompts, MORE, 3, prompt_lens=lens)
    assert torch.equal(got, wrapper.beam_search(prompts, MORE, 3, prompt_lens=lens, cache_kv=False))
    for row, count in enumerate(lens.tolist()):
        assert torch.equal(got[row], wrapper.beam_search(prompts[row, :count], MORE, 3))


@torch.no_grad()
@EVERY
@AT
@pytest.mark.parametrize("starts", [None, [0, 3]])
def test_rolled_back_drafts_leave_no_trace(name, length, starts):
    """Drafts of one token, of a few and of more than are kept, in one block and in several; then the end of
    a last block."""
    net, tokens = model(name), ids(2, length + MORE)
    starts = None if starts is None else torch.tensor(starts).clamp(max=length - 1)
    state = net.init_state(2, MOST, seq_start_pos=starts)
    read(net, state, tokens[:, :length], pieces(length))
    mark = state.mark()
    for blocks in ([1], [3, 1], [KEPT + 8], [2, KEPT + 8, 1]):
        read(net, state, ids(2, sum(blocks), seed=3), blocks)
        state.rollback(mark)
        assert state.length == length
    draft = torch.cat([tokens[:, length : length + 2], ids(2, 4, seed=4)], dim=1)
    first = read(net, state, draft, [6])[:, :2]
    state.truncate(length + 2)
    rest = read(net, state, tokens[:, length + 2 :], [1, MORE - 3])
    want = net(tokens, seq_start_pos=starts)
    close(torch.cat([first, rest], dim=1), want[:, length:])


@torch.no_grad()
@EVERY
@AT
def test_saved_and_selected_states_continue(name, length, tmp_path):
    net, tokens = model(name), ids(3, length + MORE)
    state = net.init_state(3, length + MORE)
    read(net, state, tokens[:, :length], pieces(length))
    net.save_state(state, tmp_path / "state")
    rows = state.select([2, 0, 2])
    want = read(net, state, tokens[:, length:], [2, MORE - 2])
    assert torch.equal(read(net, net.load_state(tmp_path / "state"), tokens[:, length:], [2, MORE - 2]), want)
    close(read(net, rows, tokens[[2, 0, 2], length:], [2, MORE - 2]), want[[2, 0, 2]])
