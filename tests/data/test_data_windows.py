"""A text encoded in windows has the tokens of one call, for every kind of tokenizer and text."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch

from flagformer.lab.data import encoded, windows
from flagformer.lab.data.tokens import read_tokenizer

tokenizers = pytest.importorskip("tokenizers")
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers  # noqa: E402

PROSE = (
    "Four score and seven years ago our fathers brought upon this continent a new nation,\n"
    "conceived in Liberty; and dedicated to the proposition that all men are created equal.\n\n"
    "    def dedicated(nation, years=87):\n\t\treturn [year ** 2 for year in range(years)]  # 1234567\n"
    "Jetzt über grüne Wörter, naïve café; 我们今天在这里 für immer.\r\n"
)
TEXTS = {
    "lines": PROSE * 12,
    "one line": PROSE.replace("\n", " ").replace("\r", "") * 12,
    "no spaces": PROSE.replace(" ", "").replace("\n", "") * 16,
    "spaces": (PROSE[:40] + " " * 57 + PROSE[40:90]) * 30,
    "leading spaces": "   " + PROSE * 4,
    "one leading space": " " + PROSE * 4,
    "long run of spaces": PROSE + " " * 3000 + PROSE,
    "newlines": (PROSE[:70] + "\n" * 90 + PROSE[70:99] + "\r\n" * 40) * 16,
    "carriage returns": PROSE.replace("\n", "\r\n") * 12,
    "wide": "naïve Größe 我们今天在这里, fürs große Ganze \U0001f600\U0001f468\u200d\U0001f469 " * 60,
    "combining": "cafe\u0301 nai\u0308ve \ufb01n \u1e9b\u0323 " * 200,
    "one letter": "a" * 2501 + PROSE,
    "digits": "31415926535897932384626433832795" * 60 + " and 1234567 " * 40,
    "added": (PROSE[:50] + "  <mask>  <sep> \n <mask>x<s> " + PROSE[50:80]) * 30,
    "short": "We.",
    "long word": "years " * 150 + "x" * 150 + " years" * 300,
}
# The pattern by which GPT-4's tokenizer splits, without its possessive quantifiers.
PATTERN = (
    r"(?i:'s|'t|'re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPACED = "Metaspace"
LLAMA = [
    decoders.Replace("\u2581", " "),
    decoders.ByteFallback(),
    decoders.Fuse(),
    decoders.Strip(" ", 1, 0),
]


def bpe(**settings: Any) -> tuple[Any, Any]:
    special = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256) if settings.get("byte_fallback"))]
    letters = pre_tokenizers.ByteLevel.alphabet() if settings.pop("bytes", False) else []
    suffix = settings.get("end_of_word_suffix")
    forms = {"end_of_word_suffix": suffix} if suffix else {}
    unknown = {} if letters else {"unk_token": "<unk>"}
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=special, initial_alphabet=letters, show_progress=False, **forms
    )
    return models.BPE(**unknown, **settings), trainer


def unigram() -> tuple[Any, Any]:
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False
    )
    return models.Unigram(), trainer


def words(model: Any, trainer: Any) -> tuple[Any, Any]:
    return model(unk_token="[UNK]"), trainer(special_tokens=["[UNK]"], show_progress=False)


def byte_level(**settings: Any) -> Any:
    return pre_tokenizers.ByteLevel(**{"add_prefix_space": False, **settings})


def metaspace(scheme: str, split: bool = True) -> Any:
    return pre_tokenizers.Metaspace(prepend_scheme=scheme, split=split)


def split(pattern: str, behavior: str = "isolated") -> Any:
    return pre_tokenizers.Split(tokenizers.Regex(pattern), behavior)


STRIPPED = normalizers.Sequence(
    [normalizers.Strip(), normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
)
T5 = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(tokenizers.Regex(" {2,}"), " ")])
PREPENDED = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
# name: (model and trainer, normalizer, pre-tokenizer, decoder)
KINDS: dict[str, tuple[Any, Any, Any, Any]] = {
    "BPE, prefix by normalizer": (
        bpe(byte_fallback=True, fuse_unk=True),
        PREPENDED,
        None,
        decoders.Sequence(LLAMA),
    ),
    "BPE, stripped": (bpe(byte_fallback=True), STRIPPED, None, decoders.Sequence(LLAMA)),
    "BPE, Metaspace first, unsplit": (
        bpe(byte_fallback=True),
        None,
        metaspace("first", False),
        decoders.Sequence(LLAMA),
    ),
    "BPE, Metaspace first": (bpe(), None, metaspace("first"), decoders.Metaspace(prepend_scheme="first")),
    "BPE, Metaspace always": (bpe(), None, metaspace("always"), decoders.Metaspace(prepend_scheme="always")),
    "BPE, Metaspace never": (bpe(), None, metaspace("never"), decoders.Metaspace(prepend_scheme="never")),
    "BPE, suffix": (
        bpe(end_of_word_suffix="</w>"),
        normalizers.BertNormalizer(lowercase=False),
        pre_tokenizers.BertPreTokenizer(),
        decoders.BPEDecoder("</w>"),
    ),
    "BPE, digits": (
        bpe(),
        None,
        pre_tokenizers.Sequence([pre_tokenizers.Digits(True), metaspace("first")]),
        decoders.Metaspace(),
    ),
    "BPE, lines": (bpe(), None, split(r"\n"), decoders.Fuse()),
    "bytes, prefix": (bpe(bytes=True), None, byte_level(add_prefix_space=True), decoders.ByteLevel()),
    "bytes": (bpe(bytes=True), None, byte_level(), decoders.ByteLevel()),
    "bytes, one word": (bpe(bytes=True), None, byte_level(use_regex=False), decoders.ByteLevel()),
    "bytes, GPT-4": (
        bpe(bytes=True, ignore_merges=True),
        normalizers.NFC(),
        pre_tokenizers.Sequence([split(PATTERN), byte_level(use_regex=False)]),
        decoders.ByteLevel(),
    ),
    "Unigram, T5": (unigram(), T5, metaspace("always"), decoders.Metaspace()),
    "Unigram, first": (unigram(), None, metaspace("first"), decoders.Metaspace(prepend_scheme="first")),
    "Unigram, unsplit": (
        unigram(),
        None,
        metaspace("first", False),
        decoders.Metaspace(prepend_scheme="first"),
    ),
    "Unigram, stripped": (
        unigram(),
        normalizers.Strip(),
        pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), metaspace("always")]),
        decoders.Metaspace(),
    ),
    "WordPiece": (
        words(models.WordPiece, trainers.WordPieceTrainer),
        normalizers.BertNormalizer(),
        pre_tokenizers.BertPreTokenizer(),
        decoders.WordPiece(),
    ),
    "WordLevel": (
        words(models.WordLevel, trainers.WordLevelTrainer),
        None,
        pre_tokenizers.Whitespace(),
        None,
    ),
    "WordLevel, spaces kept": (
        words(models.WordLevel, trainers.WordLevelTrainer),
        None,
        split(r"\s+"),
        decoders.Fuse(),
    ),
    "WordLevel, letters": (
        words(models.WordLevel, trainers.WordLevelTrainer),
        None,
        split(r"[\s\S]"),
        decoders.Fuse(),
    ),
}
LOSSLESS = (
    "BPE, prefix by normalizer",
    "BPE, Metaspace first, unsplit",
    "bytes",
    "bytes, prefix",
    "bytes, one word",
)


@functools.cache
def trained(kind: str, directory: Path) -> tuple[Any, Path]:
    """The tokenizer with every optional part of a file, and its file."""
    (model, trainer), normalizer, splitter, decoder = KINDS[kind]
    made = tokenizers.Tokenizer(model)
    for name, part in (("normalizer", normalizer), ("pre_tokenizer", splitter), ("decoder", decoder)):
        if part is not None:
            setattr(made, name, part)
    made.train_from_iterator([PROSE, *PROSE.splitlines(keepends=True)], trainer)
    made.add_special_tokens(["<s>", "</s>"])
    made.add_tokens(
        [tokenizers.AddedToken("<mask>", lstrip=True), tokenizers.AddedToken("<sep>", rstrip=True)]
    )
    if kind.startswith("bytes"):
        made.post_processor = processors.ByteLevel(trim_offsets=True)
    else:
        marks = [(mark, made.token_to_id(mark)) for mark in ("<s>", "</s>")]
        made.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=marks)
    path = directory / "tokenizer.json"
    made.enable_truncation(100)
    made.enable_padding(length=5000)
    made.save(str(path))
    made.no_truncation()
    made.no_padding()
    return made, path


@pytest.fixture(scope="module", params=KINDS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return request.param, *trained(request.param, tmp_path_factory.mktemp("tokenizer"))


def spans_of(text: str, path: Path, directory: Path) -> tuple[list[int], encoded.Encoded]:
    """The whole text as one span."""
    content = torch.tensor(list(text.encode()), dtype=torch.uint8)
    base = directory / "text"
    encoded._write(base, content, ((0, len(content)),), read_tokenizer(path))
    [found] = encoded._read(base, base.with_suffix(".bin").stat().st_mtime_ns)
    return found.ids.tolist(), found


@pytest.mark.parametrize("size", [700, 1013])
def test_windows_give_the_tokens_of_one_call(
    made: Any, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, whole, path = made
    monkeypatch.setattr(windows, "WINDOW", size)
    monkeypatch.setattr(windows, "OVERLAP", 200)
    lossless = {}
    for name, text in TEXTS.items():
        wanted = whole.encode(text, add_special_tokens=False).ids
        encoded._read.cache_clear()
        ids, found = spans_of(text, path, tmp_path)
        assert ids == wanted, (kind, name)
        back = whole.decode(wanted, skip_special_tokens=False)
        lossless[name] = found.lossless
        assert found.lossless == (back == text or back == f" {text}" or f" {back}" == text), (kind, name)
        assert bool((found.sizes >= 0).all())
        assert int(found.sizes.sum()) == len(text.encode())
    lossless.pop("added")  # these take the adjacent spaces
    assert all(lossless.values()) or kind not in LOSSLESS


def test_windows_end_at_word_boundaries_where_possible(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prose needs no window of the whole text, unless one word is the whole text and the model cannot be
    split within words."""
    kind, _, path = made
    monkeypatch.setattr(windows, "OVERLAP", 2000)
    text = TEXTS["lines"] * 6
    chunks = [text[at : at + 4000] for at in range(0, len(text), 4000)]
    parts = list(windows.encode_parts(iter(chunks), read_tokenizer(path)))
    assert "".join(part.text for part in parts) == text
    assert len(parts) == (1 if kind == "Unigram, unsplit" else len(chunks))
