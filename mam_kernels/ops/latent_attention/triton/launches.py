"""How the kernels of attention over tokens are launched: tiles, splits of a row, and registers."""

from collections.abc import Container
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...._core import triton_launch as launch

SMALLEST_DOT = 16  # tl.dot takes no smaller side
POSITIONS_PER_SPLIT = 256  # fewer do not pay for merging
# All that a thread may have. Left alone, NVIDIA's assembler spills a few of the tensor cores' sums
# for occupancy; where the general units compute, it is the limit that has it spill.
REGISTERS = 255
# The time of the interpreter is that of its operations, whatever their size.
INTERPRETER_LATENTS, INTERPRETER_POSITIONS = 64, 128


class Tile(NamedTuple):
    """A launch configuration."""

    latents: int
    positions: int
    width: int
    warps: int
    stages: int = 2
    registers: int | None = None  # a thread may have; None: what the assembler gives it

    def arguments(self) -> dict[str, int]:
        """As the constants and options of a launch."""
        return {
            "BLOCK_N": self.latents,
            "BLOCK_L": self.positions,
            "BLOCK_D": self.width,
            "num_warps": self.warps,
            "num_stages": self.stages,
            **launch.register_limit(self.registers),
        }


Tiles = dict[int, tuple[int, int, int]]  # (latents, positions, warps) by the padded head width


def tile_of(query: Tensor, half: Tiles, full: Tiles, limited: Container[int] = ()) -> Tile:
    """The configuration for the width, the type and, where it is small, the number of latents.

    Args:
        query: (N, H, d).
        half: of two-byte types, which have all registers.
        full: of float32, whose registers the assembler chooses but for the widths ``limited``.
    """
    width, fitting = padded_side(query.shape[-1]), padded_side(query.shape[0])
    if launch.INTERPRETED:
        return Tile(min(fitting, INTERPRETER_LATENTS), INTERPRETER_POSITIONS, width, 1)
    whole = query.dtype == torch.float32
    latents, positions, warps = (full if whole else half)[width]
    limit = None if whole and width not in limited else REGISTERS
    return Tile(min(fitting, latents), positions, width, warps, registers=limit)


def registers() -> dict[str, int]:
    """The launch option that gives a thread all registers."""
    return launch.register_limit(None if launch.INTERPRETED else REGISTERS)


def part() -> tl.dtype:
    """The type of the numbers that join a product as a row of its factor: the widest range of two
    bytes. The interpreter does not multiply it.
    """
    return tl.float32 if launch.INTERPRETED else tl.bfloat16


def padded_side(size: int) -> int:
    """The side of a tile that holds so many latents, or columns of a head."""
    return max(triton.next_power_of_2(size), SMALLEST_DOT)


def held(x: Tensor | None) -> Tensor | None:
    """What a kernel is given of a tensor: the interpreter holds bfloat16 as bits, which it would
    multiply, and truncates to it.
    """
    return x.float() if launch.INTERPRETED and x is not None and x.dtype == torch.bfloat16 else x


class Splits(NamedTuple):
    """The parts of a row that programs take."""

    count: int
    size: int  # positions, a multiple of the tile's

    @staticmethod
    def of(
        num_positions: int, programs: int, tile_positions: int, device: torch.device
    ) -> "Splits":
        """So many that a small batch, of ``programs`` without splits, still fills the device
        twice.
        """
        wanted = 2 * launch.num_multiprocessors(device) // programs
        count = max(1, min(wanted, num_positions // POSITIONS_PER_SPLIT))
        size = triton.cdiv(triton.cdiv(num_positions, count), tile_positions) * tile_positions
        return Splits(triton.cdiv(num_positions, size), size)


def new_statistics(
    batch: int, num_latents: int, num_heads: int, tile: Tile, device: torch.device
) -> Tensor:
    """Room for what ``tiles.store_statistics`` writes: (2, B, H, latents padded to whole tiles)."""
    length = triton.cdiv(num_latents, tile.latents) * tile.latents
    return torch.empty((2, batch, num_heads, length), dtype=torch.float32, device=device)
