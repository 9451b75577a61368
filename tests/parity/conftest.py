import logging

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Small models are fastest on one thread; the peer's hints at construction are not news here."""
    torch.set_num_threads(1)
    logging.getLogger("x_transformers").setLevel(logging.ERROR)
