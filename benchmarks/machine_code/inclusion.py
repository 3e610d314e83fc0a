"""Inclusion probabilities and their gradient, at the target size of the selection."""

from .table import Kernel, Path

ROWS, POSITIONS = 512, 20000
# Near-uniform weights, k = 0.3 L: the sample tells the time well enough for one pass.
SIZES = {"B": ROWS, "L": POSITIONS, "newton_steps": 1, "passes": 1}
SOLVED = "4 * 2 * B * L"  # weights, probabilities
DIFFERENTIATED = "4 * 4 * B * L"  # gradient, weights, probabilities, gradient of the weights


def call_inclusion() -> None:
    """The probabilities, by Triton."""
    import torch

    from mam_kernels.ops.inclusion import triton

    weights = torch.empty(ROWS, POSITIONS)
    triton.probabilities(weights, torch.empty(ROWS, dtype=torch.int32), None)


def call_inclusion_backward() -> None:
    """Their gradient, by Triton."""
    import torch

    from mam_kernels.ops.inclusion import triton

    weights = torch.empty(ROWS, POSITIONS)
    triton.backward(weights, weights, weights, torch.empty(ROWS, dtype=torch.float64))


INCLUSION = Path(
    "inclusion",
    SIZES,
    "B",
    cuda=(
        Kernel(
            "inclusion", "csrc/cuda/inclusion.cu", "inclusion_kernelILb1ELb0E", blocks="B",
            threads="128", bytes=SOLVED,
        ),
    ),
    triton=call_inclusion,
    triton_bytes={"probabilities_kernel": SOLVED},
)  # fmt: skip

INCLUSION_BACKWARD = Path(
    "inclusion_backward",
    SIZES,
    "B",
    cuda=(
        Kernel(
            "inclusion_gradient", "csrc/cuda/inclusion.cu", "inclusion_gradient_kernelILb1E",
            blocks="B", threads="128", bytes=DIFFERENTIATED,
        ),
    ),
    triton=call_inclusion_backward,
    triton_bytes={"inclusion_gradient_kernel": DIFFERENTIATED},
)  # fmt: skip
