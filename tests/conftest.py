"""What every test shares: one thread, so that results repeat and two workers do not fight over two cores."""

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
