"""One thread, and the tiny trial."""

from collections.abc import Iterator

import pytest
import torch
from tiny_trial import tiny

from flagformer.train.config import Trial


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def trial() -> Trial:
    return tiny()
