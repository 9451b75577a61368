"""The blocks of docs/how-to-start-from-a-published-model.md run as they stand; the study is read."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flagformer.lab.cli.main import app
from flagformer.lab.study.costs import check_variants
from flagformer.lab.study.file import load_study

pytest.importorskip("transformers")

PAGE = Path(__file__).parents[2] / "docs" / "how-to-start-from-a-published-model.md"


def test_the_blocks_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    found = {}
    for kind, block in re.findall(r"^```(\w+)\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL):
        if kind == "python":
            exec(compile(block, str(PAGE), "exec"), found)
        elif kind == "yaml":
            (tmp_path / "grafts.yaml").write_text(block)
            assert list(check_variants(*load_study("grafts.yaml"))) == ["published", "gated", "deeper"]
        elif "presets" in block:
            assert "pythia-12b" in CliRunner().invoke(app, block.split()[1:]).output
    assert found["gated"].graft.keeps_function
    shown = capsys.readouterr().out
    assert "the function is kept" in shown
    assert "1235814400" in shown
