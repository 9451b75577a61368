"""The design of a study: written before the first trial, never again; its power; changes afterwards."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from flagformer.lab.study.directory import DESIGN, write_setting, write_study
from flagformer.lab.study.file import load_study
from flagformer.lab.study.planned import change_line, pilot_of, power_lines, read_design, write_design
from flagformer.lab.study.power import Noise, difference_found
from flagformer.lab.study.read_results import read_results
from flagformer.lab.study.report import render
from flagformer.lab.study.table import legend

Command = Callable[..., Result]


def earlier(path: Path, losses: list[list[float]], steps: int, symbols: int = 8) -> None:
    """Results of another study of the tiny data."""
    path.mkdir()
    data = load_study(path.parent / "tiny.yaml", [f"data.symbols={symbols}"])[0].resolved()["data"]
    rows = [{"loss": {"values": own}, "difference": None} for own in losses]
    for row, own in zip(rows[1:], losses[1:]):
        apart = [a - b for a, b in zip(own, losses[0])]
        row["difference"] = {"estimate": {"values": apart}}
    plain = {"study": {"data": data, "train": {"steps": steps}}, "loss_length": 16, "rows": rows}
    (path / "results.json").write_text(json.dumps(plain))


def test_the_power_from_the_file(tiny: Path) -> None:
    study, _ = load_study(tiny, ["sigma=0.015", "seeds=3"])
    [line] = power_lines(study, pilot_of(study, tiny.parent / "out"))
    sizes = [difference_found(Noise(0.015), 1, 3, power) for power in (0.8, 0.9)]
    assert line == (
        "Power: 3 seeds and \N{GREEK SMALL LETTER SIGMA} = 0.015 (the study file) find a difference of "
        f"{sizes[0]:.2g} or {sizes[1]:.2g} nats with probability 0.8 or 0.9."
    )
    unknown = power_lines(load_study(tiny, ["seeds=3"])[0], None)
    assert "`sigma: 0.015` sets it" in unknown[1]
    assert power_lines(load_study(tiny, ["seeds=1"])[0], None)[0].startswith("Power: none")


def test_the_noise_of_the_nearest_earlier_run(tiny: Path) -> None:
    earlier(tiny.parent / "short", [[1.0, 3.0], [2.0, 4.0]], steps=20)
    earlier(tiny.parent / "near", [[1.0, 2.0], [2.0, 3.0]], steps=150)
    earlier(tiny.parent / "other", [[1.0, 9.0], [2.0, 3.0]], steps=200, symbols=9)
    (tiny.parent / "damaged").mkdir()
    (tiny.parent / "damaged" / "results.json").write_text("[1, 2")
    study, _ = load_study(tiny)
    pilot = pilot_of(study, tiny.parent / "out")
    assert (Path(pilot.origin).name, pilot.steps) == ("near", 150)
    assert pilot.noise == Noise(pytest.approx(0.5**0.5), 0.95, 2)
    assert "near has 150 steps, this study 200" in power_lines(study, pilot)[1]


def test_a_factorial_design_has_three_powers(tiny: Path) -> None:
    study, _ = load_study(tiny, ["sigma=0.01", "seeds=3", "base.depth=1,2"])
    [line] = power_lines(study, pilot_of(study, tiny.parent / "out"))
    size = difference_found(Noise(0.01), 1, 3, 0.8, study.level)
    for name, scale in (
        ("an interaction", 2**0.5),
        ("a mean effect", 0.5**0.5),
        ("an effect in one cell", 1),
    ):
        assert f"{name} of {scale * size:.2g} or " in line


def test_the_design_is_written_once(tiny: Path) -> None:
    out = tiny.parent / "out"
    out.mkdir()
    study, _ = load_study(tiny, ["hypothesis=rotary is better", "margin=0.1", "seeds=3"])
    write_study(out, study)
    write_setting(out, {"variants": {}})
    write_design(out, study)
    before = (out / DESIGN).read_bytes()
    design = read_design(out)
    assert (design["hypothesis"], design["margin"], design["seeds"]) == ("rotary is better", 0.1, [0, 1, 2])
    assert design["tests"] == [
        "held-out loss at 16 tokens, 1 difference from learned: one family at 5%, step-down",
        "equivalence within 0.1 nats, the same differences: one family at 5%",
        "quality at 16 and 32 tokens, all differences: one family at 5%",
    ]
    assert change_line(study, design) == ""
    more, _ = load_study(tiny, ["seeds=5", "margin=0.2", "compare.alibi={alibi_pos_bias: true}"])
    write_design(out, more)
    assert (out / DESIGN).read_bytes() == before
    changed = change_line(more, design)
    assert "3 seeds were planned and 5 are used; alibi added; the margin was 0.1 and is 0.2" in changed
    write_study(out, more)
    results = read_results(out)
    page = render(results, [])
    assert "are exploratory" in page
    assert "Hypothesis: rotary is better" in page
    assert any("are exploratory" in line for line in legend(results))


def test_a_study_that_has_begun_gets_no_design(tiny: Path) -> None:
    out = tiny.parent / "out"
    (out / "trials" / "a").mkdir(parents=True)
    (out / "trials" / "a" / "log.jsonl").touch()
    write_design(out, load_study(tiny)[0])
    assert read_design(out) == {}
    (out / DESIGN).write_text("{}")
    with pytest.raises(ValueError, match="`written` is missing"):
        read_design(out)


def test_a_dry_run_prints_the_tests_and_the_power(tiny: Path, command: Command) -> None:
    result = command("run", tiny, "sigma=0.015", "--dry-run", "--out", tiny.parent / "out")
    assert result.exit_code == 0, result.stderr
    assert "test: held-out loss at 16 tokens, 1 difference from learned" in result.stdout
    assert "Power: 2 seeds and" in result.stdout
    assert not (tiny.parent / "out").exists()
