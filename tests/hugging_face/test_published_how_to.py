"""The blocks of docs/how-to-load-published-models.md run as they stand."""

import re
from pathlib import Path

import pytest

pytest.importorskip("transformers")

PAGE = Path(__file__).parents[2] / "docs" / "how-to-load-published-models.md"


def test_the_blocks_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    found = {}
    for block in re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL):
        exec(compile(block, str(PAGE), "exec"), found)
    assert (tmp_path / "copy" / "config.json").exists()
    assert (tmp_path / "own-llama" / "model.safetensors").exists()
    shown = capsys.readouterr().out
    assert "flag `attn_gate_values`: True has no place in llama, which would read None" in shown
