"""XL memories in use: forms of calls, gradients, recomputation, compiled graphs, messages."""

import re
from itertools import pairwise, product

import pytest
import torch
from core_models import SMALL, B, T, context, ids, make
from torch._dynamo.testing import CompileCounter

import flagformer
from commit_sample import part_of
from flagformer.flow import RecurrentState

ROTARY = {"rotary_pos_emb": True, "max_mem_len": 6}
CUTS = (0, 4, 7, T)
COMPILED = ({"rotary_pos_emb": True}, {"rel_pos_bias": True}, {"shift_tokens": 1}, {"attn_num_mem_kv": 2})


def parts():
    return [ids()[:, start:stop] for start, stop in pairwise(CUTS)]


def run(model, **how):
    """Logits of each segment, and the memories after the last."""
    found, mems = [], None
    for part in parts():
        logits, mems = model(part, mems=mems, return_mems=True, **how)
        found.append(logits)
    return torch.cat(found, dim=1), mems


def close(got, want):
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_forms_agree():
    model = make(**ROTARY)
    first, rest = parts()[0], ids()[:, 4:]
    _, mems = model(first, return_mems=True)
    assert isinstance(mems, RecurrentState)
    assert [tuple(one.shape) for one in mems] == [(B, 4, 16)] * 2
    assert torch.equal(mems[1], list(mems)[1])
    logits, left = model(rest, mems=mems, return_mems=True)
    close(logits, model(ids())[:, 4:])
    for how in ({"return_embeddings": True}, {"return_logits_and_embeddings": True}):
        plain = model(rest, mems=mems, **how)
        both, again = model(rest, mems=mems, return_mems=True, **how)
        for one, other in zip([plain, *left], [both, *again]):
            torch.testing.assert_close(one, other, rtol=0, atol=0)
    plain, outputs = model(rest, mems=mems, return_mems=True, return_intermediates=True)
    assert torch.equal(plain, logits)
    for one, other in zip(outputs.mems, left):
        assert torch.equal(one, other)
    assert [tuple(one.shape) for one in outputs.attention] == [(B, 4, 5, 9)] * 2
    assert model(rest, return_intermediates=True)[1].mems is None


@torch.no_grad()
@pytest.mark.parametrize("flags", [{"rotary_pos_emb": True}, {"scaled_sinu_pos_emb": True}, {}])
def test_a_list_of_hidden_states_is_a_memory(flags):
    model = make(**flags, max_mem_len=9)
    _, mems = model(parts()[0], return_mems=True)
    close(model(ids()[:, 4:], mems=[one.clone() for one in mems]), model(ids())[:, 4:])


@torch.no_grad()
def test_masks_of_memories():
    model = make(**ROTARY)
    real = torch.tensor([[True] * 4, [False, False, True, True]])
    _, mems = model(parts()[0], return_mems=True)
    changed = [torch.where(real[..., None], one, one + 3) for one in mems]
    rest = ids()[:, 4:]
    got = model(rest, mems=changed, mem_masks=real)
    close(got, model(rest, mems=mems, mem_masks=[real, real]))
    close(got[:1], model(rest, mems=mems)[:1])
    assert (got[1] - model(rest, mems=mems)[1]).abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize(
    "flags", [{}, {"attn_flash": False}, {"attn_num_mem_kv": 2}, {"alibi_pos_bias": True}]
)
def test_attention_masks_cover_tokens_or_memories_too(flags):
    model = make(**flags, max_mem_len=9)
    hidden = torch.rand(T, T, generator=torch.Generator().manual_seed(4)) < 0.6
    hidden |= torch.eye(T, dtype=torch.bool)
    want = model(ids(), attn_mask=hidden)[:, 4:]
    _, mems = model(parts()[0], attn_mask=hidden[:4, :4], return_mems=True)
    close(model(ids()[:, 4:], mems=mems, attn_mask=hidden[4:]), want)
    whole = hidden.clone()
    whole[4:, :4] = True
    want = model(ids(), attn_mask=whole)[:, 4:]
    close(model(ids()[:, 4:], mems=mems, attn_mask=whole[4:, 4:]), want)


@torch.no_grad()
def test_a_window_counts_memories():
    model = make(**ROTARY)
    _, mems = model(parts()[0], window=3, return_mems=True)
    close(model(ids()[:, 4:], mems=mems, window=3), model(ids(), window=3)[:, 4:])


@torch.no_grad()
@pytest.mark.parametrize("scheme", ["alibi_pos_bias", "rel_pos_bias", "dynamic_pos_bias", "rotary_pos_emb"])
@pytest.mark.parametrize("padded", [False, True])
def test_long_segments_with_relative_bias(scheme, padded):
    """From 256 tokens on biases and masks are tables, offset by the number of memories."""
    model = make(**{scheme: True}, max_mem_len=300)
    long = torch.randint(11, (B, 560), generator=torch.Generator().manual_seed(5))
    how = {"seq_start_pos": torch.tensor([0, 30])} if padded else {}
    want = model(long, **how)[:, 290:]
    _, mems = model(long[:, :290], return_mems=True, **how)
    close(model(long[:, 290:], mems=mems), want)


@torch.no_grad()
def test_explicit_positions_with_memories():
    model = make(rel_pos_bias=True, max_mem_len=9)
    pos = torch.arange(T) * 2
    want = model(ids(), pos=pos)[:, 4:]
    _, mems = model(parts()[0], pos=pos[:4], return_mems=True)
    close(model(ids()[:, 4:], mems=mems, pos=pos[4:]), want)
    shifted = torch.cat([pos[:4], torch.arange(7, 12)])
    close(model(ids()[:, 4:], mems=mems), model(ids(), pos=shifted)[:, 4:])


@pytest.mark.parametrize("flags", [{}, {"checkpoint": "sublayer"}])
def test_gradient_between_segments(flags):
    """Detached by default; otherwise the gradient of one long pass."""
    model = make(**ROTARY, **flags).double().train()
    grads = {}
    for name, how in (("detached", {}), ("through", {"detach_mems": False})):
        logits, mems = run(model, **how)
        assert not (how == {} and any(one.requires_grad for one in mems))
        model.zero_grad()
        logits[:, -1].square().sum().backward()
        grads[name] = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model(ids())[:, -1].square().sum().backward()
    # 6 memories do not link the last token to the first two of nine
    far = flagformer.build({**model.flags, "max_mem_len": 9}).double().train()
    far.load_state_dict(model.state_dict())
    run(far, detach_mems=False)[0][:, -1].square().sum().backward()
    for p, other in zip(model.parameters(), far.parameters()):
        torch.testing.assert_close(other.grad, p.grad, rtol=1e-9, atol=1e-9)
    differences = [(one - other).abs().max() for one, other in zip(grads["detached"], grads["through"])]
    assert max(differences) > 1e-3


@pytest.mark.parametrize("flags", [{}, {"shift_tokens": 1}, {"weight_tie_layers": True}])
def test_recomputation_returns_the_same_memories(flags):
    results = []
    for extra in ({}, {"checkpoint": "sublayer"}):
        model = make(**ROTARY, **flags, **extra).train()
        logits, mems = run(model)
        logits.square().mean().backward()
        results.append([logits, *mems, *(p.grad for p in model.parameters())])
    for one, other in zip(*results):
        assert torch.equal(one, other)


@torch.no_grad()
@pytest.mark.parametrize(("flags", "padded"), part_of(product(COMPILED, [False, True]), 3), ids=str)
def test_memories_compile(flags, padded):
    model = make(depth=1, max_mem_len=6, **flags)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    how = {"mask": torch.ones(B, 3, dtype=torch.bool).tril(1)} if padded else {}
    results = []
    for net in (model, compiled):
        _, mems = net(ids()[:, :3], return_mems=True, **how)
        logits, mems = net(ids()[:, 3:], mems=mems, return_mems=True)
        results.append([logits, *mems])
    for one, other in zip(*results):
        close(one, other)


@torch.no_grad()
def test_half_precision_and_copies():
    model = make(**ROTARY).bfloat16()
    _, mems = model(parts()[0], return_mems=True)
    assert mems[0].dtype is torch.bfloat16
    assert model(ids()[:, 4:], mems=[one.float() for one in mems]).dtype is torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        full = make(**ROTARY)
        _, mems = full(parts()[0], return_mems=True)
        assert full(ids()[:, 4:], mems=mems).isfinite().all()


WRONG = [
    ({"max_mem_len": 0}, {"return_mems": True}, "`return_mems` needs a model with memories: build it with"),
    ({"max_mem_len": 0}, {"mems": []}, "`mems` needs a model with memories: build it with `max_mem_len`"),
    ({}, {"mems": 3}, "`mems` must be a result of `return_mems`, 2 tensors of shape [2, M, 16]"),
    ({}, {"mems": [torch.zeros(B, 3, 16)]}, "but holds 1 of shape [2, 3, 16]"),
    ({}, {"mems": [torch.zeros(B, 3, 12)] * 2}, "but holds 2 of shape [2, 3, 12]"),
    ({}, {"mems": [torch.zeros(1, 3, 16)] * 2}, "but holds 2 of shape [1, 3, 16]"),
    ({}, {"mems": [torch.zeros(B, 0, 16)] * 2}, "but holds 2 of shape [2, 0, 16]"),
    ({}, {"mems": [torch.zeros(B, n, 16) for n in (3, 4)]}, "but holds 2 of shape [2, 3, 16] and [2, 4, 16]"),
    ({}, {"mems": []}, "but holds 0 of shape nothing"),
    (
        {},
        {"mems": [torch.zeros(B, 3, 16).long()] * 2},
        "must hold floating point numbers, but holds torch.int64",
    ),
    ({"shift_tokens": 1}, {"mems": [torch.zeros(B, 3, 16)] * 2}, "`mems` must hold 4 tensors"),
    ({}, {"mem_masks": torch.ones(B, 3).bool()}, "`mem_masks` needs the `mems`"),
    ({}, {"mem_masks": torch.ones(B, 4), "mems": True}, "`mem_masks` must be boolean of shape [2, 3]"),
    ({}, {"mem_masks": 5, "mems": True}, "`mem_masks` must be boolean of shape [2, 3]"),
    (
        {},
        {"mem_masks": [torch.ones(B, 3).bool(), torch.zeros(B, 3).bool()], "mems": True},
        "`mem_masks` must be the same for all memories",
    ),
    (
        {},
        {"seq_lens": [[4, 5], [9]], "mems": True},
        "`mems` and `seq_lens` cannot be combined: memories continue",
    ),
    ({}, {"seq_lens": [[4, 5], [9]], "return_mems": True}, "`return_mems` and `seq_lens` cannot be combined"),
    (
        {},
        {"state": True, "mems": True},
        "`mems` and `state` cannot be combined: a decode state",
    ),
    ({}, {"state": True, "return_mems": True}, "`return_mems` and `state` cannot be combined"),
    (
        {},
        {"seq_start_pos": torch.tensor([0, 1]), "mems": True},
        "`mems` and `seq_start_pos` cannot be combined",
    ),
    (
        {"model": "prefix_decoder"},
        {"prefix_attn_len": 2, "mems": True},
        "`prefix_attn_len` cannot be combined",
    ),
    ({}, {"return_attn": True, "return_mems": True}, "`return_intermediates` holds both"),
    ({}, {"attn_mask": torch.ones(T, 11).bool(), "mems": True}, "`attn_mask` must have shape [9, 12]"),
    ({}, {"mems": [torch.zeros(B, 8, 16)] * 2}, "position 16 is beyond the learned positions"),
]


@pytest.mark.parametrize(("flags", "how", "text"), WRONG, ids=lambda one: one if isinstance(one, str) else "")
def test_messages(flags, how, text):
    model = make(**{"max_mem_len": 6, **flags})
    if how.get("mems") is True:
        how = {**how, "mems": [torch.zeros(B, 3, 16)] * 2}
    if how.get("state") is True:
        how = {**how, "state": model.init_state(B, T)}
    with pytest.raises(ValueError, match=re.escape(text)) as caught:
        model(ids(), **how)
    assert not isinstance(caught.value, flagformer.FlagError)


REFUSED = [
    ({"only_cross": True}, "`max_mem_len` and `only_cross` cannot be combined, because only self-attention"),
    ({"custom_layers": "cf", "depth": None}, "`max_mem_len` and `custom_layers` cannot be combined"),
    ({"shift_mem_down": 2}, "`shift_mem_down` must be below the 2 self-attention steps of these layers"),
    (
        {"max_mem_len": 0, "shift_mem_down": 1},
        "`shift_mem_down` has no effect here, because it is a parameter",
    ),
    ({"max_mem_len": -1}, "`max_mem_len` must be at least 0"),
    ({"max_mem_len": 2.5}, "`max_mem_len` must be"),
]


@pytest.mark.parametrize(("flags", "text"), REFUSED)
def test_refused_flags(flags, text):
    given = {**SMALL, "max_mem_len": 6, **flags}
    with pytest.raises(flagformer.FlagError, match=re.escape(text)):
        flagformer.build({name: value for name, value in given.items() if value is not None})


def test_layers_without_self_attention_are_refused_by_the_wrapper():
    layers = flagformer.CrossAttender(dim=16, depth=1)
    with pytest.raises(flagformer.FlagError, match="`max_mem_len` needs self-attention"):
        flagformer.TransformerWrapper(num_tokens=5, max_seq_len=4, attn_layers=layers, max_mem_len=3)


def test_halves_of_an_encoder_decoder_refuse_memories():
    sizes = {f"{half}_{name}": 4 for half in ("enc", "dec") for name in ("num_tokens", "max_seq_len")}
    depths = {"enc_depth": 1, "dec_depth": 1, "dec_max_mem_len": 4, "enc_shift_mem_down": 1}
    with pytest.raises(flagformer.FlagError) as caught:
        flagformer.XTransformer(dim=16, **sizes, **depths)
    assert "`dec_max_mem_len` cannot be given, because the target is read whole" in str(caught.value)
    assert "`enc_shift_mem_down` cannot be given, because the source is read whole" in str(caught.value)


@torch.no_grad()
def test_cross_attention_attends_to_its_context_in_every_segment():
    model = make(cross_attend=True, cross_attn_dim_context=6, max_mem_len=9)
    logits, mems = run(model, context=context())
    assert len(mems) == 2
    close(logits, model(ids(), context=context()))


@torch.no_grad()
def test_layers_accept_memories():
    layers = make(rel_pos_bias=True).attn_layers
    x = torch.randn(B, T, 16)
    collector = flagformer.flow.OutputCollector(hidden_steps=layers.recurrent_steps)
    first = layers(x[:, :4], collector=collector)
    mems = [collector.hiddens[step] for step in layers.recurrent_steps]
    close(torch.cat([first, layers(x[:, 4:], mems=mems)], dim=1), layers(x))
    with pytest.raises(ValueError, match="`mems` and `seq_start_pos` cannot be combined"):
        layers(x, mems=mems, seq_start_pos=torch.tensor([0, 1]))


@torch.no_grad()
@pytest.mark.parametrize("padded", [False, True])
def test_a_long_text_compiles_four_graphs(padded):
    """Without memories, with the first, with growing and with full ones; afterwards only positions change."""
    model = make(depth=1, **ROTARY)
    torch._dynamo.reset()
    counter = CompileCounter()
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    mems, how = None, {"mask": torch.ones(B, 3, dtype=torch.bool).tril(1)} if padded else {}
    for _ in range(8):
        _, mems = compiled(ids()[:, :3], mems=mems, return_mems=True, **how)
    assert counter.frame_count <= 4
