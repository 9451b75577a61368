"""`flagformer verify`: parity with transformers, its certificate, and its errors."""

import json
import sys

import published_kinds
import published_models
import pytest
import torch
from typer.testing import CliRunner

import flagformer
from flagformer.interop import hugging_face
from flagformer.interop import verify as verifying
from flagformer.lab.cli.main import app

DECODERS = ("Llama 3.2", "Gemma 2", "GPT-2", "OPT", "BLOOM", "Falcon RW", "DeepSeek V3", "Mixtral")
KINDS = (
    "RoBERTa",
    "BERT, classes",
    "BERT, pooled",
    "T5 v1.1",
    "BART",
    "ViT",
    "DINOv2",
    "CLIP, images",
    "CLIP, texts",
)


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def words(text):
    return " ".join(text.split())


def saved(name, directory):
    pytest.importorskip("transformers")
    cases = published_models if name in published_models.CASES else published_kinds
    cases.theirs_of(name).save_pretrained(directory)
    return directory


@pytest.mark.parametrize("name", [*DECODERS, *KINDS])
def test_families_pass(name, tmp_path):
    certificate = verifying.verify(saved(name, tmp_path), new_tokens=8)
    assert certificate.passed, certificate.checks
    generates = name in DECODERS or name in published_kinds.PAIRS
    names = [check.name for check in certificate.checks]
    padding = "left" if name in DECODERS else "right"
    if generates:
        assert names == [
            f"{text}, {cache}"
            for text in ("random text", f"{padding}-padded text")
            for cache in ("no cache", "cached")
        ]
        assert {(check.greedy, check.tokens) for check in certificate.checks} == {(16, 16)}
    elif name in published_kinds.IMAGES:
        assert names == ["random images"]
    else:
        assert names == ["random text", "right-padded text"]
    assert all(check.kl is None or 0 <= check.kl < 1e-6 for check in certificate.checks)


def test_the_tolerance_is_an_option(tmp_path):
    """Weights that amplify rounding: fp32 on either side is up to 1.7e-4 from fp64, and the difference is not
    larger than that of both."""
    directory = saved("Qwen 3 Next", tmp_path / "tiny")
    assert call("verify", directory, "--tolerance", 2e-3).exit_code == 0
    result = call("verify", directory, "--tolerance", 1e-9)
    assert result.exit_code == 1
    assert "4 of 4 checks fail: differences of at most 1e-09 standard deviations" in words(result.stdout)
    for check in json.loads((tmp_path / "tiny.certificate.json").read_text())["checks"]:
        assert check["gap"] <= 1.01 * (check["theirs_exact"] + check["ours_exact"])
        assert check["ours_exact"] > 1e-6
    assert verifying.verify(directory, new_tokens=2, fp64=False).checks[0].ours_exact is None


@pytest.mark.parametrize("out", [None, "one.json"])
def test_the_certificate(tmp_path, out):
    directory = saved("Llama 3.2", tmp_path / "tiny")
    files = sorted(path.name for path in directory.iterdir())
    options = [] if out is None else ["--out", tmp_path / out]
    result = call("verify", directory, "--new-tokens", 4, *options)
    assert result.exit_code == 0, result.output
    text = words(result.stdout)
    assert "random text, no cache" in text
    assert "8 of 8 passed" in text
    assert "all checks pass" in text
    path = tmp_path / (out or "tiny.certificate.json")
    written = json.loads(path.read_text())
    assert written["passed"] is True
    assert (written["directory"], written["model_type"]) == ("tiny", "llama")
    assert written["flags"]["use_rmsnorm"] is True
    assert len(written["checks"]) == 4
    assert set(written["files"]) == {"config.json", "model.safetensors"}
    assert set(written["versions"]) == {"flagformer", "torch", "transformers"}
    assert sorted(path.name for path in directory.iterdir()) == files


def test_a_wrong_model_fails(tmp_path, monkeypatch):
    def wrong(path, **kwargs):
        model = flagformer.load(path, **kwargs)
        with torch.no_grad():
            model.attn_layers.final_norm.weight[0] *= 3
        return model

    monkeypatch.setattr(verifying, "load", wrong)
    result = call("verify", saved("Llama 3.2", tmp_path / "tiny"), "--new-tokens", 4)
    assert result.exit_code == 1, result.output
    assert "FAILED" in result.stdout
    assert "4 of 4 checks fail" in words(result.stdout)
    written = json.loads((tmp_path / "tiny.certificate.json").read_text())
    assert written["passed"] is False
    for check in written["checks"]:  # an error is no rounding: fp64 is near the model here alone
        assert check["ours_exact"] < 1e-5 < 1e-2 < check["theirs_exact"]


def test_a_wrong_cache_fails_alone(tmp_path, monkeypatch):
    def wrong(path, **kwargs):
        model = flagformer.load(path, **kwargs)
        model.init_state = lambda batch, length, seq_start_pos=None: type(model).init_state(
            model, batch, length
        )
        return model

    monkeypatch.setattr(verifying, "load", wrong)
    certificate = verifying.verify(saved("Llama 3.2", tmp_path), new_tokens=4)
    assert [check.passed for check in certificate.checks] == [True, True, True, False]


def test_transformers_is_named_where_it_is_absent(tmp_path, monkeypatch):
    directory = saved("Llama 3.2", tmp_path / "tiny")
    monkeypatch.setitem(sys.modules, "transformers", None)
    result = call("verify", directory)
    assert result.exit_code == 1
    assert "pip install 'flagformer[hf]'" in result.stderr
    assert "Traceback" not in result.output


def test_wrong_paths_are_named(tmp_path):
    flags = {"num_tokens": 17, "max_seq_len": 40, "dim": 16, "depth": 1, "heads": 2}
    flagformer.build(flags).save(tmp_path / "own")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    directory = saved("Llama 3.2", tmp_path / "tiny")
    wrapped = hugging_face.FlagformerForCausalLM.of(flagformer.load(directory))
    wrapped.save_pretrained(tmp_path / "wrapped")
    assert call("show", tmp_path / "wrapped").stdout.startswith(
        f"{tmp_path / 'wrapped'}: a FlagformerForCausalLM"
    )
    assert call("diff", tmp_path / "wrapped", directory).exit_code == 0
    for arguments, said in (
        ([tmp_path / "wrapped"], "there is nothing to compare"),
        ([tmp_path / "own"], "`flagformer.interop.hugging_face.export` writes one"),
        ([tmp_path / "empty"], "has none of these files"),
        ([tmp_path / "missing"], "missing does not exist"),
        ([tmp_path / "file"], "is a file"),
        ([directory, "--out", tmp_path], "is a directory"),
        ([directory, "--out", tmp_path / "no" / "file.json"], "which does not exist"),
    ):
        result = call("verify", *arguments)
        assert result.exit_code == 2, result.output
        assert said in words(result.stderr)
        assert "Traceback" not in result.output
