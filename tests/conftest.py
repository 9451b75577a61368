"""Settings of every test: one thread, unless OMP_NUM_THREADS names another number, so that two workers share two cores."""

import gc
import logging
import os

import pytest
import torch

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
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
