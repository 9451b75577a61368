"""`benchmarks/speed.py` runs: all its contenders pass the check for the same causal model."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "speed.py"
# The script collects garbage before each sample, which walks all that libraries made when they were imported,
# and takes two thirds of a short run: here they are imported first, and left out of it.
START = """
import gc, runpy, sys
import torch._dynamo, x_transformers, flagformer
gc.freeze()
sys.argv = sys.argv[1:]
sys.path.insert(0, sys.argv[0].rpartition("/")[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_small_rows_of_every_family(tmp_path: Path) -> None:
    found = tmp_path / "found.json"
    libraries = ["--libraries", "bare", "flagformer", "x-transformers"]
    command = [
        sys.executable,
        "-c",
        START,
        SCRIPT.as_posix(),
        "--quick",
        "--threads",
        "1",
        "--rows",
        "fixed/infer/*",
        *libraries,
    ]
    done = subprocess.run([*command, "--json", str(found)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads(found.read_text())["rows"]
    assert [row["row"] for row in rows] == [f"fixed/infer/{f}" for f in ("llama", "absolute", "alibi", "t5")]
    for row in rows:
        counts = row["parameters"].values()
        assert len(counts) == 3
        assert max(counts) <= 1.01 * min(counts)
        assert all(len(samples) == 4 and min(samples) > 0 for samples in row["seconds"].values())
    assert len(done.stdout.splitlines()) == 2 + len(rows), "a header of two lines and one line per row"
