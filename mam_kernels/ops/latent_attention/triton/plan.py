"""Whether the projection of the tokens joins their attention, and with which tiles."""

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from ...._core import triton_launch as launch
from .launches import INTERPRETER_POSITIONS, padded_side, registers


class Plan(NamedTuple):
    """The launch configuration of ``project_and_attend_kernel``."""

    heads: int
    latents: int
    positions: int
    width: int
    inputs: int  # features in a chunk
    chunks: int
    warps: int
    rows_are_features: bool

    def arguments(self) -> dict[str, int]:
        """As the constants and options of a launch."""
        # Of more latents at a time, the scores of four warps would be spilled; eight share 128.
        block = min(self.latents, 64 if self.warps < 8 else 128)
        return {
            "HEADS": self.heads,
            "LATENT_BLOCKS": self.latents // block,
            "BLOCK_N": block,
            "BLOCK_L": self.positions,
            "BLOCK_D": self.width,
            "BLOCK_X": self.inputs,
            "CHUNKS": self.chunks,
            "ROWS_ARE_FEATURES": self.rows_are_features,
            "num_warps": self.warps,
            "num_stages": 1,
            **registers(),
        }


# Columns of the keys of a program: with 128, two programs would not share a multiprocessor.
FUSED_COLUMNS = 64
FUSED_POSITIONS = 64
FUSED_LATENTS = 128
FUSED_INPUTS = 256  # wider tokens leave no room for a second program, and their tiles are spilled
SPARE_SHARED = 16 * 1024  # beside the factors: tiles of keys, values and what is stored


def plan(query: Tensor, tokens: Tensor) -> Plan | None:
    """How the projection joins the attention; None where it does not fit, as for float32."""
    (num_latents, num_heads, width), inputs = query.shape, tokens.shape[-1]
    width, latents = padded_side(width), padded_side(num_latents)
    if latents > FUSED_LATENTS or width > 128 or inputs > FUSED_INPUTS or launch.is_amd():
        return None
    # The sums of four heads would be spilled; before Hopper, with factors in registers, of two.
    narrow = width == 16 or launch.architecture(tokens.device) < 90
    columns = 32 if narrow else FUSED_COLUMNS
    heads = max(1, min(columns // width, triton.next_power_of_2(num_heads)))
    chunk, chunks = _chunks(inputs, 2 * heads * width)
    if launch.INTERPRETED:
        return Plan(heads, latents, INTERPRETER_POSITIONS, width, chunk, chunks, 1, width > 64)
    if tokens.dtype == torch.float32:
        return None
    latents = max(latents, 64)  # fewer rows would not go through wgmma
    columns = 2 * heads * width
    elements = columns * chunk * chunks + FUSED_POSITIONS * chunk + heads * width * latents
    if elements * tokens.element_size() + SPARE_SHARED > launch.shared_memory(tokens.device):
        return None
    # The sums of Blackwell's products lie in a memory of their own, from where a program of four
    # warps would load more than its registers hold.
    blackwell = launch.architecture(tokens.device) >= 100
    warps = 4 if columns <= 128 and not blackwell else 8
    turned = width > 64 and not blackwell  # there the flags of all columns would be spilled
    return Plan(heads, latents, FUSED_POSITIONS, width, chunk, chunks, warps, turned)


def _chunks(inputs: int, columns: int) -> tuple[int, int]:
    """(width, number) of the parts that the features go by in: the fewest features in all, and then
    the fewest parts.
    """
    largest = 256 if columns <= 128 else 128
    fitting = padded_side(inputs)
    sizes = [size for size in (256, 128, 64) if size <= min(largest, fitting)] or [fitting]
    chunk = min(sizes, key=lambda size: (triton.cdiv(inputs, size) * size, -size))
    return chunk, triton.cdiv(inputs, chunk)
