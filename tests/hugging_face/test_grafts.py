"""Flags grafted onto directories: published ones and own ones."""

import pytest
import torch

pytest.importorskip("transformers")

from published_models import gap, ids_of, logits, theirs_of

import flagformer
from flagformer.flags import FlagError

NAMES = ("Llama 3.2", "GPT-2", "Gemma 2", "Pythia")
GRAFTS = {
    "gate": {"attn_gate_values": True},
    "deeper": {"depth": 6},
    "wider": {"ff_inner_dim": 320, "heads": 8},
    "bias of positions": {"rel_pos_bias": True},
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    directory = tmp_path_factory.mktemp("grafts")
    found = {}
    for name in NAMES:
        theirs = theirs_of(name)
        theirs.save_pretrained(directory / name)
        found[name] = (theirs, directory / name)
    return found


@pytest.mark.parametrize("what", GRAFTS)
@pytest.mark.parametrize("name", NAMES)
def test_a_graft_starts_as_the_published_model(saved, name, what):
    if (name, what) in {("Gemma 2", "deeper"), ("Gemma 2", "bias of positions")}:
        pytest.skip("windows by layer, and scores without a position bias")
    theirs, directory = saved[name]
    torch.manual_seed(0)
    model = flagformer.load(directory, **GRAFTS[what]).eval()
    assert model.graft.keeps_function, model.graft.line()
    assert gap(logits(theirs, ids_of()), model(ids_of())) < 1e-4
    assert model.source.config["model_type"]


def test_own_directories_take_grafts_and_keep_them(tmp_path):
    flags = {"num_tokens": 13, "max_seq_len": 8, "dim": 16, "depth": 1, "heads": 2, "attn_dim_head": 8}
    own = flagformer.build(flags).eval()
    own.save(tmp_path / "own")
    ids = torch.randint(13, (2, 8))
    model = flagformer.load(tmp_path / "own", depth=2, use_layerscale=True, dtype=torch.float32).eval()
    torch.testing.assert_close(model(ids), own(ids), rtol=0, atol=1e-6)
    assert model.flags["depth"] == 2
    assert model.flags["use_layerscale"]
    model.save(tmp_path / "grown")
    torch.testing.assert_close(flagformer.load(tmp_path / "grown").eval()(ids), model(ids), rtol=0, atol=1e-6)
    text = model.graft.line()
    assert "`depth`, `use_layerscale`" in text
    assert text.endswith("the function is kept")


def test_new_parameters_have_the_dtype_of_the_files(saved, tmp_path):
    theirs, _ = saved["Llama 3.2"]
    theirs.to(torch.bfloat16).save_pretrained(tmp_path)
    theirs.float()
    model = flagformer.load(tmp_path, depth=5, num_tokens=99, max_seq_len=128)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    old = flagformer.load(tmp_path)
    assert torch.equal(model(ids_of())[..., :97], old(ids_of()))
    assert list(model.graft.changed) == ["num_tokens"]
    assert model.graft.grown == {"embed.weight": "new rows are the mean of the others"}


def test_untied_projections_are_copies(saved):
    _, directory = saved["GPT-2"]
    old, model = flagformer.load(directory).eval(), flagformer.load(directory, tie_embedding=False).eval()
    torch.testing.assert_close(model(ids_of()), old(ids_of()), rtol=0, atol=1e-6)
    assert model.graft.grown == {"head.weight": "a copy of the embedding"}
    assert model.graft.keeps_function


REFUSED = {
    "another width": ({"dim": 128}, r"`dim` is 128 in place of 64.*embed\.weight"),
    "fewer heads": ({"heads": 2, "attn_kv_heads": 2}, "`heads` is 2 in place of 4"),
    "a narrower feedforward": ({"ff_inner_dim": 64}, "`ff_inner_dim` is 64 in place of 128"),
    "two position schemes": ({"alibi_pos_bias": True, "rel_pos_bias": True}, "`alibi_pos_bias` and `rel_pos"),
    "a flag that the directory sets": ({"ff_swish": True}, "`ff_swish`.*`ff_activation"),
    "another model": ({"model": "vit"}, "model"),
    "an unknown flag": ({"attn_head_scales": True}, "did you mean `attn_head_scale`"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused_grafts_name_the_flags(saved, what):
    flags, message = REFUSED[what]
    with pytest.raises(FlagError, match=message) as raised:
        flagformer.load(saved["Llama 3.2"][1], **flags)
    assert "Llama 3.2" in str(raised.value)


def test_models_of_other_kinds_take_no_grafts(tmp_path):
    half = {"num_tokens": 7, "max_seq_len": 8, "depth": 1, "heads": 2, "attn_dim_head": 4}
    both = {f"{part}_{name}": value for part in ("enc", "dec") for name, value in half.items()}
    flagformer.build({"model": "memformer", "dim": 8, "num_memory_slots": 2, **both}).save(tmp_path)
    with pytest.raises(FlagError, match="is a Memformer, but flags can be grafted onto TransformerWrapper"):
        flagformer.load(tmp_path, enc_depth=2)
