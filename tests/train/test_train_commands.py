"""`flagformer train` and `flagformer generate` on the command line."""

import json
from pathlib import Path

import pytest
import torch
import typer
from tiny_trial import tiny
from typer.testing import CliRunner, Result

from flagformer.lab.cli.generate import generate
from flagformer.lab.cli.train import train
from flagformer.lab.train.trial import run_trial

FILE = """\
name: small
base: {dim: 16, depth: 1, heads: 2, rotary_pos_emb: true}
data: {source: file, path: TEXT, seq_len: 16}
train: {steps: 6, batch_size: 4, warmup: 1, device: cpu}
evaluate: {seq_lens: [16, 32], batches: 2}
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text").write_bytes(b"the same words again, " * 200)
    path = tmp_path / "small.yaml"
    path.write_text(FILE.replace("TEXT", "text"))
    return path


def call(*words: object) -> Result:
    app = typer.Typer()
    app.command()(train)
    app.command()(generate)
    return CliRunner().invoke(app, [str(word) for word in words])


def refused(result: Result, *parts: str) -> None:
    """A clear refusal: status 2, one screen on standard error, no traceback."""
    assert result.exit_code == 2, result.output
    assert len(result.stderr.splitlines()) <= 24
    assert "Traceback" not in result.output
    for part in parts:
        assert part in result.stderr.replace("\n", " ")


@pytest.fixture
def trained(file: Path) -> Path:
    result = call("train", file)
    assert result.exit_code == 0, result.output
    return Path("runs/small")


def test_train_writes_a_run_and_prints_its_figures(trained, file):
    written = json.loads((trained / "result.json").read_text())
    assert written["status"] == "finished"
    output = call("train", file).stdout
    for entry in written["evaluation"]:
        assert f"{entry['bits_per_byte']:.4f}" in output
    assert "finished after 6 steps" in output
    assert "runs/small" in output


def test_overrides_and_out_are_applied(file, tmp_path):
    out = tmp_path / "elsewhere"
    result = call("train", file, "train.steps=3", "base.depth=2", "seed=7", "--out", out)
    assert result.exit_code == 0, result.output
    trial = json.loads((out / "trial.json").read_text())
    assert (trial["train"]["steps"], trial["flags"]["depth"], trial["seed"]) == (3, 2, 7)
    assert json.loads((out / "result.json").read_text())["steps"] == 3


def test_the_run_of_another_trial_is_refused_by_name(trained, file):
    refused(call("train", file, "train.lr=1e-4"), "runs/small contains another trial (it differs in train)")


def test_a_directory_with_other_files_is_refused(file, tmp_path):
    (tmp_path / "things").mkdir()
    (tmp_path / "things" / "letter.txt").touch()
    refused(call("train", file, "--out", "things"), "things", "letter.txt")
    refused(call("train", file, "--out", file), "is a file")
    assert list((tmp_path / "things").iterdir()) == [tmp_path / "things" / "letter.txt"]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (FILE + "seeds: 3\n", ["small.yaml:6", "flagformer study run"]),
        (
            FILE.replace("steps: 6", "stepz: 6"),
            ["small.yaml:4", "`train.stepz` is not known; did you mean `steps`"],
        ),
        (FILE.replace("seq_len: 16", "seq_len: no"), ["small.yaml:3", "seq_len"]),
        (
            FILE.replace("base: {", "base: [").replace("true}", "true]"),
            ["small.yaml:2", "`base` must be a mapping"],
        ),
        (FILE.replace("base", "bass"), ["`base` is missing", "`bass` is not known"]),
        (FILE.replace("rotary_pos_emb", "rotary_pos_em"), ["small.yaml:2", "rotary_pos_emb"]),
        (FILE.replace("TEXT", "nowhere.txt"), ["small.yaml:3", "nowhere.txt is not there"]),
        (
            FILE.replace("16, 32]", "16, 9999]"),
            ["small.yaml:3", "text holds 220 bytes, but a length of 9999"],
        ),
        ("", ["small.yaml"]),
    ],
)
def test_mistakes_in_the_file_are_named(file, text, parts):
    file.write_text(text.replace("TEXT", "text"))
    refused(call("train", file), *parts)
    assert not Path("runs").exists(), "no file is written before all checks"


def test_a_missing_file_is_named(file):
    refused(call("train", "nothing.yaml"), "nothing.yaml")


def test_ctrl_c_explains_how_to_resume(file, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("flagformer.lab.train.trial.train_step", interrupted)
        result = call("train", file)
    assert result.exit_code == 130
    assert "resume from the last checkpoint in runs/small" in result.stderr.replace("\n", " ")
    assert call("train", file).exit_code == 0


def test_divergence_is_a_failure(file):
    result = call("train", file, "train.lr=1e3", "train.weight_decay=10", "train.warmup=0", "train.clip=0")
    assert result.exit_code == 1
    assert "training diverged" in result.stderr
    assert "diverged after" in result.stdout
    refused(call("generate", "runs/small"), "no trained model", "diverged")


def test_generate_continues_the_prompt_repeatably(trained):
    first = call("generate", trained, "--prompt", "the same", "--length", 20, "--seed", 3)
    assert first.exit_code == 0, first.output
    assert first.stdout.startswith("the same")
    assert (
        call("generate", trained, "--prompt", "the same", "--length", 20, "--seed", 3).stdout == first.stdout
    )
    assert (
        call("generate", trained, "--prompt", "the same", "--length", 20, "--seed", 4).stdout != first.stdout
    )


def test_generate_takes_the_most_likely_bytes_at_temperature_0(trained):
    import flagformer

    written = call("generate", trained, "--prompt", "again, ", "--length", 4, "--temperature", 0).stdout
    model, ids = flagformer.load(trained / "model").eval(), list(b"again, ")
    for _ in range(4):
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    assert written.rstrip("\n") == bytes(ids).decode(errors="replace").rstrip("\n")


def test_generated_control_characters_are_escaped(trained):
    output = call("generate", trained, "--length", 200, "--temperature", 5, "--seed", 0).stdout
    assert len(output) > 100
    assert not {character for character in output if ord(character) < 32} - {"\n", "\t"}
    assert "\x1b" not in output


def test_absolute_positions_limit_the_default_length(file):
    assert call("train", file, "base.rotary_pos_emb=false").exit_code == 0
    assert call("generate", "runs/small", "--prompt", "abc").exit_code == 0
    refused(call("generate", "runs/small", "--length", 99), "absolute positions", "99")


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--length", 0], ["`seq_len` must be a whole number of at least 1, but is 0"]),
        (["--temperature", -1], ["temperature"]),
        (["--prompt", ""], ["`--prompt` must have at least one byte"]),
        (["--top-k", 3, "--top-p", 0.5], ["must not both be given"]),
        (["--top-p", 2], ["but is 2.0"]),
    ],
)
def test_invalid_settings_are_refused(trained, words, parts):
    refused(call("generate", trained, *words), *parts)


def test_generate_names_the_fault_of_the_directory(tmp_path):
    refused(call("generate", tmp_path / "nowhere"), "nowhere is not one")
    refused(call("generate", tmp_path), "nothing was trained there")
    (tmp_path / "study" / "trials" / "abc").mkdir(parents=True)
    refused(call("generate", tmp_path / "study"), "is a study", "abc")
    run_trial(tiny(), tmp_path / "task")
    refused(call("generate", tmp_path / "task"), "must read bytes", "9 tokens")
    (tmp_path / "task" / "result.json").unlink()
    (tmp_path / "task" / "model" / "model.safetensors").write_bytes(b"rubbish")
    refused(call("generate", tmp_path / "task"), "model.safetensors")
