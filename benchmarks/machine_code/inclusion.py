"""Inclusion probabilities and their gradient, at the target size of the selection."""

from .table import Kernel, Path

ROWS, POSITIONS = 512, 20000
SIZES = {"B": ROWS, "L": POSITIONS, "passes": 2}  # over near-uniform weights, k = 0.3 L
SOLVED = "4 * 2 * B * L"  # weights, probabilities
DIFFERENTIATED = "4 * 4 * B * L"  # gradient, weights, probabilities, gradient of the weights


def call_inclusion() -> None:
    """Both passes, by Triton."""
    import torch

    from mam_kernels.ops.inclusion import triton

    weights = torch.empty(ROWS, POSITIONS)
    probability, time = triton.probabilities(weights, torch.empty(ROWS, dtype=torch.int32), None)
    triton.backward(torch.empty_like(weights), weights, probability, time)


INCLUSION = Path(
    "inclusion_forward_backward",
    SIZES,
    "B",
    cuda=(
        Kernel(
            "inclusion", "csrc/cuda/inclusion.cu", "inclusion_kernelILb1E", blocks="B",
            threads="128", bytes=SOLVED,
        ),
        Kernel(
            "inclusion_gradient", "csrc/cuda/inclusion.cu", "inclusion_gradient_kernelILb1E",
            blocks="B", threads="128", bytes=DIFFERENTIATED,
        ),
    ),
    triton=call_inclusion,
    triton_bytes={"probabilities_kernel": SOLVED, "inclusion_gradient_kernel": DIFFERENTIATED},
)  # fmt: skip
