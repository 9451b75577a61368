"""The contract of every source: shapes, ranges, and batches determined by their arguments."""

import json
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from flagformer.lab.data import IGNORE, SPLITS, Source
from flagformer.lab.data.catalogue import DataConfig

READER = TypeAdapter(DataConfig)
BLOCKS = {
    "stdlib": {"source": "stdlib", "mib": 1.0},
    "file": {"source": "file", "path": __file__},
    "copy": {"source": "copy", "symbols": 11},
    "associative_recall": {"source": "associative_recall", "pairs": 2, "asks": 1, "keys": 5, "values": 7},
    "selective_copy": {"source": "selective_copy", "symbols": 5, "copies": 3},
    "reverse": {"source": "reverse", "symbols": 11},
    "induction": {"source": "induction", "symbols": 11},
    "fuzzy_recall": {"source": "fuzzy_recall", "pairs": 2, "width": 1, "keys": 5, "values": 7},
    "compression": {"source": "compression", "symbols": 11},
    "parity": {"source": "parity"},
    "list_ops": {"source": "list_ops", "depth": 2},
    "segment_recall": {"source": "segment_recall", "segment": 1, "stored": 1},
    "long_retrieval": {"source": "long_retrieval", "keys": 3, "values": 5},
}


@pytest.fixture(params=list(BLOCKS))
def source(request: pytest.FixtureRequest) -> Source:
    return READER.validate_python(BLOCKS[request.param])


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(list(BLOCKS)),
    split=st.sampled_from(SPLITS),
    step=st.integers(0, 10**6),
    seed=st.integers(0, 2**40),
    batch_size=st.integers(1, 5),
    seq_len=st.integers(8, 40),
)
def test_batches_meet_the_contract(name, split, step, seed, batch_size, seq_len):
    source = READER.validate_python(BLOCKS[name])
    inputs, targets = source.batch(split, step, seed, batch_size, seq_len)
    assert inputs.shape == targets.shape == (batch_size, seq_len)
    assert inputs.dtype == targets.dtype == torch.long
    assert set(inputs.unique().tolist()) <= set(range(source.num_tokens))
    scored = targets[targets != IGNORE]
    assert len(scored)
    assert set(scored.unique().tolist()) <= set(range(source.num_tokens))


def test_a_batch_is_determined_by_its_arguments(source):
    before = torch.get_rng_state()
    first = source.batch("train", 5, 1, 4, 16)
    torch.manual_seed(99)
    torch.rand(3)
    source.batch("validation", 0, 0, 2, 32)
    again = source.batch("train", 5, 1, 4, 16)
    assert all(torch.equal(one, two) for one, two in zip(first, again))
    torch.set_rng_state(before)
    source.batch("train", 5, 1, 4, 16)
    assert torch.equal(torch.get_rng_state(), before), "the global generator must not be used"


def test_step_seed_and_split_select_the_data(source):
    base = source.batch("train", 3, 7, 4, 16)[0]
    for other in (("train", 4, 7), ("train", 3, 8), ("validation", 3, 7), ("test", 3, 7)):
        assert not torch.equal(base, source.batch(*other, 4, 16)[0]), other


def test_another_process_gives_the_same_batches(tmp_path):
    script = (
        "import json, sys\nfrom pydantic import TypeAdapter\n"
        "from flagformer.lab.data.catalogue import DataConfig\n"
        "for block in json.load(sys.stdin):\n"
        "    s = TypeAdapter(DataConfig).validate_python(block)\n"
        "    print(json.dumps([x.tolist() for x in s.batch('train', 2, 3, 2, 16)]), s.fingerprint())\n"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    ran = subprocess.run(
        [sys.executable, "-c", script],
        input=json.dumps(list(BLOCKS.values())),
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    for block, line in zip(BLOCKS.values(), ran.stdout.splitlines(), strict=True):
        source = READER.validate_python(block)
        here = json.dumps([part.tolist() for part in source.batch("train", 2, 3, 2, 16)])
        assert line == f"{here} {source.fingerprint()}"


def test_metric_has_a_description_and_chance_is_a_fraction(source):
    assert "accuracy" in source.metric
    assert source.is_bytes == (source.chance is None)
    assert source.chance is None or (0 < source.chance < 1 and "chance" in source.metric)


def test_unknown_source_and_unknown_field_are_refused():
    with pytest.raises(ValidationError, match="'stdlib', 'file', 'tokens', 'jsonl', 'csv', 'parquet'"):
        READER.validate_python({"source": "stdlb"})
    with pytest.raises(ValidationError, match="mibs"):
        READER.validate_python({"source": "stdlib", "mibs": 2})
    with pytest.raises(ValidationError, match="path"):
        READER.validate_python({"source": "file"})
