"""Pairs, labelled text, images and series from files: rows as in the files, splits, epochs, resumed runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from flagformer.lab.data import IGNORE
from flagformer.lab.data.catalogue import DataConfig
from flagformer.lab.train.config import Trial
from flagformer.lab.train.trial import run_trial
from killed import Killed, killer

READER = TypeAdapter(DataConfig)
PAIRS = [(f"source {number}", f"TARGET {number * 7}") for number in range(80)]
CLASSES = ("cat", "dog", "emu")
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (60, 8, 8, 3), dtype=np.uint8)
WAVES = np.sin(np.arange(600)[:, None] * np.array([0.1, 0.3])) * 5 + 2


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLAGFORMER_CACHE", str(tmp_path / "cache"))


def lines(path: Path) -> dict[str, Any]:
    (path / "a.src").write_text("".join(f"{source}\n" for source, _ in PAIRS))
    (path / "a.tgt").write_text("".join(f"{target}\n" for _, target in PAIRS))
    return {"source": "parallel", "path": path / "a.src", "target_path": path / "a.tgt"}


def pairs_of_records(path: Path) -> dict[str, Any]:
    rows = [json.dumps({"de": source, "en": target, "good": True}) for source, target in PAIRS]
    rows.insert(3, json.dumps({"de": "x", "en": None, "good": False}))
    (path / "a.jsonl").write_text("\n".join(rows))
    fields = {"field": "de", "target_field": "en", "filter": {"good": True}}
    return {"source": "parallel", "path": path / "a.jsonl", **fields}


def labelled(path: Path) -> dict[str, Any]:
    rows = [{"text": f"{CLASSES[n % 3]} {'x' * (n % 9)} {n}", "kind": CLASSES[n % 3]} for n in range(120)]
    (path / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"source": "jsonl", "path": path / "b.jsonl", "field": "text", "label": "kind", "separator": ""}


def images(path: Path) -> dict[str, Any]:
    image = pytest.importorskip("PIL.Image")
    for number, pixels in enumerate(PIXELS):
        folder = path / "images" / CLASSES[number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        image.fromarray(pixels).save(folder / f"{number:02}.png")
    return {"source": "image_folder", "path": path / "images", "size": 8}


def array(path: Path) -> dict[str, Any]:
    np.save(path / "c.npy", WAVES.astype(np.float32))
    return {"source": "series", "path": path / "c.npy"}


def table(path: Path) -> dict[str, Any]:
    rows = [f"day {number},{low},{high}" for number, (low, high) in enumerate(WAVES.astype(np.float32))]
    (path / "c.csv").write_text("\n".join(["day,low,high", *rows]))
    return {"source": "series", "path": path / "c.csv", "columns": ["low", "high"]}


FORMS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "lines": lines, "records": pairs_of_records, "labelled": labelled, "images": images, "array": array,
    "table": table,
}  # fmt: skip


def read(block: dict[str, Any], **more: Any) -> Any:
    return READER.validate_python({**block, **more})


@pytest.mark.parametrize("form", ["lines", "records"])
def test_pairs_are_those_of_the_files(form: str, tmp_path: Path) -> None:
    """Every pair once in an epoch; no source of a split is one of another."""
    source = read(FORMS[form](tmp_path), seq_len=48)
    found: dict[str, list[tuple[str, str]]] = {}
    for split in ("train", "validation", "test"):
        count = len(source._kept(split, 48))
        sources, targets = source.paired(split, 0, 0, count, 48)
        found[split] = []
        for given, wanted in zip(sources.tolist(), targets.tolist()):
            text = bytes(one for one in given if one != IGNORE).decode()
            end = wanted.index(256)
            assert set(wanted[end + 1 :]) <= {IGNORE}
            found[split].append((text, bytes(wanted[:end]).decode()))
    assert sorted(pair for part in found.values() for pair in part) == sorted(PAIRS)
    assert len(found["train"]) > len(found["test"]) > 0
    rows, targets = source.batch("train", 0, 0, 1, 48)
    (text, target), row = found["train"][0], rows[0].tolist()
    assert bytes(row[: len(text)]).decode() == text
    assert row[len(text)] == 257
    assert bytes(row[len(text) + 1 : len(text) + 1 + len(target)]).decode() == target
    assert targets[0, len(text) : len(text) + len(target) + 1].tolist() == [*target.encode(), 256]
    assert (targets[0] != IGNORE).sum() == len(target) + 1


def test_longer_pairs_are_dropped_or_cut(tmp_path: Path) -> None:
    block = lines(tmp_path)
    assert len(read(block)._kept("train", 20)) < len(read(block)._kept("train", 48))
    with pytest.raises(ValueError, match=r"no pair for `seq_len` = 8: its \d+ pairs are longer; raise"):
        read(block).check("train", 8)
    sources, targets = read(block, longer="cut").paired("train", 0, 0, 4, 8)
    assert (sources >= 0).all()
    assert (targets >= 0).all()


def test_padding_of_a_source_changes_nothing(tmp_path: Path) -> None:
    """A model reads a padded source as the same source alone."""
    flags = {f"{half}_{name}": value for half in ("enc", "dec") for name, value in
             {"depth": 1, "heads": 2, "attn_dim_head": 8}.items()}  # fmt: skip
    block = {**lines(tmp_path), "seq_len": 48}
    trial = Trial.model_validate({"flags": {"model": "xtransformer", "dim": 16, **flags}, "data": block})
    model = trial.build().eval()
    objective = trial.trained_by
    read_ids, given, valid, _ = objective.batch(trial.source, "train", 0, 0, 4, 48)
    whole = objective.ask(model, (read_ids, given, valid), None, False).logits
    for row in range(4):
        count = int(valid[row].sum())
        alone = objective.ask(
            model, (read_ids[row : row + 1, :count], given[row : row + 1]), None, False
        ).logits
        assert torch.allclose(alone[0], whole[row], atol=1e-5)
    exact = objective.exact_rows(model, (read_ids, given, valid), torch.full((4, 24), IGNORE))
    assert exact.tolist() == [True] * 4


def test_labelled_rows_are_those_of_the_file(tmp_path: Path) -> None:
    source = read(labelled(tmp_path), seq_len=24)
    assert source.num_classes == 3
    seen: dict[str, set[str]] = {}
    for split in ("train", "validation", "test"):
        count = len(source._numbers(split))
        rows, classes = source.classified(split, 0, 0, count, 24)
        texts = [bytes(one for one in row if one != IGNORE).decode() for row in rows.tolist()]
        assert [text.split()[0] for text in texts] == [CLASSES[one] for one in classes[:, 0].tolist()]
        seen[split] = set(texts)
    assert sum(map(len, seen.values())) == 120
    assert len(seen["train"]) > 90
    assert source.classified("train", 0, 0, 1, 4)[0].shape == (1, 4)


def test_images_are_those_of_the_folders(tmp_path: Path) -> None:
    source = read(images(tmp_path))
    assert (source.seq_len, source.num_tokens) == (64, 3)
    known = {pixels.tobytes(): number % 3 for number, pixels in enumerate(PIXELS)}
    found = 0
    for split in ("train", "validation", "test"):
        count = len(source._numbers(split))
        pixels, classes = source.batch(split, 0, 0, count, 64)
        for image, label in zip((pixels * 255).round().byte(), classes[:, 0].tolist()):
            assert known[image.permute(1, 2, 0).numpy().tobytes()] == label
        found += count
    assert found == 60
    grey = read({**images(tmp_path), "channels": 1, "size": 4})
    assert grey.batch("train", 0, 0, 2, 16)[0].shape == (2, 1, 4, 4)


def test_folders_name_the_splits_of_images(tmp_path: Path) -> None:
    block = images(tmp_path)
    for split in ("train", "val", "test"):
        (tmp_path / "split" / split).mkdir(parents=True)
        for name in CLASSES:
            (tmp_path / "images" / name).rename(tmp_path / "split" / split / name)
        images(tmp_path)
    source = read({**block, "path": tmp_path / "split"})
    assert [len(source._numbers(split)) for split in ("train", "validation", "test")] == [60, 60, 60]


@pytest.mark.parametrize("form", ["array", "table"])
def test_windows_are_those_of_the_series(form: str, tmp_path: Path) -> None:
    source = read(FORMS[form](tmp_path), seq_len=16, ahead=3)
    train = WAVES[:540].astype(np.float32)
    mean, scale = train.mean(0), train.std(0)
    starts = set()
    for step in range(11):
        inputs, targets = source.batch("train", step, 0, 3, 16)
        for row, wanted in zip(inputs.numpy() * scale + mean, targets.numpy() * scale + mean):
            start = int(np.abs(WAVES - row[0]).sum(1).argmin())
            assert np.allclose(row, WAVES[start : start + 16], atol=1e-4)
            assert np.allclose(wanted, WAVES[start + 3 : start + 19], atol=1e-4)
            starts.add(start)
    assert starts == set(range(0, 528, 16)), "every window once in an epoch"
    held_out = source.batch("test", 0, 0, 1, 8)[0][0].numpy() * scale + mean
    assert np.abs(held_out[0] - WAVES[570:]).sum(1).min() < 1e-4


def test_many_series_are_split_as_wholes(tmp_path: Path) -> None:
    np.save(tmp_path / "many.npy", np.arange(40)[:, None, None] + np.zeros((40, 12, 1)))
    source = read({"source": "series", "path": tmp_path / "many.npy", "normalise": False})
    values = {
        split: set(source.batch(split, 0, 0, 36, 8)[0].unique().tolist()) for split in ("train", "test")
    }
    assert values == {"train": set(range(36)), "test": {38.0, 39.0}}


TINY = {"dim": 16, "depth": 1, "heads": 2, "attn_dim_head": 8}
PAIR = {"dim": 16, **{f"{half}_{key}": TINY[key] for half in ("enc", "dec") for key in TINY if key != "dim"}}
MODELS: dict[str, tuple[dict[str, Any], int]] = {
    "lines": ({"model": "xtransformer", **PAIR}, 48),
    "records": ({"model": "decoder", **TINY}, 48),
    "labelled": ({"model": "classifier", **TINY, "ff_dropout": 0.1}, 24),
    "images": ({**TINY, "patch_size": 4}, 64),
    "table": (TINY, 16),
}


@pytest.mark.parametrize("form", MODELS)
def test_a_killed_run_resumes_with_equal_bits(form: str, tmp_path: Path) -> None:
    flags, length = MODELS[form]
    train = {
        "steps": 5,
        "batch_size": 4,
        "accumulate": 2,
        "warmup": 1,
        "checkpoint_every": 2,
        "device": "cpu",
    }
    content = {
        "flags": flags, "data": {**FORMS[form](tmp_path), "seq_len": length}, "train": train,
        "evaluate": {"batches": 1},
    }  # fmt: skip
    trial = Trial.model_validate(content)
    whole = run_trial(trial, tmp_path / "whole")
    with pytest.raises(Killed):
        run_trial(trial, tmp_path / "killed", killer(3))
    again = run_trial(Trial.model_validate(json.loads(json.dumps(content, default=str))), tmp_path / "killed")
    weights = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("whole", "killed")]
    assert weights[0] == weights[1]
    assert again["evaluation"] == whole["evaluation"]
    assert whole["status"] == "finished"
