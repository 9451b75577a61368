"""Forget gates of attention: the formula, caches, padding, packing, memories, and other biases of scores."""

import pytest
import torch
from torch import nn

import flagformer
from flagformer import FlagError
from flagformer.attention.score_bias import ScoreBias
from flagformer.flow import AttentionBias, Causal, Layout, TokenBias

FLAGS = {"num_tokens": 11, "max_seq_len": 24, "dim": 16, "depth": 2, "heads": 4, "attn_dim_head": 8}


def build(**flags):
    torch.manual_seed(0)
    own = {} if "score_bias" in flags else {"attn_forget_gate": True}
    model = flagformer.build({**FLAGS, **own, **flags})
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.eval()


def ids(batch=2, length=6, seed=0):
    return torch.randint(11, (batch, length), generator=torch.Generator().manual_seed(seed))


def close(found, wanted):
    return torch.allclose(found, wanted, atol=2e-5, rtol=1e-4)


def loops(attention, x, heads=4, width=8):
    """[T, D]: attention of one row without positions, each pair and each gate on its own."""
    gate, projection = attention.score_biases.biases[0].gate, attention.source.projection
    q, k, v = (part[0] for part in projection(x[None]))
    outs = []
    for head in range(heads):
        gates = torch.sigmoid(x @ gate.weight[head] + gate.bias[head])
        group, rows = head * len(k) // heads, []
        for i in range(len(x)):
            weights = torch.stack(
                [
                    (q[head, i] @ k[group, j] / width**0.5).exp() * gates[j + 1 : i + 1].prod()
                    for j in range(i + 1)
                ]
            )
            rows.append((weights / weights.sum()) @ v[group, : i + 1])
        outs.append(torch.stack(rows))
    return torch.cat(outs, -1)


@pytest.mark.parametrize("heads", [4, 2])
@pytest.mark.parametrize("training", [True, False])
def test_formula(heads, training):
    model = build(attn_kv_heads=heads, use_abs_pos_emb=False).double().train(training)
    attention, seen = model.attn_layers.sublayers[2].fn, {}
    attention.register_forward_pre_hook(lambda module, inputs: seen.update(x=inputs[0]))
    attention.to_out.register_forward_pre_hook(lambda module, inputs: seen.update(heads=inputs[0]))
    with torch.set_grad_enabled(training):
        model(ids())
    for row in range(2):
        assert torch.allclose(seen["heads"][row], loops(attention, seen["x"][row]), atol=1e-10)


MODELS = {
    "learned positions": {},
    "alibi": {"alibi_pos_bias": True},
    "learned bias": {"rel_pos_bias": True},
    "latent keys": {"attn_kv_rank": 4},
    "one key head": {"attn_one_kv_head": True},
    "prefix keys": {"attn_num_mem_kv": 2, "attn_add_zero_kv": True},
    "memory tokens": {"num_memory_tokens": 2, "memory_tokens_interspersed_every": 4},
    "local heads": {"n_local_attn_heads": 2, "local_attn_window_size": 3},
    "fixed windows": {"n_local_attn_heads": 4, "local_attn_window_size": 3, "local_attn_fixed_windows": True},
    "window": {"attn_max_attend_past": 3},
    "shared qk": {"shared_qk": True},
    "by layer": {"attn_forget_gate": (True, False)},
    "shifted tokens": {"shift_tokens": 1},
    "softpick": {"attn_softpick": True},
    "talking heads": {"attn_talking_heads": True},
    "residual attention": {"residual_attn": True},
    "tied layers": {"weight_tie_layers": True},
    "hybrid": {"mixer": "1 gated_deltanet : 1 attention"},
    "reversible": {"reversible": True},
}


@pytest.mark.parametrize("name", MODELS)
def test_blocks_padding_and_packing(name):
    model, x = build(**MODELS[name]), ids()
    whole, state = model(x), model.init_state(2, 6)
    found = torch.cat([model(x[:, a:b], state=state) for a, b in ((0, 3), (3, 4), (4, 6))], 1)
    assert close(found, whole)
    assert close(model(x[:1]), whole[:1])
    pad = torch.zeros(2, 3, dtype=torch.long)
    starts = torch.tensor([3, 3])
    left = torch.cat([pad, x], 1)
    assert close(model(left, seq_start_pos=starts)[:, 3:], whole)
    state = model.init_state(2, 9, seq_start_pos=starts)
    assert close(
        torch.cat([model(left[:, a:b], state=state) for a, b in ((0, 5), (5, 6), (6, 9))], 1)[:, 3:], whole
    )
    right = model(torch.cat([x, pad], 1), mask=torch.arange(9).expand(2, -1) < 6)
    assert close(right[:, :6], whole)
    if "shared_qk" not in MODELS[name]:
        packed = model(torch.cat([x[:1], x[1:, :4]], 1), seq_lens=[[6, 4]])
        assert close(packed[:, :6], whole[:1])
        assert close(packed[:, 6:], model(x[1:, :4]))


@pytest.mark.parametrize("name", ["alibi", "local heads", "learned bias", "memory tokens"])
@pytest.mark.parametrize(
    "flags", [{"checkpoint": "sublayer"}, {"checkpoint": "selective"}, {"reversible": True}]
)
def test_gradients_of_recomputed_layers(name, flags):
    found = []
    for stored in (False, True):
        model = build(**flags, **MODELS[name]).train()
        out = model(ids(), return_intermediates=stored)
        (out[0] if stored else out).square().mean().backward()
        found.append([parameter.grad for parameter in model.parameters()])
    gates = [p for n, p in model.named_parameters() if "score_biases" in n]
    assert len(gates) == 4
    assert all(gate.grad.abs().sum() > 0 for gate in gates)
    assert all(close(one, other) for one, other in zip(*found))


def test_reversible_layers_are_recomputed_bit_by_bit():
    """Both runs of a sublayer use one kernel, although the first has no gradients."""
    model = build(reversible=True, reversible_exact=True).train()
    model(ids()).square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.attn_layers.parameters())


@pytest.mark.parametrize("flags", [{}, {"num_memory_tokens": 2, "memory_tokens_interspersed_every": 2}])
def test_rows_of_a_state(flags, tmp_path):
    """Beams, selected rows, truncation, marks, files: all that a decode state can do."""
    model, x = build(**flags), ids(3, 8)
    state = model.init_state(3, 8, window=5)
    whole = model(x, window=5)
    model(x[:, :5], state=state)
    model.save_state(state, tmp_path / "state")
    loaded = model.load_state(tmp_path / "state")
    selected = state.select([2, 0, 2, 1])
    assert close(model(x[[2, 0, 2, 1], 5:], state=selected), whole[[2, 0, 2, 1], 5:])
    mark = state.mark()
    model(ids(3, 2, seed=4), state=state)
    state.rollback(mark)
    model(ids(3, 1, seed=5), state=state)
    state.truncate(5)
    index = torch.tensor([1, 1, 0])
    state.reorder(index)
    assert close(model(x[index, 5:], state=state), whole[index, 5:])
    assert torch.equal(
        model(x[:, 5:6], state=loaded), model(x[:, 5:6], state=model.load_state(tmp_path / "state"))
    )


def test_generation_and_beams():
    """Prompts of several lengths, with and without a cache, and each alone."""
    model = flagformer.AutoregressiveWrapper(build())
    prompts = [[1, 2, 3, 4], [5, 6]]
    for call in (model.generate, lambda *one, **how: model.beam_search(*one, 3, **how)):
        how = {"temperature": 0.0} if call == model.generate else {}
        new = call(prompts, 4, **how)
        assert torch.equal(new, call(prompts, 4, cache_kv=False, **how))
        assert all(torch.equal(call(prompts[row], 4, **how), new[row]) for row in range(2))


def test_memories_and_streams():
    model, x = build(rotary_pos_emb=True, max_mem_len=8, max_seq_len=4), ids(2, 8)
    whole = build(rotary_pos_emb=True)(x[:, :8])
    first, mems = model(x[:, :4], return_mems=True)
    second = model(x[:, 4:], mems=mems)
    assert close(first, whole[:, :4])
    stream = model.stream(2)
    assert close(torch.cat([stream(x[:, :3]), stream(x[:, 3:])], 1), torch.cat([first, second], 1))
    one_layer = build(rotary_pos_emb=True, max_mem_len=8, max_seq_len=4, depth=1)
    _, mems = one_layer(x[:, :4], return_mems=True)
    wanted = build(rotary_pos_emb=True, depth=1)(x)
    assert close(one_layer(x[:, 4:], mems=mems), wanted[:, 4:])  # memories of the first layer are exact


class Decay(ScoreBias):
    """A fixed slope for the first number of a token: ALiBi by token."""

    def __init__(self, dims):
        super().__init__()
        self.heads = dims.heads

    def forward(self, x, side):
        return -x[:, None, :, 0].abs().expand(-1, self.heads, -1).float()

    def sums(self, numbers):
        return numbers.cumsum(-1)


def test_biases_of_your_own_add_up():
    model, x = build(score_bias=[Decay, Decay]), ids()
    whole, state = model(x), model.init_state(2, 6)
    assert close(torch.cat([model(x[:, i : i + 2], state=state) for i in (0, 2, 4)], 1), whole)
    plain = build(score_bias=[])
    plain.load_state_dict(model.state_dict())
    assert not close(plain(x), whole)


def test_forms_of_a_bias():
    """Dense tensors, index pairs and FlexAttention's function hold the same numbers, of any heads."""
    layout, keys = Layout.arange(3, torch.device("cpu"), 4), Layout.arange(7, torch.device("cpu"))
    sums = torch.randn(2, 4, 7)
    bias = TokenBias(AttentionBias((Causal(),), None, layout, keys).narrowed(None, 2), sums)
    dense = bias.dense().bias
    assert not dense[..., :2].any()
    q_idx, kv_idx = torch.arange(3).view(1, 1, 1, 3, 1), torch.arange(7).view(1, 1, 1, 1, 7)
    allowed, added = bias.gather(q_idx, kv_idx)
    found = added[:, 0].masked_fill(~allowed[:, 0], float("-inf"))
    assert torch.equal(found, dense[..., 2:])
    assert torch.equal(bias.of_heads(slice(1, 3)).dense().bias, dense[:, 1:3])
    zero, mod = torch.zeros(()), bias.flex().score_mod
    at = [torch.tensor(one) for one in (1, 3, 2, 4)]
    assert torch.allclose(mod(zero, *at), dense[1, 3, 2, 4])
    assert not mod(zero, *at[:3], torch.tensor(1))


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ({"num_clusters": 2, "window_size": 4}, "`num_clusters` and `attn_forget_gate` cannot be combined"),
        ({"model": "encoder"}, "`attn_forget_gate` needs `model=decoder`"),
        ({"mixer": "mamba2"}, "needs self-attention, but this model has none"),
        ({"attn_flash": True, "rel_pos_bias": True}, "`attn_flash=True` and"),
    ],
)
def test_refusals(flags, text):
    with pytest.raises(FlagError, match=text):
        build(**flags)


def test_the_audit_passes():
    report = flagformer.audit(build(n_local_attn_heads=2, local_attn_window_size=3))
    assert report.passed, str(report)
