"""The blocks of docs/how-to-load-published-models.md run as they stand."""

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flagformer.lab.cli.main import app

pytest.importorskip("transformers")

PAGE = Path(__file__).parents[2] / "docs" / "how-to-load-published-models.md"


def test_the_blocks_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    found, statuses = {}, []
    for kind, block in re.findall(r"^```(\w+)\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL):
        if kind == "sh":
            statuses += [
                CliRunner().invoke(app, shlex.split(line)[1:]).exit_code for line in block.splitlines()
            ]
        else:
            exec(compile(block, str(PAGE), "exec"), found)
    assert statuses == [0, 0, 0, 1, 0, 0]
    assert found["certificate"].passed
    assert (tmp_path / "tiny-llama.certificate.json").exists()
    assert (tmp_path / "copy" / "config.json").exists()
    assert (tmp_path / "own-llama" / "model.safetensors").exists()
    shown = capsys.readouterr().out
    assert "flag `attn_gate_values`: True has no place in llama, which would read None" in shown
