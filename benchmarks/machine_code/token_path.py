"""The token path: what it launches in a step without and with gradient, at the target sizes."""

from .table import Library, Path

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
}


def _arguments() -> tuple:
    import torch

    from mam_kernels._core.call import Choice, Draw, Parameters, Weighting

    batch, positions, inputs, width, latents = (SIZES[x] for x in ("B", "L", "D", "Dz", "N"))
    shapes = (
        (latents, width), (3 * width, width), (3 * width,), (width, inputs), (width,),
        (width, width), (width,),
    )  # fmt: skip
    parameters = Parameters(*(torch.empty(shape) for shape in shapes))
    tokens = torch.empty(batch, positions, inputs, dtype=torch.bfloat16)
    choice = Choice(None, None, 0.3, None, SIZES["R"])
    draw = Draw(torch.tensor(1), torch.tensor(1), None)
    return tokens, None, parameters, SIZES["H"], choice, Weighting(1e-8, 1.0), draw, False


def _call(with_gradient: bool) -> None:
    """The step on tensors without content: only its launches are wanted."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    from mam_kernels.ops.latent_attention import triton

    with FakeTensorMode(allow_non_fake_inputs=True):
        arguments = _arguments()
        *_, context, penalty, state = triton.step(*arguments, with_gradient)
        if with_gradient:
            triton.step_backward(context, penalty, *arguments[:4], state, True)


TOKEN_FORWARD = Path(
    "token_path_forward",
    SIZES,
    "B",
    triton=lambda: _call(False),
    triton_bytes=BYTES,
    libraries=(Library("penalty: a sum of torch", "triton", "0", "16 * B"),),
)

TOKEN_BOTH = Path(
    "token_path_forward_backward",
    SIZES | {"kept": 2},
    "B",
    triton=lambda: _call(True),
    triton_bytes=BYTES,
    libraries=(
        Library("penalty: a sum of torch", "triton", "0", "16 * B"),
        Library(
            "gradient of the tokens", "triton", "4 * B * L * Dz * D", "2 * B * L * (2 * Dz + D)"
        ),
        Library(
            "gradient of the folded weights", "triton", "4 * B * L * Dz * D",
            "2 * B * L * (2 * Dz + D)",
        ),
        Library("sum of the parts of dQ", "triton", "0", "4 * B * N * Dz"),
        Library("gradient of the output projection", "triton", "2 * B * N * Dz * Dz",
                "4 * B * N * Dz"),
        Library("sum over the latents", "triton", "0", "2 * B * N * Dz"),
        Library("products of the size of the parameters", "triton", "0", "40 * Dz * Dz / 18", 18),
    ),
)  # fmt: skip
