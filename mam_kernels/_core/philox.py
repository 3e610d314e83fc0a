"""Philox4x32-10 in plain PyTorch: the random bits every backend must reproduce.

Source: Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
32-bit words are held in int64 tensors, because torch has no arithmetic on unsigned 32-bit integers
on every device.
"""

import torch
from torch import Tensor

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
WORD = 0xFFFFFFFF

STREAM_POSITIONS = 0
STREAM_LATENTS = 1

LARGEST_UNIFORM = 1.0 - 2.0**-24
"""The largest float32 below 1; a uniform of exactly 1 would make its key infinite."""


def _multiply(a: int, b: Tensor) -> tuple[Tensor, Tensor]:
    """High and low 32-bit words of the 64-bit product, by halves so that no partial product reaches
    2**63.
    """
    low_half, high_half = a * (b & 0xFFFF), a * (b >> 16)
    high = (high_half + (low_half >> 16)) >> 16
    low = (low_half + ((high_half & 0xFFFF) << 16)) & WORD
    return high, low


def philox4x32(seed: Tensor, counter: tuple[Tensor, Tensor, Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Four 32-bit words for each counter.

    Args:
        seed: int64 of 0 dims; its low 32 bits are the first key word, its high 32 bits the second.
        counter: four int64 tensors that broadcast together; the low 32 bits of each count.

    Returns:
        Four int64 tensors with values in [0, 2**32).
    """
    k0, k1 = seed & WORD, (seed >> 32) & WORD
    c0, c1, c2, c3 = (word & WORD for word in counter)
    for _ in range(ROUNDS):
        (high0, low0), (high1, low1) = _multiply(MULTIPLIERS[0], c0), _multiply(MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + WEYL[0]) & WORD, (k1 + WEYL[1]) & WORD
    return c0, c1, c2, c3


def random_bits(
    num_positions: int, sample_ids: Tensor, step: Tensor, seed: Tensor, stream: int
) -> Tensor:
    """The 32 random bits of each position: word ``l & 3`` of counter ``(l >> 2, sample id, step,
    stream)``.

    Args:
        num_positions: L.
        sample_ids: (B,) int64.
        step, seed: int64 of 0 dims.
        stream: ``STREAM_POSITIONS`` or ``STREAM_LATENTS``.

    Returns:
        (B, L) int64 with values in [0, 2**32).
    """
    blocks = torch.arange((num_positions + 3) // 4, device=sample_ids.device)
    counter = (
        blocks[None, :],
        sample_ids[:, None],
        step.to(sample_ids.device),
        torch.full_like(blocks[None, :], stream),
    )
    words = torch.broadcast_tensors(*philox4x32(seed.to(sample_ids.device), counter))
    return torch.stack(words, dim=-1).flatten(-2)[:, :num_positions]


def uniforms(bits: Tensor) -> Tensor:
    """``v = (r + 1/2) / 2**32`` in float32, clamped below 1.

    Small ``v``, which decide the race, keep all their bits.
    """
    return ((bits.to(torch.float32) + 0.5) * 2.0**-32).clamp(max=LARGEST_UNIFORM)
