"""Every length at which computation changes path is declared, so that an audit can test longer rows."""

from __future__ import annotations

import ast
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import flagformer
from flagformer.lab.reference import choices, settings
from flagformer.ops.lengths import LONG
from flagformer.stack import long_rows
from flagformer.stack.long_rows import path_change_lengths

SOURCES = Path(flagformer.__file__).parent
BY_LENGTH = {"clamp_to_length", "sequence_tiles"}  # functions that compare a length with a size
BLOCK = 32  # rows are padded to whole blocks, and the padding is masked
LONGEST = 1280
# text models with one input row
CHOICES = [
    choice
    for choice in choices()
    if not settings(choice).keys() & {"cross_attend", "only_cross", "num_memory_slots"}
    and settings(choice).get("model", "decoder") == "decoder"
]


class Operators(TorchDispatchMode):
    """A context in which `names` records every called function."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(str(func))
        return func(*args, **(kwargs or {}))


def operators(model: Any, length: int) -> set[str]:
    with torch.no_grad(), Operators() as called:
        model(torch.zeros(1, length, dtype=torch.long, device="meta"))
    return called.names


def undeclared(choice: Any) -> set[str]:
    """Operators called for only one of the shortest and the longest row between two declared lengths."""
    with torch.device("meta"):
        model = flagformer.build({**settings(choice), "max_seq_len": LONGEST}).eval()
    turns = long_rows.path_change_lengths(model.attn_layers)
    found: set[str] = set()
    for low, high in itertools.pairwise([0, *(n for n in turns if n < LONGEST), LONGEST]):
        first, last = low // BLOCK * BLOCK + BLOCK, (high - 1) // BLOCK * BLOCK
        if first < last:
            found |= operators(model, first) ^ operators(model, last)
    return found


@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: choice.name)
def test_rows_between_two_declared_lengths_call_the_same_operators(choice: Any) -> None:
    assert not undeclared(choice)


def test_an_undeclared_length_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def all_but_long(layers: Any) -> list[int]:
        return [length for length in path_change_lengths(layers) if length != LONG]

    monkeypatch.setattr(long_rows, "path_change_lengths", all_but_long)
    assert any(undeclared(choice) for choice in CHOICES if choice.name == "alibi_pos_bias")


def calls_by_length() -> list[tuple[str, ast.ClassDef]]:
    found = []
    for path in sorted((SOURCES / "attention").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and BY_LENGTH & {
                call.func.id
                for call in ast.walk(node)
                if isinstance(call, ast.Call) and isinstance(call.func, ast.Name)
            }:
                found.append((f"{path.stem}.{node.name}", node))
    return found


@pytest.mark.parametrize("found", calls_by_length(), ids=lambda found: found[0])
def test_functions_that_split_rows_declare_their_sizes(found: tuple[str, ast.ClassDef]) -> None:
    """Sizes of blocks and tiles change shapes but no operator."""
    declared = [node for node in ast.walk(found[1]) if isinstance(node, ast.Attribute)]
    assert any(node.attr == "path_changes_at" and isinstance(node.ctx, ast.Store) for node in declared)


def test_every_core_that_splits_rows_is_listed() -> None:
    names = {name for name, _ in calls_by_length()}
    assert names >= {"local.Local", "fixed_windows.FixedWindows", "kmeans.KMeans", "routing.Routing"}
