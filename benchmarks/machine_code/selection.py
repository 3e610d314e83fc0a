"""Selection at the target size, of weights of several kinds."""

from dataclasses import replace

from .table import Kernel, Path


def call_selection(inverse_temperature: float = 1.0) -> None:
    """Selection by Triton."""
    import torch

    from mam_kernels._core.call import Draw, Weighting
    from mam_kernels.ops.selection import triton

    draw = Draw(torch.tensor(5), torch.tensor(5), None)
    counts = torch.empty(512, dtype=torch.int32)
    weighting = Weighting(1e-8, inverse_temperature)
    triton.select(torch.empty(512, 20000), counts, None, draw, weighting)


# What is 0 is so nearly always: `steep` rows, `infinite` weights, rows drawn by all keys (`raced`,
# `all_keys`). Candidates, the steps of the searches and the most candidates of a lane were
# simulated by the rule (mam_kernels/ops/selection/README.md).
SIZES = {
    "B": 512,
    "L": 20000,
    "raced": 0,
    "newton_steps": 1,
    "candidates": 590,
    "most_flagged": 3.3,
    "steep": 0,
    "widenings": 0,
    "infinite": 0,
}
# One loop serves all lanes of a block: the largest count of 128.
TRITON_DRAW = {
    "LANES": 128,
    "BLOCK_C": 256,
    "BLOCK_K": 1024,
    "first_list": 11.4 // 4,  # the loop is unrolled
    "second_list": 11.4 % 4,
    "third_list": 0,
    "bisections": 9,
    "steep": 0,
    "widenings": 0,
    "infinite": 0,
    "all_keys": 0,
}
SELECTION = Path(
    "selection",
    SIZES,
    "B",
    cuda=(
        Kernel(
            "select",
            "csrc/cuda/selection.cu",
            "select_kernelILb1ELb0ELb0E",
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


def _steep(name: str, newton_steps: float) -> Path:
    """Rows of which every one is steep."""
    spread = {"steep": 1, "newton_steps": newton_steps, "candidates": 2180, "widenings": 2.8}
    listed = {"first_list": 29 // 4, "second_list": 29 % 4, "bisections": 12}
    return replace(
        SELECTION,
        name=name,
        sizes=SIZES | spread | {"most_flagged": 7.4},
        triton_sizes={"select_kernel": TRITON_DRAW | spread | listed},
    )


SELECTION_SPREAD = _steep("selection_spread", 3.3)  # log-normal weights of sigma = 3
SELECTION_WIDE = _steep("selection_wide", 4.8)  # and of sigma = 5
SELECTION_INFINITE = replace(
    SELECTION,
    name="selection_infinite",  # near-uniform weights, some of which in each row are infinite
    sizes=SIZES | {"infinite": 1},
    triton_sizes={"select_kernel": TRITON_DRAW | {"infinite": 1}},
)
SELECTION_SHARPENED = replace(
    SELECTION,
    name="selection_sharpened",  # at a temperature of 1/2
    cuda=(replace(SELECTION.cuda[0], symbol="select_kernelILb1ELb0ELb1E"),),
    triton=lambda: call_selection(2.0),
)
