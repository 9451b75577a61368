"""A generator of malformed study and training files: each has one known fault, most of them at a known
line."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

STUDY = """\
name: tiny
base:
  dim: 16
  depth: 1
  heads: 2
data:
  source: copy
  symbols: 8
  seq_len: 16
train:
  steps: 20
  batch_size: 4
  lr: 1e-2
  warmup: 5
  weight_decay: 0.1
compare:
  learned: {}
  rotary:
    rotary_pos_emb: true
grid:
  ff_mult: [2, 3]
tune:
  lr: [1e-3, 1e-2]
seeds: 2
match:
  what: none
  within: 0.05
evaluate:
  seq_lens: [16, 32]
  batches: 2
margin: 0.01
concurrency: 2
threads: 1
memory: 2
retries: 3
executor: local
audit: false
"""
RUN = """\
name: tiny
base:
  dim: 16
  depth: 1
  heads: 2
data:
  source: copy
  symbols: 8
  seq_len: 16
train:
  steps: 20
  batch_size: 4
  lr: 1e-2
  warmup: 5
seed: 0
threads: 1
"""
NUMBERS = (
    "dim", "depth", "heads", "symbols", "seq_len", "steps", "batch_size", "lr", "warmup", "weight_decay",
    "within", "batches", "margin", "concurrency", "threads", "memory", "retries",
)  # fmt: skip
WRONG_NUMBERS = (
    "many", "[1]", "{a: 1}", ".nan", "-3", "true", "''", "1e999", "99999999999999999999", "!!int 7x",
)  # fmt: skip
MAPPINGS = ("base", "data", "train", "compare", "grid", "tune", "evaluate")
WRONG_MAPPINGS = ("word", "7", "[1, 2]", ".nan", "''")
LISTS = ("seq_lens", "seeds")
WRONG_LISTS = ("word", "[a]", "[0.5]", "[-1]", "[2, 2]", "{a: 1}", "[[1]]", "[.nan]", "[]x")
ELSEWHERE = {  # the text, and its replacement
    "an unknown setting": ("  steps: 20", "  stpes: 20"),
    "an unknown block": ("train:", "trian:"),
    "an unknown flag": ("  depth: 1", "  deepness: 1"),
    "an unknown variant flag": ("rotary_pos_emb: true", "rotary_pos_embed: true"),
    "a flag of a wrong type": ("rotary_pos_emb: true", "rotary_pos_emb: 3.5"),
    "an unknown source": ("source: copy", "source: wikipedia"),
    "a source of a wrong type": ("source: copy", "source: [copy]"),
    "a path for a name": ("name: tiny", "name: ../tiny"),
    "a number for a name": ("name: tiny", "name: 7"),
    "a name without end": ("name: tiny", "name: " + "x" * 100),
    "a colon lost": ("train:", "train"),
    "a tab": ("  dim: 16", "\tdim: 16"),
    "a bracket left open": ("dim: 16", "dim: [16"),
    "a quote left open": ("name: tiny", "name: 'tiny"),
    "a key twice": ("  heads: 2", "  heads: 2\n  dim: 8"),
    "an anchor that is not there": ("dim: 16", "dim: *width"),
    "a python object": ("dim: 16", "dim: !!python/object/apply:os.getcwd []"),
    "binary": ("dim: 16", "dim: !!binary aGk="),
    "a list as key": ("  dim: 16", "  [1, 2]: 16"),
    "a second document": ("seed", "---\nseed"),
    "a zero byte": ("name: tiny", "name: ti\x00ny"),
    "nested deeply": ("dim: 16", "dim: " + "[" * 2000),
    "indented wrongly": ("  heads: 2", "   heads: 2"),
}
STUDY_ONLY = {
    "a null name": ("name: tiny", "name:"),
    "no variants": ("compare:\n  learned: {}\n  rotary:\n    rotary_pos_emb: true\n", "compare: {}\n"),
    "a variant that is a word": ("  learned: {}", "  learned: plain"),
    "a variant with a bad name": ("  learned: {}", "  '<b>': {}"),
    "an axis that is no list": ("  ff_mult: [2, 3]", "  ff_mult: 2"),
    "an axis of nothing": ("  ff_mult: [2, 3]", "  ff_mult: []"),
    "an axis with a value twice": ("  ff_mult: [2, 3]", "  ff_mult: [2, 2]"),
    "an axis of words": ("  ff_mult: [2, 3]", "  ff_mult: [wide, wider]"),
    "an axis that is unknown": ("  ff_mult: [2, 3]", "  train.stpes: [2, 3]"),
    "an axis that a variant sets": ("rotary_pos_emb: true", "ff_mult: 5"),
    "a grid of thousands": ("  ff_mult: [2, 3]", f"  seed_of_flags: {list(range(600))}"),
    "a budget that is tuned": ("  lr: [1e-3", "  steps: [1e-3"),
    "a candidate below zero": ("  lr: [1e-3", "  lr: [-1"),
    "a candidate that is NaN": ("  lr: [1e-3", "  lr: [.nan"),
    "a candidate of a wrong type": ("  lr: [1e-3", "  lr: [high"),
    "a knob that is unknown": ("  what: none", "  what: none\n  by: color"),
    "a match that is unknown": ("  what: none", "  what: everything"),
    "no steps to match parameters by": ("  what: none", "  what: params\n  by: steps"),
    "training of a variant that is a word": ("    rotary_pos_emb: true", "    train: fast"),
    "training of a variant that is unknown": ("    rotary_pos_emb: true", "    train: {stpes: 3}"),
    "training of a variant that cannot be": ("    rotary_pos_emb: true", "    train: {steps: -3}"),
    "an executor that is unknown": ("executor: local", "executor: slurm"),
    "GPUs of this machine": ("executor: local", "gpus: 1"),
    "an audit that is a number": ("audit: false", "audit: 2"),
    "no seeds": ("seeds: 2", "seeds: 0"),
    "millions of seeds": ("seeds: 2", "seeds: 1000000"),
}
ENCODINGS = {
    "utf-16": STUDY.encode("utf-16"),
    "utf-32": STUDY.encode("utf-32"),
    "latin-1": STUDY.replace("tiny", "tänz").encode("latin-1"),
    "a cut character": STUDY.encode() + "# ü".encode()[:3],
    "zeros": bytes(100),
    "noise": bytes(range(256)) * 4,
    "nothing": b"",
    "a comment": b"# nothing\n",
    "a list": b"- a\n- b\n",
    "a word": b"study\n",
    "a picture": b"\x89PNG\r\n\x1a\n" + bytes(64),
    "two mebibytes": b"a: 1\n" * (1 << 19),
}


@dataclass(frozen=True)
class Malformed:
    """One file: its fault, whether it is a study or a training file, its bytes, and the line of the fault
    if there is one."""

    fault: str
    kind: str
    content: bytes
    line: int | None = None


def malformed() -> Iterator[Malformed]:
    """Every malformed file."""
    for kind, text in (("study", STUDY), ("run", RUN)):
        yield from _values(kind, text)
        for fault, (old, new) in {**ELSEWHERE, **(STUDY_ONLY if kind == "study" else {})}.items():
            if old in text:
                yield Malformed(fault, kind, text.replace(old, new, 1).encode())
        for key in ("base", "data", "train", "name") if kind == "study" else ("base",):
            yield Malformed(f"no {key}", kind, _without(text, key).encode())
    for fault, content in ENCODINGS.items():
        yield Malformed(fault, "study", content)


def _values(kind: str, text: str) -> Iterator[Malformed]:
    """Every key with invalid values."""
    for line, words in enumerate(text.splitlines(), start=1):
        key = words.partition(":")[0].strip()
        wrong = WRONG_NUMBERS if key in NUMBERS else WRONG_LISTS if key in LISTS else ()
        if key in ("lr", "within") and "[" in words:
            wrong = ()
        for value in wrong:
            lines = text.splitlines()
            lines[line - 1] = words.partition(":")[0] + ": " + value
            yield Malformed(f"{key}: {value}", kind, "\n".join(lines).encode(), line)
        if key in MAPPINGS and words.endswith(":"):
            for value in WRONG_MAPPINGS:
                yield Malformed(f"{key}: {value}", kind, _without(text, key, f"{key}: {value}\n").encode())


def _without(text: str, key: str, instead: str = "") -> str:
    """The text without a top-level key and its block."""
    kept, inside = [], False
    for line in text.splitlines(keepends=True):
        if not line.startswith(" "):
            inside = line.startswith(f"{key}:")
            if inside:
                kept.append(instead)
        if not inside:
            kept.append(line)
    return "".join(kept)
