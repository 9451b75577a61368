"""Embeddings and logits of a wrapper against formulas: factors, biases, soft caps, offsets, token types."""

import pytest
import torch

import flagformer

BASE = {"num_tokens": 11, "max_seq_len": 8, "dim": 16, "depth": 1, "heads": 2, "attn_dim_head": 8}
IDS = torch.tensor([[3, 0, 10, 7], [1, 1, 2, 5]])


def model_of(**flags):
    model = flagformer.build({**BASE, **flags}).double().eval()
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return model


def embedded(model, **how):
    """The input of the layers."""
    seen = {}
    hook = model.attn_layers.register_forward_pre_hook(lambda _, args: seen.update(x=args[0]))
    model(IDS, **how)
    hook.remove()
    return seen["x"]


@pytest.mark.parametrize(("given", "factor"), [(True, 4.0), (0.3, 0.3), (2, 2.0), (None, 1.0), (False, 1.0)])
@pytest.mark.parametrize("positions", [True, False])
def test_embedding_scale_multiplies_tokens_only(given, factor, positions):
    model = model_of(embedding_scale=given, use_abs_pos_emb=positions)
    want = factor * model.token_emb.weight[IDS]
    torch.testing.assert_close(embedded(model), want + (model.pos_emb.table.weight[:4] if positions else 0))


def test_the_root_of_the_width_is_that_of_embeddings():
    model = model_of(embedding_scale=True, emb_dim=9, use_abs_pos_emb=False)
    torch.testing.assert_close(embedded(model), model.embedding.project(3.0 * model.token_emb.weight[IDS]))


def test_positions_start_at_an_offset_of_the_table():
    """OPT and RoBERTa: position p is in row p + 2, and padding in front does not count."""
    model = model_of(use_abs_pos_emb=True, abs_pos_emb_offset=2)
    assert model.pos_emb.table.weight.shape == (BASE["max_seq_len"] + 2, 16)
    tokens, table = model.token_emb.weight[IDS], model.pos_emb.table.weight
    torch.testing.assert_close(embedded(model), tokens + table[2:6])
    padded = embedded(model, seq_start_pos=torch.tensor([0, 1]))[1, 1:]
    torch.testing.assert_close(padded, tokens[1, 1:] + table[2:5])
    with pytest.raises(ValueError, match="max_seq_len"):
        model(torch.zeros(1, 9, dtype=torch.long))


def test_token_types_are_added_before_the_norm():
    """arXiv:1810.04805, figure 2; without ids all tokens have type 0."""
    flags = {
        "num_token_types": 2,
        "post_emb_norm": True,
        "post_emb_norm_eps": 0.1,
        "post_emb_norm_bias": True,
    }
    model = model_of(**flags, use_abs_pos_emb=False)
    table, norm = model.embedding.kinds["token_type_embed"].weight, model.embedding.norm
    for given in (None, torch.tensor([[0, 1, 1, 0], [1, 0, 0, 1]])):
        types = torch.zeros_like(IDS) if given is None else given
        x = model.token_emb.weight[IDS] + table[types]
        centred = x - x.mean(-1, keepdim=True)
        want = centred / (centred.square().mean(-1, keepdim=True) + 0.1).sqrt() * norm.weight + norm.bias
        torch.testing.assert_close(embedded(model, token_type_ids=given), want)
        if given is not None:
            torch.testing.assert_close(embedded(model, embed_ids={"token_type": given}), want)


@pytest.mark.parametrize(
    ("flags", "how", "text"),
    [
        ({}, {"token_type_ids": IDS}, "`token_type_ids` needs a model with `num_token_types`"),
        ({"num_token_types": 2}, {"token_type_ids": IDS[:, 1:]}, "must be integers of shape"),
        ({"num_token_types": 2}, {"token_type_ids": IDS}, "must hold ids from 0 to 1"),
        (
            {"num_token_types": 2},
            {"token_type_ids": IDS % 2, "embed_ids": {"token_type": IDS % 2}},
            "are the same: pass one",
        ),
    ],
)
def test_wrong_token_types_are_refused(flags, how, text):
    with pytest.raises(ValueError, match=text):
        model_of(**flags)(IDS, **how)


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        ({"post_emb_norm_bias": True}, ["post_emb_norm_bias", "post_emb_norm"]),
        ({"post_emb_norm_eps": 0.1}, ["post_emb_norm_eps", "post_emb_norm"]),
        ({"tie_embedding_scale": 1.0}, ["tie_embedding_scale", "tie_embedding"]),
        ({"head_transform_bias": False}, ["head_transform_bias", "head_transform"]),
        ({"head_transform_eps": 0.1}, ["head_transform_eps", "head_transform"]),
        ({"head_transform": "gelu", "return_only_embed": True}, ["head_transform"]),
        ({"abs_pos_emb_offset": 2}, ["abs_pos_emb_offset", "use_abs_pos_emb=True"]),
        (
            {"num_token_types": 2, "embed_num_tokens": {"token_type": 2}},
            ["num_token_types", "embed_num_tokens"],
        ),
    ],
)
def test_refused_flags_are_named(flags, names):
    with pytest.raises(flagformer.FlagError) as error:
        flagformer.build({**BASE, **flags})
    assert all(f"`{name}`" in str(error.value) for name in names)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("scale", "cap"), [(1.0, None), (0.25, None), (1.0, 0.5), (4.0, 0.5)])
def test_logits(tied, bias, scale, cap):
    """cap * tanh(scale * (x W + b) / cap), Gemma's cap and the factors of Cohere and Granite."""
    flags = {"tie_embedding": True, "tie_embedding_scale": 0.7} if tied else {}
    flags |= {"logits_bias": bias, "logits_scale": scale, "logits_softcap": cap}
    model = model_of(**flags)
    logits, x = model(IDS, return_logits_and_embeddings=True)
    weight = 0.7 * model.token_emb.weight if tied else model.head.project.weight
    added = (model.head.add_bias.bias if tied else model.head.project.bias) if bias else 0.0
    want = scale * (x @ weight.T + added)
    torch.testing.assert_close(logits, want if cap is None else cap * torch.tanh(want / cap))


@pytest.mark.parametrize("flags", [{}, {"tie_embedding": True}, {"tie_embedding": True, "emb_dim": 9}])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ["gelu", "tanh"])
def test_the_head_of_masked_language_models(flags, bias, activation):
    """LayerNorm(act(W x + b)) before the logits (BERT), of the width of a tied embedding (ALBERT)."""
    transform = {"head_transform": activation, "head_transform_bias": bias, "head_transform_eps": 0.2}
    model = model_of(model="encoder", **flags, **transform)
    logits, x = model(IDS, return_logits_and_embeddings=True)
    head = model.head.transform
    x = x @ head.dense.weight.T + (head.dense.bias if bias else 0)
    x = torch.tanh(x) if activation == "tanh" else x * (1 + torch.erf(x / 2**0.5)) / 2
    centred = x - x.mean(-1, keepdim=True)
    x = centred / (centred.square().mean(-1, keepdim=True) + 0.2).sqrt() * head.norm.weight
    x = x + (head.norm.bias if bias else 0)
    width = flags.get("emb_dim", 16)
    assert x.shape[-1] == width
    tied = model.token_emb.weight * width**-0.5
    torch.testing.assert_close(logits, x @ (tied if flags else model.head.project.weight).T)
    names = [name for name in model.state_dict() if name.startswith("head.transform")]
    assert len(names) == (4 if bias else 2)


def test_the_bias_of_tied_logits_starts_at_zero():
    bias = flagformer.build({**BASE, "tie_embedding": True, "logits_bias": True}).head.add_bias.bias
    assert bias.shape == (11,)
    assert not bias.any()
