"""The site: `make docs` builds it into docs/_build/html, with warnings as errors."""

import re
from typing import Any, get_type_hints

import flagformer

project = "flagformer"
author = "flagformer"
copyright = "flagformer, MIT licence"
version = release = flagformer.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"flagformer {version}"
html_show_sphinx = False
html_static_path, html_css_files = ["site.css"], ["site.css"]

myst_heading_anchors = 4
default_role = "code"  # docstrings set names between single backticks
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": False}
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
pygments_style, pygments_dark_style = "friendly", "native"

OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./[^)]*\)")


def name_files(app: Any, page: str, text: list[str]) -> None:
    """Replace links to files outside of docs/ by their names: the site does not contain these files."""
    text[0] = OUTSIDE.sub(r"`\1`", text[0]) if "/" not in page else text[0]


def plain_types(app: Any, obj: Any, bound: bool) -> None:
    """Show `Annotated[int, Flag(...)]` as `int`: flags.md documents the flags."""
    try:
        obj.__annotations__ = get_type_hints(obj)
    except (AttributeError, NameError, TypeError):  # a builtin, or a name for type checkers only
        return


def keep_colons(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Keep the first colon of a property: Napoleon reads the text before it as a type."""
    if what in ("property", "attribute") and lines:
        lines[0] = lines[0].replace(": ", " \N{EN DASH} ")


def setup(app: Any) -> None:
    app.connect("autodoc-process-docstring", keep_colons, priority=400)
    app.connect("source-read", name_files)
    app.connect("autodoc-before-process-signature", plain_types)
