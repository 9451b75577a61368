"""The source tree for the house tests: files, packages and parsed syntax."""

import ast
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "flagformer"

# A package may import the packages of lower layers.
FLOORS = {
    "ops": 0, "flags": 0,
    "flow": 1,
    "norm": 2, "position": 2, "score": 2, "feedforward": 2, "residual": 2, "input_mixer": 2, "branch": 2,
    "embedding": 2, "head": 2,
    "attention": 3,
    "stack": 4, "memory": 4,
    "wrappers": 5, "generation": 5,
    "presets": 6, "catalogue": 6,
    "audit": 7, "interop": 7,
    "lab.data": 8,
    "lab.train": 9, "lab.study": 9, "lab.reference": 9, "lab.cli": 9,
    "lab": 10, "__main__": 10,
}  # fmt: skip
# Packages of one layer with imports in one direction only: `head` may import `embedding`.
NEIGHBOURS = {
    ("position", "norm"),  # the network of the dynamic bias norms its layers
    ("position", "embedding"),  # a learned position is an embedding
    ("feedforward", "norm"),  # ff_post_act_ln
    ("embedding", "norm"),  # patches are normed
    ("head", "embedding"),  # the tied head reads the embedding backwards
    ("wrappers", "generation"),  # AutoregressiveWrapper.generate
    ("memory", "stack"),  # a replayed segment restores the random numbers of its first run
    ("lab.study", "lab.train"),  # a study runs many trainings
    ("lab.reference", "lab.train"),  # the schema of study files
    ("lab.reference", "lab.study"),
    ("lab.cli", "lab.reference"),
    ("lab.cli", "lab.train"),
    ("lab.cli", "lab.study"),
}


@dataclass(frozen=True)
class Source:
    """A file of the package."""

    path: Path
    text: str
    tree: ast.Module

    @property
    def name(self) -> str:
        """Relative to the root of the repository."""
        return str(self.path.relative_to(ROOT))

    @property
    def package(self) -> str:
        """The package of the file: `stack`, `lab.study`; `__init__` is the top layer."""
        return package_of(self.path.relative_to(PACKAGE).with_suffix("").parts)


def package_of(parts: tuple[str, ...]) -> str:
    """Return the package of a path or a module below `flagformer`, given by its parts."""
    if parts[0] != "lab":
        return parts[0]
    return "lab" if parts[1:] in ((), ("__init__",)) else f"lab.{parts[1]}"


@cache
def sources() -> tuple[Source, ...]:
    """Every file of the package."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        found.append(Source(path, text, ast.parse(text)))
    return tuple(found)


def imported(tree: ast.AST) -> list[str]:
    """Every module imported anywhere in a tree, also late or for types only."""
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports must be absolute"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names
