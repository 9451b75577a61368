"""Names are specific, and no inner function takes open keyword arguments."""

import ast
import re

from house_tree import sources

REFUSED = {"manager", "helper", "helpers", "util", "utils", "exists"}
# The flags of a stack are checked by name on arrival; `fixed` and `forms` are names with their values,
# for a message; `how` and `kwargs` are arguments that a caller passes on.
OPEN_ENDED = {"flags", "fixed", "forms", "how", "kwargs"}


def defined(tree):
    """(line, name) of all names defined in a file, without those it calls or reads."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, (ast.Name, ast.Attribute)) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id if isinstance(node, ast.Name) else node.attr
        elif isinstance(node, ast.alias) and node.asname:
            yield node.lineno, node.asname


def words(name):
    """`DataManager`, `data_manager` -> {data, manager}."""
    return {word.lower() for part in name.split("_") for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", part)}


def test_words_are_distinguished():
    assert words("DataManager") == words("data_manager") == {"data", "manager"}
    assert not words("management") & REFUSED


def test_no_generic_names():
    faults = [
        f"{source.name}:{line} {name}"
        for source in sources()
        for line, name in defined(source.tree)
        if words(name) & REFUSED
    ]
    faults += [source.name for source in sources() if words(source.path.stem) & REFUSED]
    assert not faults, "\n".join(faults)


def test_no_open_keywords():
    faults = [
        f"{source.name}:{node.lineno} {node.name}(**{node.args.kwarg.arg})"
        for source in sources()
        for node in ast.walk(source.tree)
        if isinstance(node, ast.FunctionDef) and node.args.kwarg is not None
        if node.name == "forward" or node.args.kwarg.arg not in OPEN_ENDED
    ]
    assert not faults, "\n".join(faults)
