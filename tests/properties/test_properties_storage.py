"""What `save` writes `load` gives back, for every setting of the catalogue: flags, weights, logits."""

import pytest
import torch
from property_settings import TINY, cross_forms, tunings

import flagformer
from flagformer.reference import choices, settings

IDS = torch.randint(11, (2, 9), generator=torch.Generator().manual_seed(1))
CONTEXT = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(2))


def every():
    """name -> flags of every choice, every tuned filler and every cross-attention form."""
    found = {choice.name: settings(choice) for choice in choices()}
    return found | {
        name: {**TINY, "depth": 2, **flags} for name, flags in (tunings() | cross_forms()).items()
    }


def outputs(model):
    how = {}
    if model.attn_layers.has_cross and not model.num_memory_slots:
        width = model.attn_layers.dims.dim_context or model.attn_layers.dim
        how["context"] = CONTEXT[..., :width].to(next(model.parameters()).dtype)
    kinds = model.flags.get("embed_num_tokens")
    if kinds:
        how["embed_ids"] = {name: IDS % count for name, count in kinds.items()}
    return model(IDS, **how)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:.*shows the future")
def test_load_gives_back_what_was_saved(tmp_path, monkeypatch):
    """One test, as each of the settings takes milliseconds."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    wrong = []
    for number, (name, flags) in enumerate(every().items()):
        torch.manual_seed(number)
        model = flagformer.build(flags).eval()
        model.save(tmp_path)
        back = flagformer.load(tmp_path).eval()
        if back.flags != model.flags:
            wrong.append(f"{name}: flags {back.flags} for {model.flags}")
        if type(back) is not type(model) or not torch.equal(outputs(back), outputs(model)):
            wrong.append(f"{name}: other logits")
    assert number > 150
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
def test_whole_models_come_back(kind, tmp_path):
    model = flagformer.build({"model": kind, **WHOLE[kind]})
    model.save(tmp_path)
    back = flagformer.load(tmp_path)
    assert back.flags == model.flags
    mine, theirs = model.state_dict(), back.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
