"""The blocks of docs/how-to-add-a-component.md on a class of the user run as they stand."""

import re
import sys

import torch
from house_tree import ROOT

import flagformer
from flagformer.lab.imports import modules_of_file
from flagformer.lab.study.file import load_study

PAGE = (ROOT / "docs" / "how-to-add-a-component.md").read_text(encoding="utf-8")
SECTION = PAGE.partition("\n## Your own class in files and studies\n")[2].partition("\n## ")[0]
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", SECTION, re.MULTILINE | re.DOTALL)


def test_an_own_class_by_its_path(tmp_path, monkeypatch):
    (_, module), (_, example), (kind, study), (_, command), (_, listed), (_, reader) = BLOCKS
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mylab").mkdir()
    (tmp_path / "mylab" / "norms.py").write_text(module)
    found = {}
    exec(compile(example, "the example", "exec"), found)
    norm = found["model"].attn_layers.final_norm
    assert (type(norm).__name__, norm.eps) == ("MyNorm", 1e-3)
    assert kind == "yaml"
    (tmp_path / "norms.yaml").write_text(study)
    loaded, _ = load_study(tmp_path / "norms.yaml")
    flagformer.check(loaded.trial("mine", 0, {}).model_flags)
    assert command.split() == ["flagformer", "study", "run", "norms.yaml", "--allow", "mylab"]
    (tmp_path / "flagformer.toml").write_text(listed)
    assert modules_of_file(tmp_path) == ["mylab.norms"]
    exec(compile(reader, "the reader of ids", "exec"), found)
    model = flagformer.build({**found["model"].flags, "norm": found["Doubled"]})
    assert model(torch.arange(6)[None]).isfinite().all()
    for name in [name for name in sys.modules if name.partition(".")[0] == "mylab"]:
        del sys.modules[name]
