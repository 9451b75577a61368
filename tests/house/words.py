"""Keeps private words out of sources, tests, docs and messages: `python tests/house/words.py` lists each one.

The list maps private words to the terms of the field: in identifiers, comments, strings, docs and file names.
"""

import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PLACES = ("src", "tests", "benchmarks", "docs", "studies", "findings", "README.md", "Makefile")
SKIPPED = ("docs/_build", "docs/api/generated", "tests/house/words.py", "tests/house/test_house_words.py")
# Files that quote names of version 0.1, and those names.
QUOTED = {
    "src/flagformer/storage/schema.py": {"seats"},
    "tests/core/test_core_storage_schema.py": {"seats"},
}
SUFFIXES = (".py", ".pyi", ".md", ".txt", ".yaml", ".yml", ".json", ".css", ".sh", "")

# A regular expression for whole words -> the terms to use.
PRIVATE = {
    "seats?": "prefix keys and values (`prefix_kv`, `num_prefix_kv`)",
    "spots?": "query and key indices (`q_idx`, `kv_idx`)",
    "weaves?|weaving|woven?": "interleave, interleaved, merge",
    "stir|stirs|stirred|stirring": "perturb, perturbed",
    "told": "passed, given, named, or the verb that fits",
    "behind": "after, on top of, following",
    "beside|besides": "with, next to, in addition to, in the same run",
    "anew": "again, or a new one",
    "wish|wishes": "hints, options",
    "stretch|stretches": "ranges of keys, spans",
    "rivals?": "amateur models, alternatives",
    "whom": "which positions, which keys",
    "nobody": "no token, no user, a padding index",
    "tapes?": "output collector",
    "sights?": "mask, attention bias",
    "forth": "merge, forward",
    "strays?": "unknown flags",
    "crowded": "several components for one slot",
    "reborn": "reinitialised",
    "guises?": "form, spelling",
    "twins?": "copy, second model",
    "likewise": "also, the same",
    "few pairs": "block-sparse attention, selected keys",
    "written[- ]out": "eager (attention), in full",
    "lasting": "always visible, global tokens",
    "ones own|one's own": "custom, the user's",
    "whoever": "the caller, the user",
    "real tokens?": "valid tokens",
    "takes? in": "appends, reads, is appended to",
    "gives? back": "returns",
    "seated": "prefix keys and values (`prefix_kv`)",
    "hand(?:s|ed)? on": "passed to later sublayers",
    "turning points?": "positions or lengths at which the algorithm changes",
    "picks?|picked": "selects, selected",
    "goes on": "resumes, continues",
    "tells? apart|told apart": "distinguish, encode",
    "on (?:its|their) way": "before, passed to",
    "thereby|therein|thereof|hereby|whereof|whereby": "plain clauses",
}
WORDS = re.compile("|".join(f"(?P<w{n}>\\b(?:{word})\\b)" for n, word in enumerate(PRIVATE)), re.IGNORECASE)
ADVICE = list(PRIVATE.values())


def words_of(text: str) -> str:
    """The text with names split into words: `seatCount`, `seat_count` and `KVSeat` become separate words."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|_", " ", text)


def in_text(text: str) -> Iterator[tuple[int, str, str]]:
    """Line (from 0), word and advice for each private word in the text or in a name of it."""
    for number, line in enumerate(text.split("\n")):
        for found in WORDS.finditer(words_of(line)):
            assert found.lastgroup is not None
            yield number, found[0], ADVICE[int(found.lastgroup[1:])]


def in_python(source: str) -> Iterator[tuple[int, str, str]]:
    """Line (from 0), word and advice for each private word of comments, strings and identifiers."""
    middle = getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)  # since 3.12 an f-string is several tokens
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in (tokenize.NAME, tokenize.COMMENT, tokenize.STRING, middle):
            for line, word, advice in in_text(token.string):
                yield token.start[0] - 1 + line, word, advice


def findings(root: Path = ROOT) -> list[str]:
    """`file:line: word: advice` for each private word below `root`."""
    found = []
    for place in PLACES:
        top = root / place
        for path in [top] if top.is_file() else sorted(top.rglob("*")):
            name = path.relative_to(root).as_posix()
            if (
                not path.is_file()
                or path.suffix not in SUFFIXES
                or name.startswith(SKIPPED)
                or "__pycache__" in name
            ):
                continue
            text = path.read_text(encoding="utf-8")
            words = in_python(text) if path.suffix in (".py", ".pyi") else in_text(text)
            quoted = QUOTED.get(name, ())
            found += [
                f"{name}:{line + 1}: {word!r}: use {advice}"
                for line, word, advice in words
                if word not in quoted
            ]
            found += [f"{name}: {word!r} in its name: use {advice}" for _, word, advice in in_text(name)]
    return found


if __name__ == "__main__":
    found = findings()
    print("\n".join(found) or "no private words")
    sys.exit(bool(found))
