"""Files without an end, and records of a run directory that are JSON of another form."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from flagformer.lab.study.audits import _read
from flagformer.lab.study.config_errors import StudyFileError
from flagformer.lab.study.directory import read_setting
from flagformer.lab.study.source import LARGEST_FILE, parse_source, read_source
from flagformer.lab.study.variants import MOST_VARIANTS, read_variants
from flagformer.lab.train.result import read_result

GOOD = '"status": "finished", "steps": 2, "cost": {"tokens_per_second": 1.5}'


def test_a_device_or_a_pipe_is_refused_before_it_is_read(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.yaml"
    os.mkfifo(pipe)
    for path in (pipe, Path(os.devnull)):
        with pytest.raises(StudyFileError, match="device, pipe or socket; give a regular YAML file"):
            read_source(path)


def test_a_file_too_large_is_refused_by_its_size(tmp_path: Path) -> None:
    path = tmp_path / "large.yaml"
    path.write_bytes(b"#" * (LARGEST_FILE + 1))
    with pytest.raises(StudyFileError, match="has 1,048,577 bytes"):
        read_source(path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{}", "`status` is missing"),
        ("[]", "must be a JSON object"),
        ('{"status": 3}', "`status` must be of type str, but is 3"),
        ("{" + GOOD + ', "evaluation": 5}', "`evaluation` must be a list, but is 5"),
        ("{" + GOOD + ', "evaluation": [{}]}', "`evaluation.0.split` is missing"),
    ],
)
def test_an_invalid_result_is_named(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text(text)
    with pytest.raises(ValueError) as caught:
        read_result(path)
    for part in (str(path), said, "delete it and run again"):
        assert part in str(caught.value)


def test_audits_and_environment_of_a_record_are_checked(tmp_path: Path) -> None:
    (tmp_path / "examined.json").write_text("{}")
    (tmp_path / "setting.json").write_text('{"variants": []}')
    with pytest.raises(ValueError, match=r"examined\.json is damaged: `stamps` is missing"):
        _read(tmp_path)
    with pytest.raises(ValueError, match=r"setting\.json is damaged: `variants` must be an object"):
        read_setting(tmp_path)


def test_compare_is_limited_like_a_grid() -> None:
    rows = "".join(f"  v{i}: {{}}\n" for i in range(MOST_VARIANTS + 1))
    _, mistakes = read_variants(parse_source("compare:\n" + rows, "s.yaml"), None)
    assert [mistake.message for mistake in mistakes] == [
        "`compare` has 501 variants; a study has at most 500; split it"
    ]
