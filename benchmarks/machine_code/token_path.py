"""The token path: what it launches in a step without and with gradient, at the target sizes."""

import functools
from dataclasses import replace

from .selection import SELECTION
from .table import Kernel, Path

SIZES = {
    "B": 64,
    "L": 2048,
    "D": 256,  # of the tokens
    "Dz": 256,
    "N": 128,
    "H": 8,
    "R": 38,
    "kept": 1,  # of keys and values
    # the draw of a row of this length in one pass, as in the path of the selection
    "all_keys": 0,
    "newton_steps": 1,
    "candidates": 190,
    "first_list": 6 // 4,  # the loop is unrolled
    "second_list": 6 % 4,
    "bisections": 7,
    "steep": 0,
    "widenings": 0,
    "infinite": 0,
    "drawing": 1,
    "LANES": 128,
    "BLOCK_C": 256,
    "BLOCK_K": 1024,
    "raced": 128,
    # of CUDA's kernels: parts that the gradient of the queries is summed in, tiles in each, and
    # the most candidates of a lane
    "parts": 16,
    "tiles": 128,
    "most_flagged": 2.5,
}
BYTES = {
    "prepare_kernel": "4 * (N * Dz + 3 * Dz * Dz + Dz * D) + 2 * (N * Dz + 2 * Dz * D)",
    "draw_latents_kernel": "8 * R",
    "project_and_attend_kernel": "2 * B * L * (D + kept * Dz) + B * N * (2 * Dz + 4 * H)",
    "importance_kernel": "B * L * (2 * Dz + 4)",
    "select_kernel": "5 * B * L",
    "context_kernel": "2 * B * N * Dz",
    "output_gradient_kernel": "6 * B * N * Dz",
    "gradient_kernel": "8 * B * L * Dz + 6 * B * N * Dz",
    # where one pass does not fit
    "key_value_gradient_kernel": "8 * B * L * Dz + 4 * B * N * Dz",
    "query_gradient_kernel": "4 * B * L * Dz + 6 * B * N * Dz",
}


def _step(backend: str, with_gradient: bool, padded: bool = False, **other: int) -> None:
    """The step on tensors without content, at other sizes where they are given: only its launches
    are wanted.
    """
    import torch

    from mam_kernels._core.call import Choice, Draw, Parameters, Weighting
    from mam_kernels.ops.latent_attention import composed, triton

    sizes = SIZES | other
    batch, positions, inputs, width, latents = (sizes[x] for x in ("B", "L", "D", "Dz", "N"))
    shapes = (
        (latents, width), (3 * width, width), (3 * width,), (width, inputs), (width,),
        (width, width), (width,),
    )  # fmt: skip
    parameters = Parameters(*(torch.empty(shape, device="meta") for shape in shapes))
    tokens = torch.empty(batch, positions, inputs, dtype=torch.bfloat16, device="meta")
    valid = torch.empty(batch, positions, dtype=torch.bool, device="meta") if padded else None
    cells = tokens, valid, parameters, sizes["H"]
    choice = Choice(None, None, 0.3, None, sizes["R"])
    draw = Draw(torch.tensor(1), torch.tensor(1), None)
    how = choice, Weighting(1e-8, 1.0), draw, False, with_gradient
    if backend == "triton":
        step, step_backward = triton.step, triton.step_backward
    else:
        step = functools.partial(composed.step, backend=backend)
        step_backward = functools.partial(composed.step_backward, backend=backend)
    *_, context, penalty, state = step(*cells, *how)
    if with_gradient:
        step_backward(context, penalty, *cells, state, True)


# CUDA's kernels are attention, importance and draw; the rest is torch's. One part for each row of
# the attention: there are enough programs.
DRAW_LATENTS = Kernel(
    "draw_latents", "csrc/cuda/selection.cu", "draw_latents_kernel", blocks="1", threads="128",
    bytes="8 * R",
)  # fmt: skip
ATTENTION = Kernel(
    "attention", "csrc/cuda/latent_attention.cu", "attention_kernelILi32E",
    blocks="B * H * N / 64", threads="256", bytes="4 * B * L * Dz + B * N * (2 * Dz + 4 * H)",
)  # fmt: skip
IMPORTANCE = Kernel(
    "importance", "csrc/cuda/importance.cu", "token_importance_kernel",
    blocks="B * ceil(L / 64)", threads="256", bytes="B * L * (2 * Dz + 4)",
)  # fmt: skip
DELTA = Kernel(
    "delta", "csrc/cuda/latent_attention_backward.cu", "delta_kernel", blocks="B * N * H / 8",
    threads="256", bytes="B * N * (4 * Dz + 4 * H)",
)  # fmt: skip
KEYS_AND_VALUES = Kernel(
    "gradient of keys and values", "csrc/cuda/latent_attention_backward.cu",
    "tokens_kernelILi32E", blocks="B * H * ceil(L / 64)", threads="256",
    bytes="(4 + 8) * B * L * Dz",
)  # fmt: skip
QUERIES = Kernel(
    "gradient of queries", "csrc/cuda/latent_attention_backward.cu", "latents_kernelILi32E",
    blocks="parts * H * N / 64", threads="256", bytes="4 * B * L * Dz + 4 * parts * N * Dz",
)  # fmt: skip
REDUCE = Kernel(
    "sum of the parts", "csrc/cuda/latent_attention_backward.cu", "reduce_kernel",
    blocks="N * Dz / 256", threads="256", bytes="4 * (parts + 1) * N * Dz",
)  # fmt: skip
SELECT = replace(SELECTION.cuda[0], sizes={"raced": 0})

TOKEN_FORWARD = Path(
    "token_path_forward",
    SIZES,
    "B",
    cuda=(DRAW_LATENTS, ATTENTION, IMPORTANCE, SELECT),
    triton=lambda: _step("triton", False),
    triton_bytes=BYTES,
    around=lambda backend: _step(backend, False),
)

TOKEN_BOTH = Path(
    "token_path_forward_backward",
    SIZES | {"kept": 2},
    "B",
    cuda=(*TOKEN_FORWARD.cuda, DELTA, KEYS_AND_VALUES, QUERIES, REDUCE),
    triton=lambda: _step("triton", True),
    triton_bytes=BYTES,
    around=lambda backend: _step(backend, True),
)


def _other(with_gradient: bool, padded: bool, **other: int) -> Path:
    """A step at other sizes, by Triton."""
    usual = TOKEN_BOTH if with_gradient else TOKEN_FORWARD
    call = functools.partial(_step, with_gradient=with_gradient, padded=padded, **other)
    return replace(
        usual,
        sizes=usual.sizes | other,
        cuda=(),
        triton=lambda: call("triton"),
        around=call,
    )


OTHER_SIZES: dict[str, dict[str, int | bool]] = {
    "the target": {},
    "heads of 16": {"H": 16},
    "heads of 64": {"H": 4},
    "heads of 128": {"H": 2},
    "2,000 tokens": {"L": 2000},
    "1,999 tokens": {"L": 1999},
    "padding": {"padded": True},
}
"""What has the bytes and the products of the target size, by cell or by token."""


def other_sizes(with_gradient: bool) -> dict[str, Path]:
    """The steps of ``OTHER_SIZES``."""
    return {
        name: _other(with_gradient, bool(other.get("padded")), **{
            key: x for key, x in other.items() if key != "padded"
        })
        for name, other in OTHER_SIZES.items()
    }  # fmt: skip
