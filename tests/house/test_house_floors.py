"""Imports point to lower layers, and importing the library loads the library only."""

import json
import subprocess
import sys
from importlib.util import find_spec

import pytest
from house_tree import (
    FLOORS,
    NEIGHBOURS,
    PACKAGE,
    ROOT,
    import_circles,
    imported,
    package_of,
    sources,
)

# Modules that `import flagformer` must not load, unless `import torch` does.
HEAVY = {
    "numpy", "scipy", "pydantic", "safetensors", "yaml", "rich", "typer", "matplotlib",
    "einx", "transformers", "x_transformers", "jsonschema", "hypothesis",
}  # fmt: skip
# `flagformer` exports the layers up to this one; the applications above import it like users.
ROOF = 9
UPPER = {f"flagformer.{package}" for package, floor in FLOORS.items() if floor > ROOF}


def test_every_package_has_a_layer():
    assert {source.package for source in sources()} - {"__init__"} == set(FLOORS)


def test_imports_point_down():
    faults = []
    for source in sources():
        if source.package == "__init__":
            continue
        for name in imported(source.tree):
            top, _, rest = name.partition(".")
            if top != "flagformer":
                continue
            package = package_of(tuple(rest.split(".")))
            below = FLOORS.get(package, ROOF) < FLOORS[source.package]
            if package != source.package and not below and (source.package, package) not in NEIGHBOURS:
                faults.append(f"{source.name} imports {name}")
    assert not faults, "\n".join(faults)


def test_no_modules_import_each_other():
    circles = import_circles()
    assert not circles, "\n".join(" <-> ".join(circle) for circle in circles)


def test_the_library_imports_nothing_of_the_lab():
    library = [source for source in sources() if not source.package.startswith("lab")]
    faults = [
        f"{source.name} imports {name}"
        for source in library
        if source.package != "__main__"
        for name in imported(source.tree)
        if name.startswith("flagformer.lab")
    ]
    assert not faults, "\n".join(faults)


KERNELS = PACKAGE / "attention" / "kernels"


def test_only_attention_and_the_catalogue_know_kernels():
    """The stack reads their contract; the lab counts the FLOPs of their operators."""
    names = {path.stem for path in KERNELS.iterdir()} - {"__init__", "__pycache__"}
    modules = {f"flagformer.attention.kernels.{name}" for name in names}
    faults = [
        f"{source.name} imports {name}"
        for source in sources()
        if source.package not in ("attention", "catalogue", "lab.study")
        for name in imported(source.tree)
        if ".".join(name.split(".")[:4]) in modules
    ]
    assert not faults, "\n".join(faults)


def test_a_kernel_with_its_own_operators_has_a_capability_test_and_a_reference():
    folders = [path for path in KERNELS.iterdir() if (path / "operators.py").exists()]
    assert len(folders) >= 2
    for folder in folders:
        assert (folder / "capability.py").exists()
        reference = (folder / "reference.py").read_text(encoding="utf-8")
        assert reference.count("\n") <= 35


def test_imports_within_a_layer_have_one_direction():
    assert not {(second, first) for first, second in NEIGHBOURS} & NEIGHBOURS
    assert all(FLOORS[first] == FLOORS[second] for first, second in NEIGHBOURS)


def test_flags_do_not_import_torch():
    faults = [
        f"{source.name} imports {name}"
        for source in sources()
        if source.package == "flags"
        for name in imported(source.tree)
        if name.split(".")[0] not in sys.stdlib_module_names and not name.startswith("flagformer.flags")
    ]
    assert not faults, "\n".join(faults)


def loaded_by(program):
    """The modules that a program loads, without those in `before`."""
    start = "import sys, json\nbefore = set()\n"
    close = "\nprint(json.dumps(sorted(set(sys.modules) - before)))"
    answer = subprocess.run(
        [sys.executable, "-c", start + program + close], capture_output=True, text=True, cwd=ROOT, check=True
    )
    return set(json.loads(answer.stdout.splitlines()[-1]))


def test_import_loads_no_torch():
    loaded = loaded_by("import flagformer")
    assert "flagformer.flags" in loaded
    assert not {name for name in loaded if name.split(".")[0] in HEAVY | {"torch"}}


@pytest.mark.parametrize(
    "words", [["--help"], ["study", "--help"], ["study", "run", "--help"], ["--version"]]
)
def test_help_loads_no_torch(words):
    program = (
        f"sys.argv = {['flagformer', *words]!r}\n"
        "from flagformer.lab.cli.main import app\n"
        "app(standalone_mode=False)"
    )
    loaded = loaded_by(program)
    assert "flagformer.lab.cli.study" in loaded
    assert not {name for name in loaded if name.split(".")[0] in {"torch", "numpy", "scipy", "matplotlib"}}


def test_every_name_resolves_and_the_registry_is_full():
    import flagformer

    assert set(flagformer.__all__) <= set(dir(flagformer))
    homes = {name for names in flagformer.MODULES.values() for name in names}
    assert homes <= set(flagformer.__all__)
    assert all(callable(getattr(flagformer, name)) for name in flagformer.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Decode'"):
        _ = flagformer.Decode
    # a stack uses the registry, in any order of imports
    program = (
        "from flagformer.stack.layers import Decoder\nDecoder(dim=8, depth=1, heads=1, alibi_pos_bias=True)"
    )
    assert "flagformer.catalogue" in loaded_by(program)


def test_earlier_paths_give_the_modules_of_today():
    program = (
        "import warnings; warnings.simplefilter('ignore')\n"
        "from flagformer.data.tokens import TokenFile\n"
        "import flagformer.study.costs, flagformer.lab.data.tokens as tokens\n"
        "import flagformer.lab.study.costs as costs\n"
        "assert tokens.TokenFile is TokenFile and flagformer.study.costs is costs\n"
        "assert costs.__spec__.name == costs.__name__ == 'flagformer.lab.study.costs'\n"
        "import pickle; assert pickle.loads(pickle.dumps(TokenFile)) is TokenFile"
    )
    assert "flagformer.lab.study.costs" in loaded_by(program)


def test_an_earlier_path_names_the_path_of_today():
    strict = [sys.executable, "-W", "error::DeprecationWarning"]
    run = subprocess.run(
        [*strict, "-c", "import flagformer.train.config"], capture_output=True, text=True, cwd=ROOT
    )
    assert run.returncode
    assert "`flagformer.train` has moved: import `flagformer.lab.train`" in run.stderr


def test_earlier_paths_run_as_programs():
    with pytest.warns(DeprecationWarning, match="has moved"):
        spec = find_spec("flagformer.reference.__main__")
    code = spec.loader.get_code(spec.name)
    assert code.co_filename.endswith("flagformer/lab/reference/__main__.py")


def test_names_load_the_library_only():
    loaded = loaded_by(
        "import torch, einops\nbefore = set(sys.modules)\n"
        "import flagformer\nflagformer.TransformerWrapper, flagformer.build"
    )
    assert "flagformer.wrappers.transformer" in loaded
    assert not {name for name in loaded if name.split(".")[0] in HEAVY}
    assert not {name for name in loaded if ".".join(name.split(".")[:2]) in UPPER}
