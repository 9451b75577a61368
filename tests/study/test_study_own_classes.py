"""Classes of the user's own by import path on the command line: studied, trained, generated from, audited."""

import json
import sys
import uuid
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from flagformer.lab.cli.audit import audit
from flagformer.lab.cli.generate import generate
from flagformer.lab.cli.study import study
from flagformer.lab.cli.train import train

SOURCE = """\
import torch
from flagformer.lab.data.copy_task import Copy
from torch import nn


class Twice(Copy):
    source: str


class MyNorm(nn.Module):
    def __init__(self, dim, *, eps=1e-6):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(dim)), eps

    def forward(self, x):
        return self.weight * x / (x.abs().mean(-1, keepdim=True) + self.eps)
"""
STUDY = """\
name: own
base: {dim: 16, depth: 2, heads: 2}
data: {source: "MODULE:Twice", symbols: 8, seq_len: 16}
train: {steps: 4, batch_size: 4, warmup: 1, device: cpu}
compare:
  layernorm: {}
  mine:
    norm: {class: "MODULE:MyNorm", eps: 1e-3}
  talking: {attn_talking_heads: [true, false], activation: ["torch.nn:Tanh", null]}
seeds: 1
evaluate: {seq_lens: [16], batches: 1}
concurrency: 2
threads: 1
"""
TRAIN = """\
base: {dim: 16, depth: 1, heads: 2, rotary_pos_emb: true, norm: "MODULE:MyNorm"}
data: {source: file, path: text, seq_len: 16}
train: {steps: 4, batch_size: 4, warmup: 1, device: cpu}
evaluate: {seq_lens: [16], batches: 1}
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in the current directory, which is not on the path of imports."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    name = f"own_{uuid.uuid4().hex[:8]}"
    (tmp_path / f"{name}.py").write_text(SOURCE)
    (tmp_path / "text").write_bytes(b"the same words again, " * 200)
    (tmp_path / "study.yaml").write_text(STUDY.replace("MODULE", name))
    (tmp_path / "train.yaml").write_text(TRAIN.replace("MODULE", name))
    return name


def call(*words: str) -> Result:
    app = typer.Typer()
    for command in (train, generate, audit):
        app.command()(command)
    app.add_typer(study, name="study")
    return CliRunner().invoke(app, list(words))


def refused(module: str, *words: str) -> None:
    result = call(*words)
    assert result.exit_code == 2, result.output
    assert f"'{module}:MyNorm', whose module is not allowed" in result.stderr.replace("\n", " ")
    assert f"`--allow {module}`" in result.stderr.replace("\n", " ")
    assert module not in sys.modules


def refused_source(module: str, *words: str) -> None:
    result = call(*words)
    assert result.exit_code == 2, result.output
    assert f"'{module}:Twice', whose module is not allowed" in result.stderr.replace("\n", " ")
    assert module not in sys.modules


def test_a_study_compares_own_classes_and_layers(module: str, tmp_path: Path) -> None:
    refused(module, "study", "run", "study.yaml", "--dry-run")
    allowed = ("--allow", module, "--allow", "torch.nn")
    result = call("study", "run", "study.yaml", "--out", "out", *allowed)
    assert result.exit_code == 0, result.output
    flags = [json.loads(path.read_text())["flags"] for path in tmp_path.glob("out/trials/*/model/flags.json")]
    assert {"class": f"{module}:MyNorm", "eps": 1e-3} in [each.get("norm") for each in flags]
    assert [True, False] in [each.get("attn_talking_heads") for each in flags]
    del sys.modules[module]
    for words in (("report", "out"), ("watch", "out", "--once")):
        refused_source(module, "study", *words)
        result = call("study", *words, *allowed)
        assert result.exit_code == 0, result.output
        del sys.modules[module]
    audited = call("audit", "study.yaml", *allowed)
    assert audited.exit_code == 0, audited.output


def test_a_trained_model_with_an_own_class(module: str) -> None:
    refused(module, "train", "train.yaml", "--out", "run")
    result = call("train", "train.yaml", "--out", "run", "--allow", module)
    assert result.exit_code == 0, result.output
    del sys.modules[module]
    refused(module, "generate", "run")
    refused(module, "audit", "run")
    for words in (("generate", "run", "--length", "5"), ("audit", "run")):
        result = call(*words, "--allow", module)
        assert result.exit_code == 0, result.output


def test_a_mistake_in_a_path_has_its_line(module: str, tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(file.read_text().replace("MyNorm", "MyNom"))
    result = call("study", "run", "study.yaml", "--dry-run", "--allow", module, "--allow", "torch.nn")
    assert result.exit_code == 2
    text = result.stderr.replace("\n", " ")
    assert "study.yaml:8" in text
    assert f"{module} has no MyNom; did you mean `MyNorm`" in text
