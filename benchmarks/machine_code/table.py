"""The paths that are counted: their sizes, and what they launch.

To add a kernel of CUDA C++: a ``Kernel`` in its path. A Triton (or Gluon) path is a function that
calls the launchers with tensors on the CPU: whatever they launch is recorded, compiled and counted.
Either way the loops of the sources carry ``trips:`` comments (see ``annotations.py``), whose
formulas use the names of ``sizes``, and the constants in capitals of a Triton launch.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Kernel:
    """A kernel of csrc/cuda. ``symbol`` is a part of its mangled name; the rest are formulas."""

    name: str
    source: str
    symbol: str
    blocks: str
    threads: str
    bytes: str  # that have to be moved between the GPU and its memory
    shared: str = "0"  # bytes of dynamic shared memory
    sizes: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Library:
    """Launches of somebody else's kernels, such as a product of torch: bounded by formulas."""

    name: str
    backend: str  # "cuda", "triton" or "both"
    operations: str  # of 16-bit products
    bytes: str
    launches: int = 1


@dataclass(frozen=True)
class Path:
    """One of the paths whose bounds are committed."""

    name: str
    sizes: Mapping[str, float]
    batch: str  # the name of the size that counts rows
    cuda: tuple[Kernel, ...] = ()
    triton: Callable[[], None] | None = None
    triton_bytes: Mapping[str, str] = field(default_factory=dict)  # by the kernel's name
    triton_sizes: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    libraries: tuple[Library, ...] = ()


def call_selection() -> None:
    """Selection at the target size, by Triton."""
    import torch

    from mam_kernels._core.call import Draw, Weighting
    from mam_kernels.ops.selection import triton

    draw = Draw(torch.tensor(5), torch.tensor(5), None)
    counts = torch.empty(512, dtype=torch.int32)
    triton.select(torch.empty(512, 20000), counts, None, draw, Weighting(1e-8, 1.0))


# One loop serves all lanes of a block: the largest count of 128. Simulated, as the bisections.
TRITON_DRAW = {
    "LANES": 128,
    "BLOCK_C": 256,
    "BLOCK_K": 1024,
    "first_list": 11.4 // 4,  # the loop is unrolled
    "second_list": 11.4 % 4,
    "third_list": 0,
    "bisections": 9,
    "steep": 0,
    "all_keys": 0,
}

SELECTION = Path(
    "selection",
    {
        "B": 512,
        "L": 20000,
        "raced": 0,
        "newton_steps": 1,
        "candidates": 575,
        "most_flagged": 3.6,
        "steep": 0,
    },
    "B",
    cuda=(
        Kernel(
            "select",
            "csrc/cuda/selection.cu",
            "select_kernel",
            blocks="B",
            threads="128",
            shared="4 * (128 * ceil(L / 4096) + 2 * 4000)",
            bytes="5 * B * L",
        ),
    ),
    triton=call_selection,
    triton_bytes={"select_kernel": "5 * B * L"},
    triton_sizes={"select_kernel": TRITON_DRAW},
)

# Log-normal weights of sigma = 3, of which every row is steep: simulated by the rule.
SPREAD = {"steep": 1, "newton_steps": 4, "candidates": 3150}
SELECTION_SPREAD = replace(
    SELECTION,
    name="selection_spread",
    sizes=SELECTION.sizes | SPREAD | {"most_flagged": 9.5},
    triton_sizes={
        "select_kernel": TRITON_DRAW
        | SPREAD
        | {"first_list": 36 // 4, "second_list": 36 % 4, "bisections": 12}
    },
)


def call_sharpened_selection() -> None:
    """Selection at a temperature of 1/2, by Triton."""
    import torch

    from mam_kernels._core.call import Draw, Weighting
    from mam_kernels.ops.selection import triton

    draw = Draw(torch.tensor(5), torch.tensor(5), None)
    counts = torch.empty(512, dtype=torch.int32)
    triton.select(torch.empty(512, 20000), counts, None, draw, Weighting(1e-8, 2.0))


SELECTION_SHARPENED = replace(
    SELECTION, name="selection_sharpened", cuda=(), triton=call_sharpened_selection
)

CELLS = {
    "B": 512,
    "L": 20000,
    "nonzeros": 1600,
    "most_nonzero": 6.9,  # the largest of 32 lanes' nonzeros among 32 positions
    "N": 128,
    "H": 8,
    "D": 256,
    "chosen": 38,
    "giants": 4,  # the most terms that single_panel.cuh has
    "tiles": 16,
    "newton_steps": 1,
    "candidates": 575,
    "most_flagged": 3.6,
    "steep": 0,
    "raced": 128,  # latents
}


def _step_arguments() -> tuple:
    """Of the step of scalar values at the target size, on tensors without content."""
    import torch

    from mam_kernels._core.call import Cells, Choice, Draw, Parameters, Weighting

    width, latents = CELLS["D"], CELLS["N"]
    shapes = (
        (latents, width), (3 * width, width), (3 * width,), (width, 1), (width,), (width, width),
        (width,),
    )  # fmt: skip
    parameters = Parameters(*(torch.empty(shape) for shape in shapes))
    cells = Cells(torch.empty(512, 20000), None, None, None, 20000)
    choice = Choice(None, None, 0.3, None, 38)
    draw = Draw(torch.tensor(5), torch.tensor(5), None)
    return cells, parameters, CELLS["H"], choice, Weighting(1e-8, 1.0), draw, False


def call_values() -> None:
    """The whole step at the target size, by Triton."""
    from mam_kernels.ops.value_attention import triton

    triton.step(*_step_arguments())


VALUE_PATH = Path(
    "value_path",
    CELLS,
    "B",
    cuda=(
        Kernel(
            "project",
            "csrc/cuda/step.cu",
            "project_kernel",
            blocks="16 * H + 1",
            threads="128",
            shared="4 * (3 * D / H + D)",
            bytes="4 * (4 * D * D + N * D)",
        ),
        Kernel(
            "value",
            "csrc/cuda/value_attention.cu",
            "value_kernel",
            blocks="B",
            threads="128",
            shared="4 * (2 * 128 * ceil(L / 4096) + 2 * 4000)",
            # values, importance and mask, moments
            bytes="B * (L * (4 + 4 + 1) + 8 * N * H)",
            sizes={"raced": 0},  # positions of a row that is drawn by all keys: rare
        ),
        Kernel(
            "finish",
            "csrc/cuda/step.cu",
            "finish_kernel",
            blocks="H * H",
            threads="128",
            bytes="4 * B * H * H",
        ),
    ),
    triton=call_values,
    triton_bytes={
        "project_kernel": "4 * (4 * D * D + N * D)",
        "value_kernel": "B * (L * 9 + 8 * N * H)",
        "finish_kernel": "4 * B * (N * H + D)",
    },
    triton_sizes={
        "project_kernel": {"drawing": 1 / 129},
        "value_kernel": TRITON_DRAW
        | {"first_list": 22.1, "second_list": 10.8 // 4, "third_list": 10.8 % 4},
    },
)


def call_values_backward() -> None:
    """The gradient of the whole step at the target size, by Triton."""
    import torch

    from mam_kernels.ops.value_attention import arguments, triton

    _, parameters, heads, *_ = _step_arguments()
    latents, width = parameters.latents.shape
    state = torch.empty(arguments.state_size(512, latents, heads, width))
    context, penalty = torch.empty(512, width), torch.empty(())
    triton.step_backward(context, penalty, parameters, heads, state, 512)


VALUE_PATH_BACKWARD = Path(
    "value_path_backward",
    CELLS | {"partials": 128},
    "B",
    cuda=(
        Kernel(
            "rows_backward",
            "csrc/cuda/step.cu",
            "rows_backward_kernel",
            blocks="128",
            threads="256",
            shared="4 * (D + H + H * H + N * H + (H + 2) * D)",
            bytes="B * (8 * N * H + 4 * D) + 4 * partials * (N * H + (H + 2) * D)",
        ),
        Kernel(
            "heads_backward",
            "csrc/cuda/step.cu",
            "heads_backward_kernel",
            blocks="8 * H + 1",
            threads="256",
            shared="4 * (N + 3 * D)",
            bytes="4 * (partials * (N * H + (H + 2) * D) + 2 * D * D + N * D)",
        ),
        Kernel(
            "rest_backward",
            "csrc/cuda/step.cu",
            "rest_backward_kernel",
            blocks="ceil(D / 32) + (D * D + N * D) / 256",
            threads="256",
            bytes="4 * (6 * D * D + N * D)",
        ),
    ),
    triton=call_values_backward,
    triton_bytes={
        "rows_gradient_kernel": "B * (8 * N * H + 4 * D) + 4 * partials * (N * H + (H + 2) * D)",
        "sum_parts_kernel": "4 * partials * (N * H + (H + 2) * D)",
        "parameters_gradient_kernel": "4 * (8 * D * D + 2 * N * D)",
    },
)
