"""The report of a study that is finished, running or not started; built from files only."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import Result

from flagformer.lab.study.directory import write_setting, write_study
from flagformer.lab.study.file import Run, Study, load_study
from flagformer.lab.study.run import write_report

Command = Callable[..., Result]
VOID = {"meta", "br", "wbr"}


class Page(HTMLParser):
    """Check that tags close in order; collect texts, ids and attributes that could load something."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.loads: list[str] = []
        self.words: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        self.ids += [value or "" for name, value in attrs if name == "id"]
        self.loads += [
            value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "srcset")
        ]
        assert tag not in ("script", "link", "img", "iframe", "object")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture
def study(tmp_path: Path) -> Study:
    path = tmp_path / "words.yaml"
    path.write_text(
        "name: words\nbase: {dim: 16, depth: 1, heads: 2}\ndata: {source: stdlib, seq_len: 16}\n"
        "train: {steps: 40, batch_size: 4, warmup: 2}\nseeds: 3\nevaluate: {seq_lens: [16, 64]}\n"
        "compare:\n  plain: {}\n  rotary: {rotary_pos_emb: true}\n  a b+c: {alibi_pos_bias: true}\n"
    )
    return load_study(path)[0]


SLOPE = {"plain": 0.0, "rotary": 1.0, "a b+c": 0.2}


def begin(out: Path, study: Study) -> None:
    out.mkdir()
    write_study(out, study)
    costs = {name: {"params": 1000 + i, "flops_per_token": 2_000_000} for i, name in enumerate(study.compare)}
    write_setting(out, {"data": "f00d", "threads": 1, "trials_at_once": 2, "variants": costs})


def log(out: Path, run: Run, steps: int) -> Path:
    place = out / "trials" / run.trial.id
    place.mkdir(parents=True)
    lines = [json.dumps({"step": s, "loss": 5.0 / s + 0.01 * run.seed}) + "\n" for s in range(1, steps + 1)]
    (place / "log.jsonl").write_text("".join(lines))
    return place


def finish(out: Path, run: Run) -> None:
    nats = {n: 1.5 + 0.01 * run.seed + SLOPE[run.variant] * (n / 16 - 1) * math.log(2) / 3 for n in (16, 64)}
    evaluation = [
        {"split": "test", "seq_len": n, "nats": x, "bits_per_byte": x / math.log(2), "accuracy": 0.5}
        for n, x in nats.items()
    ]
    result = {
        "status": "finished", "steps": 40, "evaluation": evaluation, "notes": [],
        "cost": {"tokens_per_second": 1000.0 * (1 + run.seed)}, "machine": {"torch": "2", "threads": 1},
    }  # fmt: skip
    (log(out, run, 40) / "result.json").write_text(json.dumps(result))


def test_a_finished_study(study: Study, tmp_path: Path, command: Command) -> None:
    out = tmp_path / "out"
    begin(out, study)
    for run in study.runs:
        finish(out, run)
    result = command("report", out)
    assert result.exit_code == 0, result.output
    page = Page((out / "report.html").read_text())
    assert len(page.ids) == len(set(page.ids))
    assert [link for link in page.loads if not link.startswith("#")] == []
    for variant in study.compare:
        assert sum(row[0].startswith(variant) for row in page.rows) == 3 + 3  # three tables, one row a seed
        assert variant in result.stdout
    assert "Change of bits per byte from 16 to 64 tokens: no loss for plain (+0.00); " in page.text
    assert "a loss of up to 0.5 for a b+c (+0.20); a loss of more than 0.5 for rotary (+1.00)." in page.text
    assert "Trials: 9 finished." in page.text
    assert "Speed relative to plain, paired by seed: not resolved: rotary and a b+c." in page.text
    assert page.text.count("not recorded") == 0
    assert (out / "report.html").read_text().count("<svg") == 4


def test_figures_use_the_colours_of_the_page(study: Study, tmp_path: Path) -> None:
    begin(tmp_path / "out", study)
    write_report(tmp_path / "out")
    svg = re.findall(r"<svg.*?</svg>", (tmp_path / "out" / "report.html").read_text(), re.DOTALL)
    assert svg
    for figure in svg:
        assert "currentColor" in figure
        assert not re.search(r"(fill|stroke): ?#(000000|ffffff)", figure)
        assert "viewBox" in figure
        assert 'width="' not in figure[: figure.index(">")]


def test_figures_are_written_as_files(study: Study, tmp_path: Path) -> None:
    begin(tmp_path / "out", study)
    write_report(tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    files = sorted((tmp_path / "out").glob("figure-*.svg"))
    assert len(files) == page.count("<svg")
    for path in files:
        root = ElementTree.parse(path).getroot()
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        style = root.findtext("{http://www.w3.org/2000/svg}style")
        assert "prefers-color-scheme: dark" in style
        assert "--grid" in style
        links = [value for item in root.iter() for name, value in item.items() if name.endswith("href")]
        assert all(link.startswith("#") for link in links)


@pytest.mark.parametrize("states", ["nothing", "first steps", "one seed", "a failure"])
def test_a_running_study(states: str, study: Study, tmp_path: Path, command: Command) -> None:
    out = tmp_path / "out"
    begin(out, study)
    first, second = study.runs[:2]
    if states != "nothing":
        place = log(out, second, 7)
        with open(place / "log.jsonl", "a") as file:
            file.write('{"step": 8, "lo')  # the worker is writing
    if states in ("one seed", "a failure"):
        finish(out, first)
    if states == "a failure":
        (place / "failure.json").write_text(
            '{"kind": "killed", "message": "the process was killed by <SIGKILL>"}'
        )
    result = command("report", out)
    assert result.exit_code == 0, result.output
    page = Page((out / "report.html").read_text())
    expected = {
        "nothing": "Trials: 9 waiting.",
        "first steps": "Trials: 1 unfinished, 8 waiting.",
        "one seed": "Trials: 1 finished, 1 unfinished, 7 waiting.",
        "a failure": "Trials: 1 finished, 1 failed, 7 waiting.",
    }
    assert expected[states] in page.text
    assert ("killed by <SIGKILL>" in page.text) == (states == "a failure")
    if states == "one seed":
        assert "Finished seeds: plain 1, rotary 0 and a b+c 0 of 3." in page.text


def test_a_diverged_trial_is_shown_and_not_averaged(study: Study, tmp_path: Path) -> None:
    out = tmp_path / "out"
    begin(out, study)
    for run in study.runs[1:]:
        finish(out, run)
    place = log(out, study.runs[0], 5)
    with open(place / "log.jsonl", "a") as file:
        file.write('{"step": 6, "loss": null}\n')
    diverged = {
        "status": "diverged",
        "steps": 6,
        "evaluation": [],
        "notes": [],
        "cost": {"tokens_per_second": 1.0},
    }
    (place / "result.json").write_text(json.dumps(diverged))
    results = write_report(out)
    assert results.row("plain").loss.n == 2
    assert results.row("rotary").difference.estimate.n == 2
    assert results.row("rotary").difference.verdict == "unstable"  # the baseline lost a seed
    text = Page((out / "report.html").read_text()).text
    assert "1 diverged" in text
    line = "plain is unstable: 1 of 3 seeds diverged, so no variant gets a verdict against it."
    assert line in text
    assert line in (out / "report.md").read_text()


def test_the_same_files_give_the_same_report(study: Study, tmp_path: Path) -> None:
    out = tmp_path / "out"
    begin(out, study)
    finish(out, study.runs[0])
    write_report(out)
    first = (out / "report.html").read_bytes(), (out / "results.json").read_bytes()
    write_report(out)
    assert ((out / "report.html").read_bytes(), (out / "results.json").read_bytes()) == first


@pytest.mark.parametrize("what", ["missing", "empty"])
def test_a_report_without_a_study(what: str, tmp_path: Path, command: Command) -> None:
    out = tmp_path / "out"
    if what == "empty":
        out.mkdir()
    result = command("report", out)
    assert result.exit_code == 2
    assert str(out) in result.stderr
    assert "runs/NAME" in result.stderr
