"""Bad study files and bad overrides: one screen, the line, exit status 2, no traceback."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from tiny_study import TINY

Command = Callable[..., Result]


def changed(old: str, new: str) -> str:
    assert TINY.count(old) == 1
    return TINY.replace(old, new)


REQUIRED = ("name", "base", "data", "train", "compare")
# content of the file, then (line, text) of every mistake that must be named
BAD: dict[str, tuple[str, list[tuple[int, str]]]] = {
    "empty": ("", [(1, "is empty")]),
    "only a comment": ("# nothing\n\n", [(1, "is empty")]),
    "a list": ("- name: x\n- base: {}\n", [(1, "must contain a mapping")]),
    "a word": ("positions\n", [(1, "must contain a mapping")]),
    "bad yaml": (changed("compare:\n", "compare: {\n"), [(10, "is not valid YAML")]),
    "a tab": (changed("  dim: 16\n", "\tdim: 16\n"), [(3, "is not valid YAML")]),
    "a control character": ("name: \x07\n", [(1, "is not valid YAML")]),
    "a python object": ("name: !!python/object/apply:os.system [ls]\n", [(1, "`name`")]),
    "a key twice": (
        changed("  heads: 2\n", "  heads: 2\n  dim: 32\n"),
        [(6, "`dim` is set twice")],
    ),
    "an alias without end": ("name: tiny\nbase: &a {x: *a}\n", [(2, "alias")]),
    "nested deeply": ("name: " + "[" * 3000, [(1, "nested too deeply")]),
    "nothing required": ("seeds: 3\n", [(1, f"`{key}` is missing") for key in REQUIRED]),
    "unknown block": (changed("seeds: 2", "seed: 2"), [(11, "`seed` is not known; did you mean `seeds`?")]),
    "unknown setting": (
        changed("steps: 200", "stpes: 200"),
        [(7, "`train.stpes` is not known; did you mean `steps`?")],
    ),
    "unknown data setting": (changed("symbols: 8", "symbol: 8"), [(6, "did you mean `symbols`?")]),
    "unknown source": (
        changed("source: copy", "source: wiki"),
        [(6, "stdlib, file, tokens, jsonl")],
    ),
    "no source": (changed("source: copy, ", ""), [(6, "`data.source` is missing")]),
    "words for numbers": (
        changed("steps: 200", "steps: many"),
        [(7, "`train.steps` must be a valid integer, but is 'many'")],
    ),
    "quoted number": (changed("steps: 200", "steps: '200'"), [(7, "`train.steps` must be a valid integer")]),
    "true for a number": (
        changed("steps: 200", "steps: true"),
        [(7, "`train.steps` must be a valid integer, but is true")],
    ),
    "too small": (changed("batch_size: 4", "batch_size: 0"), [(7, "greater than or equal to 1, but is 0")]),
    "not a number": (changed("lr: 1e-2", "lr: .nan"), [(7, "`train.lr`")]),
    "unknown optimizer": (
        changed("steps: 200", "optimizer: sgd, steps: 200"),
        [(7, "`train.optimizer.name` must be one of adamw, muon, lion, adafactor, schedulefree")],
    ),
    "no optimizer": (
        changed("steps: 200", "optimizer: {}, steps: 200"),
        [(7, "`train.optimizer.name` is missing; it must be one of adamw, muon")],
    ),
    "unknown group": (
        changed("steps: 200", "groups: {embeding: {}}, steps: 200"),
        [(7, "`train.groups.embeding` must be 'embedding'")],
    ),
    "one value of two": (
        changed("steps: 200", "betas: [0.9], steps: 200"),
        [(7, "`train.betas` must have at least 2 values, but is [0.9]")],
    ),
    "no mapping": (
        changed("data: {source: copy, symbols: 8, seq_len: 16}", "data: copy"),
        [(6, "`data` must be a mapping")],
    ),
    "bad name": (changed("name: tiny", "name: a/b"), [(1, "`name` must be letters")]),
    "no seeds": (changed("seeds: 2", "seeds: 0"), [(11, "`seeds` must be a count from 1")]),
    "seeds twice": (changed("seeds: 2", "seeds: [1, 1]"), [(11, "different whole numbers")]),
    "bad length": (
        changed("seq_lens: [16, 32]", "seq_lens: [16, 1]"),
        [(12, "`seq_lens` must be lengths of at least 2")],
    ),
    "no variants": (TINY.split("compare:")[0] + "compare: {}\n", [(8, "at least one variant")]),
    "variant no mapping": (
        changed("learned: {}", "learned: rotary"),
        [(9, "`compare.learned` must be a mapping of flags")],
    ),
    "bad variant name": (changed("learned:", "<b>:"), [(9, "a variant's name")]),
    "unknown flag": (
        changed("rotary_pos_emb: true", "rotary_pos_embed: true"),
        [(10, "did you mean `rotary_pos_emb`")],
    ),
    "unknown base flag": (changed("  depth: 1", "  deppth: 1"), [(4, "did you mean `depth`")]),
    "flag of a wrong type": (changed("  dim: 16", "  dim: wide"), [(3, "`dim` must be int")]),
    "conflict": (
        changed("rotary_pos_emb: true,", "rotary_pos_emb: true, rotary_xpos_scale_bsae: 1,"),
        [(10, "rotary")],
    ),
    "impossible size": (changed("  heads: 2", "  heads: 0"), [(5, "heads")]),
    "unknown model": (
        changed("  depth: 1", "  depth: 1\n  model: encodr"),
        [(5, "`model` must be one of")],
    ),
    "other vocabulary": (
        changed("  depth: 1", "  depth: 1\n  num_tokens: 5"),
        [(5, "`num_tokens` must be 9")],
    ),
    "positions too few": (
        changed("  depth: 1", "  depth: 1\n  max_seq_len: 20"),
        [(5, "`max_seq_len` must be at least 32")],
    ),
    "no such data file": (
        changed(
            "{source: copy, symbols: 8, seq_len: 16}", "{source: file, path: /nowhere/text, seq_len: 16}"
        ),
        [(6, "/nowhere/text")],
    ),
    "many at once": (
        changed("steps: 200", "stpes: 200")
        .replace("seeds: 2", "seeds: x")
        .replace("name: tiny", "nam: tiny"),
        [(1, "`nam` is not known"), (7, "did you mean `steps`"), (11, "`seeds` must be")],
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_every_mistake_is_named_with_its_line(case: str, tmp_path: Path, command: Command) -> None:
    text, expected = BAD[case]
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    result = command("run", path, "--out", tmp_path / "out")
    assert_one_screen(result, 2)
    for line, words in expected:
        pattern = rf"^(error: )?{re.escape(str(path))}:{line}: .*{re.escape(words)}"
        assert re.search(pattern, result.stderr, re.MULTILINE), result.stderr
    assert not (tmp_path / "out").exists()


def assert_one_screen(result: Result, status: int) -> None:
    assert result.exit_code == status, (result.output, result.exception)
    assert "Traceback" not in result.output
    assert result.stderr.startswith("error:")
    assert len(result.stderr.splitlines()) <= 25
    assert max(map(len, result.stderr.splitlines())) <= 500


def test_mistakes_of_several_kinds_are_sorted_by_line(tmp_path: Path, command: Command) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(BAD["many at once"][0])
    lines = [int(line) for line in re.findall(r"bad\.yaml:(\d+)", command("run", path).stderr)]
    assert lines == sorted(lines)
    assert len(lines) >= 3


def test_wrong_flags_are_named_with_wrong_blocks(tmp_path: Path, command: Command) -> None:
    text = TINY.replace("steps: 200", "steps: -3").replace("rotary_pos_emb", "rotary_pos_em")
    path = tmp_path / "two.yaml"
    path.write_text(text)
    out = command("run", path)
    assert out.exit_code == 2
    assert "two.yaml:7: `train.steps`" in out.stderr
    assert "two.yaml:10: variant `rotary`: `rotary_pos_em` is not a flag" in out.stderr


def test_seeds_are_optional(tmp_path: Path, command: Command) -> None:
    path = tmp_path / "plain.yaml"
    path.write_text(TINY.replace("seeds: 2\n", ""))
    out = command("run", path, "--dry-run")
    assert out.exit_code == 0, out.stderr
    assert "2 variants x 3 seeds" in out.stdout


def test_more_mistakes_than_a_screen_are_counted(tmp_path: Path, command: Command) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(TINY + "".join(f"unknown_{i}: 1\n" for i in range(100)))
    result = command("run", path)
    assert_one_screen(result, 2)
    assert "and 84 more" in result.stderr


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.mkdir(), "is a directory"),
        (
            lambda path: path.write_bytes(b"name: tiny\nbase: \xff\xfe\n"),
            ":2: must be UTF-8 text, but byte 17 is 0xff",
        ),
        (lambda path: path.write_bytes(bytes(2 << 20)), "has 2,097,152 bytes"),
        (lambda path: path.write_bytes(b"\x00" * 50), "is not valid YAML"),
    ],
    ids=["missing", "directory", "not utf-8", "too large", "zeros"],
)
def test_files_that_are_not_text(
    make: Callable[[Path], object], words: str, tmp_path: Path, command: Command
) -> None:
    path = tmp_path / "bad.yaml"
    make(path)
    result = command("run", path)
    assert_one_screen(result, 2)
    assert str(path) in result.stderr
    assert words in result.stderr


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.steps", "must be written `key=value`"),
        ("=5", "has an empty key"),
        ("train..steps=5", "has an empty key"),
        ("train.steps=[", "is not valid YAML"),
        ("train.steps=many", "`train.steps` must be a valid integer"),
        ("train.stpes=5", "did you mean `steps`?"),
        ("seeds.x=3", "`seeds` is 2, which has no key `x`"),
        ("base.dimm=8", "did you mean `dim`"),
        ("compare.rotary.rotary_emb_dimm=8", "did you mean `rotary_emb_dim`"),
        ("compare.learned=5", "must be a mapping of flags"),
    ],
)
def test_bad_overrides_are_named_as_given(override: str, words: str, tiny: Path, command: Command) -> None:
    result = command("run", tiny, override, "--dry-run")
    assert_one_screen(result, 2)
    assert f"override `{override}`" in result.stderr
    assert words in result.stderr


def test_dry_run_prints_the_plan_and_writes_nothing(tiny: Path, command: Command, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = command("run", tiny, "base.depth=2", "train.steps=7", "--dry-run", "--out", out)
    assert result.exit_code == 0, result.output
    assert re.search(r"^ *learned +[\d,]+ +\S+ k +\S+ KiB +448 ", result.stdout, re.MULTILINE)
    assert re.search(r"^ *rotary +.*rotary_pos_emb=True", result.stdout, re.MULTILINE)
    assert "4 trials: 2 variants x 2 seeds, 7 steps each; 2 in parallel" in result.stdout
    assert not out.exists()
