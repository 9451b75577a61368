"""Files and directories of other libraries, given to every command that reads a file or a directory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_study_config_errors import assert_one_screen
from typer.testing import CliRunner, Result

import flagformer
from flagformer.flags import CATALOGUE
from flagformer.flags.others import recognise
from flagformer.lab.cli.main import app
from flagformer.lab.cli.runfile import RunFile
from flagformer.lab.study.file import StudyFile
from flagformer.lab.study.source import parse_source

GPT2 = {
    "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2",
    "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024, "vocab_size": 50257,
}  # fmt: skip
LLAMA = {
    "architectures": ["LlamaForCausalLM"], "hidden_size": 4096, "max_position_embeddings": 8192,
    "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
    "vocab_size": 128256,
}  # fmt: skip
SIZES = "{num_tokens: 128256, max_seq_len: 8192, dim: 4096, depth: 32, heads: 32, attn_kv_heads: 8}"
# the content of a file, and the expected text of the message
FILES: dict[str, tuple[str, tuple[str, ...]]] = {
    "GPT-2": (json.dumps(GPT2), ("Hugging Face", "num_tokens: 50257", "dim: 768")),
    "Llama": (json.dumps(LLAMA, indent="\t"), ("Hugging Face", SIZES)),
    "LLaVA": (
        '{"architectures": ["Llava"], "model_type": "llava", "transformers_version": "5", "text_config": {}}',
        ("Hugging Face",),
    ),
    "sweep": (
        "program: train.py\nmethod: bayes\nmetric: {name: loss, goal: minimize}\n"
        "parameters:\n  lr: {min: 0.0001, max: 0.1}\n",
        ("a sweep of Weights & Biases", "`grid`", "`tune`"),
    ),
    "Hydra": ("defaults:\n  - model: gpt\n  - _self_\nlr: 0.1\n", ("a configuration of Hydra", "--cfg job")),
    "Hydra's target": (
        "trainer:\n  model:\n    _target_: my.Model\n    lr: ${oc.env:LR}\n",
        ("a configuration of Hydra",),
    ),
    "litgpt's run": (
        "model_name: pythia-14m\nout_dir: out\nprecision: bf16-true\ntrain:\n  global_batch_size: 512\n"
        "  micro_batch_size: 4\neval: {interval: 1000}\n",
        ("a configuration of litgpt",),
    ),
    "litgpt's model": (
        "name: pythia-14m\nhf_config: {org: EleutherAI}\nblock_size: 512\npadded_vocab_size: 50304\n"
        "n_layer: 6\nn_embd: 128\n",
        ("a configuration of litgpt", "depth: 6"),
    ),
    "Lightning": (
        "seed_everything: 1\ntrainer:\n  max_epochs: 3\n  accelerator: auto\nmodel:\n  class_path: my.Model\n"
        "  init_args: {lr: 0.1}\n",
        ("Lightning's command line",),
    ),
    "training arguments": (
        "model_name_or_path: gpt2\noutput_dir: out\nper_device_train_batch_size: 8\nnum_train_epochs: 3\n",
        ("Hugging Face training arguments",),
    ),
    "PEFT": ('{"peft_type": "LORA", "base_model_name_or_path": "gpt2", "r": 8}', ("of PEFT",)),
    "DeepSpeed": ("zero_optimization: {stage: 2}\nfp16: {enabled: true}\n", ("DeepSpeed",)),
    "accelerate": (
        "compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_GPU\nnum_machines: 1\n",
        ("accelerate",),
    ),
    "flags of a saved model": (
        '{"schema": 1, "saved": "a", "flags": {"dim": 16}}',
        ("`flags.json` of a saved model", "pass its directory"),
    ),
    "a tag": ("hydra: {run: !env x}\ndefaults: [a]\n", ("a configuration of Hydra",)),
}
COMMANDS = {
    "study run": "`name`, `base`, `data`, `train` and `compare`",
    "train": "a training file",
    "audit": "a file of flags, a training or study file, or the directory of a saved model",
}


def call(words: str, *more: object) -> Result:
    return CliRunner().invoke(app, [*words.split(), *map(str, more)])


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("case", FILES)
def test_the_file_of_another_library_is_named(command: str, case: str, tmp_path: Path) -> None:
    text, said = FILES[case]
    path = tmp_path / "config.yaml"
    path.write_text(text)
    result = call(command, path)
    assert_one_screen(result, 2)
    assert result.stderr.startswith(f"error: {path}:1: is ")
    assert len(result.stderr.splitlines()) == 1, "there must be one error"
    for part in (*said, "but this command takes", COMMANDS[command]):
        assert part in result.stderr


def hugging_face(path: Path) -> str:
    (path / "config.json").write_text(json.dumps(LLAMA))
    (path / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    return "a Hugging Face model (llama)"


def bins(path: Path) -> str:
    (path / "config.json").write_text(json.dumps(GPT2))
    (path / "pytorch_model.bin").write_bytes(b"PK\x03\x04")
    return "a Hugging Face model (gpt2)"


def cached(path: Path) -> str:
    for name in ("blobs", "snapshots", "refs"):
        (path / name).mkdir()
    return "the cache of Hugging Face"


def adapter(path: Path) -> str:
    (path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    return "an adapter of PEFT"


def litgpt(path: Path) -> str:
    (path / "lit_model.pth").write_bytes(b"PK\x03\x04")
    return "a checkpoint of litgpt"


@pytest.mark.parametrize("command", [*COMMANDS, "generate", "load"])
@pytest.mark.parametrize("fill", [hugging_face, bins, cached, adapter, litgpt])
def test_the_directory_of_another_library_is_named(command: str, fill, tmp_path: Path) -> None:
    what = fill(tmp_path)
    if command == "load":
        published = fill in (hugging_face, bins)
        match = "cannot be loaded" if published else r"`load` reads directories of `model\.save`"
        with pytest.raises(ValueError, match=match) as caught:
            flagformer.load(tmp_path)
        said = str(caught.value)
    else:
        result = call(command, tmp_path)
        assert_one_screen(result, 2)
        said = result.stderr
    assert what in said
    assert str(tmp_path) in said


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"PK\x03\x04\0\0", "it is a zip file"),
        (b"\x80\x02}q\0.", "it is a pickle file"),
        (b"\x02\0\0\0\0\0\0\0{\"a\":1}", "it is a safetensors file"),
        (b"\x1f\x8b\x08\0" + bytes(2 << 20), "it is a gzip file"),
        (b"\xff\xfen\0a\0", "it is a UTF-16 file"),
        (b"", "is empty"),
        (b"\n# nothing\n", "is empty"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("command", COMMANDS)
def test_a_file_that_is_not_text_is_named(command: str, content: bytes, what: str, tmp_path: Path) -> None:
    path = tmp_path / "file.yaml"
    path.write_bytes(content)
    result = call(command, path)
    assert_one_screen(result, 2)
    assert what in result.stderr
    assert COMMANDS[command] in result.stderr


def test_load_names_the_kind_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for place, what in ((tmp_path / "file", "is a file"), (tmp_path / "gpt2", "does not exist")):
        with pytest.raises(ValueError, match=what):
            flagformer.load(place)
    flagformer.build({"num_tokens": 8, "max_seq_len": 8, "dim": 8, "depth": 1, "heads": 1}).save(
        tmp_path / "model"
    )
    with pytest.raises(ValueError, match="is not the directory of the model; load"):
        flagformer.load(tmp_path)


def test_files_of_this_library_are_recognised() -> None:
    assert recognise(dict.fromkeys(CATALOGUE.names(), 1)) is None
    for kind in (StudyFile, RunFile):
        assert recognise(dict.fromkeys(kind.model_fields, 1)) is None
    studies = sorted((Path(__file__).parents[2] / "studies").glob("*.yaml"))
    assert studies
    for path in studies:
        data = parse_source(path.read_text(), path.name).data
        for part in (data, data["base"], data["train"], {**data, "base": 1}):
            assert recognise(part) is None
