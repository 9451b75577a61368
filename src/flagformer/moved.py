"""Earlier paths of modules: an import gives the module at its path of today, with a DeprecationWarning."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import CodeType, ModuleType

MOVED = {
    f"flagformer.{name}": f"flagformer.lab.{name}" for name in ("cli", "data", "reference", "study", "train")
}


class MovedFinder(MetaPathFinder):
    """Finds the packages of `MOVED` and the modules inside them by their earlier paths."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        earlier = ".".join(fullname.split(".")[:2])
        if earlier not in MOVED:
            return None
        return ModuleSpec(fullname, MovedLoader(MOVED[earlier] + fullname.removeprefix(earlier)))


class MovedLoader(Loader):
    """Returns the module at its path of today, so that both paths are one module."""

    def __init__(self, today: str) -> None:
        self.today = today

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        warnings.warn(f"`{spec.name}` has moved: import `{self.today}`", DeprecationWarning, stacklevel=2)
        module = import_module(self.today)
        self.spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self.spec  # the import system has set the earlier path's

    def get_code(self, name: str) -> CodeType | None:
        """Return the code of the module, for `python -m` with an earlier path."""
        spec = find_spec(self.today)
        return None if spec is None else spec.loader.get_code(self.today)  # type: ignore[union-attr]


def install() -> None:
    """Add the finder in front of the others, which would load a second module from the package's folder."""
    sys.meta_path.insert(0, MovedFinder())
