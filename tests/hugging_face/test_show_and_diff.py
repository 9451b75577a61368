"""`flagformer show` and `flagformer diff`: models in flags and sizes, and the flags in which two differ."""

import json
import struct

import pytest
import torch
from typer.testing import CliRunner

import flagformer
from flagformer.interop.hugging_face import export, family_of
from flagformer.interop.hugging_face.family import tensors_of
from flagformer.interop.hugging_face.files import WeightFiles
from flagformer.lab.cli.main import app

LLAMA = {
    "num_tokens": 128, "max_seq_len": 64, "dim": 32, "depth": 2, "heads": 4, "attn_dim_head": 8,
    "use_rmsnorm": True, "norm_eps": 1e-6, "ff_glu": True, "ff_activation": "silu", "ff_no_bias": True,
    "rotary_pos_emb": True,
}  # fmt: skip
MIXTRAL = {
    **LLAMA, "ff_moe": True, "moe_num_experts": 4, "moe_top_k": 2, "moe_normalize_weights": True,
}  # fmt: skip
MATRICES = 2 * (4 * 32 * 32 + 3 * 32 * 128) + 128 * 32  # of the layers and the output projection
PAIR = {
    "model": "xtransformer", "dim": 16, "enc_num_tokens": 11, "enc_max_seq_len": 16, "enc_depth": 1,
    "enc_heads": 2, "enc_attn_dim_head": 8, "dec_num_tokens": 11, "dec_max_seq_len": 16, "dec_depth": 1,
    "dec_heads": 2, "dec_attn_dim_head": 8, "tie_token_emb": True,
}  # fmt: skip
VIT = {
    "model": "vit", "image_size": [8, 16], "patch_size": 4, "num_classes": 5, "dim": 16, "depth": 1,
    "heads": 2, "attn_dim_head": 8,
}  # fmt: skip


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def shown(*arguments):
    result = call("show", *arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def published(directory, flags=LLAMA, model_type="llama", dtype=torch.float32):
    export(flagformer.build(flags).to(dtype), directory, model_type=model_type)
    return directory


def words(text):
    return " ".join(text.split())


def test_a_published_directory_in_numbers(tmp_path):
    found = shown(published(tmp_path / "llama"), "--seq-len", 32)
    norms = 5 * 32
    assert found["params"] == MATRICES + norms + 128 * 32
    assert found["params_without_embeddings"] == MATRICES + norms
    assert found["params_active"] == MATRICES + norms + 32
    # two per multiply-add; scores and values of 32 keys in 2 layers
    assert (found["seq_len"], found["flops"]) == (32, 2 * MATRICES + 2 * 2 * 2 * 32 * 32)
    assert found["state_bytes_per_token"] == 2 * 2 * 32 * 4
    assert found["state_bytes_fixed"] == 0
    assert found["files"]["numbers"] == {"F32": found["params"]}
    assert found["files"]["bytes"] == (tmp_path / "llama" / "model.safetensors").stat().st_size


def test_flags_are_those_that_differ_from_defaults(tmp_path):
    flags = shown(published(tmp_path / "llama"))["flags"]
    assert {name: flags[name] for name in LLAMA if name != "attn_dim_head"}.items() <= LLAMA.items()
    assert not {"ff_dropout", "num_memory_tokens", "max_mem_len"} & set(flags)
    assert None not in flags.values()


def test_a_tied_table_is_active_once(tmp_path):
    flags = {**LLAMA, "tie_embedding": True, "tie_embedding_scale": 1.0}
    found = shown(published(tmp_path / "tied", flags))
    assert found["params"] == found["params_active"] == MATRICES + 5 * 32


def test_flags_of_the_model_around_the_layers_have_defaults(tmp_path):
    for name, flags in (("pair", PAIR), ("vit", VIT)):
        flagformer.build(flags).save(tmp_path / name)
        assert set(shown(tmp_path / name)["flags"]) <= {*flags, "dec_use_abs_pos_emb", "enc_use_abs_pos_emb"}


def test_the_state_is_in_the_dtype_of_the_files(tmp_path):
    found = shown(published(tmp_path / "half", dtype=torch.bfloat16))
    assert found["state_bytes_per_token"] == 2 * 2 * 32 * 2
    assert list(found["files"]["numbers"]) == ["BF16"]


def test_active_parameters_are_those_of_chosen_experts(tmp_path):
    dense = shown(published(tmp_path / "dense"), "--seq-len", 32)
    sparse = shown(published(tmp_path / "sparse", MIXTRAL, "mixtral"), "--seq-len", 32)
    expert, router = 3 * 32 * 128, 4 * 32
    assert sparse["params"] == dense["params"] + 2 * (3 * expert + router)
    assert sparse["params_active"] == dense["params_active"] + 2 * (expert + router)
    assert sparse["flops"] == dense["flops"] + 2 * 2 * (expert + router)


def test_no_weights_are_read(tmp_path, monkeypatch):
    directory = published(tmp_path / "llama")

    def refuse(*arguments):
        raise AssertionError("a tensor was read")

    monkeypatch.setattr(WeightFiles, "get", refuse)
    assert shown(directory)["params"]


def test_a_file_larger_than_the_memory(tmp_path):
    """A sparse file of 128 GiB with the shapes of the config."""
    config = {
        "model_type": "llama", "vocab_size": 1 << 28, "hidden_size": 128,
        "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
    }  # fmt: skip
    table = family_of("llama")
    own = tensors_of(table.build(table.flags_of(config)))
    header, end = {}, 0
    for one in table.instances(own):
        start, end = end, end + 2 * torch.Size(one.shape).numel()
        header[one.name] = {"dtype": "BF16", "shape": list(one.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    (tmp_path / "config.json").write_text(json.dumps(config))
    with open(tmp_path / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        try:
            file.truncate(8 + len(text) + end)
        except OSError:
            pytest.skip("the file system has no sparse files")
    found = shown(tmp_path, "--seq-len", 8)
    assert found["files"]["bytes"] > 128 << 30
    assert found["params"] == sum(found["files"]["numbers"].values())


def test_the_page_of_a_model(tmp_path):
    result = call("show", published(tmp_path / "llama"))
    assert result.exit_code == 0, result.output
    text = words(result.stdout)
    assert "a published model, `llama` (LlamaForCausalLM)" in text
    assert "parameters 41,120" in text
    assert "decode state per token 512 B" in text
    assert "use_rmsnorm True False" in text
    assert "1 file, " in text


@pytest.mark.parametrize("inside", ["", "model"])
def test_a_saved_model_and_a_run(tmp_path, inside):
    model = flagformer.build(LLAMA)
    model.save(tmp_path / "run" / inside)
    found = shown(tmp_path / "run")
    assert found["what"] == "a model of `model.save`"
    assert found["params"] == model.num_params()


@pytest.mark.parametrize(
    "flags", [PAIR, VIT, {**LLAMA, "model": "encoder"}, {**LLAMA, "model": "classifier"}]
)
def test_other_kinds_of_models(tmp_path, flags):
    model = flagformer.build(flags)
    model.save(tmp_path)
    found = shown(tmp_path)
    assert found["params"] == model.num_params()
    if flags is VIT:
        assert found["params_active"] is None
    else:
        assert found["params_without_embeddings"] < found["params_active"] < found["params"]
        assert found["flops"] > found["params_without_embeddings"]
    assert (found["state_bytes_per_token"] is None) == (flags is not PAIR)
    assert call("show", tmp_path).exit_code == 0


def test_state_of_a_mixer_is_fixed(tmp_path):
    path = tmp_path / "hybrid.yaml"
    path.write_text(
        'dim: 32\ndepth: 2\nheads: 2\nmixer: "1 gated_deltanet : 1 attention"\nrotary_pos_emb: true\n'
    )
    found = shown(path)
    assert found["state_bytes_per_token"] > 0
    assert found["state_bytes_fixed"] > 0
    assert found["files"] is None


def test_equal_flags_exit_with_0(tmp_path):
    first, second = published(tmp_path / "a"), tmp_path / "b"
    flagformer.load(first).save(second)
    result = call("diff", first, second)
    assert (result.exit_code, result.stdout) == (0, "all flags are equal\n")
    assert call("diff", first, first, "--json").stdout == "{}\n"


def test_different_flags_exit_with_1(tmp_path):
    first = published(tmp_path / "a")
    second = published(tmp_path / "b", {**LLAMA, "norm_eps": 1e-5, "attn_kv_heads": 2})
    result = call("diff", first, second)
    assert result.exit_code == 1
    rows = [line.split() for line in result.stdout.splitlines()[1:]]
    assert ["norm_eps", "1e-06", "1e-05"] in rows
    assert ["attn_kv_heads", "(None)", "2"] in rows or ["attn_kv_heads", "4", "2"] in rows
    assert len(rows) == 2
    found = json.loads(call("diff", first, second, "--json").stdout)
    assert found["norm_eps"] == {"a": 1e-6, "b": 1e-5}


def test_a_directory_and_a_file_of_flags(tmp_path):
    path = tmp_path / "flags.yaml"
    path.write_text(json.dumps({**LLAMA, "attn_dropout": 0.1}))
    result = call("diff", published(tmp_path / "a"), path)
    assert result.exit_code == 1
    assert "attn_dropout (0.0) 0.1" in words(result.stdout)
    assert "These flags do not change the outputs of the models." in result.stdout


def test_values_by_layer_are_counted(tmp_path):
    path = tmp_path / "flags.yaml"
    path.write_text(
        "dim: 16\ndepth: 4\nheads: 2\nrotary_pos_emb: true\nff_glu: [false, false, false, true]\n"
    )
    assert "3 x False, 1 x True" in words(call("show", path).stdout)


def test_wrong_paths_are_named(tmp_path):
    (tmp_path / "empty").mkdir()
    unknown = published(tmp_path / "unknown")
    config = json.loads((unknown / "config.json").read_text())
    (unknown / "config.json").write_text(json.dumps(config | {"model_type": "lama"}))
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.json").write_text(json.dumps(config))
    (tmp_path / "study.yaml").write_text(
        "name: s\nbase: {dim: 16, depth: 1, heads: 2}\ndata: {source: copy, seq_len: 16}\n"
        "train: {steps: 2, warmup: 1}\nseeds: 1\ncompare: {a: {}, b: {ff_glu: true}}\n"
    )
    for name, said in {
        "missing": "missing does not exist",
        "empty": "has `config.json`, from `save_pretrained` of transformers, or `flags.json`",
        "unknown": "'lama' has no table; did you mean 'llama'?",
        "bare": "has neither model.safetensors nor model.safetensors.index.json",
        "study.yaml": "is a study with 2 variants",
    }.items():
        for command in (["show", tmp_path / name], ["diff", tmp_path / "unknown", tmp_path / name]):
            result = call(*command)
            assert result.exit_code == 2, (name, result.output)
            assert said in words(result.stderr) or command[0] == "diff"
            assert "Traceback" not in result.output


def test_a_long_text_is_refused(tmp_path):
    result = call("show", published(tmp_path / "llama"), "--seq-len", 65)
    assert result.exit_code == 2
    assert "`--seq-len` must be at most the model's longest input, 64, but is 65" in words(result.stderr)
