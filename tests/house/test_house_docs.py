"""The site: the index links every page, every public name has a page, every extra its pins."""

import re
import tomllib

from house_tree import ROOT

import flagformer
from flagformer.interop import __all__ as interop

DOCS = ROOT / "docs"
PAGES = {
    str(path.relative_to(DOCS).with_suffix("")) for path in DOCS.rglob("*.md") if "_build" not in path.parts
}
TREE = re.compile(r"^```\{toctree\}\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def listed(page):
    """The pages in a page's tables of contents."""
    folder = (DOCS / page).parent
    lines = [line for block in TREE.findall((DOCS / f"{page}.md").read_text(encoding="utf-8"))
             for line in block.splitlines() if line and not line.startswith(":")]  # fmt: skip
    found = [path for line in lines for path in sorted(folder.glob(f"{line}.md"))]
    assert all(any(folder.glob(f"{line}.md")) for line in lines), f"{page} names a missing page"
    return {str(path.relative_to(DOCS).with_suffix("")) for path in found}


def test_every_page_is_linked():
    reached, waiting = set(), ["index"]
    while waiting:
        page = waiting.pop()
        reached.add(page)
        waiting += sorted(listed(page) - reached)
    assert reached == PAGES


def test_every_public_name_has_a_page():
    text = "\n".join(path.read_text(encoding="utf-8") for path in (DOCS / "api").glob("*.md"))
    shown = set(
        re.findall(r"^\.\. auto(?:class|function):: flagformer\.(?:\w+\.)*(\w+)$", text, re.MULTILINE)
    )
    assert set(flagformer.__all__) | set(interop) <= shown


def test_every_study_has_its_findings():
    studies = {path.stem for path in (ROOT / "studies").glob("*.yaml")}
    assert {page.removeprefix("studies/") for page in PAGES if page.startswith("studies/")} == studies


def test_every_extra_is_pinned():
    def plain(name):
        return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", name)[0]).lower()

    pins = {plain(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [line for lines in project["optional-dependencies"].values() for line in lines]
    assert {plain(name) for name in [*project["dependencies"], *wanted]} - {"flagformer"} <= pins
    assert "torchvision" not in pins
