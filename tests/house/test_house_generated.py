"""Generated files agree with the catalogue, and the schema accepts the same values as the flags engine."""

import importlib.util
import re
from functools import cache

import pytest
from house_tree import PACKAGE, ROOT
from jsonschema import Draft202012Validator

import flagformer
from flagformer.flags import CATALOGUE, LAYER_SCOPES, MODEL_SCOPES, SLOTS, FlagError
from flagformer.flags.names import parse_flags
from flagformer.lab.reference import __main__ as command
from flagformer.lab.reference import (
    card_conflicts,
    choices,
    files,
    flags_page,
    pairs,
    schema,
    settings,
    verdicts,
)
from flagformer.lab.reference.entries import entries, with_crossed
from flagformer.lab.reference.files import FILES, stale, text_of, write
from flagformer.lab.reference.schema import FIXED

# Integral floats are left out: JSON reads 2.0 as an integer, a flag of type int does not accept it.
VALUES = [
    None,
    True,
    False,
    0,
    1,
    2,
    3,
    -1,
    0.5,
    1.5,
    -0.25,
    "sublayer",
    "aff",
    "no",
    [1, 2],
    [0.5, True],
    ["a"],
]


# `make check` generates them too, from a model of every pair of choices.
OF_PAIRS = {"docs/flags.md", "tests/golden/refused-pairs.txt"}


@pytest.mark.parametrize("name", [name for name in FILES if name not in OF_PAIRS])
def test_file_is_fresh(name):
    assert text_of(name) == (ROOT / name).read_text(encoding="utf-8")


@pytest.fixture
def hundred_pairs(monkeypatch):
    """Pages of a hundred pairs."""
    found = verdicts.verdicts.__wrapped__
    some = list(pairs())[:100]
    monkeypatch.setattr(verdicts, "pairs", lambda: some)
    for module in (card_conflicts, flags_page):
        monkeypatch.setattr(module, "verdicts", cache(found))
    monkeypatch.setattr(files, "text_of", cache(text_of.__wrapped__))


@pytest.mark.usefixtures("hundred_pairs")
def test_check_names_the_stale_file(tmp_path):
    assert write(tmp_path) == list(FILES)
    assert not stale(tmp_path)
    page = tmp_path / "docs/flags.md"
    page.write_text(page.read_text(encoding="utf-8") + "more\n", encoding="utf-8")
    assert stale(tmp_path) == ["docs/flags.md"]
    assert write(tmp_path) == ["docs/flags.md"]


@pytest.mark.usefixtures("hundred_pairs")
def test_check_reports_by_its_exit_status(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "root", lambda: tmp_path)
    assert command.main([]) == 0
    assert command.main(["--check"]) == 0
    (tmp_path / "docs/flags.schema.json").write_text("{}", encoding="utf-8")
    assert command.main(["--check"]) == 1
    assert "docs/flags.schema.json is stale" in capsys.readouterr().err


def test_picture_shows_every_slot_and_component():
    texts = re.findall(r"<text [^>]*>([^<]*)</text>", FILES["docs/forward.svg"]())
    shown = {word for text in texts for word in re.findall(r"\w+", text)}
    assert {slot for slot in SLOTS if texts.count(slot) == 1} == set(SLOTS) - {"wrapper"}
    assert {item.name for item in CATALOGUE} <= shown


def test_types_load_without_the_library():
    place = importlib.util.spec_from_file_location("typed_alone", PACKAGE / "flags" / "typed.py")
    module = importlib.util.module_from_spec(place)
    place.loader.exec_module(module)
    fields = set(module.Flags.__annotations__)
    slots = {slot.name for slot in SLOTS.values() if slot.scope in LAYER_SCOPES}
    assert fields == {entry.name for entry in with_crossed(entries(LAYER_SCOPES))} | slots


@pytest.mark.parametrize("entry", with_crossed(entries(MODEL_SCOPES)), ids=lambda entry: entry.name)
def test_schema_agrees_with_the_engine(entry):
    validator = Draft202012Validator({"$ref": "#/$defs/flags", "$defs": schema()["$defs"]})
    for value in VALUES:
        findings = parse_flags({entry.name: value}, CATALOGUE, MODEL_SCOPES, "").findings
        wanted = not findings and entry.name not in FIXED
        assert validator.is_valid({entry.name: value}) == wanted, f"{entry.name}={value!r}: {findings}"


def test_schema_refuses_unknown_names():
    validator = Draft202012Validator(schema())
    least = {"num_tokens": 8, "max_seq_len": 8, "dim": 8}
    assert validator.is_valid({**least, "model": "encoder"})
    assert not validator.is_valid({**least, "model": "decodr"})
    assert not validator.is_valid({**least, "rotary_pos_em": True})
    assert not validator.is_valid({"dim": 8})


def test_every_choice_builds_and_selects_its_component():
    for choice in choices():
        model = flagformer.build(settings(choice))
        text = model.explain()
        if choice.component is not None:
            fillers = CATALOGUE.selected_by(choice.component.select)
            for filler in (item for item in fillers if item.when == choice.component.when):
                assert filler.name in text, f"{choice.name} does not select {filler.name}:\n{text}"


def test_no_selector_is_missing():
    selectable = {(item.select, item.when) for item in CATALOGUE if item.select is not None}
    found = {choice.component for choice in choices()} - {None}
    assert {(item.select, item.when) for item in found} == selectable
    order = {param.flag.name for item in CATALOGUE.in_slot("plan") for param in item.params} - {"depth"}
    assert order <= {choice.name for choice in choices()}


def refused():
    """(first, second, reason) of each refused pair; `test_files_are_fresh` compares them with the library."""
    lines = (ROOT / "tests/golden/refused-pairs.txt").read_text().splitlines()
    reasons = dict(line.split(": ", 1) for line in lines)
    found = [(first, second, reasons.pop(f"{first.name} x {second.name}", None)) for first, second in pairs()]
    assert not reasons
    return [each for each in found if each[2] is not None]


def test_refusals_name_both_flags():
    assert refused()
    for first, second, reason in refused():
        for choice in (first, second):
            assert any(f"`{name}" in reason for name in (*choice.flags, *choice.extra)), reason


def test_refusal_of_a_pair_is_a_flag_error():
    first, second, _ = refused()[0]
    with pytest.raises(FlagError):
        flagformer.build(settings(first, second))
