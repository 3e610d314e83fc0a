"""Other launch shapes of Triton kernels, which a measurement on a device tries beside the usual
ones.
"""

import contextlib
from collections.abc import Iterator

from ..machine_code.launches import kernels

ALTERNATIVES: dict[str, list[tuple[str, dict[str, int]]]] = {
    # 4 warps of 110 registers leave four rows a multiprocessor, of 96 five; fewer exchange less.
    "selection": [
        ("select_kernel", {"num_warps": 2}),
        ("select_kernel", {"num_warps": 8}),
        ("select_kernel", {"maxnreg": 96}),
    ],
    # 200 registers leave two programs a multiprocessor; 128 leave four, and spill.
    "value_path": [
        ("value_kernel", {"maxnreg": 128}),
        ("value_kernel", {"num_warps": 2}),
    ],
    # Fewer stages need less shared memory; more warps hide more of a product's latency.
    "token_path_forward_backward": [
        ("project_and_attend_kernel", {"num_warps": 8}),
        ("importance_kernel", {"STAGES": 2}),
        ("gradient_kernel", {"num_warps": 8}),
    ],
}
"""Path -> kernels with the arguments of their launch that are replaced, two or three a path."""


@contextlib.contextmanager
def applied(kernel: str, options: dict[str, int]) -> Iterator[list[str]]:
    """Inside, launches of the kernel take these options; the list grows by a name a launch."""
    function = kernels()[kernel]
    usual, replaced = function.run, vars(function).get("run")
    launches: list[str] = []

    def run(*args: object, **kwargs: object) -> object:
        launches.append(kernel)
        return usual(*args, **(kwargs | options))

    function.run = run
    try:
        yield launches
    finally:
        del function.run
        if replaced is not None:
            function.run = replaced
