"""Tiny random encoders and encoder-decoders of transformers against models of flags: equal logits."""

import re

import pytest
import torch

import flagformer

transformers = pytest.importorskip("transformers")

DIM, HEADS, LAYERS, VOCABULARY, LENGTH = 32, 4, 2, 23, 9
SIZES = {
    "hidden_size": DIM, "num_attention_heads": HEADS, "num_hidden_layers": LAYERS, "vocab_size": VOCABULARY,
    "intermediate_size": 2 * DIM, "max_position_embeddings": 20, "layer_norm_eps": 1e-3, "type_vocab_size": 2,
}  # fmt: skip
BERT = {
    "model": "encoder", "num_tokens": VOCABULARY, "max_seq_len": 20, "dim": DIM, "depth": LAYERS,
    "heads": HEADS, "attn_dim_head": DIM // HEADS, "ff_mult": 2.0, "pre_norm": False, "norm_bias": True,
    "norm_eps": 1e-3, "attn_bias": True, "use_abs_pos_emb": True, "num_token_types": 2, "post_emb_norm": True,
    "post_emb_norm_eps": 1e-3, "post_emb_norm_bias": True, "head_transform": "gelu",
    "head_transform_eps": 1e-3, "logits_bias": True, "tie_embedding": True, "tie_embedding_scale": 1.0,
}  # fmt: skip
ALBERT = {"emb_dim": 12, "weight_tie_layers": True, "ff_activation": "gelu_tanh"}
# name -> (class, its configuration, our flags)
ENCODERS = {
    "bert": ("Bert", {}, {}),
    "bert, relu": ("Bert", {"hidden_act": "relu"}, {"ff_activation": "relu", "head_transform": "relu"}),
    # positions begin after the row of the padding's id
    "roberta": (
        "Roberta",
        {"pad_token_id": 1, "max_position_embeddings": 22},
        {"abs_pos_emb_offset": 2},
    ),
    "albert": ("Albert", {"embedding_size": 12}, {**ALBERT, "head_transform": "gelu_tanh"}),
    "electra": ("Electra", {"embedding_size": 12}, {"emb_dim": 12}),
}
# part of their name -> part of ours; {0} and {1} are the sublayers of a layer
HEAD = r"^(cls\.predictions\.transform\.|lm_head\.|predictions\.|generator_predictions\.)"
RULES = {
    r"^(bert|roberta|albert|electra)\.": "",
    r"embeddings\.word_embeddings": "token_emb",
    r"embeddings\.position_embeddings": "pos_emb.table",
    r"embeddings\.token_type_embeddings": "embedding.kinds.token_type_embed",
    r"embeddings\.LayerNorm": "embedding.norm",
    r"(encoder\.embedding_hidden_mapping_in|embeddings_project)": "embedding.project",
    r"^(cls\.predictions|lm_head|predictions|generator_lm_head)\.bias": "head.add_bias.bias",
    HEAD + "dense": "head.transform.dense",
    HEAD + "(LayerNorm|layer_norm)": "head.transform.norm",
    r"encoder\.albert_layer_groups\.0\.albert_layers": "encoder.layer",
    r"attention\.(output\.)?dense": "{0}.fn.to_out",
    r"attention\.(output\.)?LayerNorm": "{0}.out_norm",
    r"(intermediate\.dense|ffn\.)": "{1}.fn.w_in.",
    r"(output\.dense|ffn_output)": "{1}.fn.w_out",
    r"(output\.LayerNorm|full_layer_layer_norm)": "{1}.out_norm",
    r"attention\.(self\.)?qkv": "{0}.fn.source.projection.to_qkv",
    r"\.\.": ".",
}


def with_weights(ours, own):
    """Our model with their weights, of the shapes of ours."""
    shapes = {name: value.shape for name, value in ours.state_dict().items()}
    ours.load_state_dict({name: value.reshape(shapes[name]) for name, value in own.items()})
    return ours


def theirs_of(cls, config):
    torch.manual_seed(0)
    model = cls._from_config(config, attn_implementation="eager").eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def joined(state, whole, first, *others):
    """The same state with several tensors of a layer as one."""
    state = dict(state)
    for name in [name for name in state if f".{first}." in name]:
        parts = [state.pop(name.replace(f".{first}.", f".{part}.")) for part in (first, *others)]
        state[name.replace(f".{first}.", f".{whole}.")] = torch.cat(parts)
    return state


def renamed(name, rules):
    for rule, part in rules.items():
        name = re.sub(rule, part, name)
    if not (layer := re.match(r"encoder\.layer\.(\d+)\.", name)):
        return name
    first = 2 * int(layer[1])
    return "attn_layers.sublayers." + name[layer.end() :].format(first, first + 1)


@pytest.mark.parametrize("name", ENCODERS)
def test_encoders_with_the_head_of_a_masked_language_model(name):
    cls, config, flags = ENCODERS[name]
    config = getattr(transformers, f"{cls}Config")(**{**SIZES, **config})
    theirs = theirs_of(getattr(transformers, f"{cls}ForMaskedLM"), config)
    state = joined(theirs.state_dict(), "qkv", "query", "key", "value")
    own = {renamed(key, RULES): value for key, value in state.items() if "decoder" not in key}
    own = {key: value for key, value in own.items() if key != "generator_lm_head.weight"}
    ours = with_weights(flagformer.build({**BERT, **flags}).eval(), own)
    ids, types = torch.randint(2, VOCABULARY, (2, LENGTH)), torch.randint(2, (2, LENGTH))
    mask = torch.arange(LENGTH) < torch.tensor([[LENGTH], [LENGTH - 3]])
    with torch.no_grad():
        want = theirs(ids, attention_mask=mask.long(), token_type_ids=types).logits
        got = ours(ids, mask=mask, token_type_ids=types)
    assert want.std() > 0.1
    torch.testing.assert_close(got[mask], want[mask], rtol=1e-5, atol=1e-5)


CLASSIFIERS = {
    "bert": ("Bert", {}, {"pooler": True}, {r"^pooler\.": "pooler."}),
    "roberta": (
        "Roberta",
        ENCODERS["roberta"][1],
        {"pooler": True, "abs_pos_emb_offset": 2},
        {r"^classifier\.dense": "pooler.dense", r"^classifier\.out_proj": "classifier"},
    ),
    "albert": ("Albert", {"embedding_size": 12}, {"pooler": True, **ALBERT}, {r"^pooler\.": "pooler.dense."}),
}


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifiers(name):
    """A projection and a tanh of the first token, then the classes."""
    cls, config, flags, rules = CLASSIFIERS[name]
    config = getattr(transformers, f"{cls}Config")(**{**SIZES, **config, "num_labels": 5})
    theirs = theirs_of(getattr(transformers, f"{cls}ForSequenceClassification"), config)
    state = joined(theirs.state_dict(), "qkv", "query", "key", "value")
    own = {}
    for key, value in state.items():
        key = renamed(key, {**RULES, **rules})
        whole = key.startswith(("pooler", "classifier"))
        own[key.replace("classifier", "head") if whole else f"encoder.{key}"] = value
    bare = {key: value for key, value in BERT.items() if not key.startswith(("head_", "tie", "logits"))}
    ours = flagformer.build({**bare, "model": "classifier", "num_classes": 5, **flags}).eval()
    ours = with_weights(ours, own)
    ids, types = torch.randint(2, VOCABULARY, (2, LENGTH)), torch.randint(2, (2, LENGTH))
    mask = torch.arange(LENGTH) < torch.tensor([[LENGTH], [LENGTH - 3]])
    with torch.no_grad():
        want = theirs(ids, attention_mask=mask.long(), token_type_ids=types).logits
        got = ours(ids, mask=mask, token_type_ids=types)
    assert want.std() > 0.1
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
