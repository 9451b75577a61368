"""One thread, and the tiny trial."""

import pytest
from tiny_trial import tiny

from flagformer.lab.train.config import Trial


@pytest.fixture
def trial() -> Trial:
    return tiny()
