"""Tokens of a tokenizer: the text comes back, bits per byte are those of the bytes, absent packages are
named."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest

from flagformer.data.tokens import TokenFile, _tokenizer
from flagformer.train.config import EvaluateConfig, TrainConfig, Trial
from flagformer.train.trial import run_trial

TEXT = "of the people, by the people, for the people; " * 200


@pytest.fixture
def source(tmp_path: Path) -> TokenFile:
    """A tokenizer that was trained on the text itself."""
    tokenizers = pytest.importorskip("tokenizers")
    (tmp_path / "text").write_text(TEXT, encoding="utf-8")
    made = tokenizers.ByteLevelBPETokenizer()
    made.train_from_iterator([TEXT], vocab_size=300, show_progress=False)
    made.save(str(tmp_path / "tokenizer.json"))
    return TokenFile(
        source="tokens", path=tmp_path / "text", tokenizer=tmp_path / "tokenizer.json", seq_len=8
    )


def test_the_tokens_stand_for_the_text(source: TokenFile) -> None:
    ids = [source.content(split).tolist() for split in ("train", "validation", "test")]
    text = "".join(_tokenizer(source.tokenizer).decode(part) for part in ids)
    assert text == TEXT
    assert 256 < source.num_tokens <= 300
    size = len(TEXT.encode())
    assert source.bytes_per_token("train") == pytest.approx(int(0.9 * size) / len(ids[0]))
    assert source.bytes_per_token("train") > 2


def test_bits_are_per_byte_not_per_token(source: TokenFile, tmp_path: Path) -> None:
    trial = Trial(
        flags={"dim": 16, "depth": 1, "heads": 2}, data=source,
        train=TrainConfig(steps=3, warmup=1, batch_size=2, device="cpu"), evaluate=EvaluateConfig(batches=2),
    )  # fmt: skip
    [measured] = run_trial(trial, tmp_path / "run")["evaluation"]
    bits = measured["nats"] / math.log(2)
    assert measured["bits_per_byte"] == pytest.approx(bits / source.bytes_per_token("test"))


def test_what_is_no_tokenizer_is_named(
    source: TokenFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bad.json").write_text("{}")
    for path, words in ((tmp_path / "bad.json", "is none"), (tmp_path / "nowhere.json", "is not there")):
        with pytest.raises(ValueError, match=f"`tokenizer` must be a tokenizer.json, but .*{words}"):
            source.model_copy(update={"tokenizer": path}).check("train", 8)
    _tokenizer.cache_clear()
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ValueError, match=r"pip install 'flagformer\[tokenizers\]'"):
        source.check("train", 8)
