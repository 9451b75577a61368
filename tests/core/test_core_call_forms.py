"""Forms of a call: masks by heads and rows, explicit positions, prefixes, windows, and return values."""

import pytest
import torch
from core_models import SMALL, B, S, T, context, ids, make, shared

import flagformer
from flagformer.flow import OutputCollector, Outputs

CAUSAL = torch.ones(T, T, dtype=torch.bool).tril()
RULES = torch.rand(B, 4, T, T, generator=torch.Generator().manual_seed(0)) > 0.3


def close(one, other):
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def far(one, other):
    assert (one - other).abs().max() > 1e-4


@torch.no_grad()
def test_attention_mask_forms_are_equivalent():
    model, x = shared("encoder"), ids()
    close(model(x, attn_mask=CAUSAL), model(x, attn_mask=CAUSAL.expand(B, 4, T, T)))
    close(model(x, attn_mask=CAUSAL[None, None]), model(x, attn_mask=CAUSAL))
    by_head, by_row = RULES[0], RULES[:, 0]
    close(model(x, attn_mask=by_head), model(x, attn_mask=by_head[None].expand(B, -1, -1, -1)))
    close(model(x, attn_mask=by_row), model(x, attn_mask=by_row[:, None].expand(-1, 4, -1, -1)))
    far(model(x, attn_mask=by_head), model(x, attn_mask=by_row))
    both = model(x, attn_mask=RULES)
    for row in range(B):
        close(model(x[row : row + 1], attn_mask=RULES[row : row + 1]), both[row : row + 1])


@torch.no_grad()
def test_attention_mask_combines_with_the_other_rules():
    decoder, x = shared("decoder"), ids()
    close(decoder(x, attn_mask=torch.ones_like(CAUSAL)), decoder(x))
    mask = torch.arange(T) < torch.tensor([[T], [5]])
    pairs = mask[:, None, None] & RULES
    close(decoder(x, attn_mask=RULES, mask=mask), decoder(x, attn_mask=pairs))


@torch.no_grad()
def test_encoder_under_a_causal_mask_is_a_decoder():
    encoder = shared("encoder")
    decoder = make()
    decoder.load_state_dict(encoder.state_dict())
    close(encoder(ids(), attn_mask=CAUSAL), decoder(ids()))
    far(encoder(ids()), decoder(ids()))


@torch.no_grad()
def test_attention_mask_while_decoding():
    """[T, S] covers all cached keys, including those outside the window."""
    model, x = shared("rotary"), ids()
    pairs = RULES[:, :1]
    for window in (None, 3):
        want = model(x, attn_mask=pairs, window=window)
        state = model.init_state(B, T, window=window)
        got = [model(x[:, :4], state=state, attn_mask=pairs[..., :4, :4])]
        got += [model(x[:, 4:6], state=state, attn_mask=pairs[..., 4:6, :6])]
        got += [
            model(x[:, i : i + 1], state=state, attn_mask=pairs[..., i : i + 1, : i + 1]) for i in (6, 7, 8)
        ]
        close(torch.cat(got, dim=1), want)


@torch.no_grad()
@pytest.mark.parametrize(
    "flags", [{}, {"rotary_pos_emb": True}, {"rel_pos_bias": True}, {"alibi_pos_bias": True}]
)
def test_explicit_positions(flags):
    model, x = make(**flags), ids()
    close(model(x, pos=torch.arange(T)), model(x))
    close(model(x, pos=torch.arange(T).expand(B, T)), model(x))
    far(model(x, pos=torch.arange(T) + torch.arange(T) % 3), model(x))
    shifted = model(x, pos=torch.arange(T) + 5)
    if model.absolute_positions:
        far(shifted, model(x))
    else:
        close(shifted, model(x))
    two = model(x, pos=torch.stack([torch.arange(T), 2 * torch.arange(T) % 16]))
    close(two[:1], model(x[:1]))
    far(two[1:], model(x[1:]))


@torch.no_grad()
@pytest.mark.parametrize(
    "flags", [{}, {"rel_pos_bias": True}, {"rotary_pos_emb": True}, {"attn_num_mem_kv": 2}]
)
def test_prefix_decoder(flags):
    model, x = make(model="prefix_decoder", **flags), ids()
    lengths = torch.tensor([2, 6])
    rows = model(x, prefix_attn_len=lengths)
    for row, length in enumerate(lengths.tolist()):
        close(model(x[row : row + 1], prefix_attn_len=length), rows[row : row + 1])
    changed = x.clone()
    changed[:, 5] = (changed[:, 5] + 1) % 11  # inside the prefix of row 1, after that of row 0
    after = model(changed, prefix_attn_len=lengths)
    close(after[0, :5], rows[0, :5])
    assert ((after[1] - rows[1]).abs().amax(-1) > 1e-5).all(), "every token attends to the whole prefix"
    close(model(x, prefix_attn_len=0), model(x))
    close(model(x, prefix_attn_len=99), model(x, prefix_attn_len=T))


@torch.no_grad()
@pytest.mark.parametrize("flags", [{}, {"rel_pos_bias": True}])
def test_prefix_counts_valid_tokens(flags):
    """Left padding and packing change nothing, with a prefix as without."""
    model, x = make(model="prefix_decoder", **flags), ids()
    alone = model(x[1:, 4:], prefix_attn_len=3)
    padded = model(x, prefix_attn_len=3, seq_start_pos=torch.tensor([0, 4]))
    close(padded[1:, 4:], alone)
    packed = model(x, prefix_attn_len=3, seq_lens=[[9], [4, 5]])
    close(packed[1:, 4:], alone)
    close(packed[1:, :4], model(x[1:, :4], prefix_attn_len=3))
    far(alone, model(x[1:, 4:]))


@torch.no_grad()
@pytest.mark.parametrize("flags", [{"rotary_pos_emb": True}, {"alibi_pos_bias": True, "attn_num_mem_kv": 2}])
def test_window_bounds_the_attended_tokens(flags):
    model, x = make(depth=1, **flags), ids()
    full = model(x, window=3)
    for last in (2, 5, 8):
        changed = x.clone()
        changed[:, : last - 2] = (changed[:, : last - 2] + 1) % 11
        close(model(changed, window=3)[:, last], full[:, last])
    changed = x.clone()
    changed[:, 6] = (changed[:, 6] + 1) % 11
    far(model(changed, window=3)[:, 8], full[:, 8])
    close(model(x, window=T), model(x))
    far(full, model(x))


@torch.no_grad()
def test_packing_accepts_lists_and_tensors():
    model, x = shared("decoder"), ids()
    close(model(x, seq_lens=[[4, 5], [3]]), model(x, seq_lens=torch.tensor([[4, 5], [3, 0]])))
    close(model(x, seq_lens=[[4, 0, 5], [3]]), model(x, seq_lens=[[4, 5], [3]]))
    rows = model(x, seq_lens=[[4, 5], [3]])
    close(rows[1, :3], model(x[1:, :3])[0])
    tail = x.clone()
    tail[1, 3:] = 0
    close(model(tail, seq_lens=[[4, 5], [3]])[1, :3], rows[1, :3])


@torch.no_grad()
def test_layers_accept_the_same_masks():
    """AttentionLayers without the wrapper: [B, T, D] -> [B, T, D]."""
    layers = flagformer.Decoder(dim=16, depth=1, heads=2, rotary_pos_emb=True).eval()
    x = torch.randn(B, T, 16)
    out = layers(x)
    assert out.shape == x.shape
    close(layers(x, seq_start_pos=torch.tensor([0, 4]))[1, 4:], layers(x[1:, 4:])[0])
    close(layers(x, mask=torch.arange(T) < torch.tensor([[9], [6]]))[1, :6], layers(x[1:, :6])[0])
    crossing = flagformer.CrossAttender(dim=16, depth=1, heads=2, cross_attn_dim_context=6).eval()
    assert crossing(x, context=context()).shape == x.shape


@torch.no_grad()
def test_return_values():
    model, x = make(cross_attend=True, cross_attn_dim_context=6, attn_num_mem_kv=3), ids()
    side = {"context": context()}
    logits, embeddings = model(x, return_logits_and_embeddings=True, **side)
    assert torch.equal(logits, model(x, **side))
    assert torch.equal(embeddings, model(x, return_embeddings=True, **side))
    close(model.to_logits(embeddings), logits)
    again, maps = model(x, return_attn=True, **side)
    close(again, logits)
    assert [tuple(one.shape) for one in maps] == [(B, 4, T, 3 + T), (B, 4, T, 3 + S)] * 2
    for one in maps:
        close(one.sum(-1), torch.ones(B, 4, T))
    assert (maps[0][..., 3:].triu(1) == 0).all(), "no weight on later tokens"
    assert (maps[0][..., :3] > 0).all(), "every query attends to the prefix keys"
    again, outputs = model(x, return_intermediates=True, **side)
    assert isinstance(outputs, Outputs)
    close(outputs.logits, logits)
    close(outputs.embeddings, embeddings)
    for one, other in zip(outputs.attention, maps):
        assert torch.equal(one, other)
    assert len(outputs.hiddens) == len(model.attn_layers.steps) + 1
    close(outputs.hiddens[0], model.token_emb(x) + model.pos_emb(torch.arange(T)))
    close(model.attn_layers.final_norm(outputs.hiddens[-1]), embeddings)
    assert outputs.losses == {}


@torch.no_grad()
def test_attention_maps_of_padded_rows():
    mask = torch.arange(T) < torch.tensor([[9], [4]])
    _, maps = shared("encoder")(ids(), mask=mask, return_attn=True)
    assert (maps[0][1, :, :, 4:] == 0).all()
    _, maps = shared("encoder")(ids(), mask=mask & torch.tensor([[False], [True]]), return_attn=True)
    assert (maps[0][0] == 0).all(), "a fully masked query has zero attention weights"


def test_the_output_collector_records_only_requested_outputs():
    collector = OutputCollector(["wanted"])
    collector.record("wanted", torch.ones(1))
    collector.record("wanted", torch.zeros(1))
    collector.record("other", torch.ones(1))
    collector.add_loss("balance", torch.ones(()))
    assert (list(collector.recorded), len(collector.recorded["wanted"]), list(collector.losses)) == (
        ["wanted"],
        2,
        ["balance"],
    )
    assert collector.is_requested("wanted")
    assert not collector.is_requested("other")


def test_losses_of_the_output_collector_reach_the_outputs():
    class Priced(torch.nn.Module):
        def __init__(self, dims, activation):
            super().__init__()
            self.inner = torch.nn.Linear(dims.dim, dims.dim)

        def forward(self, x, side):
            out = self.inner(x)
            side.collector.add_loss("price", out.square().mean())
            return out

    model = flagformer.build({**SMALL, "feedforward": Priced})
    _, outputs = model(ids(), return_intermediates=True)
    assert [len(values) for values in outputs.losses.values()] == [SMALL["depth"]]
    outputs.losses["price"][0].backward()
    assert model.attn_layers.sublayers[1].fn.inner.weight.grad is not None


def test_parameter_counts():
    model = make(rotary_pos_emb=True)
    dim, inner, flat = 16, 64, 32
    block = dim * 3 * flat + flat * dim + 2 * dim * inner + inner + dim + 2 * dim
    assert model.num_params() == 2 * 11 * dim + 2 * block + dim
    assert model.num_params(embedding=False) == model.num_params() - 11 * dim
    absolute = make()
    assert absolute.num_params() == model.num_params() + 16 * dim
    assert absolute.num_params(embedding=False) == model.num_params(embedding=False)
    tied = make(rotary_pos_emb=True, tie_embedding=True)
    assert tied.num_params() == model.num_params() - 11 * dim
    assert tied.num_params(embedding=False) == tied.num_params() - 11 * dim


def test_explain_describes_the_model():
    text = make(rotary_pos_emb=True, use_rmsnorm=True, attn_kv_heads=2, cross_attend=True).explain()
    parts = ["Decoder", "order: a c f a c f", "Rotary", "RMSNorm", "GroupedQuery(groups=2)", "LinearHead"]
    parts += ["SDPA in self-attention", "SDPA in cross-attention", "step-by-step decoding: yes"]
    for part in parts:
        assert part in text, part
    assert "step-by-step decoding: no" in shared("encoder").explain()
    assert len(text.splitlines()) < 24


@torch.no_grad()
def test_a_copy_ties_its_own_embedding():
    import copy

    model = make(tie_embedding=True, rotary_pos_emb=True)
    other = copy.deepcopy(model)
    before = other(ids())
    model.token_emb.weight.zero_()
    assert torch.equal(other(ids()), before)
    assert (model(ids()) == 0).all()
    half = copy.deepcopy(other).bfloat16()
    assert half(ids()).dtype is torch.bfloat16
    assert [name for name in other.state_dict() if "head" in name] == []
