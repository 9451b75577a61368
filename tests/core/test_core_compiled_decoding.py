"""Decoding compiles to two graphs, one for the prompt and one for a token, for all position schemes."""

from itertools import product

import pytest
import torch
from core_models import make
from torch._dynamo.testing import CompileCounter
from torch.utils._python_dispatch import TorchDispatchMode

from commit_sample import part_of
from flagformer import AutoregressiveWrapper

PROMPT, STEPS = 6, 24
POSITIONS = {
    "rotary": {"rotary_pos_emb": True},
    "ALiBi": {"alibi_pos_bias": True},
    "T5": {"rel_pos_bias": True},
    "dynamic": {"dynamic_pos_bias": True},
    "none": {"use_abs_pos_emb": False},
    "learned": {"max_seq_len": 64},
    "rotary and prefix kv": {"rotary_pos_emb": True, "attn_num_mem_kv": 2, "attn_kv_heads": 2},
    "latent": {"rotary_pos_emb": True, "rotary_emb_dim": 4, "attn_kv_rank": 12},
    "shared keys and values": {"rotary_pos_emb": True, "attn_shared_kv": True},
    "T5 and a shift": {"rel_pos_bias": True, "shift_tokens": 1},
}
# A further graph for the token that fills the state: operators on the whole cache, which is contiguous then.
FILLING = {"shared keys and values"}


def tokens():
    return torch.randint(11, (2, PROMPT + STEPS), generator=torch.Generator().manual_seed(3))


def decoded(model, net, starts):
    """Logits of a prompt and of single tokens that fill the cache to its last position."""
    x = tokens()
    state = model.init_state(2, x.shape[1], seq_start_pos=starts)
    parts = [net(x[:, :PROMPT], state=state)]
    parts += [net(x[:, i : i + 1], state=state) for i in range(PROMPT, x.shape[1])]
    return torch.cat(parts, dim=1)


@torch.no_grad()
@pytest.mark.parametrize(("positions", "starts"), part_of(product(POSITIONS, [None, [0, 3]]), 3), ids=str)
def test_decoding_takes_two_graphs(positions, starts):
    model = make(depth=1, **POSITIONS[positions]).double()
    starts = None if starts is None else torch.tensor(starts)
    want = decoded(model, model, starts)
    torch._dynamo.reset()
    counter = CompileCounter()
    got = decoded(model, torch.compile(model, fullgraph=True, backend=counter), starts)
    assert counter.frame_count == 2 + (positions in FILLING)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)  # fp64 sums of magnitude about 1


@torch.no_grad()
def test_another_session_compiles_no_further_graph():
    """Sessions of one cache length share their graphs for all prompt lengths."""
    model = make(depth=1, rotary_pos_emb=True)
    torch._dynamo.reset()
    counter = CompileCounter()
    net = torch.compile(model, fullgraph=True, backend=counter)
    for _ in range(2):
        decoded(model, net, None)
    assert counter.frame_count == 2


@pytest.mark.parametrize("positions", ["rotary", "ALiBi", "T5", "none"])
def test_generation_takes_two_graphs(positions):
    model = make(depth=1, **{**POSITIONS[positions], "max_seq_len": 64}).double()
    wrapper, prompts = AutoregressiveWrapper(model), [[3, 1, 4, 1, 5, 9], [2, 6, 5]]
    want = wrapper.generate(prompts, STEPS, temperature=0)
    torch._dynamo.reset()
    counter = CompileCounter()
    model.compile(fullgraph=True, backend=counter)
    assert torch.equal(wrapper.generate(prompts, STEPS, temperature=0), want)
    assert counter.frame_count == 2


@torch.no_grad()
def test_a_full_window_compiles_no_further_graph():
    model, x = make(depth=1, rotary_pos_emb=True).double(), tokens()
    torch._dynamo.reset()
    counter = CompileCounter()
    net = torch.compile(model, fullgraph=True, backend=counter)
    state = model.init_state(2, x.shape[1], window=12)
    parts = [net(x[:, :PROMPT], state=state)]
    parts += [net(x[:, i : i + 1], state=state) for i in range(PROMPT, x.shape[1])]
    assert counter.frame_count == 2
    torch.testing.assert_close(torch.cat(parts, dim=1), model(x, window=12), rtol=0, atol=1e-12)


class Operations(TorchDispatchMode):
    """The number of executed operations."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


@torch.no_grad()
@pytest.mark.parametrize("positions", POSITIONS)
def test_a_late_step_runs_no_more_operations_than_an_early_one(positions):
    model, x = make(depth=2, **POSITIONS[positions]), tokens()
    state = model.init_state(2, x.shape[1])
    model(x[:, :PROMPT], state=state)
    counts = set()
    for place in range(PROMPT, x.shape[1]):
        with Operations() as operations:
            model(x[:, place : place + 1], state=state)
        counts.add(operations.count)
    assert len(counts) == 1
