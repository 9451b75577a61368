"""Prepended embeddings equal tokens of these vectors; masked ones have no effect; cache, loss, generation."""

import pytest
import torch
import torch.nn.functional as F

from flagformer import AutoregressiveWrapper, XTransformer
from perturbed_models import perturbed

SIZES = {"num_tokens": 13, "max_seq_len": 24, "dim": 16, "depth": 2, "heads": 2, "attn_dim_head": 8}
P, T = 3, 10
MODELS = {
    "rotary": {"rotary_pos_emb": True},
    "narrow, normed": {"rotary_pos_emb": True, "emb_dim": 12, "emb_frac_gradient": 0.5},
    "alibi, shifted": {"alibi_pos_bias": True, "shift_tokens": 1},
    "memory": {"rel_pos_bias": True, "num_memory_tokens": 2},
    "memory between": {"rotary_pos_emb": True, "num_memory_tokens": 2, "memory_tokens_interspersed_every": 4},
}
TIGHT = {"rtol": 0, "atol": 1e-9}  # fp64: rounding stays below 1e-12
REAL = torch.tensor([[True, True, True], [False, True, True], [True, False, False], [False, False, False]])
PROMPTS = [[3, 1, 4, 1, 5], [9, 2], [2, 6, 5]]


def build(kind="decoder", **flags):
    return perturbed({"model": kind, **SIZES, **flags}, dtype=torch.float64).eval()


@pytest.fixture
def ids():
    return torch.randint(13, (4, T), generator=torch.Generator().manual_seed(1))


def front(model, rows=4):
    width = model.embedding.width
    return torch.randn(rows, P, width, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", ["decoder", "encoder"])
def test_they_equal_tokens_of_these_embeddings(name, kind, ids):
    model = build(kind, **MODELS[name])
    chosen = torch.randint(13, (4, P), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        got = model(ids, prepend_embeds=model.token_emb(chosen))
        torch.testing.assert_close(got, model(torch.cat([chosen, ids], dim=1)), **TIGHT)


def test_they_have_no_absolute_positions_and_no_norm(ids):
    """By the formula: tokens get positions from 0 on and the norm, prepended embeddings neither."""
    model = build(post_emb_norm=True)
    embeds, seen = front(model), []
    model.attn_layers.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(ids, prepend_embeds=embeds)
    model(ids)
    torch.testing.assert_close(seen[0], torch.cat([embeds, seen[1]], dim=1), **TIGHT)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", ["decoder", "encoder", "prefix_decoder"])
def test_masked_ones_and_padding_have_no_effect(name, kind, ids):
    model = build(kind, **MODELS[name])
    embeds, begin = front(model), torch.tensor([0, 2, 3, 5])
    with torch.no_grad():
        got = model(ids, prepend_embeds=embeds, prepend_mask=REAL, seq_start_pos=begin)
        assert got.shape == (4, P + T, 13)
        short = model(ids, prepend_embeds=embeds, mask=(torch.arange(T) < 8).expand(4, -1))
        for row, start in enumerate(begin.tolist()):
            kept = embeds[row : row + 1, REAL[row]]
            inputs = {"prepend_embeds": kept} if kept.shape[1] else {}
            alone = model(ids[row : row + 1, start:], **inputs)[0]
            torch.testing.assert_close(got[row, P + start :], alone[kept.shape[1] :], **TIGHT)
            torch.testing.assert_close(got[row, :P][REAL[row]], alone[: kept.shape[1]], **TIGHT)
            alone = model(ids[row : row + 1, :8], prepend_embeds=embeds[row : row + 1])
            torch.testing.assert_close(short[row : row + 1, : P + 8], alone, **TIGHT)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("starts", [None, [0, 2, 3, 5]])
def test_cached_equals_full(name, hidden, starts, ids):
    model = build(**MODELS[name])
    first = {"prepend_embeds": front(model)} | ({"prepend_mask": REAL} if hidden else {})
    begin = None if starts is None else torch.tensor(starts)
    mask = torch.rand(P + T, P + T, generator=torch.Generator().manual_seed(4)) > 0.3
    for window, seen in ((None, None), (4, None), (None, mask)):
        masks = {} if seen is None else {"attn_mask": seen}
        with torch.no_grad():
            full = model(ids, window=window, seq_start_pos=begin, **first, **masks)
            for blocks in ((T,), (1,) * T, (4, 1, 1, 4)):
                state = model.init_state(4, T, window=window, seq_start_pos=begin, num_prepend_embeds=P)
                pieces = []
                for block in blocks:
                    at = state.length
                    rows = slice(P + at if at else 0, P + at + block)
                    inputs = {} if seen is None else {"attn_mask": seen[rows, : P + at + block]}
                    piece = model(ids[:, at : at + block], state=state, **inputs, **({} if at else first))
                    pieces.append(piece)
                got = torch.cat(pieces, dim=1)
                assert got.shape == full.shape
                assert state.length == T
                for row, start in enumerate(starts or [0] * 4):
                    torch.testing.assert_close(got[row, P + start :], full[row, P + start :], **TIGHT)
                    keep = REAL[row] if hidden else torch.ones(P, dtype=torch.bool)
                    torch.testing.assert_close(got[row, :P][keep], full[row, :P][keep], **TIGHT)


@pytest.mark.parametrize("name", MODELS)
def test_a_prefix_includes_them(name, ids):
    model = build("prefix_decoder", **MODELS[name])
    embeds, other = front(model), front(model)
    other[:, -1] += torch.linspace(-1, 1, other.shape[2])
    with torch.no_grad():
        inputs = {"prefix_attn_len": torch.tensor([0, 2, 3, 1]), "prepend_mask": REAL}
        full = model(ids, prepend_embeds=embeds, **inputs)
        changed = model(ids, prepend_embeds=other, **inputs)
        assert (full[0, 0] - changed[0, 0]).abs().max() > 1e-6
        causal = model(ids, prepend_embeds=embeds), model(ids, prepend_embeds=other)
        torch.testing.assert_close(causal[0][:, 0], causal[1][:, 0], **TIGHT)
        state = model.init_state(4, T, num_prepend_embeds=P)
        got = [
            model(ids[:, :4], state=state, prepend_embeds=embeds, **inputs),
            model(ids[:, 4:], state=state),
        ]
    torch.testing.assert_close(torch.cat(got, dim=1)[:, P:], full[:, P:], **TIGHT)


@pytest.mark.parametrize("name", MODELS)
def test_loss_scores_tokens_only(name, ids):
    model = build(**MODELS[name])
    embeds = front(model)
    inputs = {"prepend_embeds": embeds, "prepend_mask": REAL}
    logits = model(ids[:, :-1], **inputs)[:, P:]
    want = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    loss, outputs = AutoregressiveWrapper(model)(ids, return_outputs=True, **inputs)
    torch.testing.assert_close(loss, want)
    assert outputs.logits.shape == (4, T - 1, 13)
    assert outputs.embeddings.shape == (4, T - 1, 16)


def test_forgetful_masking_never_masks_them(ids):
    """With every earlier token masked except the first, they still have an effect."""
    wrapper = AutoregressiveWrapper(build(**MODELS["memory"]), mask_prob=0.9).train()
    losses = []
    for embeds in (front(wrapper.net), front(wrapper.net).flip(2)):
        torch.manual_seed(0)
        losses.append(wrapper(ids, prepend_embeds=embeds).item())
    assert abs(losses[0] - losses[1]) > 1e-4


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("hidden", [False, True])
def test_generation_uses_them(name, hidden):
    wrapper = AutoregressiveWrapper(build(**MODELS[name]))
    embeds, valid = front(wrapper.net, 3), REAL[:3] if hidden else torch.ones(3, P, dtype=torch.bool)
    inputs = {"temperature": 0, "prepend_embeds": embeds, "prepend_mask": valid}
    new = wrapper.generate(PROMPTS, 14, **inputs)
    assert torch.equal(new, wrapper.generate(PROMPTS, 14, cache_kv=False, **inputs))
    for row, prompt in enumerate(PROMPTS):
        text = torch.tensor([[*prompt, *new[row].tolist()]])[:, :-1]
        logits = wrapper.net(text, prepend_embeds=embeds[row : row + 1, valid[row]])[0]
        assert torch.equal(new[row], logits[valid[row].sum() + len(prompt) - 1 :].argmax(-1))
    prepended = {"prepend_embeds": embeds, "prepend_mask": valid}
    assert torch.equal(wrapper.beam_search(PROMPTS, 14, 1, **prepended), new)


def test_past_max_seq_len_they_stay_allowed():
    wrapper = AutoregressiveWrapper(build(rotary_pos_emb=True, depth=1))
    seen = []

    def keep(logits):
        seen.append(logits)
        return logits

    for embeds in (front(wrapper.net, 1), front(wrapper.net, 1).flip(2)):
        for cache_kv in (True, False):
            wrapper.generate(
                [[1, 2, 3]], 40, prepend_embeds=embeds, filter_logits_fn=keep, cache_kv=cache_kv, seed=0
            )
    ends = [seen[40 * run + 39] for run in range(4)]
    torch.testing.assert_close(ends[0], ends[1], **TIGHT)
    torch.testing.assert_close(ends[2], ends[3], **TIGHT)
    assert (ends[0] - ends[2]).abs().max() > 1e-6


def halves(**flags):
    sizes = {prefix + name: v for prefix in ("enc_", "dec_") for name, v in SIZES.items() if name != "dim"}
    torch.manual_seed(0)
    return XTransformer(dim=16, **sizes, **flags).double().eval()


@pytest.mark.parametrize("flags", [{}, {"enc_num_memory_tokens": 2, "dec_num_memory_tokens": 1}])
def test_an_encoder_decoder_prepends_them_to_its_source(flags, ids):
    model = halves(enc_rotary_pos_emb=True, dec_rotary_pos_emb=True, **flags)
    embeds, mask = front(model.encoder), torch.arange(T) < torch.tensor([[T], [7], [T], [5]])
    inputs = {"src_prepend_embeds": embeds, "src_prepend_mask": REAL}
    loss = model(ids, ids, mask, **inputs)
    alone = []
    for row in range(4):
        kept = embeds[row : row + 1, REAL[row]]
        only = {"src_prepend_embeds": kept} if kept.shape[1] else {}
        source = ids[row : row + 1, mask[row]]
        assert model.encode(source, **only).shape == (1, kept.shape[1] + source.shape[1], 16)
        alone.append(model(source, ids[row : row + 1], **only))
        one = model.generate(source, ids[row : row + 1, :2], 6, temperature=0, **only)
        assert torch.equal(one[0], model.generate(ids, ids[:, :2], 6, mask, temperature=0, **inputs)[row])
    torch.testing.assert_close(loss, torch.stack(alone).mean(), rtol=1e-6, atol=1e-6)  # losses are fp32
    new = model.generate(ids, ids[:, :2], 6, mask, temperature=0, **inputs)
    assert torch.equal(new, model.generate(ids, ids[:, :2], 6, mask, temperature=0, cache_kv=False, **inputs))
    assert torch.equal(new, model.beam_search(ids, ids[:, :2], 6, 1, mask, **inputs))
    if flags:
        assert model.encoder.memory.tokens.shape == (2, 16)
        assert model.decoder.net.memory.tokens.shape == (1, 16)
        loss.backward()
        assert model.encoder.memory.tokens.grad.any()
        assert model.decoder.net.memory.tokens.grad.any()


def test_context_dropout_applies_to_source_tokens_only(ids):
    model = halves(cross_attn_tokens_dropout=0.5).train()
    loss = model(ids, ids, src_prepend_embeds=front(model.encoder))
    assert loss.isfinite()


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ({"prepend_mask": REAL}, "`prepend_mask` needs the `prepend_embeds`"),
        ({"prepend_embeds": torch.zeros(4, P, 9)}, r"of shape \[4, P, 16\].* of shape \[4, 3, 9\]"),
        ({"prepend_embeds": torch.zeros(3, P, 16)}, r"of shape \[4, P, 16\].* of shape \[3, 3, 16\]"),
        ({"prepend_embeds": torch.zeros(4, 0, 16)}, "P at least 1"),
        ({"prepend_embeds": torch.zeros(4, P, 16).long()}, "floating-point numbers .* but is torch.int64"),
        ({"prepend_embeds": [[1.0]]}, "`prepend_embeds` must be a tensor"),
        ({"prepend_embeds": ..., "prepend_mask": REAL[:, :2]}, r"`prepend_mask` must have shape \[4, 3\]"),
        ({"prepend_embeds": ..., "prepend_mask": REAL.long()}, "`prepend_mask` must be boolean"),
        (
            {"prepend_embeds": ..., "seq_lens": [[5, 5]] * 4},
            "`prepend_embeds` and `seq_lens` cannot be combined",
        ),
        ({"prepend_embeds": ..., "pos": torch.arange(T)}, "`pos` and `prepend_embeds` cannot be combined"),
        ({"prepend_embeds": ..., "attn_mask": torch.ones(T, T) > 0}, r"shape \[13, 13\]"),
    ],
)
def test_invalid_combinations_are_refused(inputs, says, ids):
    model = build(rotary_pos_emb=True)
    embeds = front(model)
    given = {name: embeds if value is ... else value for name, value in inputs.items()}
    with pytest.raises(ValueError, match=says):
        model(ids, **given)


def test_a_state_needs_cache_positions_for_them(ids):
    model = build(rotary_pos_emb=True)
    embeds = front(model)
    with pytest.raises(
        ValueError, match=r"capacity for 0 prepended embeddings, but `prepend_embeds` holds 3"
    ):
        model(ids, state=model.init_state(4, T), prepend_embeds=embeds)
    with pytest.raises(ValueError, match=r"capacity for 2 .* use init_state\(..., num_prepend_embeds=3\)"):
        model(ids, state=model.init_state(4, T, num_prepend_embeds=2), prepend_embeds=embeds)
    with pytest.raises(ValueError, match=r"`num_prepend_embeds` must be a whole number of at least 0"):
        model.init_state(4, T, num_prepend_embeds=-1)
    state = model.init_state(4, T, num_prepend_embeds=3)
    model(ids[:, :4], state=state, prepend_embeds=embeds)
    with pytest.raises(ValueError, match=r"belongs to the first block .* holds 4 tokens already"):
        model(ids[:, 4:], state=state, prepend_embeds=embeds)


def test_layers_without_self_attention_ignore_them(ids):
    model = build(only_cross=True)
    with pytest.raises(ValueError, match="`prepend_embeds` is read by self-attention, but these layers"):
        model(ids, context=torch.randn(4, 5, 16).double(), prepend_embeds=front(model))


def test_they_get_gradients(ids):
    model = build(**MODELS["memory between"])
    embeds = front(model).requires_grad_()
    model(ids, prepend_embeds=embeds, prepend_mask=REAL)[:, P:].square().sum().backward()
    shown = embeds.grad.abs().amax(dim=2) > 0
    assert torch.equal(shown, REAL)
