"""What the launchers of Triton kernels would launch: they are called with tensors on the CPU, and
nothing runs.
"""

import contextlib
import functools
import importlib
import pkgutil
from collections.abc import Iterator
from typing import Any, NamedTuple

NUM_OPTIONS = ("num_warps", "num_stages", "num_ctas", "maxnreg")


class Variant(NamedTuple):
    """What Triton compiles a kernel for; another one compiles anew. Hashable, and picklable for
    other processes.
    """

    module: str
    kernel: str
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, object], ...]
    divisible: tuple[str, ...]  # arguments that are multiples of 16
    options: tuple[tuple[str, int], ...]

    def compiled(self, target: object) -> object:
        """The kernel compiled ahead of time for a ``GPUTarget``."""
        import triton
        from triton.compiler import ASTSource

        kernel = getattr(importlib.import_module(self.module), self.kernel)
        if hasattr(kernel, "is_gluon") and kernel.is_gluon():
            from triton.experimental.gluon._runtime import GluonASTSource as ASTSource
        names = list(kernel.arg_names)
        attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in self.divisible}
        source = ASTSource(kernel, dict(self.signature), dict(self.constants), attributes)
        return triton.compile(source, target=target, options=dict(self.options))


class Launch(NamedTuple):
    """One launch of a kernel."""

    variant: Variant
    blocks: int


@functools.cache
def kernels() -> dict[str, Any]:
    """Every Triton kernel of the operations, by its name."""
    from triton.runtime.jit import KernelInterface

    import mam_kernels.ops

    found = {}
    for module in pkgutil.walk_packages(mam_kernels.ops.__path__, "mam_kernels.ops."):
        if ".triton" in module.name:
            for name, kernel in vars(importlib.import_module(module.name)).items():
                if name.endswith("_kernel") and isinstance(kernel, KernelInterface):
                    found[name] = kernel
    return found


@contextlib.contextmanager
def recording() -> Iterator[list[Launch]]:
    """Inside, kernels are not launched: the list grows by what they would be."""
    launches: list[Launch] = []
    watched = kernels().values()
    for kernel in watched:
        kernel.run = functools.partial(_record, kernel, launches)
    try:
        yield launches
    finally:
        for kernel in watched:
            del kernel.run


def _record(
    kernel: object, launches: list[Launch], *args: object, grid: object, warmup: bool, **kwargs
) -> None:
    """Notes a launch as Triton specializes it: None and 1 are constants, multiples of 16 are
    known, unless the kernel says not to.
    """
    options = {key: kwargs.pop(key) for key in NUM_OPTIONS if key in kwargs}
    bound = kernel.signature.bind(*args, **kwargs).arguments
    signature, constants, divisible = {}, {}, []
    for parameter in kernel.params:
        x, name = bound[parameter.name], parameter.name
        special = not parameter.do_not_specialize
        if parameter.is_constexpr or x is None or (isinstance(x, int) and x == 1 and special):
            signature[name], constants[name] = "constexpr", x
            continue
        signature[name] = _type(x, parameter.annotation_type)
        if not isinstance(x, int | float) or (isinstance(x, int) and x % 16 == 0 and special):
            divisible.append(name)
    grid = grid(bound) if callable(grid) else grid
    blocks = 1
    for size in grid:
        blocks *= size
    variant = Variant(
        kernel.fn.__module__, kernel.fn.__name__, tuple(signature.items()),
        tuple(constants.items()), tuple(divisible), tuple(options.items()),
    )  # fmt: skip
    launches.append(Launch(variant, blocks))


def _type(x: object, annotated: str) -> str:
    """Triton's name for the type of an argument."""
    import torch

    if isinstance(x, torch.Tensor):
        pointed = {
            torch.float64: "fp64", torch.float32: "fp32", torch.float16: "fp16",
            torch.bfloat16: "bf16", torch.bool: "i1", torch.uint8: "u8",
            torch.int32: "i32", torch.int64: "i64",
        }  # fmt: skip
        return "*" + pointed[x.dtype]
    if isinstance(x, float):
        return "fp32"
    return annotated or ("i32" if -(2**31) <= x < 2**31 else "i64")
