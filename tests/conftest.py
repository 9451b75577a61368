"""Settings of every test. One thread: results repeat, and two workers share two cores; OMP_NUM_THREADS
sets another number."""

import gc
import logging
import os

import pytest

# Programs are traced once: a cache of operators' shapes saves nothing and takes a fifth of a long trace.
os.environ.setdefault("TORCH_FAKE_TENSOR_DISPATCH_CACHE", "0")

import torch

THREADS = int(os.environ.get("OMP_NUM_THREADS", "1"))
torch.set_num_threads(THREADS)
# Tracing creates millions of short-lived objects, and the collector traverses them and all that torch
# imported repeatedly: a quarter of the time of a compiled test.
gc.freeze()
gc.set_threshold(100_000, 20, 50)
# Thousands of lines of torch's trace log, which pytest would capture.
logging.getLogger("torch.__trace").propagate = False
# `torch.manual_seed` formats the call stack once for each kind of accelerator that is absent, and pytest's
# stacks are deep: a millisecond, several times a test.
if not torch.accelerator.is_available():
    torch.manual_seed = torch.default_generator.manual_seed


def pytest_addoption(parser):
    text = "every pair of choices and each setting by itself (`make matrix`), in place of samples and groups"
    parser.addoption("--matrix", action="store_true", help=text)


def pytest_configure(config):
    if config.getoption("matrix"):
        os.environ["FLAGFORMER_ALONE"] = "1"  # read by `grouped` of the properties, in workers too


def pytest_collection_modifyitems(items):
    """Tests that wait for processes come first: the other workers have the rest until they end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_collection_finish():
    """The collector skips all modules and test items too."""
    gc.freeze()


@pytest.fixture(autouse=True)
def _seeded():
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def mesh(tmp_path_factory):
    """A process group of size one: parameters sharded over it are DTensors too."""
    import torch.distributed as dist  # seconds of import that most tests avoid
    from torch.distributed.device_mesh import init_device_mesh

    place = tmp_path_factory.mktemp("sharded") / "store"
    dist.init_process_group("gloo", store=dist.FileStore(str(place), 1), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()
