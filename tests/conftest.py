"""What all tests share: one thread a worker, so that parallel workers share the cores."""

import os

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _threads() -> None:
    # Under pytest-xdist every worker would otherwise start as many threads as the machine has
    # cores.
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)
