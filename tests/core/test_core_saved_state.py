"""Decode states in files, marks and selected rows: equal continuations, and the errors of misuse."""

import os
import re
import subprocess
import sys

import pytest
import torch
from core_models import B, T, ids, make, shared

import flagformer
from flagformer.storage.tensors import load_metadata, load_tensors, save_tensors

CONTINUE = """
import sys, torch, flagformer
model = flagformer.load(sys.argv[1]).eval()
with torch.no_grad():
    state = model.load_state(sys.argv[2])
    out = [model(torch.load(sys.argv[3])[:, at : at + 1], state=state) for at in range(5, 9)]
torch.save(torch.cat(out, dim=1), sys.argv[4])
"""
FLAGS = [
    {"rotary_pos_emb": True},
    {"mixer": "1 gated_deltanet : 1 attention", "rotary_pos_emb": True},
    {"num_memory_tokens": 2, "memory_tokens_interspersed_every": 3, "rotary_pos_emb": True},
    {"attn_kv_rank": 5, "attn_rope_dim": 2},
]
STARTS = torch.tensor([0, 2])


def read(model, state, x, *blocks):
    parts = [model(part, state=state) for part in x.split(blocks, dim=1)]
    return torch.cat(parts, dim=1)


@torch.no_grad()
@pytest.mark.parametrize("flags", FLAGS, ids=str)
def test_another_process_continues_bit_by_bit(flags, tmp_path):
    model = make(**flags)
    state = model.init_state(B, T, seq_start_pos=STARTS)
    read(model, state, ids()[:, :5], 3, 2)
    model.save(tmp_path / "model")
    model.save_state(state, tmp_path / "state")
    torch.save(ids(), tmp_path / "ids")
    names = [str(tmp_path / name) for name in ("model", "state", "ids", "out")]
    # another number of threads adds in another order
    threads = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    subprocess.run([sys.executable, "-c", CONTINUE, *names], check=True, env=threads)
    assert torch.equal(torch.load(names[3]), read(model, state, ids()[:, 5:], 1, 1, 1, 1))


@torch.no_grad()
def test_a_file_holds_the_tokens_read_and_two_files_are_equal(tmp_path):
    model, sizes = shared("rotary"), {}
    for length in (2, 6):
        state = model.init_state(B, 1000)
        read(model, state, ids()[:, :length], length)
        for name in ("one", "two"):
            model.save_state(state, tmp_path / name)
        content = (tmp_path / "one").read_bytes()
        assert content == (tmp_path / "two").read_bytes()
        sizes[length] = sum(one.nbytes for one in load_tensors(tmp_path / "one").values())
    assert sizes[6] == 3 * sizes[2] < state.size_bytes() / 100


@torch.no_grad()
def test_prepended_embeddings_marked_saved_and_selected(tmp_path):
    """Rows of several lengths, which move in the cache as they grow."""
    flags = {"num_memory_tokens": 1, "memory_tokens_interspersed_every": 2, "rotary_pos_emb": True}
    model, x = make(**flags).double(), ids()
    embeds, mask = torch.randn(B, 3, 16).double(), torch.tensor([[1, 1, 1], [0, 1, 0]]).bool()
    state = model.init_state(B, T, seq_start_pos=STARTS, num_prepend_embeds=3)
    empty = state.mark()
    model(x[:, :3], state=state)
    state.rollback(empty)
    assert not state.prepended
    model(x[:, :4], state=state, prepend_embeds=embeds, prepend_mask=mask)
    mark = state.mark()
    model.save_state(state, tmp_path / "state")
    read(model, state, (x[:, 4:7] + 1) % 11, 2, 1)
    state.rollback(mark)
    short, loaded = state.select([1]), model.load_state(tmp_path / "state")
    got = read(model, state, x[:, 4:], 2, 3)
    assert torch.equal(read(model, loaded, x[:, 4:], 2, 3), got)
    torch.testing.assert_close(read(model, short, x[1:, 4:], 2, 3), got[1:], rtol=0, atol=1e-12)
    want = model(x, seq_start_pos=STARTS, prepend_embeds=embeds, prepend_mask=mask)
    torch.testing.assert_close(got, want[:, -5:], rtol=0, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("flags", FLAGS, ids=str)
def test_marks_nest_and_follow_reordered_rows(flags):
    model, x, order = make(**flags).double(), ids(), torch.tensor([1, 0])
    state = model.init_state(B, T)
    read(model, state, x[:, :3], 3)
    outer = state.mark()
    read(model, state, x[:, 3:5], 1, 1)
    inner = state.mark()
    read(model, state, (x[:, 5:8] + 1) % 11, 3)
    state.rollback(inner)
    one = read(model, state, x[:, 5:7], 2)
    state.reorder(order)
    state.rollback(outer)
    other = read(model, state, x[order, 3:], 2, 4)
    want = model(x)
    torch.testing.assert_close(one, want[:, 5:7], rtol=0, atol=1e-12)
    torch.testing.assert_close(other, want[order, 3:], rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="must be a mark of this state"):
        state.rollback(inner)


@torch.no_grad()
def test_misuse_of_marks_and_rows():
    model = shared("rotary")
    state, other = model.init_state(B, T), model.init_state(B, T)
    read(model, state, ids()[:, :5], 5)
    mark = state.mark()
    with pytest.raises(ValueError, match="at 5 tokens, must be a mark of this state"):
        other.rollback(mark)
    with pytest.raises(ValueError, match=r"must be a result of `state.mark\(\)`, but is a int"):
        state.rollback(3)
    state.truncate(4)
    with pytest.raises(ValueError, match="must be a mark of this state"):
        state.rollback(mark)
    for rows, text in (
        ([2], "from 0 to 1, but is [2]"),
        ([], "1 or more row numbers"),
        ([0.5], "torch.float"),
    ):
        with pytest.raises(ValueError, match=re.escape(text)):
            state.select(rows)


@pytest.fixture
def saved(tmp_path):
    model = shared("rotary")
    state = model.init_state(B, T)
    with torch.no_grad():
        model(ids()[:, :5], state=state)
    model.save_state(state, tmp_path / "state")
    return tmp_path / "state"


def changed_weights():
    model = make(rotary_pos_emb=True)
    next(model.parameters()).data.add_(1e-3)
    return model


@pytest.mark.parametrize(
    ("other", "text"),
    [
        (lambda: make(rotary_pos_emb=True, attn_kv_heads=2), "was saved by one with other flags"),
        (lambda: make(rotary_pos_emb=True, attn_softclamp_logits=True), "was saved by one with other flags"),
        (changed_weights, "was saved by one with other weights"),
        (lambda: make(rotary_pos_emb=True).double(), "was saved by one with other weights"),
    ],
)
def test_another_model_is_refused(saved, other, text):
    with pytest.raises(ValueError, match=text):
        other().load_state(saved)


def test_other_centroids_are_refused(tmp_path):
    model = make(num_clusters=2, window_size=3)
    state = model.init_state(B, T)
    with torch.no_grad():
        model(ids()[:, :5], state=state)
    model.save_state(state, tmp_path / "state")
    assert model.load_state(tmp_path / "state").length == 5
    for name, buffer in model.named_buffers():
        if name.endswith("means"):
            buffer.mul_(-1)
    with pytest.raises(ValueError, match="was saved by one with other weights"):
        model.load_state(tmp_path / "state")


def test_a_state_of_another_model_is_not_saved(tmp_path):
    state = make(attn_kv_heads=2).init_state(B, T)
    with pytest.raises(ValueError, match="`state` must come from `init_state` of this model"):
        shared("rotary").save_state(state, tmp_path / "state")
    with pytest.raises(ValueError, match="`state` must come from `init_state`, but is a dict"):
        shared("rotary").save_state({}, tmp_path / "state")
    assert not list(tmp_path.iterdir())


def test_another_precision_is_refused(tmp_path):
    model = shared("rotary")
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        state = model.init_state(B, T)
        model(ids()[:, :5], state=state)
        model.save_state(state, tmp_path / "state")
        assert model.load_state(tmp_path / "state").length == 5
    with pytest.raises(ValueError, match="load it in the precision in which it was saved"):
        model.load_state(tmp_path / "state")


def test_a_damaged_file_is_refused(saved):
    model, content = shared("rotary"), saved.read_bytes()
    for at in range(0, len(content), 97):  # header and tensors
        saved.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with pytest.raises(ValueError, match=str(saved)):
            model.load_state(saved)
    saved.write_bytes(content[:-1])
    with pytest.raises(ValueError, match="truncated or not a safetensors file"):
        model.load_state(saved)
    saved.unlink()
    with pytest.raises(ValueError, match=r"does not exist; `model.save_state\(state, path\)` writes it"):
        model.load_state(saved)


def test_other_files_are_refused(saved, tmp_path):
    model = shared("rotary")
    model.save(tmp_path)
    with pytest.raises(ValueError, match="holds no decode state"):
        model.load_state(tmp_path / "model.safetensors")
    newer = {**load_metadata(saved), "state format": "2"}
    save_tensors(load_tensors(saved), saved, newer)
    with pytest.raises(ValueError, match="holds a decode state of format 2"):
        model.load_state(saved)


def test_classes_of_your_own_stand_by_their_path(tmp_path):
    flags = {"num_tokens": 11, "max_seq_len": 16, "dim": 16, "depth": 1, "heads": 2}
    for seed in (0, 0):
        torch.manual_seed(seed)
        model = flagformer.build({**flags, "norm": torch.nn.LayerNorm})
        state = model.load_state(tmp_path / "state") if list(tmp_path.iterdir()) else model.init_state(1, 4)
        model.save_state(state, tmp_path / "state")
