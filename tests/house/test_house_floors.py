"""Imports point down the floors, and importing the library loads the library only."""

import json
import subprocess
import sys

from house_tree import FLOORS, NEIGHBOURS, ROOT, imported, sources

# What `import flagformer` must not load beyond what `import torch` loads itself.
HEAVY = {
    "numpy", "scipy", "pydantic", "safetensors", "yaml", "rich", "typer", "matplotlib",
    "einx", "transformers", "x_transformers", "jsonschema", "hypothesis",
}  # fmt: skip
# `flagformer` itself hands out the floors up to this one; the applications above use it as users do.
ROOF = 6
UPPER = {f"flagformer.{room}" for room, floor in FLOORS.items() if floor > ROOF}


def test_every_room_has_a_floor():
    rooms = {source.room for source in sources()} - {"__init__"}
    assert rooms == set(FLOORS)


def test_imports_point_down():
    faults = []
    for source in sources():
        if source.room == "__init__":
            continue
        for name in imported(source.tree):
            package, _, rest = name.partition(".")
            if package != "flagformer":
                continue
            room = rest.split(".")[0]
            below = FLOORS.get(room, ROOF) < FLOORS[source.room]
            if room != source.room and not below and (source.room, room) not in NEIGHBOURS:
                faults.append(f"{source.name} imports {name}")
    assert not faults, "\n".join(faults)


def test_neighbours_lean_one_way():
    assert not {(second, first) for first, second in NEIGHBOURS} & NEIGHBOURS
    assert all(FLOORS[first] == FLOORS[second] for first, second in NEIGHBOURS)


def test_flags_know_no_torch():
    faults = [
        f"{source.name} imports {name}"
        for source in sources()
        if source.room == "flags"
        for name in imported(source.tree)
        if name.split(".")[0] not in sys.stdlib_module_names and not name.startswith("flagformer.flags")
    ]
    assert not faults, "\n".join(faults)


def test_import_loads_the_library_only():
    program = (
        "import sys, json, torch, einops\n"
        "before = set(sys.modules)\n"
        "import flagformer\n"
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True
    )
    loaded = set(json.loads(answer.stdout))
    assert "flagformer.wrappers.transformer" in loaded
    assert not {name for name in loaded if name.split(".")[0] in HEAVY}
    assert not {name for name in loaded if ".".join(name.split(".")[:2]) in UPPER}
