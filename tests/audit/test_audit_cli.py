"""`flagformer audit` and `flagformer flags` on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

import flagformer
from flagformer.audit import audit
from flagformer.flags import CATALOGUE
from flagformer.lab.cli.flag_words import cards
from flagformer.lab.cli.main import app
from flagformer.lab.cli.models import named_models
from flagformer.lab.study.run import prepare
from flagformer.lab.train.config import TrainConfig, Trial
from flagformer.lab.train.trial import lock_directory
from flagformer.position.t5 import T5

FLAGS = "dim: 16\ndepth: 1\nheads: 2\nattn_dim_head: 8\nnum_tokens: 17\nmax_seq_len: 40\n"
STUDY = """
name: small
base: {dim: 16, depth: 1, heads: 2, attn_dim_head: 8}
data: {source: copy, seq_len: 16}
train: {steps: 2, warmup: 1}
seeds: 1
compare:
  learned: {}
  alibi: {alibi_pos_bias: true}
"""


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def words(text: str) -> str:
    return " ".join(text.split())


@pytest.fixture
def flags_file(tmp_path: Path) -> Path:
    path = tmp_path / "model.yaml"
    path.write_text(FLAGS)
    return path


@pytest.fixture
def study_file(tmp_path: Path) -> Path:
    path = tmp_path / "study.yaml"
    path.write_text(STUDY)
    return path


@pytest.fixture
def wrong_bias(monkeypatch: pytest.MonkeyPatch) -> None:
    """A T5 bias whose distances start at the middle of the input."""
    values = T5.forward

    def centred(bias: T5, distance: torch.Tensor) -> torch.Tensor:
        return values(bias, distance - distance.max() // 2)

    monkeypatch.setattr(T5, "forward", centred)


def test_a_model_that_passes_exits_with_0(flags_file: Path) -> None:
    result = call("audit", flags_file)
    assert result.exit_code == 0, result.output
    assert "model: audit of TransformerWrapper" in result.output
    assert "future leak" in result.output
    assert "FAILED" not in result.output


def test_overrides_change_the_file(flags_file: Path) -> None:
    shorter = json.loads(call("audit", flags_file, "--json").output)["model"]["subject"]
    result = call("audit", flags_file, "depth=2", "rotary_pos_emb=true", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.output)["model"]
    assert report["subject"] != shorter
    assert {check["status"] for check in report["results"]} == {"passed"}


def test_a_failed_check_exits_with_1_and_names_the_flag(flags_file: Path, wrong_bias: None) -> None:
    result = call("audit", flags_file, "rel_pos_bias=true", "use_abs_pos_emb=false")
    assert result.exit_code == 1
    assert "FAILED" in result.output
    assert "rel_pos_bias=True" in words(result.output)


def test_every_variant_of_a_study_is_audited(study_file: Path, wrong_bias: None) -> None:
    result = call("audit", study_file, "compare.t5.rel_pos_bias=true")
    assert result.exit_code == 1, result.output
    lines = [line for line in result.output.splitlines() if ": audit of " in line]
    assert [line.partition(":")[0] for line in lines] == ["learned", "alibi", "t5"]
    assert "1 of 3 models fail: t5" in result.output


def test_variants_are_audited_as_the_study_would_train_them(
    study_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = {}

    def watched(model: torch.nn.Module, **settings: object) -> object:
        seen[len(seen)] = (model.flags, sum(p.numel() for p in model.parameters()), settings["precision"])
        return audit(model, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr("flagformer.audit.audit", watched)
    changes = ["match=params", "train.precision=bf16", "tune.heads=[1,2]", "compare.plain.ff_glu=true"]
    result = call("audit", study_file, *changes, "compare.plain.train.precision=fp32")
    assert result.exit_code == 0, result.output
    prepared = prepare(study_file, [*changes, "compare.plain.train.precision=fp32"])
    assert [precision for _, _, precision in seen.values()] == ["bf16", "bf16", "fp32"]
    assert [size for _, size, _ in seen.values()] == [
        prepared.costs[name].params for name in ("learned", "alibi", "plain")
    ]
    assert seen[2][0]["ff_mult"] == prepared.matched["plain"].after
    assert {flags["heads"] for flags, _, _ in seen.values()} == {1}, "of the first candidate"


def test_a_grid_without_compare_is_a_study(tmp_path: Path) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text(STUDY.partition("compare:")[0] + "grid: {depth: [1, 2]}\n")
    result = call("audit", path, "--json")
    assert result.exit_code == 0, result.output
    assert list(json.loads(result.output)) == ["depth=1", "depth=2"]


def test_a_trial_is_audited_in_its_precision(tmp_path: Path) -> None:
    trial = Trial(flags={"dim": 16, "depth": 1, "heads": 2}, train=TrainConfig(precision="bf16"))
    lock_directory(trial, tmp_path)
    flagformer.build(trial.model_flags).save(tmp_path / "model")
    [(name, model)] = named_models(tmp_path, []).items()
    assert (name, model.precision) == (tmp_path.name, "bf16")


def test_a_model_of_images_is_audited(tmp_path: Path) -> None:
    path = tmp_path / "model.yaml"
    path.write_text("{model: vit, dim: 16, depth: 1, heads: 2, patch_size: 4, image_size: 8}")
    result = call("audit", path)
    assert result.exit_code == 0, result.output
    assert "one output of the whole image" in words(result.output)


def test_missing_flags_of_a_model_of_two_texts_are_named_as_typed(tmp_path: Path) -> None:
    path = tmp_path / "model.yaml"
    path.write_text("{model: xtransformer, dim: 16, enc_depth: 1}")
    result = call("audit", path)
    assert result.exit_code == 2
    assert "`enc_num_tokens`" in result.stderr
    assert "`num_tokens` is not a flag" not in result.stderr, "which the file does not hold"


def test_a_training_file_is_audited(tmp_path: Path) -> None:
    path = tmp_path / "train.yaml"
    path.write_text(STUDY.partition("seeds:")[0])
    result = call("audit", path, "base.depth=2")
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("inside", ["", "model"])
def test_a_saved_model_is_audited(tmp_path: Path, inside: str) -> None:
    model = flagformer.build({"num_tokens": 17, "max_seq_len": 40, "dim": 16, "depth": 1, "heads": 2})
    model.save(tmp_path / "run" / inside)
    result = call("audit", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert "run: audit of" in result.output
    assert call("audit", tmp_path / "run", "depth=2").exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["dpth=2"], "`dpth` is not a flag; did you mean `depth`?"),
        (["depth=two"], "`depth` must be int"),
        (["rotary_emb_dim=4"], "`rotary_emb_dim` has no effect here"),
        (["--seq-len", "4"], "`seq_len` must be at least 8"),
        (["--seq-len", "99"], "`seq_len` must be at most the model's longest input, 40"),
    ],
)
def test_wrong_input_exits_with_2_and_an_error(flags_file: Path, arguments: list[str], text: str) -> None:
    result = call("audit", flags_file, *arguments)
    assert result.exit_code == 2, result.output
    assert text in words(result.stderr)
    assert "Traceback" not in result.output


def test_a_wrong_flag_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "model.yaml"
    path.write_text(FLAGS + "rotray_pos_emb: true\n")
    result = call("audit", path)
    assert result.exit_code == 2
    assert f"{path}:7: `rotray_pos_emb` is not a flag" in result.stderr


@pytest.mark.parametrize("name", ["nothing.yaml", "."])
def test_a_missing_file_exits_with_2(tmp_path: Path, name: str) -> None:
    result = call("audit", tmp_path / name)
    assert result.exit_code == 2
    assert str(tmp_path) in words(result.stderr)


def test_flags_lists_every_flag_with_its_default() -> None:
    result = call("flags")
    assert result.exit_code == 0
    rows = [line for line in result.output.splitlines() if line[:2] == "  " and line[2:3].strip()]
    lines = {line.split()[0]: line.split()[1:] for line in rows}  # without the lines that continue a text
    assert {"model", *CATALOGUE.names()} <= set(lines)
    assert lines["heads"][0] == "8"
    assert lines["dim"][0] == "required"
    assert lines["pre_norm"][0] == "True"


def test_one_flag_is_explained() -> None:
    text = words(call("flags", "rel_pos_bias").output)
    assert "arXiv:1910.10683" in text
    assert "which takes one component: cannot be combined with `alibi_pos_bias`" in text
    assert "cannot be combined with `attn_flash=True`, because the fused kernel" in text
    assert "cannot be combined with `rel_pos_bias`" in words(call("flags", "attn_flash").output)
    assert "only with `rotary_pos_emb`" in words(call("flags", "rotary_emb_dim").output)
    assert "set for cross-attention only" in words(call("flags", "cross_attn_kv_heads").output)


def test_printed_conflicts_agree_with_the_resolver() -> None:
    """The sentences are derived; this compares them with the resolver."""
    small = {"num_tokens": 17, "max_seq_len": 40, "dim": 16, "depth": 1, "heads": 2}
    for names in ({"rel_pos_bias", "alibi_pos_bias"}, {"rel_pos_bias", "attn_flash"}):
        with pytest.raises(flagformer.FlagError, match="cannot be combined"):
            flagformer.check({**small, **dict.fromkeys(names, True)})
    with pytest.raises(flagformer.FlagError, match="has no effect"):
        flagformer.check({**small, "rotary_emb_dim": 4})


def test_every_flag_can_be_explained() -> None:
    for card in cards():
        assert card.doc, card.name
        assert card.kind, card.name
        assert card.standard, card.name
        for rule in card.rules:
            assert "None" not in rule, (card.name, rule)


def test_a_term_is_searched_for() -> None:
    result = call("flags", "grouped-query")
    assert result.exit_code == 0
    assert "attn_kv_heads" in result.output
    assert "rotary" not in result.output


@pytest.mark.parametrize(
    ("word", "hint"), [("rotray_pos_emb", "rotary_pos_emb"), ("rotray", "rotary"), ("kernl", "kernel")]
)
def test_an_unknown_word_exits_with_2_and_the_nearest_name(word: str, hint: str) -> None:
    result = call("flags", word)
    assert result.exit_code == 2
    assert f"did you mean `{hint}`?" in result.stderr
