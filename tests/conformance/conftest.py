"""The backends under test: ``MAM_TEST_BACKENDS`` (default ``reference,cpu``) on ``MAM_TEST_DEVICE``
(default ``cpu``).

``cuda-shim`` is the backend ``cuda`` with its kernels compiled for the host (tests/cuda_shim).
``triton`` on the CPU needs ``TRITON_INTERPRET=1`` from the start of the process. A backend that is
named here and cannot run fails its tests; it is never skipped.
"""

import collections
import dataclasses
import functools
import importlib.util
import inspect
import math
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from mam_kernels._core import dispatch, extension

BACKENDS = os.environ.get("MAM_TEST_BACKENDS", "reference,cpu").split(",")
DEVICE = os.environ.get("MAM_TEST_DEVICE", "cpu")


def _load_shim() -> None:
    path = Path(__file__).parents[1] / "cuda_shim" / "build.py"
    spec = importlib.util.spec_from_file_location("cuda_shim_build", path)
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    extension.use_cuda_module(build.load())
    dispatch.forget()


@pytest.fixture(scope="session", params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """The name of the backend, able to run on ``device``."""
    if request.param == "cuda-shim":
        _load_shim()
        return "cuda"
    state = dispatch.backends()[request.param]
    if not state:
        pytest.fail(f"MAM_TEST_BACKENDS names {request.param}: {state.reason}")
    return request.param


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where the tests' tensors are."""
    return torch.device(DEVICE)


@pytest.fixture(params=["float32", "float16", "bfloat16"])
def dtype(request: pytest.FixtureRequest, backend: str) -> torch.dtype:
    """Every type that kernels take."""
    return getattr(torch, request.param)


@pytest.fixture(autouse=True, scope="session")
def _interpreted_faster() -> None:
    """The interpreter does not do five things that took half its time and changed no result."""
    if not dispatch.interpreting():
        return
    from triton.language import core
    from triton.runtime import interpreter

    # It replaces the built-in functions of a module at a launch. It then lists the whole module
    # again at each call of a device function, and finds nothing to replace. It replaces all or
    # none, so the first of them tells.
    @functools.cache
    def built_in(module: object) -> list[str]:
        return [name for name, member in inspect.getmembers(module) if core.is_builtin(member)]

    def replace(module: object, builder: object, scope: object) -> None:
        names = built_in(module)
        if names and core.is_builtin(getattr(module, names[0])):
            for name in names:
                interpreter._patch_attr(module, name, getattr(module, name), builder, scope)

    interpreter._patch_builtin = replace
    # It computes whether an operation on integers overflows, and asserts it only with `debug`.
    builder = interpreter.interpreter_builder
    assert not builder.options.debug
    builder.options = dataclasses.replace(builder.options, sanitize_overflow=False)
    # It writes down all types to look up one. Types of pointers have no hash.
    of_scalar = functools.cache(interpreter._get_np_dtype)

    def numpy_type(kind: core.dtype) -> np.dtype:
        kind = kind.element_ty if isinstance(kind, core.block_type) else kind
        return np.dtype(np.uint64) if isinstance(kind, core.pointer_type) else of_scalar(kind)

    interpreter._get_np_dtype = numpy_type
    # It makes the type of a block anew for each operation.
    made, make = {}, core.block_type.__init__

    def make_once(self: core.block_type, element_ty: core.dtype, shape: object) -> None:
        if isinstance(element_ty, core.pointer_type):
            return make(self, element_ty, shape)
        key = (element_ty, *(core._unwrap_if_constexpr(size) for size in shape))
        if key not in made:
            make(self, element_ty, shape)
            made[key] = vars(self)
        vars(self).update(made[key])

    core.block_type.__init__ = make_once

    # It writes down the sizes of each tensor anew.
    @functools.cache
    def sizes_of(shape: tuple[int, ...]) -> tuple[core.tuple, core.constexpr]:
        sizes = [core.constexpr(size) for size in shape]
        return core.tuple(sizes), core.constexpr(math.prod(shape))

    def prepare_once(self: core.tensor, handle: object, kind: core.dtype) -> None:
        self.handle, self.type, self.dtype = handle, kind, kind.scalar
        self.shape, self.numel = sizes_of(tuple(kind.shape) if kind.is_block() else ())

    core.tensor.__init__ = prepare_once


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Interpreted, a case takes float32 and one of the two-byte types, in turns.

    The interpreter needs minutes for all, and no branch of a Triton kernel is lost: launches and
    kernels ask for the size of the elements, which the two types share.
    """
    if not dispatch.interpreting():
        return
    cases: dict[object, dict[tuple, int]] = collections.defaultdict(dict)
    left_out = set()
    for item in items:
        params = dict(item.callspec.params) if hasattr(item, "callspec") else {}
        narrow = ("float16", "bfloat16")
        if (kind := params.pop("dtype", None)) not in narrow or params.keys() == {"backend"}:
            continue
        numbers = cases[item.function]
        number = numbers.setdefault(tuple(params.items()), len(numbers))
        if kind != narrow[number % 2]:
            left_out.add(item)
    config.hook.pytest_deselected(items=list(left_out))
    items[:] = [item for item in items if item not in left_out]


@pytest.fixture(autouse=True)
def _poisoned_allocations() -> Iterator[None]:
    """torch.empty gives NaN: an output that a kernel does not write is seen."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    before = torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.utils.deterministic.fill_uninitialized_memory = before
    torch.use_deterministic_algorithms(False)
