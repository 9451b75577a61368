"""Every source of docs/how-to-data.md, as the page names it, gives batches of every split."""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from flagformer.lab.data import SPLITS
from flagformer.lab.train.config import Trial

PAGE = (Path(__file__).parents[2] / "docs" / "how-to-data.md").read_text(encoding="utf-8")
BLOCKS = [
    yaml.safe_load(block) for block in re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
]
(MODULE,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
REVIEWS = [{"text": f"review {n}: {'good ' * (n % 5)}", "stars": n % 4, "language": "en"} for n in range(200)]


@pytest.fixture(autouse=True)
def _files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The files that the page names, in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("FLAGFORMER_CACHE", str(tmp_path / "cache"))
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "mylab"]:
        del sys.modules[name]


def write(block: dict[str, Any]) -> None:
    """The files of one block."""
    source = block["source"]
    if source in ("file", "tokens", "mixture"):
        Path("book.txt").write_text("It was a dark and stormy night. " * 200)
    if source == "tokens":
        tokenizers = pytest.importorskip("tokenizers")
        made = tokenizers.ByteLevelBPETokenizer()
        made.train_from_iterator(["It was a dark and stormy night."], vocab_size=270, show_progress=False)
        made.save("tokenizer.json")
    elif source in ("jsonl", "mixture"):
        Path("reviews.jsonl").write_text("".join(json.dumps(row) + "\n" for row in REVIEWS))
    elif source == "csv":
        with Path("reviews.csv").open("w", newline="") as file:
            table = csv.DictWriter(file, list(REVIEWS[0]))
            table.writeheader()
            table.writerows(REVIEWS)
    elif source == "parquet":
        pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        pq.write_table(pa.Table.from_pylist(REVIEWS), "reviews.parquet")
    elif source == "dataset":
        datasets = pytest.importorskip("datasets")
        datasets.disable_progress_bars()
        datasets.Dataset.from_list(REVIEWS).save_to_disk("reviews")
    elif source == "shards":
        Path("shards").mkdir()
        ids = np.where(np.arange(9000) % 30 == 29, 0, np.arange(9000) % 700 + 1)
        Path("shards/a.bin").write_bytes(ids.astype("<u2").tobytes())
    elif source == "parallel":
        Path("train.de").write_text("".join(f"Satz {n}\n" for n in range(200)))
        Path("train.en").write_text("".join(f"sentence {n}\n" for n in range(200)))
        rows = [{"de": f"Satz {n}", "en": f"sentence {n}", "good": n % 3 > 0} for n in range(300)]
        Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif source == "image_folder":
        image = pytest.importorskip("PIL.Image")
        for number in range(60):
            folder = Path("pictures") / ("cat", "dog")[number % 2]
            folder.mkdir(parents=True, exist_ok=True)
            image.fromarray(np.full((20, 24, 3), number, dtype=np.uint8)).save(folder / f"{number}.png")
    elif source == "series":
        rows = [f"{n},{n % 7},{n % 5 / 2}" for n in range(800)]
        Path("weather.csv").write_text("\n".join(["day,wind,rain", *rows]))
    elif ":" in source:
        Path("mylab").mkdir()
        Path("mylab/data.py").write_text(MODULE)


@pytest.mark.parametrize("block", BLOCKS, ids=[block["data"]["source"] for block in BLOCKS])
def test_each_block_can_be_trained_on(block: dict[str, Any]) -> None:
    write(block["data"])
    flags = block.get("base", {"dim": 16, "depth": 1, "heads": 2})
    trial = Trial.model_validate({"flags": flags, "data": block["data"]})
    trial.check()
    length = trial.source.seq_len
    for split in SPLITS:
        parts = trial.trained_by.batch(trial.source, split, 0, 0, 3, length)
        assert all(len(part) == 3 for part in parts)


def test_the_page_has_every_source_of_files() -> None:
    shown = {block["data"]["source"] for block in BLOCKS}
    files = {"file", "tokens", "jsonl", "csv", "parquet", "dataset", "shards", "parallel", "image_folder"}
    assert files | {"series", "mixture"} <= shown
