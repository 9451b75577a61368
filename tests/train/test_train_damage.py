"""Damaged files and full disks: named, never partly used, and no finished work is lost."""

import errno
import json
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_trial import losses, outcome, tiny

import flagformer
from flagformer.lab.train.checkpoint import CURRENT, PREVIOUS, Checkpoint, load_checkpoint, save_checkpoint
from flagformer.lab.train.files import read_json, write_atomic, write_json
from flagformer.lab.train.log import Log, read_log
from flagformer.lab.train.trial import run_trial
from killed import Killed, killer


def flip(path: Path, place: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 0x10
    path.write_bytes(content)


def cut(path: Path, place: float) -> None:
    path.write_bytes(path.read_bytes()[: int(place * path.stat().st_size)])


def stopped(directory: Path, step: int = 8) -> Path:
    with pytest.raises(Killed):
        run_trial(tiny(), directory, killer(step))
    return directory


@pytest.mark.parametrize("damage", [flip, cut])
@pytest.mark.parametrize("place", [0.0, 0.3, 0.6])
def test_a_damaged_checkpoint_falls_back_to_the_previous_one(tmp_path, damage, place):
    whole = run_trial(tiny(), tmp_path / "whole")
    directory = stopped(tmp_path / "run")
    damage(directory / CURRENT, place)
    result = run_trial(tiny(), directory)
    assert losses(directory) == losses(tmp_path / "whole")
    assert outcome(result) == outcome(whole)
    assert result["notes"][0].startswith(f"resumed at step 3: {directory / CURRENT} is damaged")


def checkpoint(step: int) -> Checkpoint:
    generator = torch.Generator().manual_seed(step)
    weights = {"w": torch.rand(20, generator=generator)}
    return Checkpoint(
        "id", "data", step, 0.5, 1, "cpu", [], weights, {}, [{"cpu": generator.get_state()}], {}
    )


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_a_checkpoint_with_a_changed_bit_is_never_loaded(tmp_path, data):
    save_checkpoint(tmp_path, checkpoint(1))
    save_checkpoint(tmp_path, checkpoint(2))
    whole, notes = load_checkpoint(tmp_path)
    assert notes == []
    assert whole.step == 2
    assert torch.equal(whole.model["w"], checkpoint(2).model["w"])
    content = bytearray((tmp_path / CURRENT).read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= 1 << data.draw(st.integers(0, 7))
    (tmp_path / CURRENT).write_bytes(content)
    found, notes = load_checkpoint(tmp_path)
    assert found.step == 1
    assert torch.equal(found.model["w"], checkpoint(1).model["w"])
    assert len(notes) == 1
    assert not (tmp_path / CURRENT).exists(), "it must not become the previous one"


def test_two_damaged_checkpoints_are_named(tmp_path):
    directory = stopped(tmp_path)
    flip(directory / CURRENT, 0.5)
    (directory / PREVIOUS).write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match="delete the run directory") as caught:
        run_trial(tiny(), directory)
    assert str(directory / CURRENT) in str(caught.value)
    assert str(directory / PREVIOUS) in str(caught.value)


def test_a_checkpoint_of_another_model_is_refused(tmp_path, monkeypatch):
    directory = stopped(tmp_path)
    real = flagformer.build
    monkeypatch.setattr(flagformer, "build", lambda flags: real({**flags, "dim": 32}))
    with pytest.raises(ValueError, match="does not fit the model that is built now"):
        run_trial(tiny(), directory)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(b""), "it has 0 steps, but its checkpoint has 6"),
        (lambda path: cut(path, 0.4), "but its checkpoint has 6"),
        (
            lambda path: path.write_bytes(path.read_bytes().replace(b'{"step": 4', b'{"step": 9')),
            "log.jsonl:4 is damaged",
        ),
        (
            lambda path: path.write_bytes(path.read_bytes().replace(b'"loss"', b"loss", 2)),
            "log.jsonl:1 is damaged",
        ),
        (lambda path: path.unlink(), "it has 0 steps"),
    ],
)
def test_a_damaged_log_is_named(tmp_path, damage, message):
    directory = stopped(tmp_path)
    damage(directory / "log.jsonl")
    with pytest.raises(ValueError, match=message) as caught:
        run_trial(tiny(), directory)
    assert str(directory / "log.jsonl") in str(caught.value)


@pytest.mark.parametrize("name", ["trial.json", "result.json"])
def test_damaged_json_is_named(tmp_path, name):
    run_trial(tiny(), tmp_path)
    for content in (b'{"id": ', b"[1]", b"\xff\xfe"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match="is damaged") as caught:
            run_trial(tiny(), tmp_path)
        assert str(tmp_path / name) in str(caught.value)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize(
    ("full", "named"),
    [
        ("trial.json.tmp", "trial.json"),
        ("log.jsonl", "log.jsonl"),
        ("checkpoint.new.pt.tmp", "checkpoint.new.pt"),
        ("result.json.tmp", "result.json"),
    ],
)
def test_a_full_disk_names_the_file_and_loses_nothing(tmp_path, full, named):
    """/dev/full fails every write with "no space left", like a full disk."""
    whole = run_trial(tiny(), tmp_path / "whole")
    directory = tmp_path / "run"
    directory.mkdir()
    if full == "checkpoint.new.pt.tmp":
        stopped(directory, step=5)  # one valid checkpoint, of step 3, before the disk is full
    (directory / full).unlink(missing_ok=True)
    (directory / full).symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as caught:
        run_trial(tiny(), directory)
    assert caught.value.errno == errno.ENOSPC
    assert Path(caught.value.filename).name == named
    if full == "log.jsonl":
        (directory / full).unlink()
    assert not (directory / full).is_symlink(), "a half-written file would keep the disk full"
    result = run_trial(tiny(), directory)
    assert losses(directory) == losses(tmp_path / "whole")
    assert outcome(result) == outcome(whole)


def test_a_disk_full_while_the_model_is_saved(tmp_path, monkeypatch):
    whole = run_trial(tiny(), tmp_path / "whole")
    directory = tmp_path / "run"

    def full(self, folder):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("flagformer.TransformerWrapper.save", full)
        with pytest.raises(OSError, match="No space left") as caught:
            run_trial(tiny(), directory)
    assert Path(caught.value.filename) == directory / "model"
    assert outcome(run_trial(tiny(), directory)) == outcome(whole)
    assert losses(directory) == losses(tmp_path / "whole")


def test_a_line_truncated_by_a_full_disk_is_an_error_and_is_dropped(tmp_path):
    """The system writes a part of a line without an error; so does a limit on the file size."""
    resource = pytest.importorskip("resource")
    path = tmp_path / "log.jsonl"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Log(path) as log:
        log.write({"step": 1, "loss": 0.5})
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 10, before[1]))
        try:
            with pytest.raises(OSError, match="cannot write: File too large") as caught:
                log.write({"step": 2, "loss": 0.5})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.filename == str(path)
    assert path.read_bytes().endswith(b'\n{"step": 2')
    with Log(path, lines=1) as log:
        log.write({"step": 2, "loss": 0.25})
    assert [line["loss"] for line in read_log(path)] == [0.5, 0.25]


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(old=st.binary(max_size=50), new=st.binary(max_size=50))
def test_an_atomic_write_is_complete(tmp_path, old, new):
    path = tmp_path / "file"
    write_atomic(path, old)
    assert path.read_bytes() == old
    write_atomic(path, new)
    assert path.read_bytes() == new
    assert list(tmp_path.iterdir()) == [path]


def test_json_files_are_json(tmp_path):
    write_json(tmp_path / "a", {"x": 1})
    assert read_json(tmp_path / "a") == {"x": 1}
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "a", {"x": float("nan")})
    assert read_json(tmp_path / "a") == {"x": 1}, "the refused write must leave the old file"


def test_a_log_being_written_reads_up_to_its_last_complete_line(tmp_path):
    path = tmp_path / "log.jsonl"
    with Log(path) as log:
        log.write({"step": 1, "loss": 0.5})
    path.write_bytes(path.read_bytes() + b'{"step": 2, "lo')
    assert [line["step"] for line in read_log(path)] == [1]
    with Log(path, lines=1) as log:
        log.write({"step": 2, "loss": 0.25})
    assert [json.loads(line)["loss"] for line in path.read_text().splitlines()] == [0.5, 0.25]
