"""Own sources, objectives, metrics and components: the example, and mistakes with their lines."""

from __future__ import annotations

import pickle
import shutil
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

import flagformer
from flagformer.flags import CATALOGUE, import_paths
from flagformer.flags.registry import Tables
from flagformer.lab import imports
from flagformer.lab.cli.main import app
from flagformer.lab.study.file import load_study
from flagformer.lab.train.config import Trial
from flagformer.lab.train.trial import run_trial

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_data_and_objective"


@pytest.fixture(autouse=True)
def _restored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Modules, the path and the catalogue of flags are those before the test afterwards."""
    known = [item.cls for item in CATALOGUE.components]
    monkeypatch.setattr(CATALOGUE, "_tables", Tables())
    CATALOGUE.fill(known)
    monkeypatch.setattr(imports, "_imported", [])
    monkeypatch.setattr(import_paths, "_imported", set())
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    yield
    for name in [name for name in sys.modules if name.partition(".")[0].startswith(("mylab", "own_"))]:
        del sys.modules[name]


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the example as the current directory."""
    shutil.copytree(EXAMPLE, tmp_path / "example")
    monkeypatch.chdir(tmp_path / "example")
    return tmp_path / "example"


def call(*words: str) -> Result:
    return CliRunner().invoke(app, list(words))


def module(text: str) -> str:
    """A module with this text in the current directory."""
    name = f"own_{uuid.uuid4().hex[:8]}"
    Path(f"{name}.py").write_text(text)
    return name


def test_the_example_runs(example: Path) -> None:
    """Its study, in this process, and the commands that read its results."""
    assert call("study", "run", "study.yaml", "--dry-run").exit_code == 0
    changes = ["train.steps=3", "train.warmup=1", "evaluate.batches=1", "train.device=cpu"]
    for run in load_study(example / "study.yaml", changes)[0].runs[:2]:
        result = run_trial(run.trial, example / "out" / run.variant)
        assert set(result["evaluation"][0]["metrics"]) == {"overconfidence"}
    model = flagformer.load(example / "out" / "abs norm" / "model")
    assert "AbsNorm(eps=0.001)" in model.explain()
    assert "abs_norm_eps" in call("flags", "abs_norm_eps").output


def test_the_focal_loss_and_the_rows_are_as_defined(example: Path) -> None:
    imports.import_own(imports.modules_of_file(example))
    trial = load_study(example / "study.yaml")[0].runs[0].trial
    objective, source = trial.trained_by, trial.source
    inputs, targets = objective.batch(source, "train", 0, 0, 3, 32)
    for row, wanted in zip(inputs.tolist(), targets.tolist()):
        waiting: list[int] = []
        for now, after in zip(row, wanted):
            if now < 4:
                waiting.append(now)
            else:
                assert waiting.pop() == now - 4
            assert after == -100 or after == 4 + waiting[-1]
    logits = torch.randn(3, 32, 8)
    probability = logits.softmax(-1).gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    expected = torch.where(targets >= 0, -(1 - probability) * probability.log(), 0.0)
    assert torch.allclose(objective.losses(logits, targets), expected, atol=1e-6)


def test_another_process_imports_the_same_modules_first(example: Path) -> None:
    imports.import_own(["mylab.data", "mylab.norms"])
    trial = (
        load_study(example / "study.yaml", ["objective=next_token", "evaluate.metrics=[]"])[0].runs[0].trial
    )
    content = pickle.dumps(imports.carried(trial))
    _forget(example)
    assert pickle.loads(content).id == trial.id
    assert "use_abs_norm" in CATALOGUE.names()


def _forget(example: Path) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "mylab"]:
        del sys.modules[name]
    sys.path.remove(str(example))
    imports._imported.clear()
    known = [item.cls for item in CATALOGUE.components if item.name != "AbsNorm"]
    CATALOGUE._tables = Tables()
    CATALOGUE.fill(known)


def test_files_name_only_modules_that_are_imported_or_allowed(example: Path) -> None:
    (example / "flagformer.toml").unlink()
    words = (
        "study",
        "run",
        "study.yaml",
        "--dry-run",
        "compare.abs norm=",
    )
    result = call(*words)
    assert result.exit_code == 2
    text = result.stderr.replace("\n", " ")
    assert "study.yaml:3: `source` is 'mylab.data:Brackets', whose module is not allowed" in text
    assert "study.yaml:4: `name` is 'mylab.objectives:FocalNextToken', whose module is not allowed" in text
    assert "mylab.data" not in sys.modules
    assert call(*words, "--allow", "mylab").exit_code == 0
    names = ("mylab.data", "mylab.objectives", "mylab.metrics")
    assert call(*words, *(part for name in names for part in ("--import", name))).exit_code == 0


SOURCE = """\
from typing import ClassVar

import torch
from flagformer.lab.data import Source


class Mine(Source):
    source: str
    width: int = 3
    num_tokens: ClassVar = 9
    chance: ClassVar = None
    metric: ClassVar = "zeros"

    def check(self, split, seq_len):
        pass

    def batch(self, split, step, seed, batch_size, seq_len):
        BODY

    def fingerprint(self):
        return "mine"


class Half(Source):
    source: str


level = 3


def metric(logits, targets):
    return {}["x"]
"""
GOOD = "return torch.zeros(batch_size, seq_len).long(), torch.ones(batch_size, seq_len).long()"
# name: (body of `batch`, name of the class, further fields, message)
WRONG: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "no such class": (GOOD, "Mien", {}, "has no Mien; did you mean `Mine`"),
    "no class": (GOOD, "level", {}, r"must be a subclass of flagformer.lab.data.Source, but .*:level is 3"),
    "abstract": (GOOD, "Half", {}, r"Half \(.*own_\w+.py:24\), which must define batch, chance, check"),
    "a field": (GOOD, "Mine", {"widht": 3}, "widht"),
    "a value": (GOOD, "Mine", {"width": "x"}, "width"),
    "an error": ("return {}['key']", "Mine", {}, r"raised an error \(.*own_\w+.py:18\): KeyError: 'key'"),
    "floats": (GOOD.replace(".long()", ""), "Mine", {}, r"Mine \(.*py:7\) must give inputs of long \[2, 8\]"),
    "a shape": (GOOD.replace("seq_len)", "3)"), "Mine", {}, r"but gives torch.int64 \[2, 3\]"),
    "beyond": (GOOD.replace("torch.ones(", "9 * torch.ones("), "Mine", {}, "gives 9 to 9"),
    "no tuple": ("return None", "Mine", {}, "raised an error"),
    "random": (
        "x = torch.randint(9, (batch_size, seq_len)); return x, x", "Mine", {}, "another one; draw random",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_mistakes_in_a_source_name_its_line(name: str) -> None:
    body, cls, fields, words = WRONG[name]
    own = module(SOURCE.replace("BODY", body))
    block = {"source": f"{own}:{cls}", "seq_len": 8, **fields}
    imports.find_in_working_directory()
    with pytest.raises(ValueError, match=words):
        Trial.model_validate({"flags": {"dim": 16, "depth": 1, "heads": 2}, "data": block}).check()


def test_a_metric_that_fails_is_named() -> None:
    imports.find_in_working_directory()
    own = module(SOURCE.replace("BODY", GOOD))
    from flagformer.lab.objectives.own import measured

    with pytest.raises(ValueError, match=r"`metrics`: own_\w+:metric .* raised \(.*py:32\): KeyError: 'x'"):
        measured(f"{own}:metric", torch.zeros(1, 1, 1), torch.zeros(1, 1))


COMPONENT = """\
from flagformer.flags import component
from flagformer.norm import Norm


@component(SLOT, select=SELECT)
class OwnNorm(Norm):
    def __init__(self, dim):
        super().__init__()
"""
BAD_MODULES = {
    "slot": (
        COMPONENT.replace("SLOT", "'nrom'").replace("SELECT", "'use_own'"),
        r"own_\w+.py:5\) must fill a slot",
    ),
    "flag": (COMPONENT.replace("SLOT", "'norm'").replace("SELECT", "'use_rmsnorm'"), "selects RMSNorm"),
    "none": (
        COMPONENT.replace("SLOT", "'norm'").replace("SELECT", "None"),
        "must have a flag that selects it",
    ),
    "error": ("\n1 / 0\n", r"cannot be imported: ZeroDivisionError.* \(.*own_\w+.py:2\)"),
    "missing": (None, "cannot be imported.*No module named 'mylob'"),
}


@pytest.mark.parametrize("name", BAD_MODULES)
def test_a_module_that_cannot_be_imported_is_named(name: str) -> None:
    text, words = BAD_MODULES[name]
    with pytest.raises(ValueError, match=words):
        imports.import_own(["mylob" if text is None else module(text)])


@pytest.mark.parametrize(
    "text", ["import = ['a']", "[flagformer]\nimport = 'a'", "[flagformer", "[flagformer]\nx = 1"]
)
def test_a_wrong_flagformer_toml_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "flagformer.toml").write_text(text)
    result = call("presets")
    assert result.exit_code == 2
    assert "flagformer.toml" in result.stderr
