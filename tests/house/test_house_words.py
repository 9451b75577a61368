"""The check for private words finds a planted word in every kind of text, and accepts ordinary sentences."""

from pathlib import Path

import pytest
import words

# file: (its text, the line of the finding, the word)
PLANTED = {
    "src/identifier.py": ("x = 1\nseat_count = 2\n", 2, "seat"),
    "src/camel_case.py": ("class KVSeats:\n    pass\n", 1, "Seats"),
    "src/attribute.py": ("x.woven_state()\n", 1, "woven"),
    "src/constant.py": ("BESIDE = {}\n", 1, "BESIDE"),
    "src/comment.py": ("x = 1  # stands behind it\n", 1, "behind"),
    "src/string.py": ('error = "the flag was told"\n', 1, "told"),
    "src/f_string.py": ('error = f"{error}: told {error}"\n', 1, "told"),
    "src/docstring.py": ('"""The module.\n\nNobody reads it.\n"""\n', 3, "Nobody"),
    "src/types.pyi": ("def stir(x: int) -> int: ...\n", 1, "stir"),
    "docs/page.md": ("# Title\n\nThe `seats` of a row.\n", 3, "seats"),
    "docs/name.md": ("The class `SeatCache`.\n", 1, "Seat"),
    "tests/golden/model.txt": ("few pairs\n", 1, "few pairs"),
    "studies/study.yaml": ("name: positions anew\n", 1, "anew"),
    "README.md": ("Keys of whom\n", 1, "whom"),
}
ORDINARY = """\
The last token attends to its predecessors; the mask is applied before the softmax.
Memory tokens are interleaved with the row, and prefix keys precede the keys of every token.
Neither `seating_plan` nor `spotless` nor `retold` contains a private word as a word.
"""


def lines(root: Path) -> list[str]:
    return [line.split(": use ")[0] for line in words.findings(root)]


def plant(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


@pytest.mark.parametrize("name", PLANTED)
def test_a_private_word_is_found(tmp_path: Path, name: str) -> None:
    text, line, word = PLANTED[name]
    plant(tmp_path, name, text)
    assert lines(tmp_path) == [f"{name}:{line}: {word!r}"]


@pytest.mark.parametrize("name", ["src/woven_state.py", "docs/the-seats.md", "src/tape/__init__.py"])
def test_a_private_word_is_found_in_a_file_name(tmp_path: Path, name: str) -> None:
    plant(tmp_path, name, "")
    assert [line.rpartition("'")[2] for line in lines(tmp_path)] == [" in its name"]


def test_ordinary_sentences_have_no_findings(tmp_path: Path) -> None:
    plant(tmp_path, "docs/page.md", ORDINARY)
    plant(
        tmp_path,
        "src/module.py",
        f'"""{ORDINARY}"""\nlast_position = "least"  # the first and the last key\n',
    )
    assert lines(tmp_path) == []


def test_each_finding_advises_a_term(tmp_path: Path) -> None:
    plant(tmp_path, "docs/page.md", "a tape\n")
    assert words.findings(tmp_path) == ["docs/page.md:1: 'tape': use output collector"]


def test_generated_and_listed_files_are_skipped(tmp_path: Path) -> None:
    for name in ("docs/_build/page.md", "docs/api/generated/page.md", "tests/house/words.py"):
        plant(tmp_path, name, "told\n")
    assert lines(tmp_path) == []
