"""The flags of a model with others put in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flagformer.flags import CATALOGUE

HALVES = ("enc_", "dec_")


def together(own: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The flags of a model, replaced by those given.

    Parameters of components that the given flags deselect are left out.
    """
    flags = {**own, **given}
    idle = [name for name in own if name not in given and _is_idle(name, flags, given)]
    return {name: value for name, value in flags.items() if name not in idle}


def _is_idle(name: str, flags: Mapping[str, Any], given: Mapping[str, Any]) -> bool:
    """Whether a flag is a parameter of components alone that the given flags deselect."""
    prefix, flag = _parts(name)
    owners = [item for item, _ in CATALOGUE.params_named(flag)]
    selectors = [(f"{prefix}{item.select}", item) for item in owners if item.select is not None]
    if not owners or len(selectors) < len(owners) or any(item.select == flag for item in owners):
        return False
    chosen = [item for select, item in selectors if _selects(item, flags.get(select))]
    return not chosen and any(select in given for select, _ in selectors)


def _selects(item: Any, value: Any) -> bool:
    values = value if isinstance(value, (tuple, list)) else (value,)
    return any(item.is_selected_by(one) for one in values)


def _parts(name: str) -> tuple[str, str]:
    """(prefix, flag) of a flag of a half or of cross-attention."""
    known = CATALOGUE.names()
    half = next((one for one in HALVES if name.startswith(one) and name not in known), "")
    rest = name.removeprefix(half)
    cross = "cross_" if rest.startswith("cross_") and rest not in known else ""
    return half + cross, rest.removeprefix(cross)
