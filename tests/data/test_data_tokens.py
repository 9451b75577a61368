"""Tokens of a tokenizer: decoding restores the text, bits per byte use its bytes, missing packages are
named."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
import torch

from flagformer.lab.data import SPLITS, encoded, windows
from flagformer.lab.data.tokens import TokenFile, read_tokenizer
from flagformer.lab.train.config import EvaluateConfig, TrainConfig, Trial
from flagformer.lab.train.trial import run_trial

TEXT = "of the people, by the people, for the people; " * 200


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TokenFile:
    """A tokenizer trained on the text itself."""
    monkeypatch.setenv("FLAGFORMER_CACHE", str(tmp_path / "cache"))
    tokenizers = pytest.importorskip("tokenizers")
    (tmp_path / "text").write_text(TEXT, encoding="utf-8")
    made = tokenizers.ByteLevelBPETokenizer()
    made.train_from_iterator([TEXT], vocab_size=300, show_progress=False)
    made.save(str(tmp_path / "tokenizer.json"))
    return TokenFile(
        source="tokens", path=tmp_path / "text", tokenizer=tmp_path / "tokenizer.json", seq_len=8
    )


def test_the_tokens_decode_to_the_text(source: TokenFile) -> None:
    ids = [source.content(split).tolist() for split in ("train", "validation", "test")]
    text = "".join(read_tokenizer(source.tokenizer).decode(part) for part in ids)
    assert text == TEXT
    assert 256 < source.num_tokens <= 300
    size = len(TEXT.encode())
    assert source.bytes_per_token("train") == pytest.approx(int(0.9 * size) / len(ids[0]))
    assert size / sum(map(len, ids)) > 2


def test_bits_are_per_byte_of_the_tokens_scored(source: TokenFile, tmp_path: Path) -> None:
    trial = Trial(
        flags={"dim": 16, "depth": 1, "heads": 2}, data=source,
        train=TrainConfig(steps=3, warmup=1, batch_size=2, device="cpu"), evaluate=EvaluateConfig(batches=2),
    )  # fmt: skip
    [measured] = run_trial(trial, tmp_path / "run")["evaluation"]
    scored = [source.batch("test", step, 0, 2, 8)[1] for step in range(2)]
    decode = read_tokenizer(source.tokenizer).decode
    read = sum(len(decode(row.tolist()).encode()) for batch in scored for row in batch)
    nats = measured["nats"] * measured["tokens"]
    assert measured["bits_per_byte"] == pytest.approx(nats / math.log(2) / read)


def test_every_byte_belongs_to_one_token(source: TokenFile, tmp_path: Path) -> None:
    """Characters of one to four bytes, split across tokens and chunks."""
    text = "".join(chr(point) for point in [*range(0x20, 0x7F), *range(0x3B1, 0x3C9), 0x20AC, 0x1F600]) * 40
    (tmp_path / "wide").write_text(text, encoding="utf-8")
    wide = source.model_copy(update={"path": tmp_path / "wide"})
    sizes = [wide.sizes(split) for split in SPLITS]
    assert all(part is not None and bool((part >= 0).all()) for part in sizes)
    assert sum(int(part.sum()) for part in sizes if part is not None) == len(text.encode())
    back = "".join(read_tokenizer(wide.tokenizer).decode(wide.content(split).tolist()) for split in SPLITS)
    assert back == text


def test_no_character_is_split(monkeypatch: pytest.MonkeyPatch) -> None:
    """Invalid UTF-8 at the end of a chunk is read like elsewhere."""
    monkeypatch.setattr(windows, "OVERLAP", 0)
    for text in (b"one two;\n" * 9 + "\u20ac".encode() * 90, b"\xf0\x9f\x98\x80\x80" * 50, b"\xe2\x82" * 90):
        content = torch.tensor(list(text), dtype=torch.uint8)
        for size in (61, 62, 63, 64):
            monkeypatch.setattr(windows, "WINDOW", size)
            places: list[int] = []
            found = list(encoded.read_chunks(content, 0, len(text), places.append))
            assert "".join(found) == text.decode(errors="replace")
            assert min(places, default=None) == {0xE2: 0, 0xF0: 4}.get(text[0])


@pytest.mark.parametrize("stored", ["truncation", "padding"])
def test_truncation_and_padding_of_a_tokenizer_are_ignored(source: TokenFile, stored: str) -> None:
    whole = source.content("train").tolist()
    tokenizer = read_tokenizer(source.tokenizer)
    copy = type(tokenizer).from_str(tokenizer.to_str())
    copy.enable_truncation(16) if stored == "truncation" else copy.enable_padding(length=20_000)
    changed = source.tokenizer.with_name(f"{stored}.json")
    copy.save(str(changed))
    assert source.model_copy(update={"tokenizer": changed}).content("train").tolist() == whole


def test_the_vocabulary_reaches_the_largest_id(source: TokenFile) -> None:
    """Ids with a gap, as added tokens have in many published files."""
    record = json.loads(source.tokenizer.read_text(encoding="utf-8"))
    special = {"content": "<far>", "single_word": False, "lstrip": False, "rstrip": False}
    record["added_tokens"] = [{"id": 900, **special, "normalized": False, "special": True}]
    source.tokenizer.write_text(json.dumps(record))
    read_tokenizer.cache_clear()
    ids = read_tokenizer(source.tokenizer).get_vocab(with_added_tokens=True).values()
    assert source.num_tokens == max(ids) + 1 > len(ids) - 1


@pytest.mark.parametrize("loss", ["unknown words", "lower case"])
def test_tokens_that_do_not_decode_to_the_text_have_no_bits_per_byte(
    source: TokenFile, tmp_path: Path, loss: str
) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    if loss == "unknown words":
        made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0, "the": 1}, unk_token="[UNK]"))
        made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    else:
        made = tokenizers.Tokenizer.from_file(str(source.tokenizer))
        made.normalizer = tokenizers.normalizers.Lowercase()
        source.path.write_text("Of The People " * 300)
    made.save(str(tmp_path / "lossy.json"))
    lossy = source.model_copy(update={"tokenizer": tmp_path / "lossy.json"})
    with pytest.warns(UserWarning, match="do not decode to the text"):
        lossy.check("train", 8)
    assert not lossy.is_bytes
    assert lossy.bytes_per_token("test") is None
    assert lossy.sizes("test") is None


def test_a_text_is_encoded_once(source: TokenFile, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second process reads the files of the first; a changed text is encoded again."""
    ids = source.content("train").tolist()
    monkeypatch.setattr(encoded, "_write", lambda *_: pytest.fail("encoded a second time"))
    encoded._read.cache_clear()
    assert source.content("train").tolist() == ids
    source.path.write_text(TEXT + "and more")
    with pytest.raises(pytest.fail.Exception, match="a second time"):
        source.content("train")


def test_a_cache_that_cannot_be_written_is_named(
    source: TokenFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "taken").write_text("a file")
    monkeypatch.setenv("FLAGFORMER_CACHE", str(tmp_path / "taken"))
    with pytest.raises(ValueError, match="`FLAGFORMER_CACHE` must be a directory that can be written"):
        source.content("train")


def test_a_file_that_is_not_a_tokenizer_is_named(
    source: TokenFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bad.json").write_text("{}")
    for path, words in ((tmp_path / "bad.json", "is none"), (tmp_path / "nowhere.json", "is not there")):
        with pytest.raises(ValueError, match=f"`tokenizer` must be a tokenizer.json, but .*{words}"):
            source.model_copy(update={"tokenizer": path}).check("train", 8)
    read_tokenizer.cache_clear()
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ValueError, match=r"pip install 'flagformer\[tokenizers\]'"):
        source.check("train", 8)
