"""A sliding window (arXiv:2004.05150, section 3.1), one pair at a time; and combinations with other rules."""

import pytest
import torch

import flagformer
from flagformer.flow import AttentionBias, Chunks
from flagformer.ops import lengths
from flagformer.ops.lengths import LONG

H, K, D, T, BACK = 2, 4, 6, 7, 2
KINDS = {
    "decoder": flagformer.Decoder,
    "encoder": flagformer.Encoder,
    "prefix decoder": flagformer.PrefixDecoder,
}


def perturbed(kind="decoder", **flags):
    """One attention sublayer without norms, its input and its output."""
    torch.manual_seed(9)
    flags = {"custom_layers": "a", **flags}
    layers = KINDS[kind](dim=D, heads=H, attn_dim_head=K, pre_norm=False, **flags).double().eval()
    for parameter in layers.parameters():
        parameter.data += 0.5 * torch.randn_like(parameter)
    for sublayer in layers.sublayers:
        sublayer.out_norm = torch.nn.Identity()
    return layers, torch.randn(1, T, D, dtype=torch.float64)


def by_hand(fn, x, allows, prefix_kv=()):
    """x + attention over the keys that `allows(i, j)` permits and over prefix keys: (k, v) of each head."""
    qkv = (x @ fn.source.projection.to_qkv.weight.detach().T).view(len(x), 3, H, K)
    out = torch.zeros(len(x), H, K, dtype=torch.float64)
    for h in range(H):
        for i in range(len(x)):
            keys = [(k[h], v[h]) for k, v in prefix_kv]
            keys += [(qkv[j, 1, h], qkv[j, 2, h]) for j in range(len(x)) if allows(i, j)]
            weights = torch.stack([K**-0.5 * (qkv[i, 0, h] @ k) for k, _ in keys]).softmax(0)
            out[i, h] = sum(weight * v for weight, (_, v) in zip(weights, keys))
    return x + out.flatten(1) @ fn.to_out.weight.detach().T


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_a_query_attends_to_itself_and_the_tokens_of_its_window(kind):
    """Tokens before the window are masked; later tokens stay allowed where they were."""
    layers, x = perturbed(kind, attn_max_attend_past=BACK)
    want = by_hand(layers.sublayers[0].fn, x[0], lambda i, j: i - j <= BACK and (kind == "encoder" or j <= i))
    torch.testing.assert_close(layers(x)[0], want)


@torch.no_grad()
@pytest.mark.parametrize("ahead", [0, 1, 3])
@pytest.mark.parametrize("kind", ["encoder", "prefix decoder"])
def test_a_window_to_both_sides(kind, ahead):
    """Longformer's window of w tokens has w / 2 to each side; ModernBERT's 128 is 64 and 64, 129 tokens."""
    layers, x = perturbed(kind, attn_max_attend_past=BACK, attn_max_attend_ahead=ahead)
    given = {"prefix_attn_len": torch.tensor([5])} if kind == "prefix decoder" else {}

    def allows(i, j):
        return -ahead <= i - j <= BACK and (not given or j <= i or j < 5)

    torch.testing.assert_close(layers(x, **given)[0], by_hand(layers.sublayers[0].fn, x[0], allows))


def test_a_causal_model_has_no_tokens_ahead():
    with pytest.raises(
        flagformer.FlagError, match="`attn_max_attend_ahead` and `causal=True` cannot be comb"
    ):
        flagformer.Decoder(dim=D, depth=1, attn_max_attend_past=2, attn_max_attend_ahead=2)
    with pytest.raises(flagformer.FlagError, match="parameter of `attn_max_attend_past`"):
        flagformer.Encoder(dim=D, depth=1, attn_max_attend_ahead=2)


@torch.no_grad()
@pytest.mark.parametrize("size", [1, 3, 4, 50])
@pytest.mark.parametrize("kind", KINDS)
def test_a_query_attends_within_its_chunk(kind, size):
    layers, x = perturbed(kind, attn_chunk_size=size)

    def allows(i, j):
        return i // size == j // size and (kind == "encoder" or j <= i)

    torch.testing.assert_close(layers(x)[0], by_hand(layers.sublayers[0].fn, x[0], allows))


@torch.no_grad()
@pytest.mark.parametrize("start", range(5))
def test_chunks_are_counted_from_the_first_token(start):
    """Padding in front, decoding in blocks and XL memories move no cut."""
    layers, x = perturbed(attn_chunk_size=3, custom_layers="aa")
    want, starts = layers(x), torch.tensor([start])
    padded = torch.cat([torch.randn(1, start, D, dtype=x.dtype), x], dim=1)
    torch.testing.assert_close(layers(padded, seq_start_pos=starts)[:, start:], want)
    for width in (1, 2, 5):
        state = layers.init_state(1, T + start, seq_start_pos=starts)
        blocks = [layers(block, state=state) for block in padded.split(width, dim=1)]
        torch.testing.assert_close(torch.cat(blocks, dim=1)[:, start:], want)


@torch.no_grad()
def test_chunks_follow_xl_memories():
    flags = {"num_tokens": 11, "max_seq_len": 16, "dim": 16, "depth": 2, "heads": 2, "max_mem_len": 4}
    torch.manual_seed(2)
    model = flagformer.build({**flags, "rotary_pos_emb": True, "attn_chunk_size": 4}).double().eval()
    ids, mems, parts = torch.randint(11, (2, 14)), None, []
    for part in ids.split(3, dim=1):
        logits, mems = model(part, mems=mems, return_mems=True)
        parts.append(logits)
    torch.testing.assert_close(torch.cat(parts, dim=1), model(ids))


@torch.no_grad()
@pytest.mark.parametrize("every", [None, 3])
def test_memory_tokens_are_neither_counted_nor_masked_by_chunks(every):
    flags = {"num_tokens": 11, "max_seq_len": 32, "dim": 16, "depth": 1, "heads": 2, "num_memory_tokens": 2}
    if every is not None:
        flags["memory_tokens_interspersed_every"] = every
    torch.manual_seed(2)
    model = flagformer.build({**flags, "attn_chunk_size": 4}).double().eval()
    ids = torch.randint(11, (1, 12))
    for changed in range(12):
        other = ids.clone()
        other[0, changed] = (other[0, changed] + 1) % 11
        moved = (model(other) - model(ids)).abs().amax(-1)[0] > 1e-12
        assert moved.tolist() == [changed <= i < (changed // 4 + 1) * 4 for i in range(12)]
    packed = model(torch.cat([ids[:, :7], ids], dim=1), seq_lens=[[7, 12]])
    torch.testing.assert_close(packed[:, 7:], model(ids))


@torch.no_grad()
def test_a_chunk_of_the_whole_row_needs_no_mask(monkeypatch):
    layers, x = perturbed(attn_chunk_size=T, attn_flash=True)
    seen = []
    monkeypatch.setattr(Chunks, "mask_mod", lambda *args: seen.append(args))
    layers(x)
    assert not seen


@torch.no_grad()
def test_a_prefix_is_limited_by_the_window():
    layers, x = perturbed("prefix decoder", attn_max_attend_past=BACK)
    want = by_hand(layers.sublayers[0].fn, x[0], lambda i, j: i - j <= BACK and (j <= i or j < 4))
    torch.testing.assert_close(layers(x, prefix_attn_len=torch.tensor([4]))[0], want)


@torch.no_grad()
def test_prefix_keys_are_always_allowed():
    layers, x = perturbed(attn_max_attend_past=1, attn_num_mem_kv=2)
    fn = layers.sublayers[0].fn
    prefix_kv = [(fn.prefix_kv[0].k[:, m], fn.prefix_kv[0].v[:, m]) for m in range(2)]
    torch.testing.assert_close(layers(x)[0], by_hand(fn, x[0], lambda i, j: 0 <= i - j <= 1, prefix_kv))


@torch.no_grad()
@pytest.mark.parametrize(("window", "width"), [(2, 2), (5, BACK + 1), (50, BACK + 1)])
def test_the_smaller_window_wins(window, width):
    layers, x = perturbed(attn_max_attend_past=BACK)
    want = by_hand(layers.sublayers[0].fn, x[0], lambda i, j: 0 <= i - j < width)
    torch.testing.assert_close(layers(x, window=window)[0], want)
    state = layers.init_state(1, T, window=window)
    blocks = [layers(x[:, i : i + 1], state=state) for i in range(T)]
    torch.testing.assert_close(torch.cat(blocks, dim=1)[0], want)


@torch.no_grad()
def test_each_layer_has_its_own_window():
    layers, x = perturbed(custom_layers="aaa", attn_max_attend_past=(1, None, 3))
    want = x[0]
    for sublayer, back in zip(layers.sublayers, (1, T, 3)):
        want = by_hand(sublayer.fn, want, lambda i, j, back=back: 0 <= i - j <= back)
    torch.testing.assert_close(layers(x)[0], want)


@torch.no_grad()
def test_cross_attention_has_no_window():
    context = torch.randn(1, 9, D, dtype=torch.float64)
    outs = []
    for back in ({"attn_max_attend_past": 1}, {}):
        layers, x = perturbed(custom_layers="ac", **back)
        layers.sublayers[0].fn.to_out.weight.zero_()  # only the cross-attention adds to the stream
        outs.append(layers(x, context=context))
    torch.testing.assert_close(*outs)


@torch.no_grad()
@pytest.mark.parametrize("num_prefix_kv", [0, 2])
def test_decoding_reads_only_the_keys_of_the_window(num_prefix_kv, monkeypatch):
    layers, x = perturbed(custom_layers="aa", attn_max_attend_past=(1, 3), attn_num_mem_kv=num_prefix_kv)
    state, read = layers.init_state(1, T), []
    layers(x[:, :-1], state=state)
    kernel = type(layers.sublayers[0].fn.core.kernel)
    forward = kernel.forward
    monkeypatch.setattr(
        kernel,
        "forward",
        lambda self, q, k, v, bias: (read.append((k.shape[2], bias)), forward(self, q, k, v, bias))[1],
    )
    layers(x[:, -1:], state=state)
    assert [keys for keys, _ in read] == [num_prefix_kv + 2, num_prefix_kv + 4]
    assert all(bias.dense() == (None, None, None) for _, bias in read), "no mask is needed"


MODEL = {"num_tokens": 11, "max_seq_len": 600, "dim": 16, "depth": 3, "heads": 4, "attn_dim_head": 8}
LONGER = {
    "windows that differ": {"rotary_pos_emb": True, "attn_max_attend_past": (20, None, 70)},
    "windows and a learned bias": {"rel_pos_bias": True, "attn_max_attend_past": (20, 100, None)},
    "one chunk size": {"rel_pos_bias": True, "attn_chunk_size": 60},
    "chunks and the whole row": {"rotary_pos_emb": True, "attn_chunk_size": (100, None, 64)},
    "one window": {"alibi_pos_bias": True, "attn_max_attend_past": 50},
}


@pytest.mark.parametrize("kind", ["decoder", "encoder"])
@pytest.mark.parametrize("flags", LONGER)
def test_long_inputs_use_a_table_for_each_window(kind, flags, monkeypatch):
    torch.manual_seed(3)
    model = flagformer.build({"model": kind, **MODEL, **LONGER[flags]}).double()
    ids, padding = (
        torch.randint(11, (2, LONG + 9)),
        torch.arange(LONG + 9) < torch.tensor([[LONG + 9], [LONG]]),
    )
    results = []
    for least in (LONG, 10**9):
        monkeypatch.setattr(lengths, "LONG", least)
        model.zero_grad(set_to_none=True)
        logits = model(ids, mask=padding)[padding]
        (logits * torch.linspace(-1, 1, logits.numel(), dtype=logits.dtype).view_as(logits)).sum().backward()
        results.append((logits.detach(), [p.grad for p in model.parameters()]))
    (got, grads), (want, dense_grads) = results
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
    for one, other in zip(grads, dense_grads):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_a_table_is_computed_once_for_each_distinct_window(monkeypatch):
    made = []
    of = AttentionBias._relative
    monkeypatch.setattr(AttentionBias, "_relative", lambda self: made.append(of(self)) or made[-1])
    model = flagformer.build(
        {**MODEL, "depth": 4, "rotary_pos_emb": True, "attn_max_attend_past": (20, 70, 20, 70)}
    )
    with torch.no_grad():
        model(torch.randint(11, (1, LONG)))
        assert len(made) == 2
        model(torch.randint(11, (1, LONG)), window=10)
    assert len(made) == 3, "windows narrowed to the same width share a table"
    assert all(table is not None for table in made)
