"""Images: scikit-learn's digits, a vision transformer trained on them, and the error without the
package."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from flagformer.lab.data.digits import Digits, _load
from flagformer.lab.train.config import EvaluateConfig, TrainConfig, Trial
from flagformer.lab.train.trial import run_trial

FLAGS = {"patch_size": 2, "dim": 32, "depth": 2, "heads": 2, "attn_dim_head": 16}


def test_without_the_package_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    _load.cache_clear()
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ValueError, match=r"pip install 'flagformer\[images\]'"):
        Digits(source="digits").check("train", 64)


def test_a_vision_transformer_learns_digits(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    torch.set_num_threads(1)
    data = Digits(source="digits")
    parts = {split: _load()[split] for split in ("train", "validation", "test")}
    assert sum(len(images) for images, _ in parts.values()) == 1797
    assert parts["test"][0].max() == 1.0
    trial = Trial(
        flags=FLAGS, data=data, train=TrainConfig(steps=250, batch_size=64, lr=4e-3, warmup=10, device="cpu"),
        evaluate=EvaluateConfig(batches=3),
    )  # fmt: skip
    result = run_trial(trial, tmp_path / "run")
    [measured] = result["evaluation"]
    assert measured["tokens"] == 3 * 64
    assert measured["accuracy"] > 0.7  # chance is 0.1; a model that uses the image is above 0.9


def test_only_a_vision_transformer_reads_images() -> None:
    pytest.importorskip("sklearn")
    with pytest.raises(ValueError, match="`model` must be vit"):
        Trial(flags={"model": "decoder", "dim": 8, "num_classes": 10}, data=Digits(source="digits")).check()
