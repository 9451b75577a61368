"""Two versions of x-transformers: 2.31 is installed, 1.27 has its own folder and process."""

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

HERE = Path(__file__).parent
FOLDER = HERE.parents[1] / ".venv" / "peers" / "x-transformers-1.27"


@pytest.fixture(autouse=True, scope="session")
def few_lines() -> None:
    """Silence the peer's hints at construction."""
    logging.getLogger("x_transformers").setLevel(logging.ERROR)


@pytest.fixture(scope="session")
def old_peer(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The outputs of x-transformers 1.27 for every case, and its signatures."""
    folder = Path(os.environ.get("X_TRANSFORMERS_1_27", FOLDER))
    assert (folder / "x_transformers").is_dir(), (
        f"x-transformers 1.27 is not in {folder}: run `make test` once"
    )
    file = tmp_path_factory.mktemp("peer") / "old.pt"
    command = [sys.executable, str(HERE / "parity_peer.py"), str(folder), str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = torch.load(file)
    assert Path(found["from"]).is_relative_to(folder), f"another x-transformers was imported: {found['from']}"
    return found
