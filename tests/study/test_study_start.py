"""Studies whose base is a directory: the baseline is the published model, variants are grafts onto it."""

import json
import shutil

import pytest
import torch
import torch.nn.functional as F

import flagformer
from flagformer.lab.study.config_errors import StudyFileError
from flagformer.lab.study.costs import check_variants
from flagformer.lab.study.directory import write_setting, write_study
from flagformer.lab.study.environment import describe_environment
from flagformer.lab.study.file import load_study
from flagformer.lab.study.read_results import read_results
from flagformer.lab.study.report import documents
from flagformer.lab.train.config import Trial
from flagformer.lab.train.trial import run_trial
from killed import Killed, killer

transformers = pytest.importorskip("transformers", reason="pip install 'flagformer[hf]'")

FILE = """\
name: grafts
base: {{from: "{directory}"}}
data: {{source: copy, symbols: 8, seq_len: 12}}
train: {{steps: 3, batch_size: 4, warmup: 1, checkpoint_every: 1, device: cpu}}
compare:
  published: {{}}
  gated: {{attn_gate_values: true}}
  deeper: {{depth: 3, ff_inner_dim: 48}}
  capped: {{attn_softclamp_logits: true}}
seeds: 1
evaluate: {{batches: 2}}
audit: false
match: none
"""


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A tiny Llama of transformers, with a vocabulary larger than that of the task."""
    path = tmp_path_factory.mktemp("start") / "llama"
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=32,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(path)
    return path


@pytest.fixture
def study(directory, tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(FILE.format(directory=directory))
    return path


def their_loss(directory, trial):
    """The loss of transformers on the batches of the evaluation."""
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    total = count = 0.0
    for step in range(trial.evaluate.batches):
        inputs, targets = trial.source.batch("test", step, 0, 4, 12)
        with torch.no_grad():
            logits = model(inputs).logits
        total += float(F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum"))
        count += int((targets != -100).sum())
    return total / count


def test_variants_start_at_the_loss_of_the_published_model(study, directory, tmp_path):
    resolved, source = load_study(study)
    costs = check_variants(resolved, source)
    out = tmp_path / "out"
    out.mkdir()
    write_study(out, resolved)
    write_setting(out, describe_environment(resolved, costs, {}, out))
    results = {run.variant: run_trial(run.trial, out / "trials" / run.trial.id) for run in resolved.runs}
    starts = {name: result["start"]["evaluation"]["nats"] for name, result in results.items()}
    wanted = their_loss(directory, resolved.runs[0].trial)
    assert starts["published"] == pytest.approx(wanted, abs=1e-5)
    for name in ("gated", "deeper"):
        assert starts[name] == pytest.approx(starts["published"], abs=1e-5)
        assert results[name]["start"]["graft"]["keeps_function"]
    assert not results["capped"]["start"]["graft"]["keeps_function"]
    assert all(result["status"] == "finished" for result in results.values())
    assert all(result["evaluation"][0]["nats"] != starts[name] for name, result in results.items())
    shown = read_results(out)
    assert shown.row("published").start.mean == starts["published"]
    text = documents(shown)["report.md"]
    assert "loss at start" in text
    assert "SoftClamp has no neutral start" in text
    moved = flagformer.load(out / "trials" / resolved.runs[2].trial.id / "model")
    assert moved.flags["depth"] == 3


def test_a_killed_trial_resumes_with_the_loss_at_start(study, tmp_path):
    trial = load_study(study)[0].runs[1].trial
    whole = run_trial(trial, tmp_path / "whole")
    with pytest.raises(Killed):
        run_trial(trial, tmp_path / "killed", killer(2))
    again = run_trial(trial, tmp_path / "killed")
    assert again["start"] == whole["start"]
    assert again["evaluation"] == whole["evaluation"]


def test_ids_hold_the_contents_and_not_the_path(directory, tmp_path):
    first = Trial(flags={"from": str(directory)})
    shutil.copytree(directory, tmp_path / "copy")
    moved = Trial(flags={"from": str(tmp_path / "copy")})
    assert moved.id == first.id
    assert first.id != Trial(flags={"from": str(directory), "depth": 3}).id
    weights = tmp_path / "copy" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert Trial(flags={"from": str(tmp_path / "copy")}).id != first.id
    with pytest.raises(ValueError, match="whose contents have changed since the first run"):
        moved.check()
    assert "start" not in Trial(flags={"dim": 8, "depth": 1}).settings()


def test_a_resolved_study_is_read_without_the_directory(study, directory, tmp_path):
    resolved, _ = load_study(study)
    write_study(tmp_path, resolved)
    ids = [run.trial.id for run in resolved.runs]
    text = (tmp_path / "study.yaml").read_text().replace(str(directory), str(tmp_path / "gone"))
    (tmp_path / "study.yaml").write_text(text)
    assert [run.trial.id for run in load_study(tmp_path / "study.yaml")[0].runs] == ids


def test_the_tokenizer_is_that_of_the_directory(study, directory, tmp_path):
    copy = tmp_path / "with tokenizer"
    shutil.copytree(directory, copy)
    (copy / "tokenizer.json").write_text("{}")
    text = FILE.format(directory=copy).replace("{source: copy, symbols: 8,", "{source: tokens, path: a.txt,")
    study.write_text(text)
    assert load_study(study)[0].data.tokenizer == copy / "tokenizer.json"


FAULTS = {
    "base.from=nowhere": r"`base.from` must be the directory of a model, but nowhere is not there",
    "base.from=3": r"`base.from` must be the directory of a model, but is 3",
    "compare.gated.from=nowhere": r"`compare.gated.from` must be the directory of a model",
    "base.preset=llama": r"`base.preset` and `base.from` cannot be combined",
    "compare.gated.dim=32": r"variant `gated`: `dim` is 32 in place of 16.*cannot be grafted onto",
    "compare.gated.depth=1": r"`depth` must be at least 2, that of .*; a graft removes no layers",
    "data.symbols=90": r"`num_tokens` must be at least 91, the vocabulary of the data, but is 32",
}


@pytest.mark.parametrize("override", FAULTS)
def test_faults_name_their_line(study, override):
    with pytest.raises(StudyFileError, match=FAULTS[override]):
        check_variants(*load_study(study, [override]))


def test_flagformer_train_starts_from_a_directory(directory, tmp_path):
    from typer.testing import CliRunner

    from flagformer.lab.cli.main import app

    file = tmp_path / "run.yaml"
    file.write_text(
        "base: {use_layerscale: true}\n"
        "data: {source: copy, symbols: 8, seq_len: 12}\n"
        "train: {steps: 1, batch_size: 2, warmup: 0, device: cpu}\n"
    )
    ran = CliRunner().invoke(
        app, ["train", str(file), "--from", str(directory), "--out", str(tmp_path / "o")]
    )
    assert ran.exit_code == 0, ran.output
    assert f"started from {directory}" in ran.output.replace("\n", "")
    assert "the function is kept" in ran.output
    kept = json.loads((tmp_path / "o" / "result.json").read_text())["start"]["graft"]["kept"]
    assert "layers.1.attn.q.weight" in kept
