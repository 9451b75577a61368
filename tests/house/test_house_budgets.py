"""Sizes: files, functions and argument lists stay short enough to read in one sitting."""

import ast
import statistics

from house_tree import sources

from flagformer.lab.reference.files import FILES

FILE, MEDIAN, FUNCTION, ARGUMENTS = 350, 120, 50, 10
# Public wrappers: their signatures are the manual, so arguments are not counted, and of their methods only
# the body is counted, without the signature and the docstring.
WRAPPERS = {"ContinuousTransformerWrapper", "SequenceClassifier", "FlagformerForCausalLM",
    "AttentionLayers", "TransformerWrapper", "AutoregressiveWrapper", "XTransformer", "ViTransformerWrapper",
    "XLAutoregressiveWrapper", "Memformer", "RoutingTransformer", "RoutingTransformerLM",
    "RoutingTransformerEncDec",
}  # fmt: skip
# Exempt from the count of arguments as well: the constructor of a component, whose parameters are its flags,
# and the commands of `cli`, whose parameters are the options of the command line.
COMPONENT = "component"


def functions():
    """(source, class or None, function) for every function of the package."""
    for source in sources():
        owners = {
            child: node
            for node in ast.walk(source.tree)
            if isinstance(node, ast.ClassDef)
            for child in node.body
        }
        for node in ast.walk(source.tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield source, owners.get(node), node


def is_component(owner):
    calls = [mark.func.id for mark in owner.decorator_list if isinstance(mark, ast.Call)]
    return COMPONENT in calls


def is_wrapper(owner):
    return owner is not None and owner.name in WRAPPERS


def length(function, owner):
    """Lines; for a public wrapper the lines of the body after its docstring."""
    start = function.lineno
    if is_wrapper(owner) and ast.get_docstring(function) is not None:
        start = function.body[0].end_lineno + 1
    return function.end_lineno - start + 1


def arguments(function):
    every = function.args
    return len([*every.posonlyargs, *every.args, *every.kwonlyargs])


def test_files_are_short():
    written = [
        source for source in sources() if source.name not in FILES
    ]  # a generated file grows with flags
    sizes = {source.name: len(source.text.splitlines()) for source in written}
    assert not {name: size for name, size in sizes.items() if size > FILE}
    assert statistics.median(sizes.values()) <= MEDIAN


def test_functions_are_short():
    long = [
        f"{source.name}:{node.lineno} {node.name} has {length(node, owner)} lines"
        for source, owner, node in functions()
        if length(node, owner) > FUNCTION
    ]
    assert not long, "\n".join(long)


def test_argument_lists_are_short():
    many = []
    for source, owner, node in functions():
        flags = owner is not None and node.name == "__init__" and is_component(owner)
        if not (is_wrapper(owner) or flags or source.package == "lab.cli") and arguments(node) > ARGUMENTS:
            many.append(f"{source.name}:{node.lineno} {node.name} has {arguments(node)} arguments")
    assert not many, "\n".join(many)


def test_the_exempt_wrappers_exist():
    found = {owner.name for _, owner, _ in functions() if is_wrapper(owner)}
    assert found == WRAPPERS
