"""Fixtures of the micro-benchmarks: every backend that runs here, on the device that it takes."""

import pytest
import torch

from mam_kernels._core import dispatch


def measured() -> list[str]:
    """The backends that run here; the interpreter is no measure of speed."""
    return [
        name
        for name, state in dispatch.backends().items()
        if state and not (name == "triton" and dispatch.interpreting())
    ]


def pytest_report_header() -> list[str]:
    """Say what is measured, and why the rest is not."""
    return [f"{name}: {state}" for name, state in dispatch.backends().items()]


@pytest.fixture(params=measured())
def backend(request: pytest.FixtureRequest) -> str:
    """Each backend by name."""
    return request.param


@pytest.fixture
def device(backend: str) -> str:
    """Where the backend's tensors live; the reference is measured on the GPU where there is one."""
    if backend == "cpu" or not torch.cuda.is_available():
        return "cpu"
    return "cuda"


@pytest.fixture
def timed(benchmark, device: str):
    """Benchmark a call, waiting for the GPU where there is one."""

    def run(function, *arguments):
        def call() -> None:
            function(*arguments)
            if device == "cuda":
                torch.cuda.synchronize()

        call()
        benchmark(call)

    return run
