"""The source tree for the house tests: files, packages and parsed syntax."""

import ast
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "flagformer"

# A package may import the packages of lower layers.
FLOORS = {
    "ops": 0, "flags": 0, "moved": 0,
    "flow": 1,
    "norm": 2, "position": 2, "score": 2, "feedforward": 2, "residual": 2, "input_mixer": 2, "branch": 2,
    "mixer": 2,
    "embedding": 2, "head": 2,
    "attention": 3,
    "stack": 4, "memory": 4,
    "storage": 5, "generation": 5,
    "inputs": 6,
    "sessions": 7,
    "wrappers": 8,
    "models": 9, "catalogue": 9,
    "audit": 10, "interop": 10, "presets": 11, "lab.imports": 10,
    "lab.data": 11,
    "lab.objectives": 12, "lab.train": 12, "lab.lm_eval": 12, "lab.study": 12, "lab.reference": 12,
    "lab.cli": 12,
    "lab": 13, "__main__": 13,
}  # fmt: skip
# Packages of one layer with imports in one direction only: `head` may import `embedding`.
NEIGHBOURS = {
    ("position", "norm"),  # the network of the dynamic bias norms its layers
    ("position", "embedding"),  # a learned position is an embedding
    ("position", "score"),  # disentangled attention scores contents with positions
    ("feedforward", "norm"),  # ff_post_act_ln
    ("embedding", "norm"),  # patches are normed
    ("head", "embedding"),  # the tied head reads the embedding backwards
    ("head", "norm"),  # the transform before the logits ends with a norm
    ("head", "feedforward"),  # and has an activation of the feedforward's
    ("memory", "stack"),  # a replayed segment restores the random numbers of its first run
    ("lab.train", "lab.objectives"),  # a trial has an objective
    ("lab.study", "lab.objectives"),
    ("lab.reference", "lab.objectives"),
    ("lab.cli", "lab.objectives"),
    ("lab.study", "lab.train"),  # a study runs many trainings
    ("lab.lm_eval", "lab.train"),  # the tokenizer of a trial
    ("lab.cli", "lab.lm_eval"),
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
    def module(self) -> str:
        """`flagformer.stack.layers`; a package by its own name."""
        parts = ("flagformer", *self.path.relative_to(PACKAGE).with_suffix("").parts)
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

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


def import_circles() -> list[list[str]]:
    """Modules that import each other, in groups; every import counts, also late or for types only.

    A module that imports a name from a package imports the package's `__init__`; `from package import module`
    imports the module.
    """
    modules = {source.module: source for source in sources()}
    below: dict[str, set[str]] = {}
    for name, source in modules.items():
        found = {one if one in modules else one.rpartition(".")[0] for one in imported(source.tree)}
        below[name] = {one for one in found if one in modules} - {name}
    reached = {name: _reachable(name, below) for name in below}
    circles = {frozenset(one for one in found if name in reached[one]) for name, found in reached.items()}
    return sorted(sorted(circle) for circle in circles if circle)


def _reachable(name: str, below: dict[str, set[str]]) -> set[str]:
    found: set[str] = set()
    waiting = list(below[name])
    while waiting:
        one = waiting.pop()
        if one not in found:
            found.add(one)
            waiting += below[one]
    return found
