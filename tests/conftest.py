"""What every test shares: one thread, so that results repeat and two workers do not fight over two cores."""

import gc
import logging

import pytest
import torch

torch.set_num_threads(1)
# Tracing makes millions of short-lived objects, and the collector walks all that torch imported beside them
# again and again: a quarter of the time of a compiled test.
gc.freeze()
gc.set_threshold(100_000, 20, 50)
# Thousands of lines that torch means for a file and pytest would keep.
logging.getLogger("torch.__trace").propagate = False


def pytest_addoption(parser):
    text = "every pair of choices (`make matrix`) in place of the sample that `make test` runs"
    parser.addoption("--matrix", action="store_true", help=text)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
