"""Two processes train one model: losses of one process, checkpoints for any number of processes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_trial import losses, outcome, tiny
from two_ranks import LONG, Job, run_jobs

from flagformer.lab.train.checkpoint import read_checkpoint
from flagformer.lab.train.process_group import SINGLE, SingleProcess
from flagformer.lab.train.trial import run_trial
from forked import run_ranks
from killed import Killed, killer

HERE = Path(__file__).parent
CLOSE = 1e-5  # fp32 sums in another order, through twelve steps of AdamW
STILL = {"attn_dropout": 0.0, "ff_dropout": 0.0}
SEGMENTS = {"segment": 4, "cross_attend": True, "num_memory_slots": 2, "mem_update_attn_heads": 2}
FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddp": ("ddp", {"attn_z_loss_weight": 1e-3}),
    "fsdp": ("fsdp", {"depth": 2, "ff_glu": True, "tie_embedding": True, "rel_pos_bias": True}),
    "ddp reversible": ("ddp", {"reversible": True}),
    "ddp routing": ("ddp", {"num_clusters": 2, "window_size": 4}),
    "fsdp routing": ("fsdp", {"num_clusters": 2, "window_size": 4}),
    "ddp segments": ("ddp", SEGMENTS),
    "fsdp segments": ("fsdp", SEGMENTS),
    "fsdp reversible": ("fsdp", {"reversible": True, "weight_tie_layers": True, "depth": 2}),
}


def torchrun(*words: object, **popen: Any) -> subprocess.Popen:
    """Two ranks on this machine, each with one thread."""
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.Popen(
        [*start, *map(str, words)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **popen,
    )


def two_ranks(folder: Path, *jobs: Job) -> None:
    """Run trials with two ranks, one after another in the same processes."""
    run_ranks(run_jobs, folder, jobs)


def still(segment: int | None = None, **flags: Any) -> dict[str, Any]:
    """A trial of twelve steps without dropout, in which ranks have different numbers of scored tokens."""
    data = {"source": "associative_recall", "pairs": 1, "asks": 2, "keys": 4, "values": 4, "seq_len": 12}
    measured = {"seq_lens": [12, 24], "batches": 3}
    train = {**LONG, "segment": segment}
    return {"flags": {**STILL, **flags}, "train": train, "data": data, "evaluate": measured}


def placed(batches: int) -> dict[str, Any]:
    """A copy of a trial, without dropout, with every position scored."""
    data = {"source": "file", "path": __file__, "seq_len": 12}
    measured = {"seq_lens": [12, 24], "batches": batches}
    return {"flags": STILL, "train": LONG, "data": data, "evaluate": measured, "copy_number": 1}


def assert_close(directory: Path, whole: Path) -> None:
    mine, theirs = losses(directory), losses(whole)
    assert [line[0] for line in mine] == [line[0] for line in theirs]
    for place in (1, 2):
        values = [[line[place] or 0.0 for line in lines] for lines in (mine, theirs)]
        assert values[0] == pytest.approx(values[1], abs=CLOSE)
    mine_, theirs_ = (json.loads((place / "result.json").read_text()) for place in (directory, whole))
    for one, two in zip(mine_["evaluation"], theirs_["evaluation"]):
        assert one["nats"] == pytest.approx(two["nats"], abs=CLOSE)
        assert one["tokens"] == two["tokens"]
        assert one["by_position"] == pytest.approx(two["by_position"], abs=CLOSE)
    assert mine_["validation_nats"] == pytest.approx(theirs_["validation_nats"], abs=CLOSE)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of two ranks in one start: complete runs, and runs stopped at step 5."""
    folder = tmp_path_factory.mktemp("first")
    jobs: list[Any] = [
        (still(**flags), folder / name, parallel, None) for name, (parallel, flags) in FORMS.items()
    ]
    jobs += [(still(), folder / f"left by {how}", how, 5) for how in ("ddp", "fsdp")]
    jobs += [({"train": LONG}, folder / "dropout", "ddp", None), ({"train": LONG}, folder / "left", "ddp", 5)]
    jobs += [(placed(batches), folder / f"placed {batches}", "ddp", None) for batches in (1, 3)]
    two_ranks(folder, *jobs)
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process's run of the trial that changes between processes."""
    torch.set_num_threads(1)
    directory = tmp_path_factory.mktemp("whole")
    run_trial(tiny(**still()), directory)
    return directory


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMS)
def test_two_ranks_equal_one_process(first, tmp_path, name):
    result = run_trial(tiny(**still(**FORMS[name][1])), tmp_path)
    assert_close(first / name, tmp_path)
    with_ranks = json.loads((first / name / "result.json").read_text())
    assert with_ranks["machine"]["ranks"] == 2
    assert with_ranks["params"] == result["params"]
    saved = [{file.name for file in (place / "model").iterdir()} for place in (first / name, tmp_path)]
    assert saved[0] == saved[1]
    assert {file.name for file in (first / name).iterdir()} == {file.name for file in tmp_path.iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("batches", [1, 3])  # of which the second rank has none, or fewer
def test_losses_by_position_equal_those_of_one_process(first, tmp_path, batches):
    result = run_trial(tiny(**placed(batches)), tmp_path)
    assert all(len(entry["by_position"]) >= 12 for entry in result["evaluation"])
    assert_close(first / f"placed {batches}", tmp_path)


@pytest.mark.slow
def test_two_by_one_and_back(first, whole, tmp_path):
    """One process loads DDP's checkpoint, FSDP loads that of the process; and in reverse."""
    torch.set_num_threads(1)  # as the ranks, whose notes compare it
    handed = []
    for here, there in (("ddp", "fsdp"), ("fsdp", "ddp")):
        directory = first / f"left by {here}"
        assert (directory / "shards").is_dir()
        with pytest.raises(Killed):
            run_trial(tiny(**still()), directory, killer(8))
        assert (directory / "checkpoint.pt").exists()
        assert [line[0] for line in losses(directory)] == list(range(1, 9))
        handed.append((still(), directory, there, None))
    two_ranks(tmp_path, *handed, ({"train": LONG}, first / "left", "ddp", None))
    for _, directory, _, _ in handed:
        assert_close(directory, whole)
        notes = json.loads((directory / "result.json").read_text())["notes"]
        assert [note[: note.index(": equal")] for note in notes] == [
            "resumed at step 3 with 1 ranks after 2",
            "resumed at step 6 with 2 ranks after 1",
        ]
    # the same two ranks resume bit by bit, with dropout
    assert losses(first / "left") == losses(first / "dropout")
    ends = [json.loads((first / name / "result.json").read_text()) for name in ("left", "dropout")]
    assert outcome(ends[0]) == outcome(ends[1])


@pytest.mark.slow
def test_the_command_survives_the_loss_of_a_rank_and_reports_damage(tmp_path):
    file, out = tmp_path / "run.yaml", tmp_path / "out"
    write_file(file, still(), parallel="fsdp")
    process = torchrun("-m", "flagformer", "train", file, "train.steps=60", "--out", out)
    give_up = time.monotonic() + 120
    while not (out / "shards.previous").exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < give_up
        time.sleep(0.02)
    os.kill(rank_of(process.pid, 1), signal.SIGKILL)
    said, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert not (out / "result.json").exists()

    path = out / "shards" / "__1_0.distcp"
    path.write_bytes(path.read_bytes()[:-1])
    process = torchrun("-m", "flagformer", "train", file, "train.steps=60", "--out", out)
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said
    assert said.count("finished after 60 steps") == 1, "only one rank prints"
    assert "shards is damaged: the checksum of __1_0.distcp is wrong" in " ".join(said.split())
    assert [line[0] for line in losses(out)] == list(range(1, 61))


@pytest.mark.slow
def test_a_signal_to_one_rank_stops_all_with_a_checkpoint(tmp_path):
    file, out = tmp_path / "run.yaml", tmp_path / "out"
    write_file(file, {"train": {"steps": 10**6, "checkpoint_every": 10**6, "eval_every": 0}})
    process = torchrun("-m", "flagformer", "train", file, "--out", out)
    give_up = time.monotonic() + 120
    while not (out / "log.jsonl").exists() or not losses(out):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < give_up
        time.sleep(0.02)
    os.kill(rank_of(process.pid, 1), signal.SIGTERM)
    said, _ = process.communicate(timeout=120)
    step = read_checkpoint(out / "shards" / "rest.pt").step
    assert [line[0] for line in losses(out)] == list(range(1, step + 1))
    assert " ".join(said.split()).count(f"stopped: step {step:,} of 1,000,000 is saved in {out}") == 1, said


@pytest.mark.slow
def test_the_command_reports_an_error_once(tmp_path):
    file = tmp_path / "run.yaml"
    write_file(file, {"train": {"batch_size": 9, "accumulate": 3}})
    process = torchrun("-m", "flagformer", "train", file, "--out", tmp_path / "out")
    said, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert said.count("`batch_size` must be a multiple of ranks x `accumulate` = 2 x 3, but is 9") == 1, said


def write_file(file: Path, changes: dict[str, Any], **more: Any) -> None:
    """A tiny trial as the file of `flagformer train`."""
    content = tiny(**changes).settings()
    base = content.pop("flags")
    del content["copy_number"]  # the keys of a study
    file.write_text(json.dumps({**content, "base": base, **more}))


def rank_of(parent: int, rank: int) -> int:
    """The process of a rank started by torchrun."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "environ").read_bytes().split(b"\0")
                mother = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            if mother == parent and f"RANK={rank}".encode() in words:
                return int(entry.name)
    raise AssertionError(f"torchrun {parent} has no rank {rank}")


def test_one_process_gets_every_row():
    rows = torch.arange(12).view(6, 2)
    assert torch.equal(SINGLE.share(rows), rows)
    one = SingleProcess()
    one.world = 3
    shares = []
    for one.rank in range(3):
        shares.append(one.share(rows))
    assert torch.equal(torch.cat(shares), rows)
    with pytest.raises(ValueError, match="`batch_size` must be a multiple of ranks x `accumulate` = 3 x 2"):
        one.check(9, 2)
