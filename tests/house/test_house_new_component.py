"""`flagformer new component`: in each slot, the files it writes pass the tests as they are."""

import os
import shutil
import subprocess
import sys

import pytest
from house_tree import ROOT
from typer.testing import CliRunner

from flagformer.flags import SLOTS
from flagformer.lab.cli.main import app
from flagformer.lab.reference import files, new_component
from flagformer.lab.reference.new_component import REASONS, SLOTS_WITH_TEMPLATE, NewComponent, create

NAMES = {slot: "Sample" + "".join(map(str.title, slot.split("_"))) for slot in SLOTS_WITH_TEMPLATE}
FOLDERS = ("src", "docs", "tests/house", "tests/reference", "tests/golden", "tests/flags", "tests/mixer")
CHECKS = [
    "tests/house/test_house_cards.py", "tests/house/test_house_names.py", "tests/house/test_house_budgets.py",
    "tests/house/test_house_readme.py::test_slots_and_components_are_those_of_the_catalogue",
    "tests/house/test_house_generated.py::test_types_load_without_the_library",
    "tests/house/test_house_generated.py::test_picture_shows_every_slot_and_component",
    "tests/flags/test_flags_conflicts.py::test_the_catalogue_declares_sound_components",
    "tests/mixer/test_mixer_reading.py::test_blocks_are_the_whole[63-sample_sequence_mixer]",
    "tests/mixer/test_mixer_reading.py::test_padding_changes_nothing[63-holes-sample_sequence_mixer]",
    "tests/mixer/test_mixer_reading.py::test_packed_documents_are_separate[sample_sequence_mixer]",
    "tests/mixer/test_mixer_reading.py::test_a_mixer_is_a_module_of_the_library[sample_sequence_mixer]",
]  # fmt: skip
# In the copy: generate all but docs/flags.md, whose table of features takes long, with the pairs of a sample
# of the new components in place of every pair; then build models with each new flag, and run tests.
GENERATE = """
import sys
import pytest
import torch
import flagformer
from flagformer.lab.reference import verdicts
from flagformer.lab.reference.selectors import choices, pairs, settings
names, tests = sys.argv[1].split(), sys.argv[2:]
new = {choice.name: choice for choice in choices() if choice.component and choice.component.name in names}
sample = [new["use_sample_norm"], new["attn_sample_score"]]
known = set(open("tests/golden/refused-pairs.txt", encoding="utf-8").read().split("\\n"))
refused = {line.split(": ")[0] for line in known}
verdicts.pairs = lambda: [
    (one, other)
    for one, other in pairs()
    if f"{one.name} x {other.name}" in refused or one in sample or other in sample
]
from flagformer.lab.reference import files
del files.FILES["docs/flags.md"]
files.write(files.root())
assert known <= set(open("tests/golden/refused-pairs.txt", encoding="utf-8").read().split("\\n"))
for choice in new.values():
    tuned = {param.flag.name: 2.0 for param in choice.component.params}
    model = flagformer.build(settings(choice) | tuned)
    assert choice.component.name in model.explain(), choice.name
    model(torch.zeros(1, 4, dtype=int)).sum().backward()
assert len(new) == len(names), sorted(new)
raise SystemExit(pytest.main(["-q", "-p", "no:cacheprovider", *tests]))
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of the tree, with a new component in each slot."""
    folder = tmp_path_factory.mktemp("clone")
    skipped = shutil.ignore_patterns("__pycache__", "_build", "*.png")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, folder / name, ignore=skipped)
    for name in ("README.md", "pyproject.toml", "tests/conftest.py"):
        shutil.copy(ROOT / name, folder / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(new_component, "regenerate", lambda folder: None)
        return folder, {slot: create(folder, slot, name) for slot, name in NAMES.items()}


def python(folder, *words):
    done = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_slot_has_a_template_or_a_reason():
    assert set(SLOTS) == set(SLOTS_WITH_TEMPLATE) | set(REASONS)
    assert not set(SLOTS_WITH_TEMPLATE) & set(REASONS)


def test_new_components_pass_the_tests(copy):
    folder, written = copy
    assert {len(paths) for paths in written.values()} == {4}
    tests = [path for paths in written.values() for path in paths if path.startswith("tests/reference/")]
    python(folder, "-W", "ignore", "-c", GENERATE, " ".join(NAMES.values()), *tests, *CHECKS)


def test_new_files_are_formatted(copy):
    folder, written = copy
    paths = [path for paths in written.values() for path in paths if path.endswith(".py")]
    python(folder, "-m", "ruff", "check", "--no-cache", *paths)
    python(folder, "-m", "ruff", "format", "--no-cache", "--check", *paths)


@pytest.mark.parametrize("slot", SLOTS_WITH_TEMPLATE)
def test_the_new_test_fails_for_another_formula(copy, slot, monkeypatch):
    """Each flag of the example is in the formula: a component without it differs."""
    folder, (component, test, *_) = copy[0], copy[1][slot]
    source = (folder / component).read_text(encoding="utf-8")
    name = component.removeprefix("src/").removesuffix(".py").replace("/", ".")
    module = type(sys)(name)
    monkeypatch.setitem(sys.modules, name, module)
    exec(compile(source, component, "exec"), vars(module))
    tests = {}
    exec(compile((folder / test).read_text(encoding="utf-8"), test, "exec"), tests)
    tests["test_formula"]()
    cls = getattr(module, NAMES[slot])
    argument = cls.component.params[0].argument
    built = cls.__init__
    monkeypatch.setattr(
        cls, "__init__", lambda self, *sizes, **flags: built(self, *sizes, **{argument: 2 * flags[argument]})
    )
    with pytest.raises(AssertionError):
        tests["test_formula"]()


@pytest.mark.parametrize(
    ("slot", "name", "message"),
    [
        ("nrom", "PowerNorm", "no slot is called `nrom`; did you mean `norm`?"),
        (
            "kernel",
            "Quick",
            "there is no template for the slot `kernel`: a component of it must work with masks",
        ),
        ("norm", "power-norm", "`power-norm` is not a name of a class in CapWords"),
        ("norm", "powerNorm", "not a name of a class"),
        ("norm", "None", "not a name of a class"),
        ("norm", "RMSNorm", "`RMSNorm` is a component of the slot `norm`"),
        ("norm", "Layerscale", "is a component of the slot `branch`"),
        ("norm", "RmsNorm", "is a component of the slot"),
        ("position_bias", "Rel", "needs the flag `rel_pos_bias`, but a flag has this name already"),
        ("sequence_mixer", "Attention", '`mixer="attention"` has a meaning already'),
        ("sequence_mixer", "Mamba2", "is a component of the slot `sequence_mixer`"),
    ],
)
def test_refusals(tmp_path, slot, name, message):
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        create(tmp_path, slot, name)
    assert not list(tmp_path.iterdir())


def test_an_existing_file_is_not_overwritten(copy):
    folder, written = copy
    before = {path: (folder / path).read_text(encoding="utf-8") for path in written["norm"]}
    with pytest.raises(ValueError, match=r"sample_norm\.py, which exists"):
        create(folder, "norm", NAMES["norm"])
    assert before == {path: (folder / path).read_text(encoding="utf-8") for path in written["norm"]}


def test_nothing_is_left_of_a_failure(copy, monkeypatch):
    folder, _ = copy
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    def fail(folder):
        (folder / "docs/flags.md").write_text("half", encoding="utf-8")
        raise KeyboardInterrupt

    monkeypatch.setattr(new_component, "regenerate", fail)
    with pytest.raises(KeyboardInterrupt):
        create(folder, "gate", "HalfGate")
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_command_reports_its_files(copy, monkeypatch):
    folder, _ = copy
    monkeypatch.setattr(new_component, "regenerate", lambda folder: None)
    monkeypatch.setattr(files, "root", lambda: folder)
    done = CliRunner().invoke(app, ["new", "component", "branch", "HalfBranch"])
    assert done.exit_code == 0, done.output
    assert done.output.count("wrote ") == 4
    assert f"wrote {folder}/docs/papers/branch-halfbranch.md" in done.output
    assert "`use_half_branch` and `half_branch_init`" in done.output


def test_the_command_without_a_clone_names_the_remedy(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        files, "__file__", str(tmp_path / "lib/site-packages/flagformer/lab/reference/files.py")
    )
    done = CliRunner().invoke(app, ["new", "component", "norm", "PowerNorm"])
    assert done.exit_code == 2
    assert "--editable" in done.output


def test_names_follow_from_the_class():
    assert NewComponent("norm", "RMSTwoNorm").module == "rms_two_norm"
    assert NewComponent("norm", "PowerNorm").flags() == ["use_power_norm", "power_norm_eps"]
    assert NewComponent("residual", "GatedResidual").select == "gated_residual"
    assert NewComponent("sequence_mixer", "FastScan").selector == 'mixer="fast_scan"'
    assert NewComponent("sequence_mixer", "FastScan").flags() == ["mixer_fast_scan_rate"]
