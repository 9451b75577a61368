"""A new component: its file, its line in the catalogue, the test of its formula, and its card."""

from __future__ import annotations

import keyword
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from string import Template

from flagformer.flags import CATALOGUE, SLOTS, nearest
from flagformer.flags.foreign import ABSENT, FLAG_OF, FOREIGN
from flagformer.flags.names import CROSS
from flagformer.lab.reference.files import FILES, parts
from flagformer.stack.mixer_pattern import ATTENTION

TEMPLATES = Path(__file__).with_name("templates")
CATALOGUE_FILE = "src/flagformer/catalogue.py"
# slot -> the package of its components, and how users select a component called `name`.
SLOTS_WITH_TEMPLATE = {
    "norm": ("norm", "use_{name}"),
    "residual": ("residual", "{name}_residual"),
    "rotation": ("position", "rotary_{name}"),
    "position_bias": ("position", "{name}_pos_bias"),
    "qk_norm": ("attention/qk_norm", "attn_{name}"),
    "score": ("score", "attn_{name}"),
    "normalizer": ("score", "attn_{name}"),
    "weight_mod": ("score", "attn_{name}"),
    "gate": ("attention/gates", "attn_{name}"),
    "feedforward": ("feedforward", "ff_{name}"),
    "activation": ("feedforward", "ff_{name}"),
    "input_mixer": ("input_mixer", "use_{name}"),
    "branch": ("branch", "use_{name}"),
    "sequence_mixer": ("mixer", 'mixer="{name}"'),
}
BY_DESIGN = "a component of it must work with"
REASONS = {
    "wrapper": "there is one wrapper, and its flags are those of the model",
    "dims": "it holds the sizes and settings that all components share: add a field to Dims",
    "plan": "it holds the order of sublayers: add a flag to Plan",
    "init": "an initialisation acts on sublayers and has no formula for one input",
    "norm_position": "the positions of the norms are wired in the sublayers",
    "absolute": f"{BY_DESIGN} every wrapper and with decoding",
    "memory": f"{BY_DESIGN} masks, positions and decoding",
    "token_scale": f"{BY_DESIGN} every wrapper and with decoding",
    "embedding_norm": "a norm of the slot `norm` can be given to it by name",
    "layer_mix": f"{BY_DESIGN} executors, memory tokens and decoding",
    "head": f"{BY_DESIGN} the chunked loss and tied embeddings",
    "recurrence": f"{BY_DESIGN} decoding and segments",
    "slots": f"{BY_DESIGN} segments and their recomputation",
    "executor": f"{BY_DESIGN} every residual, cache and auxiliary output",
    "values": f"{BY_DESIGN} every projection and core",
    "projection": f"{BY_DESIGN} every core and cache",
    "value_mod": f"{BY_DESIGN} every projection and cache",
    "window": f"{BY_DESIGN} every core, kernel and cache",
    "score_bias": f"{BY_DESIGN} every core, kernel and cache",
    "prefix_kv": f"{BY_DESIGN} every core, kernel and cache",
    "output": f"{BY_DESIGN} every core and initialisation",
    "core": f"{BY_DESIGN} masks, caches and kernels",
    "local": f"{BY_DESIGN} masks, caches and kernels",
    "kernel": f"{BY_DESIGN} masks and needs of other components",
}


@dataclass(frozen=True)
class NewComponent:
    """The names of a new component, all from its slot and the name of its class."""

    slot: str
    name: str

    @property
    def module(self) -> str:
        """`PowerNorm` -> `power_norm`."""
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", self.name).lower()

    @property
    def package(self) -> str:
        return SLOTS_WITH_TEMPLATE[self.slot][0]

    @property
    def selector(self) -> str:
        """How users select it, without a repeated word: `attn_norm`, not `attn_attn_norm`; `mixer="mine"`."""
        before, after = SLOTS_WITH_TEMPLATE[self.slot][1].split("{name}")
        return before + self.module.removeprefix(before).removesuffix(after) + after

    @property
    def select(self) -> str:
        """The flag that selects it."""
        return self.selector.partition("=")[0]

    @property
    def is_value(self) -> bool:
        """Whether it is a value of a flag that selects the other components of its slot too."""
        return self.select != self.selector

    @property
    def path(self) -> str:
        return f"src/flagformer/{self.package}/{self.module}.py"

    def files(self) -> dict[str, str]:
        """Return the path and text of each new file: component, test and card."""
        words = {
            "Name": self.name,
            "select": self.select,
            "selector": self.selector,
            "stem": f"{self.select}_{self.module}" if self.is_value else self.select.removeprefix("use_"),
            "imported": f"flagformer.{self.package.replace('/', '.')}.{self.module}",
            "module": self.module,
            "slot": self.slot,
        }
        _, *texts = re.split(r"^=== (\w+)\n", _template(self.slot), flags=re.MULTILINE)
        found = {key: Template(text).substitute(words) for key, text in zip(texts[::2], texts[1::2])}
        lines = {key: text.strip() for key, text in found.items()}
        return {
            self.path: found["component"],
            f"tests/reference/test_reference_{self.module}.py": found["test"],
            f"docs/papers/{self.slot}-{self.name.lower()}.md": Template(_template("card")).substitute(
                words, flag=_flag_in(found["component"]), **lines
            ),
        }

    def flags(self) -> list[str]:
        """Return the new flags: its selector, unless it is a value of another flag, and that of its file."""
        return [*([] if self.is_value else [self.select]), _flag_in(self.files()[self.path])]


def create(folder: Path, slot: str, name: str) -> list[str]:
    """Write the files of a new component, regenerate the generated files, and return the paths of the former.

    Args:
        folder: the root of the clone.
        slot: the name of the slot.
        name: the name of the class.

    Raises:
        ValueError: if the slot or name cannot be used, or a file exists. Nothing is changed then.
    """
    texts = plan(folder, slot, name)
    with unchanged_on_error(folder, [*texts, *FILES, *parts(folder)]):
        for path, text in texts.items():
            (folder / path).write_text(text, encoding="utf-8")
        regenerate(folder)
    return list(texts)


def plan(folder: Path, slot: str, name: str) -> dict[str, str]:
    """Return the path and text of each file to write: the new ones and the catalogue."""
    refuse_slot(slot)
    refuse_name(name)
    new = NewComponent(slot, name)
    refuse_flags(new)
    refuse_value(new)
    texts = new.files()
    existing = [path for path in texts if (folder / path).exists()]
    if existing:
        raise ValueError(f"`{name}` needs {existing[0]}, which exists: choose another name")
    catalogue = (folder / CATALOGUE_FILE).read_text(encoding="utf-8")
    return {**texts, CATALOGUE_FILE: with_line(catalogue, new)}


def refuse_slot(slot: str) -> None:
    if slot not in SLOTS:
        raise ValueError(
            f"no slot is called `{slot}`{nearest(slot, SLOTS)}; slots with a template: "
            + ", ".join(SLOTS_WITH_TEMPLATE)
        )
    if slot not in SLOTS_WITH_TEMPLATE:
        raise ValueError(f"there is no template for the slot `{slot}`: {REASONS[slot]}")


def refuse_name(name: str) -> None:
    if not re.fullmatch(r"[A-Z][A-Za-z0-9]*", name) or keyword.iskeyword(name):
        raise ValueError(f"`{name}` is not a name of a class in CapWords, such as `PowerNorm`")
    taken = [item.slot for item in CATALOGUE if item.name.lower() == name.lower()]
    if taken:
        raise ValueError(f"`{name}` is a component of the slot `{taken[0]}`: choose another name")


def refuse_flags(new: NewComponent) -> None:
    flags = {*CATALOGUE.names(), *(CROSS + name for name in CATALOGUE.crossed())}
    for flag in new.flags():
        if flag in flags or flag in SLOTS:
            kind = "slot" if flag in SLOTS else "flag"
            raise ValueError(f"`{new.name}` needs the flag `{flag}`, but a {kind} has this name already")
        if flag in {*FOREIGN, *ABSENT, *FLAG_OF}:
            raise ValueError(
                f"`{new.name}` needs the flag `{flag}`, a name of another library that has an answer in "
                "flags/foreign.py: choose another name, or remove the answer first"
            )


def refuse_value(new: NewComponent) -> None:
    """Refuse `attention`, which keeps the attention of a layer in a pattern of mixers."""
    if new.is_value and new.module == ATTENTION:
        raise ValueError(f"`{new.selector}` has a meaning already, attention: choose another name")


def with_line(catalogue: str, new: NewComponent) -> str:
    """Return the text of the catalogue with the import and, after the last of its slot, the component."""
    module = f"flagformer.{new.package.replace('/', '.')}.{new.module}"
    last = CATALOGUE.in_slot(new.slot)[-1].name
    later = (
        found.start()
        for found in re.finditer(r"^from (\S+) import", catalogue, flags=re.MULTILINE)
        if found[1].startswith("flagformer.") and _sorted_as(found[1]) > _sorted_as(module)
    )
    at = next(later, None)
    line = re.search(rf"^        .*\b{last},.*\n", catalogue, flags=re.MULTILINE)
    if at is None or line is None:
        raise ValueError(f"{CATALOGUE_FILE} has no line with `{last},`, after which to add `{new.name}`")
    head, rest = catalogue[at : line.end()], catalogue[line.end() :]
    return f"{catalogue[:at]}from {module} import {new.name}\n{head}        {new.name},\n{rest}"


def regenerate(folder: Path) -> None:
    """Run the generator in a new process, which imports the new catalogue."""
    source = os.pathsep.join(filter(None, [str(folder / "src"), os.environ.get("PYTHONPATH", "")]))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "flagformer.lab.reference"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": source},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise ValueError(f"the generated files cannot be written, so nothing was added: {lines[-1]}")


@contextmanager
def unchanged_on_error(folder: Path, names: Iterable[str]) -> Iterator[None]:
    """Restore these files if the block raises an error or is interrupted; remove those that were absent."""
    paths = [folder / name for name in names]
    before = {path: path.read_bytes() if path.is_file() else None for path in paths}
    try:
        yield
    except BaseException:
        for path, data in before.items():
            if data is None:
                path.unlink(missing_ok=True)
            else:
                path.write_bytes(data)
        raise


def _flag_in(source: str) -> str:
    """Return the name of the flag that the source of a component declares."""
    return re.findall(r'Flag\(\s*"(\w+)"', source)[0]


def _template(name: str) -> str:
    return (TEMPLATES / f"{name}.txt").read_text(encoding="utf-8")


def _sorted_as(module: str) -> list[tuple[int, int]]:
    """Return the order of imports: by characters, with numbers by their value."""
    found = re.findall(r"\d+|\D", module)
    return [(ord("0"), int(part)) if part.isdigit() else (ord(part), 0) for part in found]
