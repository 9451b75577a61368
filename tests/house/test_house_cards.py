"""Every component with a paper or a selector has a card, and the card agrees with the catalogue."""

import re

import pytest
from house_tree import ROOT

from flagformer.flags import CATALOGUE
from flagformer.lab.reference.cards import cards
from flagformer.lab.reference.selectors import choices

PAPERS = ROOT / "docs" / "papers"
REFUSED = ROOT / "tests" / "golden" / "refused-pairs.txt"
SECTIONS = ["Claim", "Formula", "Flags", "Conflicts", "Cost", "Citation"]
CARDS = cards()
# flags of the plan and of Dims with a card of their own
SINGLE = {
    f"{slot}-{param.flag.name}.md"
    for slot in ("plan", "dims")
    for item in CATALOGUE.in_slot(slot)
    for param in item.params
}
WHOLE = {"memformer.md", "routing.md"}  # models with their own page
FILES = sorted(path.name for path in PAPERS.glob("*.md"))


def sections(name):
    """heading -> the text of its section; the card's title is the first line."""
    text = (PAPERS / name).read_text(encoding="utf-8")
    _, *parts = re.split(r"^## ", text, flags=re.MULTILINE)
    return {part.split("\n")[0]: part.split("\n", 1)[1].strip() for part in parts}


def test_every_component_has_a_card():
    assert set(CARDS) <= set(FILES)
    assert set(FILES) <= set(CARDS) | SINGLE | WHOLE, "a card without a component"


@pytest.mark.parametrize("name", FILES)
def test_card_is_complete(name):
    found = sections(name)
    assert list(found) == SECTIONS
    assert all(found.values())


@pytest.mark.parametrize("name", CARDS)
def test_card_names_its_flags_and_its_paper(name):
    item, found = CARDS[name], sections(name)
    flags = {param.flag.name for param in item.params} | ({item.select} if item.select else set())
    assert not {flag for flag in flags if f"`{flag}" not in found["Flags"]}
    number = re.search(r"\d{4}\.\d{5}", item.paper)
    assert number is None or number[0] in found["Citation"]


def owner(choice):
    """The card of a choice."""
    if choice.component is not None:
        return next(name for name, item in CARDS.items() if item == choice.component)
    return next((name for name in SINGLE if name.endswith(f"-{choice.name}.md")), "")


def test_cards_name_the_conflicts():
    """Of the pairs refused in tests/golden."""
    known, faults = {choice.name: choice for choice in choices()}, []
    pairs = [line.split(": ")[0].split(" x ") for line in REFUSED.read_text(encoding="utf-8").splitlines()]
    for first, second in pairs:
        for one, other in ((known[first], known[second]), (known[second], known[first])):
            name = owner(one)
            text = sections(name)["Conflicts"] if name in FILES else ""
            if name in FILES and not any(f"`{flag}" in text for flag in (*other.flags, *other.extra)):
                faults.append(f"{name} keeps silent about {other.name}")
    assert not faults, "\n".join(faults)
