"""The blocks of docs/how-to-hugging-face.md run as they stand."""

import json
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flagformer.lab.cli.main import app

for package in ("trl", "peft", "lm_eval"):
    pytest.importorskip(package, reason=f"{package} is not installed: `make integrations` installs it")

import huggingface_hub  # noqa: E402

PAGE = Path(__file__).parents[2] / "docs" / "how-to-hugging-face.md"


def test_the_blocks_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)  # seconds of subprocesses
    names = {}
    for kind, block in re.findall(r"^```(\w+)\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL):
        if kind == "python":
            exec(compile(block, str(PAGE), "exec"), names)
        for line in block.splitlines() if kind == "sh" and "flagformer eval" in block else ():
            done = CliRunner().invoke(app, shlex.split(line)[1:])
            assert done.exit_code == 0, done.output
    ours, theirs = (one["results"]["sums"]["exact_match,none"] for one in names["found"])
    assert (
        ours
        == theirs
        == json.loads(Path("adder.eval.json").read_text())["results"]["sums"]["exact_match,none"]
    )
    assert json.loads(Path("few.json").read_text())["n-samples"]["sums"]["effective"] == 5
