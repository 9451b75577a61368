"""A user's mask as a function of indices equals the same mask as a tensor, in every way a model runs."""

import pytest
import torch

import flagformer

B, H, T = 2, 4, 11
TINY = {"num_tokens": 13, "max_seq_len": 64, "dim": 16, "depth": 2, "heads": H, "attn_dim_head": 4}


def mod(b, h, q_idx, kv_idx):
    """Blocks of four keys, every second one masked; the first key and the query itself are always allowed."""
    return ((kv_idx // 4 + h + b) % 2 == 0) | (kv_idx == 0) | (kv_idx == q_idx)


def tensor(queries, keys, first=0):
    b, h = torch.arange(B).view(-1, 1, 1, 1), torch.arange(H).view(-1, 1, 1)
    kv_idx = torch.arange(first, keys)
    return mod(b, h, torch.arange(keys - queries, keys)[:, None], kv_idx).expand(B, H, -1, -1)


def model_of(**flags):
    torch.manual_seed(0)
    return flagformer.build({"model": "decoder", **TINY, **flags}).double()


def ids(length=T):
    return torch.randint(13, (B, length), generator=torch.Generator().manual_seed(1))


FORMS = {
    "plain": {},
    "rotary, bias": {"rotary_pos_emb": True, "rel_pos_bias": True},
    "bidirectional": {"model": "encoder", "alibi_pos_bias": True},
    "window, prefix keys": {"attn_max_attend_past": 6, "attn_num_mem_kv": 2},
    "eager": {"attn_flash": False},
    "shared_qk": {"shared_qk": True},
    "local heads": {"n_local_attn_heads": 2, "local_attn_window_size": 5},
    "routing": {"num_clusters": 3, "window_size": 4},
    "checkpoint": {"checkpoint": "sublayer", "dynamic_pos_bias": True},
    "reversible": {"reversible": True, "dynamic_pos_bias": True},
    "memory tokens": {"num_memory_tokens": 2},
    "interleaved memory tokens": {"num_memory_tokens": 1, "memory_tokens_interspersed_every": 3},
}


@pytest.mark.parametrize("form", FORMS)
def test_a_function_is_the_tensor_of_its_values(form):
    """Logits and gradients."""
    model, found = model_of(**FORMS[form]).train(), []
    for mask in (mod, tensor(T, T)):
        model.zero_grad(set_to_none=True)
        torch.manual_seed(2)
        logits = model(ids(), attn_mask=mask)
        (logits * torch.linspace(-1, 1, logits.numel()).view_as(logits)).sum().backward()
        found.append([logits.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)  # the same operations on the same mask
    with torch.no_grad():
        assert not torch.allclose(found[0][0], model(ids()), atol=1e-3), "the mask must matter"


@torch.no_grad()
@pytest.mark.parametrize(
    "form", [name for name in FORMS if name not in ("bidirectional", "interleaved memory tokens")]
)
def test_a_session_reads_the_same_function(form):
    model = model_of(**FORMS[form]).eval()
    want, state = model(ids(), attn_mask=mod), model.init_state(B, T)
    blocks = [ids()[:, :5], ids()[:, 5:6], ids()[:, 6:9], ids()[:, 9:10], ids()[:, 10:]]
    got = torch.cat([model(block, attn_mask=mod, state=state) for block in blocks], dim=1)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-10)


@torch.no_grad()
def test_padding_and_packing_join_it():
    """A function of the distance means the same in each row, whatever stands before it."""

    def near(b, h, q_idx, kv_idx):
        return (q_idx - kv_idx < 4) & ((q_idx - kv_idx) % 2 == 0)

    model, length = model_of(rotary_pos_emb=True).eval(), 6
    alone = model(ids()[:1, :length], attn_mask=near)
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), ids()[:1, :length]], dim=1)
    left = model(padded, attn_mask=near, seq_start_pos=torch.tensor([3]))[:, 3:]
    packed = torch.cat([ids()[1:, :4], ids()[:1, :length]], dim=1)
    after = model(packed, attn_mask=near, seq_lens=[[4, length]])[:, 4:]
    for got in (left, after):
        torch.testing.assert_close(got, alone, rtol=0, atol=1e-10)


@torch.no_grad()
def test_memories_have_negative_indices():
    model = model_of(max_mem_len=5, rotary_pos_emb=True).eval()
    _, mems = model(ids()[:, :5], return_mems=True)
    mask = tensor(T - 5, T - 5, first=-5)
    want = model(ids()[:, 5:], mems=mems, attn_mask=mask)
    torch.testing.assert_close(model(ids()[:, 5:], mems=mems, attn_mask=mod), want, rtol=0, atol=1e-12)


@torch.no_grad()
def test_prepended_embeddings_count():
    model = model_of().eval()
    front = torch.randn(B, 2, 16, generator=torch.Generator().manual_seed(3)).double()
    want = model(ids(), prepend_embeds=front, attn_mask=tensor(T + 2, T + 2))
    got = model(ids(), prepend_embeds=front, attn_mask=mod)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


@torch.no_grad()
def test_the_encoder_of_an_encoder_decoder_takes_it():
    sizes = {f"{side}_{name}": TINY[name] for side in ("enc", "dec") for name in ("depth", "heads")}
    more = {f"{side}_{name}": TINY[name] for side in ("enc", "dec") for name in ("num_tokens", "max_seq_len")}
    model = flagformer.XTransformer(dim=16, **sizes, **more).eval()
    want = model(ids(), ids(), attn_mask=tensor(T, T))
    torch.testing.assert_close(model(ids(), ids(), attn_mask=mod), want)


@pytest.mark.parametrize("flags", [{}, {"num_memory_tokens": 2}])
def test_a_function_that_returns_no_booleans_is_named(flags):
    text = r"`attn_mask`, a function .* must return a boolean tensor .* but returns torch.int64"
    with pytest.raises(ValueError, match=text):
        model_of(**flags)(ids(), attn_mask=lambda b, h, q_idx, kv_idx: q_idx - kv_idx)
