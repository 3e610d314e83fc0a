"""What all tests share: one thread a worker, so that parallel workers share the cores, and nothing
that an earlier run compiled.
"""

import gc
import os
from collections.abc import Iterator

import pytest
import torch


def pytest_collection_finish() -> None:
    """The garbage collector, which took a tenth of the study's tests, looks no more at what was
    loaded until here.
    """
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def _threads() -> None:
    # Under pytest-xdist every worker would otherwise start as many threads as the machine has
    # cores.
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _threads_of_the_process() -> Iterator[None]:
    # A test that runs a worker of the study in this process leaves it with the worker's threads.
    threads = torch.get_num_threads()
    yield
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


@pytest.fixture(autouse=True, scope="session")
def _compiled_here(tmp_path_factory: pytest.TempPathFactory) -> None:
    # Torch's compiler keeps its code in a folder of the user, under keys that do not name the
    # instruction set: what it keeps on a CPU with AVX-512 writes beyond its vectors on one without.
    # Triton's keys do not name the file of a kernel, whose lines are asked for.
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(tmp_path_factory.mktemp("inductor"))
    os.environ["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
