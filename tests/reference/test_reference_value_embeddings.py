"""Value embeddings by token id: the formula, caches, inserted tokens, and a modification of your own."""

import pytest
import torch
from torch import nn

import flagformer
from flagformer import FlagError
from flagformer.attention.value_mods import ValueMod

FLAGS = {"num_tokens": 11, "max_seq_len": 24, "dim": 16, "depth": 2, "heads": 4, "attn_dim_head": 8}


def build(**flags):
    torch.manual_seed(0)
    model = flagformer.build(
        {**FLAGS, **({} if "value_mod" in flags else {"attn_value_embed_tokens": 11}), **flags}
    )
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.eval()


def ids(batch=2, length=6, seed=0):
    return torch.randint(11, (batch, length), generator=torch.Generator().manual_seed(seed))


def close(found, wanted):
    return torch.allclose(found, wanted, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("rows", [11, 5])
@pytest.mark.parametrize("heads", [4, 2])
def test_formula(rows, heads):
    model = build(attn_value_embed_tokens=rows, attn_kv_heads=heads, rotary_pos_emb=True)
    source, seen = model.attn_layers.sublayers[2].fn.source, {}
    source.value_mods[0].register_forward_hook(lambda module, inputs, out: seen.update(v=inputs[0], out=out))
    model(ids())
    table, (a, b) = source.value_mods[0].table.weight, source.value_mods[0].mix
    for row in range(2):
        for token in range(6):
            own = table[int(ids()[row, token]) % rows]
            for head in range(heads):
                wanted = a * seen["v"][row, head, token] + b * own[8 * head : 8 * head + 8]
                assert torch.allclose(seen["out"][row, head, token], wanted, atol=1e-6)


MODELS = {
    "plain": {},
    "grouped": {"attn_kv_heads": 2},
    "rotated values": {"rotary_pos_emb": True, "attn_rotary_embed_values": True},
    "memory tokens": {"num_memory_tokens": 2, "memory_tokens_interspersed_every": 4},
    "local heads": {"n_local_attn_heads": 2, "local_attn_window_size": 3},
    "reversible": {"reversible": True},
    "by layer": {"attn_value_embed_tokens": (11, None)},
    "shared qk": {"shared_qk": True},
}


@pytest.mark.parametrize("name", MODELS)
def test_in_blocks_with_padding_and_in_a_batch(name):
    model, x = build(**MODELS[name]), ids()
    whole = model(x)
    state = model.init_state(2, 6)
    parts = [model(x[:, start:end], state=state) for start, end in ((0, 3), (3, 4), (4, 6))]
    assert close(torch.cat(parts, 1), whole)
    assert close(model(x[:1]), whole[:1])
    pad = torch.zeros(2, 3, dtype=torch.long)
    assert close(model(torch.cat([pad, x], 1), seq_start_pos=torch.tensor([3, 3]))[:, 3:], whole)
    mask = torch.arange(9).expand(2, -1) < 6
    assert close(model(torch.cat([x, pad], 1), mask=mask)[:, :6], whole)
    packed = model(torch.cat([x[:1], x[1:, :4]], 1), seq_lens=[[6, 4]])
    assert close(packed[:, :6], whole[:1])
    assert close(packed[:, 6:], model(x[1:, :4]))


@pytest.mark.parametrize("flags", [{"checkpoint": "sublayer"}, {"checkpoint": "selective"}])
def test_recomputation(flags):
    found = []
    for more in (flags, {}):
        model = build(**more).train()
        model(ids()).square().mean().backward()
        found.append([parameter.grad for parameter in model.parameters()])
    assert all(close(one, other) for one, other in zip(*found))
    assert model.attn_layers.sublayers[0].fn.source.value_mods[0].table.weight.grad.any()


def test_entries_without_an_id_get_no_embedding():
    model, front = build(num_memory_tokens=1), torch.randn(2, 3, 16)
    mod, seen = model.attn_layers.sublayers[0].fn.source.value_mods[0], {}
    mod.register_forward_hook(lambda module, inputs, out: seen.update(v=inputs[0], out=out))
    model(ids(), prepend_embeds=front)
    assert torch.allclose(seen["out"][:, :, :4], mod.mix[0] * seen["v"][:, :, :4], atol=1e-6)
    assert not close(seen["out"][:, :, 4:], mod.mix[0] * seen["v"][:, :, 4:])


class ByInput(ValueMod):
    """Values times the mean of their token."""

    def __init__(self, dims, groups):
        super().__init__()

    def forward(self, v, x, side):
        return v * x.mean(-1)[:, None, :, None]


def test_a_modification_of_your_own():
    model, x = build(value_mod=ByInput), ids()
    state = model.init_state(2, 6)
    parts = [model(x[:, i : i + 2], state=state) for i in (0, 2, 4)]
    assert close(torch.cat(parts, 1), model(x))
    both = build(value_mod=[ByInput, lambda v, x, side: v])
    assert close(both(x), model(x))
    with pytest.raises(FlagError, match="`attn_kv_rank` and `value_mod` cannot be combined"):
        build(value_mod=ByInput, attn_kv_rank=4)


def test_mistakes():
    layers = flagformer.Decoder(dim=16, depth=1, heads=2, attn_value_embed_tokens=11)
    x = torch.randn(2, 6, 16)
    with pytest.raises(ValueError, match="`token_ids` is required"):
        layers(x)
    assert layers(x, token_ids=ids()).shape == x.shape
    refusals = {
        "max_mem_len": ({"max_mem_len": 4, "rotary_pos_emb": True}, "hidden states of earlier tokens"),
        "attn_shared_kv": ({"attn_shared_kv": True}, "the cache holds the keys"),
        "attn_kv_rank": ({"attn_kv_rank": 4}, "expanded from cached latents"),
    }
    for name, (flags, text) in refusals.items():
        with pytest.raises(FlagError, match=rf"`{name}` and `attn_value_embed_tokens` cannot .*{text}"):
            flagformer.build({**FLAGS, "attn_value_embed_tokens": 11, **flags})


def test_the_audit_passes():
    report = flagformer.audit(build(rotary_pos_emb=True))
    assert report.passed, str(report)
