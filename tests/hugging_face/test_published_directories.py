"""Directories: shards, hostile files, names of earlier versions, and exports of models built here."""

import json
import pickle

import pytest
import torch

pytest.importorskip("transformers")

from published_models import (
    LINEAR,
    assert_equal_files,
    gap,
    ids_of,
    logits,
    read_config,
    tensors_in,
    theirs_of,
)

import flagformer
from flagformer.interop.hugging_face import ConversionError, export

NAME = "Llama 2"
KEY = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    directory = tmp_path_factory.mktemp("published")
    theirs = theirs_of(NAME)
    theirs.save_pretrained(directory)
    return theirs, directory


def write(directory, config, tensors=None, index=None, raw=None):
    from safetensors.torch import save_file

    (directory / "config.json").write_text(json.dumps(config))
    if raw is not None:
        (directory / "model.safetensors").write_bytes(raw)
    elif tensors is not None:
        save_file(
            {name: tensor.contiguous() for name, tensor in tensors.items()}, directory / "model.safetensors"
        )
    if index is not None:
        (directory / "model.safetensors.index.json").write_text(json.dumps(index))


HOSTILE_CONFIGS = {
    "another model": ({"model_type": "unheard"}, "'unheard' has no table"),
    "no model type": ({"model_type": None}, "None has no table"),
    "a thousand million layers": ({"num_hidden_layers": 10**9}, "more than the files have tensors"),
    "negative width": ({"hidden_size": -64}, "`dim`"),
    "immense width": ({"hidden_size": 10**15}, "`dim` must be below"),
    "a word for a number": ({"hidden_size": "64"}, "dim"),
    "a list for a number": ({"num_hidden_layers": [4]}, "depth|read"),
    "an unknown scaling": ({"rope_parameters": {"rope_type": "su", "factor": 2.0}}, "`rope_type` must be"),
    "an activation that is a list": ({"hidden_act": ["silu"]}, "`hidden_act` must be one of"),
    "two layers more": ({"num_hidden_layers": 6}, r"layers\.4.*is missing"),
}


@pytest.mark.parametrize("what", HOSTILE_CONFIGS)
def test_hostile_configs(saved, tmp_path, what):
    changes, message = HOSTILE_CONFIGS[what]
    write(tmp_path, read_config(saved[1]) | changes, tensors_in(saved[1]))
    with pytest.raises(ValueError, match=message):
        flagformer.load(tmp_path)


def hostile_files(tensors, whole):
    return {
        "truncated": ({"raw": whole[:-100]}, "cannot be read"),
        "cut in its header": ({"raw": whole[:50]}, "cannot be read"),
        "a pickle under its name": ({"raw": pickle.dumps([1, 2, 3])}, "cannot be read"),
        "no weights": ({}, "neither"),
        "absolute path": ({"index": {"weight_map": {KEY: "/etc/passwd"}}}, "names '/etc/passwd'"),
        "path upwards": ({"index": {"weight_map": {KEY: "../x.safetensors"}}}, "no safetensors file"),
        "a file that is missing": ({"index": {"weight_map": {KEY: "a.safetensors"}}}, "cannot be read"),
        "an index without a map": ({"index": {"weight": 1}}, "no `weight_map`"),
        "a number in the index": ({"index": {"weight_map": {KEY: 3}}}, "names 3"),
        "another shape": ({"tensors": {**tensors, KEY: torch.zeros(3, 3)}}, r"\[3, 3\], but \[64, 64\]"),
        "one missing": ({"tensors": {k: v for k, v in tensors.items() if k != KEY}}, f"{KEY}` is missing"),
        "one more": ({"tensors": {**tensors, "model.gate.weight": torch.zeros(3)}}, "gate.weight.*not known"),
        "eight bits": ({"tensors": {**tensors, KEY: tensors[KEY].to(torch.float8_e4m3fn)}}, "has F8_E4M3"),
        "mixed": ({"tensors": {**tensors, KEY: tensors[KEY].to(torch.bfloat16)}}, "pass `dtype`"),
    }  # fmt: skip


HOSTILE_FILES = hostile_files({KEY: torch.zeros(2)}, b"")


@pytest.mark.parametrize("what", HOSTILE_FILES)
def test_hostile_files(saved, tmp_path, what):
    whole = (saved[1] / "model.safetensors").read_bytes()
    files, message = hostile_files(tensors_in(saved[1]), whole)[what]
    write(tmp_path, read_config(saved[1]), **files)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ConversionError, match=message):
        flagformer.load(tmp_path)
    assert sorted(tmp_path.iterdir()) == before


class Trap:
    def __reduce__(self):
        return exec, ("raise SystemExit('executed')",)


def test_a_pickle_is_not_opened(saved, tmp_path):
    write(tmp_path, read_config(saved[1]))
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ConversionError, match=r"pytorch_model\.bin, a pickle"):
        flagformer.load(tmp_path)


def test_code_is_not_executed(saved, tmp_path):
    (tmp_path / "modeling_trap.py").write_text("raise SystemExit('executed')")
    traps = {"auto_map": {"AutoModelForCausalLM": "modeling_trap.Trap"}}
    write(tmp_path, read_config(saved[1]) | traps, tensors_in(saved[1]))
    assert flagformer.load(tmp_path).num_tokens == 97


def test_broken_json(saved, tmp_path):
    write(tmp_path, {}, tensors_in(saved[1]))
    for text in ("{", "[1]", "[" * 10**5):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ConversionError, match=r"config\.json"):
            flagformer.load(tmp_path)


def test_all_faults_are_named_together(saved, tmp_path):
    tensors = tensors_in(saved[1])
    tensors.pop(KEY)
    tensors["model.norm.weight"] = torch.zeros(7)
    write(tmp_path, read_config(saved[1]), tensors | {"model.gate.weight": torch.zeros(3)})
    with pytest.raises(ConversionError) as error:
        flagformer.load(tmp_path)
    assert len(error.value.reasons) == 3


def test_shards_are_read(saved, tmp_path):
    theirs, _ = saved
    theirs.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    ours = flagformer.load(tmp_path).eval()
    assert gap(ours(ids_of()).detach(), logits(theirs, ids_of())) < 1e-4


def test_a_head_equal_to_the_embedding_is_tied(saved, tmp_path):
    tensors = tensors_in(saved[1])
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    write(tmp_path, read_config(saved[1]) | {"tie_word_embeddings": True}, tensors)
    model = flagformer.load(tmp_path)
    assert model.flags["tie_embedding"]
    assert model.source.dropped == ("lm_head.weight",)


def test_an_own_head_is_kept_where_the_config_says_tied(saved, tmp_path):
    theirs, directory = saved
    write(tmp_path, read_config(directory) | {"tie_word_embeddings": True}, tensors_in(directory))
    ours = flagformer.load(tmp_path).eval()
    assert not ours.flags["tie_embedding"]
    assert gap(ours(ids_of()).detach(), logits(theirs, ids_of())) < 1e-4


def test_fields_of_version_4(saved, tmp_path):
    """`rope_theta`, `rope_scaling` with `type`, `torch_dtype`; names without a prefix."""
    _theirs, directory = saved
    config = read_config(directory)
    config.pop("rope_parameters")
    config |= {
        "rope_theta": 5e4,
        "rope_scaling": {"type": "linear", "factor": 2.0},
        "torch_dtype": "bfloat16",
    }
    tensors = {name.removeprefix("model."): tensor for name, tensor in tensors_in(directory).items()}
    write(tmp_path, config, tensors)
    flags = flagformer.load(tmp_path).flags
    assert flags["rotary_base"] == 5e4
    assert flags["rotary_scaling"] == {"rope_type": "linear", "factor": 2.0}


def test_rotary_rates_are_exact_in_half_precision(saved, tmp_path):
    """Cosines at position 4,000 of a model in bf16 are those of fp32."""
    _theirs, directory = saved
    config = read_config(directory) | {"max_position_embeddings": 8192, "rope_parameters": LINEAR}
    write(tmp_path, config, {name: tensor.bfloat16() for name, tensor in tensors_in(directory).items()})
    [half] = flagformer.load(tmp_path).attn_layers.rotations
    [full] = flagformer.load(tmp_path, dtype=torch.float32).attn_layers.rotations
    from flagformer.flow import Layout

    layout = Layout.arange(4001, torch.device("cpu"))
    for got, want in zip(half.cos_sin(layout, torch.float32), full.cos_sin(layout, torch.float32)):
        assert torch.equal(got, want)


def test_models_built_here_are_exported(tmp_path):
    import transformers

    flags = {
        "num_tokens": 97, "max_seq_len": 32, "dim": 32, "depth": 2, "heads": 4, "attn_dim_head": 8,
        "use_rmsnorm": True, "norm_eps": 1e-6, "ff_glu": True, "ff_swish": True, "ff_no_bias": True,
        "rotary_pos_emb": True, "attn_dropout": 0.1, "attn_one_kv_head": True,
    }  # fmt: skip
    ours = flagformer.build(flags).eval()
    export(ours, tmp_path, model_type="llama")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert gap(ours(ids_of()), logits(theirs, ids_of())) < 1e-4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alibi_pos_bias": True, "rotary_pos_emb": None}, "`rotary_pos_emb`"),
        ({"attn_max_attend_past": 3}, "`attn_max_attend_past`"),
        ({"use_rmsnorm": None, "use_scalenorm": True}, "`use_scalenorm`"),
        ({"custom_layers": "aff", "depth": None}, "`depth`"),
        ({"attn_gate_values": True}, "`attn_gate_values`"),
        ({"norm_eps": None}, "`norm_eps`"),
        ({"tie_embedding": True}, "`tie_embedding_scale`"),
        ({"ff_no_bias": (True, False)}, "`ff_no_bias`"),
        ({"num_memory_tokens": 2}, "`num_memory_tokens`"),
        ({"activation": torch.tanh}, "`ff_activation`"),
    ],
)
def test_flags_without_a_place_are_refused(tmp_path, changes, message):
    flags = {
        "num_tokens": 97, "max_seq_len": 32, "dim": 32, "depth": 2, "heads": 4, "attn_dim_head": 8,
        "use_rmsnorm": True, "norm_eps": 1e-6, "ff_glu": True, "ff_activation": "silu", "ff_no_bias": True,
        "rotary_pos_emb": True,
    }  # fmt: skip
    given = {name: value for name, value in {**flags, **changes}.items() if value is not None}
    if "activation" in given:
        del given["ff_activation"]
    with pytest.raises(ConversionError, match=message):
        export(flagformer.build(given), tmp_path / "x", model_type="llama")
    assert not (tmp_path / "x").exists()


def test_an_export_overwrites_nothing(saved, tmp_path):
    ours = flagformer.load(saved[1])
    with pytest.raises(ValueError, match="must hold no model"):
        export(ours, saved[1])
    with pytest.raises(ValueError, match="`model_type` must be set"):
        export(flagformer.build({"num_tokens": 9, "max_seq_len": 4, "dim": 8, "depth": 1}), tmp_path)
    with pytest.raises(ValueError, match="must be one of TransformerWrapper, SequenceClassifier"):
        export(torch.nn.Linear(2, 2), tmp_path)


def test_transformers_is_not_imported(saved):
    import subprocess
    import sys

    program = (
        f"import sys, flagformer; flagformer.load({str(saved[1])!r})\n"
        "assert 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_kimi_k2_is_deepseek_v3_by_another_name(tmp_path):
    """transformers 5.24 does not know the name: it needs the code of the repository."""
    theirs = theirs_of("DeepSeek V3")
    theirs.save_pretrained(tmp_path / "one")
    config = read_config(tmp_path / "one") | {"model_type": "kimi_k2"}
    (tmp_path / "one" / "config.json").write_text(json.dumps(config))
    ours = flagformer.load(tmp_path / "one").eval()
    assert gap(ours(ids_of()).detach(), logits(theirs, ids_of())) < 1e-4
    quiet = {"do_sample": False, "max_new_tokens": 32, "min_new_tokens": 32, "eos_token_id": None}
    text = theirs.generate(ids_of(1, 8), attention_mask=torch.ones(1, 8, dtype=torch.long), **quiet)[:, 8:]
    for cached in (True, False):
        got = flagformer.AutoregressiveWrapper(ours).generate(
            ids_of(1, 8), 32, temperature=0, cache_kv=cached
        )
        assert torch.equal(got, text)
    export(ours, tmp_path / "back")
    assert_equal_files(tmp_path / "one", tmp_path / "back")
    assert read_config(tmp_path / "back") == config
