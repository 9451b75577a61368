"""The text and the settings of a block of a study file, in pages."""

from __future__ import annotations

from typing import Any

from flagformer.lab.reference.markdown import code, page, table

HEAD = ("setting", "default", "meaning")


def section(block: Any) -> str:
    """A heading with the block's `name`, its summary with its source, its docstring without the first line,
    and its settings."""
    _, _, rest = (block.__doc__ or "").partition("\n\n")
    lines = [line.strip() for line in rest.strip().splitlines()]
    parts = [f"### {code(name_of(block))}", "\n".join([block.summary, *lines])]
    rows = settings_rows(block)
    return page(*parts, table(HEAD, rows)) if rows else page(*parts)


def settings_rows(block: Any) -> list[tuple[str, str, str]]:
    """Name, default and meaning of each field but `name`."""
    return [
        (code(name), _shown(field.get_default()), field.description or "")
        for name, field in block.model_fields.items()
        if name != "name"
    ]


def name_of(block: Any) -> str:
    """The value of `name` that selects the block."""
    return str(block.model_fields["name"].default)


def _shown(default: Any) -> str:
    """A default, of a block its name."""
    return code(str(default.name)) if hasattr(default, "summary") else code(repr(default))
