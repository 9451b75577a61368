"""Grids, sweeps, tuning, matching, provenance: the plan of a study file."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from flagformer.lab.study.config_errors import StudyFileError
from flagformer.lab.study.directory import read_study, write_study
from flagformer.lab.study.file import load_study
from flagformer.lab.study.run import prepare

Command = Callable[..., Result]


def test_a_grid_is_crossed_with_the_variants(tiny: Path) -> None:
    study, _ = load_study(tiny, ["grid={depth: [1, 2], train.lr: [0.01, 0.02]}"])
    assert list(study.compare) == [
        f"{name} depth={depth} lr={lr}"
        for name in ("learned", "rotary") for depth in (1, 2) for lr in (0.01, 0.02)
    ]  # fmt: skip
    assert study.variants["rotary depth=2 lr=0.02"]["depth"] == 2
    assert study.train_of("rotary depth=2 lr=0.02").lr == 0.02
    assert study.trial("rotary depth=2 lr=0.02", 0).train.lr == 0.02


def test_a_grid_without_compare_makes_the_variants(tiny: Path) -> None:
    study, _ = load_study(tiny, ["compare=", "grid={depth: [1, 2]}"])
    assert list(study.compare) == ["depth=1", "depth=2"]


@pytest.mark.parametrize(
    ("typed", "names"),
    [
        ("base.depth=1,2", ["learned depth=1", "learned depth=2", "rotary depth=1", "rotary depth=2"]),
        (
            "train.lr=1e-3,2e-3",
            ["learned lr=0.001", "learned lr=0.002", "rotary lr=0.001", "rotary lr=0.002"],
        ),
        (
            "compare.rotary.rotary_emb_dim=4,8",
            ["learned", "rotary rotary_emb_dim=4", "rotary rotary_emb_dim=8"],
        ),
    ],
)
def test_a_sweep_makes_variants(tiny: Path, typed: str, names: list[str]) -> None:
    assert list(load_study(tiny, [typed])[0].compare) == names


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("seeds=1,2", "a list is written in brackets, `seeds=[...]`"),
        ("evaluate.seq_lens=16,32", "a list is written in brackets"),
        (
            "compare.unknown.depth=1,2",
            "`compare.unknown` is not in the file; variants to sweep: learned, rotary",
        ),
        ("base.depth=1,1", "must name each value once"),
        ("base.depth=1,", "`depth` must be"),
    ],
)
def test_an_invalid_sweep(tiny: Path, typed: str, words: str) -> None:
    with pytest.raises(StudyFileError, match=re.escape(words)) as caught:
        prepare(tiny, [typed])
    assert caught.value.mistakes[0].location == f"override `{typed}`"


def test_a_list_is_no_sweep(tiny: Path) -> None:
    assert load_study(tiny, ["evaluate.seq_lens=[16, 24]"])[0].evaluate.seq_lens == (16, 24)


def test_mistakes_of_a_grid_have_their_lines(tiny: Path) -> None:
    with tiny.open("a") as file:
        file.write("grid:\n  deppth: [1, 2]\n")
    line = len(tiny.read_text().splitlines())
    with pytest.raises(StudyFileError, match=rf"tiny.yaml:{line}: .*did you mean `depth`"):
        prepare(tiny)


def test_every_variant_gets_the_same_tuning(tiny: Path) -> None:
    study, _ = load_study(tiny, ["tune={lr: [0.1, 0.2, 0.3], ff_mult: [2, 4]}"])
    assert len(study.runs) == 2 * 2 * 6
    budgets = {
        name: [(run.trial.train.lr, run.trial.flags["ff_mult"]) for run in study.runs if run.variant == name]
        for name in study.compare
    }
    assert budgets["learned"] == budgets["rotary"]
    assert study.runs[1].label == "learned, seed 0, lr 0.1, ff_mult 4"
    assert len({run.trial.id for run in study.runs}) == len(study.runs)


@pytest.mark.parametrize(
    ("tune", "words"),
    [
        ("{steps: [10, 20]}", "every candidate of a variant has the same budget"),
        ("{lr: [0.1, -1]}", "greater than 0"),
        ("{lr: []}", "must be a list of values to try"),
        ("{lr: 0.1}", "must be a list of values to try"),
        ("{train.stpes: [1]}", "did you mean `steps`"),
        ("{rotary_pos_emb: [true, false]}", "`compare.rotary` and `tune` both set `rotary_pos_emb`"),
    ],
)
def test_invalid_tuning(tiny: Path, tune: str, words: str) -> None:
    with pytest.raises(StudyFileError, match=re.escape(words)):
        load_study(tiny, [f"tune={tune}"])


def test_tokens_given_twice_are_refused(tiny: Path, command: Command) -> None:
    tiny.write_text(
        tiny.read_text().replace("learned: {}", "learned: {}\n  longer:\n    train: {steps: 400}")
    )
    result = command("run", tiny, "match=tokens", "--dry-run")
    assert result.exit_code == 2
    assert (
        "tiny.yaml:11: variant `longer` is trained on 25,600 tokens, 2 times the 12,800 of learned"
        in result.stderr
    )
    assert "write `match: none`" in result.stderr
    assert command("run", tiny, "match=none", "--dry-run").exit_code == 0


@pytest.mark.parametrize("what", ["params", "flops"])
def test_matching_adjusts_the_chosen_flag(tiny: Path, what: str) -> None:
    prepared = prepare(tiny, [f"match={what}", "compare.gated={ff_glu: true}", "base.dim=64"])
    amounts = [cost.params if what == "params" else cost.flops_per_token for cost in prepared.costs.values()]
    assert max(amounts) <= 1.01 * min(amounts)
    assert prepared.matched["gated"].after < 4
    assert prepared.study.variants["gated"]["ff_mult"] == prepared.matched["gated"].after
    assert prepared.origins["compare.gated.ff_mult"] == "matched"


def test_matching_flops_by_steps(tiny: Path) -> None:
    overrides = ["match={what: flops, by: steps}", "compare.gated={ff_glu: true}"]
    study = prepare(tiny, overrides).study
    assert study.train_of("gated").steps < study.train_of("learned").steps


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["match={what: params, by: steps}"], "steps do not change the parameters"),
        (["match=params", "compare.rotary.ff_mult=8"], "because the variant sets `ff_mult`"),
        (["match=params", "compare.rotary.depth=9"], "the best value of `ff_mult`"),
        (["match=everything"], "`match.what` must be 'params', 'flops', 'tokens' or 'none'"),
    ],
)
def test_impossible_matches_are_refused(tiny: Path, overrides: list[str], words: str) -> None:
    with pytest.raises(StudyFileError, match=re.escape(words)):
        prepare(tiny, overrides)


def test_a_copy_trains_from_other_weights_on_the_same_data(tiny: Path) -> None:
    study, _ = load_study(tiny, ["compare={plain: {}, copy: {}, copy 2: {}}"])
    trials = [study.trial(name, 0) for name in study.compare]
    assert [trial.copy_number for trial in trials] == [0, 1, 2]
    assert len({trial.weights_seed for trial in trials}) == 3
    assert trials[0].weights_seed == 0
    assert {trial.seed for trial in trials} == {0}


def test_the_resolved_file_has_the_origin_of_each_value(tiny: Path, tmp_path: Path) -> None:
    prepared = prepare(tiny, ["train.steps=9", "grid={depth: [1, 2]}", "tune.lr=[0.1, 0.2]"])
    write_study(tmp_path, prepared.study, prepared.origins)
    text = (tmp_path / "study.yaml").read_text()
    assert "  steps: 9  # override train.steps=9\n" in text
    assert f"  dim: 16  # {tiny}:3\n" in text
    assert "  decay: cosine  # default\n" in text
    assert "    depth: 2  # override grid={depth: [1, 2]}\n" in text
    assert read_study(tmp_path) == prepared.study


def test_dry_run_prints_matches_and_attempts(tiny: Path, command: Command) -> None:
    overrides = ["match=params", "base.dim=64", "compare.gated={ff_glu: true}", "tune.lr=[0.1, 0.2]"]
    result = command("run", tiny, *overrides, "--dry-run")
    assert result.exit_code == 0, result.stderr
    assert re.search(
        r"^gated: matched to the params of learned by `ff_mult`, 4 -> [\d.]+ \(", result.stdout, re.M
    )
    assert "12 trials: 3 variants x 2 seeds x 2 candidates, 200 steps each" in result.stdout


PAIR = [
    "base={model: xtransformer, dim: 32, enc_depth: 1, enc_heads: 2, dec_depth: 1, dec_heads: 2}",
    "compare={learned: {}, gated: {enc_ff_glu: true, dec_ff_glu: true}}", "match=params",
]  # fmt: skip


def test_matching_adjusts_both_halves_of_an_encoder_decoder(tiny: Path) -> None:
    prepared = prepare(tiny, PAIR)
    after = prepared.matched["gated"].after
    assert after < 4
    for name in ("enc_ff_mult", "dec_ff_mult"):
        assert prepared.study.variants["gated"][name] == after
        assert prepared.origins[f"compare.gated.{name}"] == "matched"


def test_halves_that_differ_are_not_matched(tiny: Path) -> None:
    with pytest.raises(StudyFileError, match="`enc_ff_mult` and `dec_ff_mult` are not one number in `base`"):
        prepare(tiny, [*PAIR, "base.enc_ff_mult=2"])


def test_an_objective_of_one_variant_is_refused_with_the_reason(tiny: Path) -> None:
    with pytest.raises(StudyFileError, match="`rotary`: `objective` must be outside `compare`, one for all"):
        prepare(tiny, ["compare.rotary.objective=masked_lm"])
