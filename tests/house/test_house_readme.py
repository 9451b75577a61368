"""The README is tested: its Python runs, its files and command lines are valid."""

import importlib.util
import io
import re
import shlex
from contextlib import redirect_stdout

import click
import pytest
import typer
from house_tree import ROOT

from flagformer.flags import CATALOGUE, SLOTS
from flagformer.lab.cli.main import app
from flagformer.lab.study.file import load_study
from flagformer.models.build import check

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
LINES = [
    line.split("  #")[0].strip()
    for kind, text in BLOCKS
    if kind == "sh"
    for line in text.splitlines()
    if line.strip()
]


def test_every_kind_of_block_is_checked():
    assert {kind for kind, _ in BLOCKS} == {"sh", "python", "text", "yaml"}


def test_python_blocks_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for (kind, text), (next_kind, shown) in zip(BLOCKS, [*BLOCKS[1:], ("", "")]):
        if kind != "python":
            continue
        out = io.StringIO()
        with redirect_stdout(out):
            exec(compile(text, "README.md", "exec"), names)
        if next_kind == "text":
            assert out.getvalue() == shown
    assert names["logits"].shape == (4, 65, 256)
    assert names["text"].shape == (4, 16)


def test_ten_lines_are_ten_lines():
    shown = [text for kind, text in BLOCKS if kind in ("python", "yaml")]
    model, study = shown[0], next(text for kind, text in BLOCKS if kind == "yaml")
    assert len([line for line in model.splitlines() if line]) <= 10
    assert len(study.splitlines()) <= 10


def test_study_block_is_valid(tmp_path):
    for kind, text in BLOCKS:
        if kind == "yaml":
            (tmp_path / "study.yaml").write_text(text, encoding="utf-8")
            study, _ = load_study(tmp_path / "study.yaml")
            for flags in study.variants.values():
                check({"num_tokens": 256, **flags})


@pytest.mark.parametrize("line", LINES)
def test_command_lines_are_valid(line, tmp_path):
    for part in line.split("&&"):
        word, *rest = shlex.split(part)
        if word == "torchrun":
            assert rest[2:4] == ["-m", "flagformer"]
            word, rest = "flagformer", rest[4:]
        if word == "flagformer":
            parse(typer.main.get_command(app), rest)
        elif word == "make":
            assert re.search(rf"^{rest[0]}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        elif word == "python":
            assert rest[0] == "-m"
            assert importlib.util.find_spec(rest[1])
        else:
            assert word in ("pip", "git", "cd", "."), f"unknown command {word!r}"


def parse(command, words):
    """Parse the words as the command line does, down to the subcommand, without running it."""
    context = command.make_context("flagformer", list(words))
    if isinstance(command, click.Group) or hasattr(command, "resolve_command"):
        left = (
            [*context._protected_args, *context.args] if hasattr(context, "_protected_args") else context.args
        )
        _, inner, words = command.resolve_command(context, left)
        parse(inner, words)


def test_invalid_command_lines_are_found():
    command = typer.main.get_command(app)
    for words in (["study", "walk"], ["train"], ["generate", "runs/one", "--prompts", "x"]):
        with pytest.raises(Exception, match=r"No such|Missing"):
            parse(command, words)


def test_slots_and_components_are_those_of_the_catalogue():
    rows = dict(re.findall(r"^\| (`.*?) \| (.*) \|$", README, flags=re.MULTILINE))
    shown = {slot: text for slots, text in rows.items() for slot in re.findall(r"`(\w+)`", slots)}
    assert set(shown) == set(SLOTS) - {"wrapper", "dims"}
    for slot, text in shown.items():
        fillers = {item.name for item in CATALOGUE.in_slot(slot)}
        assert fillers <= set(re.findall(r"\w+", text)), f"`{slot}` holds {sorted(fillers)}"
        if not fillers:
            assert text.startswith("empty")


def test_links_resolve():
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        text = page.read_text(encoding="utf-8")
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links {target}"
