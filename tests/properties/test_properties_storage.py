"""`load` restores what `save` writes, for every setting of the catalogue: flags, weights, logits."""

import pytest
import torch
from property_settings import TINY, one_block
from test_properties_singles import BIDIRECTIONAL, together

import flagformer
from flagformer.lab.reference import choices, settings

IDS = torch.randint(11, (2, 9), generator=torch.Generator().manual_seed(1))
CONTEXT = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(2))


def every():
    """(names, flags) of every setting; of several in one model where they build together."""
    kinds = {choice.name: settings(choice) for choice in choices() if "model" in choice.flags}
    found = [*kinds.items(), *BIDIRECTIONAL.items()]
    return found + [(", ".join(names), flags) for names, flags in together()]


def outputs(model):
    keywords = {}
    if model.attn_layers.has_cross and not model.num_memory_slots:
        width = model.attn_layers.dims.dim_context or model.attn_layers.dim
        keywords["context"] = CONTEXT[..., :width].to(next(model.parameters()).dtype)
    kinds = model.flags.get("embed_num_tokens")
    if kinds:
        keywords["embed_ids"] = {name: IDS % count for name, count in kinds.items()}
    return model(IDS, **keywords)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:.*leaks future tokens")
def test_load_restores_a_saved_model(tmp_path, monkeypatch):
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    wrong = []
    for number, (name, flags) in enumerate(every()):
        torch.manual_seed(number)
        model = flagformer.build(one_block(flags)).eval()
        model.save(tmp_path)
        back = flagformer.load(tmp_path).eval()
        if back.flags != model.flags:
            wrong.append(f"{name}: flags {back.flags} for {model.flags}")
        if type(back) is not type(model) or not torch.equal(outputs(back), outputs(model)):
            wrong.append(f"{name}: other logits")
    assert not wrong, "\n".join(wrong)


WHOLE = {
    "xtransformer": {
        "dim": 16,
        **{
            prefix + name: value
            for prefix in ("enc_", "dec_")
            for name, value in {**TINY, "depth": 1, "attn_kv_heads": [2], "layer_dropout": (0.0, 0.1)}.items()
            if name != "dim" and (prefix == "enc_" or name != "layer_dropout")
        },
        "tie_token_emb": True,
    },
    "memformer": {
        "dim": 16,
        "num_memory_slots": 3,
        "mem_update_attn_heads": 2,
        **{
            prefix + name: value
            for prefix in ("enc_", "dec_")
            for name, value in {**TINY, "depth": 1, "attn_num_mem_kv": [2]}.items()
            if name != "dim"
        },
    },
    "classifier": {
        **TINY, "depth": 1, "num_classes": 5, "pooling": "class", "pooler": True, "attn_kv_heads": [2],
    },
    "continuous": {
        **{name: value for name, value in TINY.items() if name != "num_tokens"},
        "depth": 1, "dim_in": 3, "dim_out": 5, "attn_kv_heads": [2],
    },
    "vit": {
        "image_size": [8, 4],
        "patch_size": (2, 2),
        "dim": 16,
        "depth": 2,
        "heads": 2,
        "ff_glu": [True, False],
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", WHOLE)
def test_whole_models_are_restored(kind, tmp_path):
    model = flagformer.build({"model": kind, **WHOLE[kind]})
    model.save(tmp_path)
    back = flagformer.load(tmp_path)
    assert back.flags == model.flags
    mine, theirs = model.state_dict(), back.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


# every public wrapper: how it is built, and its output
ROUTING = {"num_tokens": 11, "dim": 16, "depth": 2, "heads": 4, "max_seq_len": 16, "window_size": 4}
HALVES = {
    prefix + name: value for prefix in ("enc_", "dec_") for name, value in ROUTING.items() if name != "dim"
}
WRAPPERS = {
    "TransformerWrapper": lambda: flagformer.build({**TINY, "depth": 1}),
    "XTransformer": lambda: flagformer.build({"model": "xtransformer", **WHOLE["xtransformer"]}),
    "Memformer": lambda: flagformer.build({"model": "memformer", **WHOLE["memformer"]}),
    "ContinuousTransformerWrapper": lambda: flagformer.build({"model": "continuous", **WHOLE["continuous"]}),
    "SequenceClassifier": lambda: flagformer.build({"model": "classifier", **WHOLE["classifier"]}),
    "ViTransformerWrapper": lambda: flagformer.build({"model": "vit", **WHOLE["vit"]}),
    "RoutingTransformer": lambda: flagformer.RoutingTransformer(
        **{name: value for name, value in ROUTING.items() if name != "num_tokens"}
    ),
    "RoutingTransformerLM": lambda: flagformer.RoutingTransformerLM(**ROUTING),
    "RoutingTransformerEncDec": lambda: flagformer.RoutingTransformerEncDec(dim=16, **HALVES),
    "AutoregressiveWrapper": lambda: flagformer.AutoregressiveWrapper(
        flagformer.build({**TINY, "depth": 1})
    ),
    "XLAutoregressiveWrapper": lambda: flagformer.XLAutoregressiveWrapper(
        flagformer.build({**TINY, "depth": 1, "max_mem_len": 16, "alibi_pos_bias": True})
    ),
}  # fmt: skip


def calls_of(message):
    """The calls in the text of a refusal, as code."""
    return [part for part in message.split("`")[1::2] if "(" in part]


def test_every_public_wrapper_is_tested():
    layers = flagformer.AttentionLayers
    public = {name: getattr(flagformer, name) for name in flagformer.__all__}
    modules = {n for n, one in public.items() if isinstance(one, type) and issubclass(one, torch.nn.Module)}
    assert set(WRAPPERS) == {name for name in modules if not issubclass(public[name], layers)}


@pytest.mark.parametrize("name", WRAPPERS)
def test_a_wrapper_is_saved_or_refused_with_the_calls_to_use(name, tmp_path):
    """The calls in a refusal run, and restore the weights and flags."""
    model, again = WRAPPERS[name](), WRAPPERS[name]()
    assert type(model).__name__ == name
    want = model.state_dict()
    assert any(not torch.equal(want[one], other) for one, other in again.state_dict().items())
    try:
        model.save(tmp_path / "model")
        again = flagformer.load(tmp_path / "model")
        assert again.flags == model.flags
    except ValueError as error:
        assert not any(tmp_path.iterdir())
        where = {name: tmp_path / name for name in ("directory", "path", "first", "second")}
        saving, reading = [], []
        for call in calls_of(str(error)):
            (saving if "save(" in call else reading).append(call)
        for call in saving:
            exec(call, {"torch": torch, "model": model, **where})
        flags = {one: value for one, value in ROUTING.items() if one != "num_tokens"}
        scope = {
            **vars(flagformer),
            "flagformer": flagformer,
            "torch": torch,
            "model": again,
            "flags": flags,
            **where,
        }
        for call in reading:
            exec(call if " = " in call else f"made = {call}", scope)
        again = scope.get("made", again)
        if name == "RoutingTransformer":  # `load_state_dict` checks that all names exist
            assert not again.missing_keys
            return
    assert type(again) is type(model)
    got = again.state_dict()
    assert got.keys() == want.keys()
    assert all(torch.equal(got[one], want[one]) for one in want)
