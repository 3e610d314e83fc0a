"""The value path: what it launches in a step without and with gradient, at the target sizes."""

from dataclasses import replace

from .selection import SELECTION_SHARPENED, TRITON_DRAW
from .table import Kernel, Path

CELLS = {
    "B": 512,
    "L": 20000,
    "nonzeros": 1600,
    "most_nonzero": 6.9,  # the largest of 32 lanes' nonzeros among 32 positions
    "N": 128,
    "H": 8,
    "D": 256,
    "chosen": 38,
    "giants": 4,  # the most terms that panel_series.cuh has
    "tiles": 16,
    "newton_steps": 1,
    "candidates": 575,
    "most_flagged": 3.6,
    "steep": 0,
    "raced": 128,  # latents
    "sharpened": 0,  # 1 at a temperature other than 1
}


def _step_arguments(inverse_temperature: float = 1.0) -> tuple:
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
    weighting = Weighting(1e-8, inverse_temperature)
    return cells, parameters, CELLS["H"], choice, weighting, draw, False


def call_values(inverse_temperature: float = 1.0) -> None:
    """The whole step at the target size, by Triton."""
    from mam_kernels.ops.value_attention import triton

    triton.step(*_step_arguments(inverse_temperature))


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

_project, _value, _finish = VALUE_PATH.cuda
_sharpened = SELECTION_SHARPENED.cuda[0]
VALUE_PATH_SHARPENED = replace(
    VALUE_PATH,
    name="value_path_sharpened",  # at a temperature of 1/2: the draw has launches of its own
    sizes=CELLS | {"sharpened": 1},
    cuda=(
        replace(_project, blocks="16 * H + 1 + B", bytes=f"{_project.bytes} + 4 * B"),
        _value,
        replace(_sharpened, sizes=SELECTION_SHARPENED.sizes),
        _finish,
    ),
    triton=lambda: call_values(2.0),
    triton_bytes={**VALUE_PATH.triton_bytes, **SELECTION_SHARPENED.triton_bytes},
    triton_sizes={**VALUE_PATH.triton_sizes, **SELECTION_SHARPENED.triton_sizes},
)  # fmt: skip


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
            "csrc/cuda/step_backward.cu",
            "rows_backward_kernel",
            blocks="128",
            threads="256",
            shared="4 * (D + H + H * H + N * H + (H + 2) * D)",
            bytes="B * (8 * N * H + 4 * D) + 4 * partials * (N * H + (H + 2) * D)",
        ),
        Kernel(
            "heads_backward",
            "csrc/cuda/step_backward.cu",
            "heads_backward_kernel",
            blocks="8 * H + 1",
            threads="256",
            shared="4 * (N + 3 * D)",
            bytes="4 * (partials * (N * H + (H + 2) * D) + 2 * D * D + N * D)",
        ),
        Kernel(
            "rest_backward",
            "csrc/cuda/step_backward.cu",
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
