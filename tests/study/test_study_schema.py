"""The schema for editors accepts valid files and rejects those that the command refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from click.testing import Result
from jsonschema import Draft202012Validator
from malformed import STUDY

from flagformer.lab.reference.study_schema import study_schema
from flagformer.lab.study.source import parse_source

ROOT = Path(__file__).parents[2]
VALIDATOR = Draft202012Validator(study_schema())


@pytest.mark.parametrize("path", sorted((ROOT / "studies").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_studies_are_valid(path: Path) -> None:
    assert list(VALIDATOR.iter_errors(parse_source(path.read_text(), path.name).data)) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("", ""),
        ("steps: 20", "stpes: 20"),
        ("steps: 20", "steps: many"),
        ("  dim: 16", "  dimm: 16"),
        ("seeds: 2", "seeds: 0"),
        ("  lr: [1e-3, 1e-2]", "  lr: 1e-3"),
        ("  what: none", "  what: all"),
        ("source: copy", "source: wiki"),
        ("margin: 0.01", "margin: -1"),
        ("name: tiny\n", ""),
    ],
)
def test_the_schema_agrees_with_the_command(old: str, new: str) -> None:
    data = parse_source(STUDY.replace(old, new, 1), "x").data
    assert VALIDATOR.is_valid(data) == (not old)


@pytest.mark.parametrize(
    ("value", "right"),
    [
        ('norm: "mylab.norms:MyNorm"', True),
        ('norm: {class: "mylab.norms:MyNorm", eps: 1e-3}', True),
        ('activation: ["torch.nn:ReLU", null]', True),
        ('gate: [["mylab.gates:Gate"], []]', True),
        ('norm: ["mylab.norms:MyNorm", null]', False),
        ("norm: layernorm", False),
        ("norm: {eps: 1e-3}", False),
    ],
)
def test_components_by_import_path(value: str, right: bool) -> None:
    data = parse_source(STUDY.replace("  dim: 16", f"  dim: 16\n  {value}", 1), "x").data
    assert VALIDATOR.is_valid(data) == right


def test_images_are_valid() -> None:
    text = STUDY.replace("source: copy", "source: digits").replace(
        "  dim: 16", "  model: vit\n  patch_size: 2\n  dim: 16"
    )
    data = parse_source(text, "x").data
    data["data"] = {"source": "digits"}
    assert list(VALIDATOR.iter_errors(data)) == []
    data["base"]["patch_sise"] = 2
    assert not VALIDATOR.is_valid(data)


def test_the_committed_file_is_self_contained() -> None:
    """An editor loads a single file: it has no references to others."""
    text = (ROOT / "docs" / "study.schema.json").read_text(encoding="utf-8")
    assert json.loads(text) == json.loads(json.dumps(study_schema()))
    assert ".json#" not in text


def test_the_command_prints_it(command: Callable[..., Result]) -> None:
    assert json.loads(command("schema").stdout) == json.loads(json.dumps(study_schema()))
    assert yaml.safe_load(command("schema").stdout)["title"] == "flagformer study"
