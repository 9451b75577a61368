"""Flags of TransformerWrapper between ids and layers: their formulas, inputs, messages, generation."""

import pytest
import torch
import torch.nn.functional as F

import flagformer
from flagformer import AutoregressiveWrapper
from perturbed_models import perturbed

SIZES = {"num_tokens": 13, "max_seq_len": 24, "dim": 16, "depth": 2, "heads": 2, "attn_dim_head": 8}
KINDS = {"embed_num_tokens": {"type": 3, "side": 2}}
# fp32 sums of magnitude about 1 in another order
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def build(**flags):
    return perturbed({**SIZES, **flags}).eval()


@pytest.fixture
def ids():
    return torch.randint(13, (2, 9), generator=torch.Generator().manual_seed(1))


def kinds_of(ids):
    return {"type": ids % 3, "side": (ids + 1) % 2}


def into_layers(model, ids, **how):
    """The input of the layers."""
    seen = []
    hook = model.attn_layers.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(ids, **how)
    hook.remove()
    return seen[0]


def test_the_input_follows_the_formula(ids):
    """Sum of tokens, positions, kinds and the given embedding; norm; projection; in this order."""
    model = build(emb_dim=12, post_emb_norm=True, l2norm_embed=True, **KINDS)
    more = torch.randn(2, 9, 12)
    state, kinds = model.state_dict(), kinds_of(ids)
    x = torch.stack([state["token_emb.weight"][row] for row in ids])
    x = x / x.square().sum(-1, keepdim=True).sqrt()
    places = state["pos_emb.table.weight"][:9]
    x = x + places / places.square().sum(-1, keepdim=True).sqrt()
    for name in KINDS["embed_num_tokens"]:
        x = x + torch.stack([state[f"embedding.kinds.{name}_embed.weight"][row] for row in kinds[name]])
    x = x + more
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
    x = x * state["embedding.norm.weight"]
    x = x @ state["embedding.project.weight"].T + state["embedding.project.bias"]
    torch.testing.assert_close(into_layers(model, ids, embed_ids=kinds, sum_embeds=more), x, **CLOSE)


def test_tied_logits_of_a_narrow_unit_embedding(ids):
    model = build(emb_dim=12, l2norm_embed=True, tie_embedding=True)
    x = model(ids, return_embeddings=True) @ model.head.narrow.weight.T
    table = F.normalize(model.token_emb.weight, dim=-1)
    torch.testing.assert_close(model(ids), x @ table.T / 12**0.5, **CLOSE)
    model(ids).square().sum().backward()
    assert model.head.narrow.weight.grad.any()


def test_fraction_of_the_gradient(ids):
    grads = []
    for share in (1.0, 0.25):
        model = build(emb_frac_gradient=share, post_emb_norm=True)
        model(ids).square().sum().backward()
        grads.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, grad in grads[0].items():
        embedded = name.startswith(("token_emb", "pos_emb", "embedding.norm"))
        torch.testing.assert_close(grads[1][name], grad * (0.25 if embedded else 1), **CLOSE)


def test_unit_vectors_start_small():
    torch.manual_seed(0)
    model = flagformer.build({**SIZES, "l2norm_embed": True})
    for table in (model.token_emb.weight, model.pos_emb.table.weight):
        assert 0.5e-5 < table.std() < 2e-5  # 208 and more samples around 1e-5
    x = into_layers(model, torch.zeros(1, 1, dtype=torch.long))
    assert x.norm() > 0.1


def test_other_logits(ids):
    model = build(logits_dim=7)
    assert model(ids).shape == (2, 9, 7)
    assert model.logits_dim == 7
    with pytest.raises(ValueError, match=r"a logit for each of its 13 tokens, but `logits_dim` is 7"):
        AutoregressiveWrapper(model)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"emb_dim": 0}, "`emb_dim` must be at least 1"),
        ({"emb_frac_gradient": 0}, "`emb_frac_gradient` must be at least 0.001"),
        ({"emb_frac_gradient": 1.5}, "`emb_frac_gradient` must be at most 1"),
        ({"embed_num_tokens": {"type": 0}}, "must have values of at least 1, but 'type' is 0"),
        ({"embed_num_tokens": {"type": "a"}}, "`embed_num_tokens` must be dict"),
        ({"embed_num_tokens": {"a.b": 3}}, "must hold identifiers, but holds 'a.b'"),
        ({"embed_num_tokens": 3}, "`embed_num_tokens` must be dict"),
        ({"logits_dim": 7, "tie_embedding": True}, "`logits_dim` has no effect here"),
        ({"logits_dim": 7, "return_only_embed": True}, "`logits_dim` has no effect here"),
        ({"emb_dim": 7, "scaled_sinu_pos_emb": True}, "(`emb_dim` where it is set) must be even"),
    ],
)
def test_invalid_flags(flags, says):
    with pytest.raises(flagformer.FlagError) as error:
        flagformer.check({**SIZES, **flags})
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({}, r"`embed_ids` must hold ids for \['side', 'type'\] .*, but holds \[\]"),
        ({"embed_ids": {"type": torch.zeros(2, 9).long()}}, r"but holds \['type'\]"),
        (
            {"embed_ids": {"type": torch.zeros(2, 8).long(), "side": torch.zeros(2, 9).long()}},
            r"`embed_ids\['type'\]` must be integers of shape \[2, 9\], .* of shape \[2, 8\]",
        ),
        (
            {"embed_ids": {"type": torch.full((2, 9), 3), "side": torch.zeros(2, 9).long()}},
            r"`embed_ids\['type'\]` must hold ids from 0 to 2, but holds 3",
        ),
    ],
)
def test_wrong_ids_are_named(how, says, ids):
    with pytest.raises(ValueError, match=says):
        build(**KINDS)(ids, **how)


def test_unexpected_inputs_are_refused(ids):
    with pytest.raises(ValueError, match=r"must hold ids for nothing .*, but holds \['type'\]"):
        build()(ids, embed_ids={"type": ids})
    with pytest.raises(ValueError, match=r"`sum_embeds` must have shape \[2, 9, 12\], but has \[2, 9, 16\]"):
        build(emb_dim=12)(ids, sum_embeds=torch.zeros(2, 9, 16))


def test_every_parameter_is_trained(ids):
    model = build(emb_dim=12, post_emb_norm=True, l2norm_embed=True, **KINDS)
    model(ids, embed_ids=kinds_of(ids)).square().sum().backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]


def test_flags_rebuild_and_store_the_model(ids, tmp_path):
    model = build(emb_dim=12, post_emb_norm=True, **KINDS)
    model.save(tmp_path)
    loaded = flagformer.load(tmp_path).eval()
    kinds = kinds_of(ids)
    assert torch.equal(loaded(ids, embed_ids=kinds), model(ids, embed_ids=kinds))
    assert loaded.flags == model.flags
    assert model.num_params() - model.num_params(embedding=False) == (13 + 24 + 3 + 2) * 12


@pytest.mark.parametrize("flags", [{}, {"rotary_pos_emb": True}])
def test_kinds_in_a_decode_state_padding_and_packing(flags, ids):
    model, kinds = build(**KINDS, **flags), kinds_of(ids)
    full = model(ids, embed_ids=kinds)
    state = model.init_state(2, 9)
    parts = [
        model(ids[:, a:b], state=state, embed_ids={name: value[:, a:b] for name, value in kinds.items()})
        for a, b in ((0, 4), (4, 5), (5, 9))
    ]
    torch.testing.assert_close(torch.cat(parts, dim=1), full, **CLOSE)
    starts = torch.tensor([0, 4])
    padded = model(ids, seq_start_pos=starts, embed_ids=kinds)
    alone = {name: value[1:, 4:] for name, value in kinds.items()}
    want = model(ids[1:, 4:], embed_ids=alone)
    torch.testing.assert_close(padded[1:, 4:], want, **CLOSE)
    packed = model(ids, seq_lens=[[9], [4, 5]], embed_ids=kinds)
    torch.testing.assert_close(packed[1:, 4:], want, **CLOSE)


def test_loss_uses_the_kinds(ids):
    model, kinds = build(**KINDS), kinds_of(ids)
    read = {name: value[:, :-1] for name, value in kinds.items()}
    logits = model(ids[:, :-1], embed_ids=read)
    want = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    torch.testing.assert_close(AutoregressiveWrapper(model)(ids, embed_ids=kinds), want, **CLOSE)


@pytest.mark.parametrize("cache_kv", [True, False])
def test_generation_continues_the_kinds(cache_kv):
    """Row by row by hand: the given ids follow the tokens in order, and the last one repeats."""
    wrapper = AutoregressiveWrapper(build(**KINDS, rotary_pos_emb=True))
    prompts = [[3, 1, 4, 1], [9], [2, 6]]
    kinds = {"type": torch.tensor([[0, 1, 2, 0, 1, 2]] * 3), "side": torch.tensor([[0, 1, 0, 1]] * 3)}
    new = wrapper.generate(prompts, 8, temperature=0, embed_ids=kinds, cache_kv=cache_kv)
    for row, prompt in enumerate(prompts):
        text = torch.tensor([[*prompt, *new[row].tolist()]])[:, :-1]
        embed_ids = {
            name: torch.stack([value[row, min(t, value.shape[1] - 1)] for t in range(text.shape[1])])[None]
            for name, value in kinds.items()
        }
        logits = wrapper.net(text, embed_ids=embed_ids)
        assert torch.equal(new[row], logits[0, len(prompt) - 1 :].argmax(-1))
    other = {**kinds, "type": kinds["type"].flip(1)}
    assert not torch.equal(new, wrapper.generate(prompts, 8, temperature=0, embed_ids=other))


def test_generation_refuses_too_few_ids():
    wrapper = AutoregressiveWrapper(build(embed_num_tokens={"type": 3}))
    with pytest.raises(ValueError, match=r"of shape \[2, L\] with L at least 3, the longest prompt"):
        wrapper.generate([[1, 2, 3], [4]], 2, embed_ids={"type": torch.zeros(2, 2).long()})
    assert wrapper.generate([1, 2], 3, embed_ids={"type": torch.tensor([0, 1])}).shape == (3,)


def test_an_encoder_decoder_takes_kinds_on_both_sides(ids):
    sizes = {prefix + name: v for prefix in ("enc_", "dec_") for name, v in SIZES.items() if name != "dim"}
    both = {"enc_embed_num_tokens": {"type": 3}, "dec_embed_num_tokens": {"side": 2}}
    torch.manual_seed(0)
    model = flagformer.XTransformer(dim=16, **sizes, **both).eval()
    kinds = {"embed_ids": {"type": ids % 3}, "tgt_embed_ids": {"side": ids % 2}}
    other = {**kinds, "embed_ids": {"type": (ids + 1) % 3}}
    assert model(ids, ids, **kinds) != model(ids, ids, **other)
    new = model.generate(ids, ids, 5, temperature=0, **kinds)
    assert torch.equal(new, model.generate(ids, ids, 5, temperature=0, cache_kv=False, **kinds))
