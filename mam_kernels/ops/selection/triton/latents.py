"""Draws latents by an exponential race: the smallest uniforms, by comparing all pairs."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...._core import triton_launch as launch
from ...._core.call import Draw
from ...._core.triton_language import STREAM_LATENTS, positional_bits, read_word, uniform

LATENTS = tl.constexpr(32)  # that are compared with as many at a time


@triton.jit
def choose_latents(  # share: drawing
    seed_ptr,
    step_ptr,
    chosen_ptr,
    seed,
    step,
    num_latents,
    size,
    SEED_ON_DEVICE: tl.constexpr,
    STEP_ON_DEVICE: tl.constexpr,
):
    """chosen = ascending n with rank(n) < size, rank(n) = #{m: (v[m], m) < (v[n], n)} by comparing
    all pairs.
    """
    seed = read_word(seed, seed_ptr, SEED_ON_DEVICE)
    step = read_word(step, step_ptr, STEP_ON_DEVICE)
    sample_id = tl.zeros([1], dtype=tl.int64)
    written = 0
    for first in range(0, num_latents, LATENTS):  # trips: N / 32
        latent = first + tl.arange(0, LATENTS)
        v = uniform(
            positional_bits(first, seed, sample_id, step, STREAM_LATENTS, LATENTS)
        )  # [LATENTS]
        rank = tl.zeros([LATENTS], dtype=tl.int32)
        for other_first in range(0, num_latents, LATENTS):  # trips: N / 32
            other = other_first + tl.arange(0, LATENTS)
            other_v = uniform(
                positional_bits(other_first, seed, sample_id, step, STREAM_LATENTS, LATENTS)
            )
            sooner = (other_v[None, :] < v[:, None]) | (
                (other_v[None, :] == v[:, None]) & (other[None, :] < latent[:, None])
            )
            sooner &= (other < num_latents)[None, :]
            rank += tl.sum(sooner.to(tl.int32), 1)  # [LATENTS, LATENTS] -> [LATENTS]
        chosen = ((rank < size) & (latent < num_latents)).to(tl.int32)
        place = written + tl.cumsum(chosen, 0) - 1
        tl.store(chosen_ptr + place, latent.to(tl.int64), mask=chosen != 0)
        written += tl.sum(chosen, 0)


@triton.jit(do_not_specialize=["seed", "step", "num_latents", "size"])
def draw_latents_kernel(
    seed_ptr,
    step_ptr,
    chosen_ptr,
    seed: tl.int64,
    step: tl.int64,
    num_latents,
    size,
    SEED_ON_DEVICE: tl.constexpr,
    STEP_ON_DEVICE: tl.constexpr,
):
    """``choose_latents`` by a launch of its own."""
    choose_latents(
        seed_ptr, step_ptr, chosen_ptr, seed, step, num_latents, size, SEED_ON_DEVICE,
        STEP_ON_DEVICE,
    )  # fmt: skip


def draw_latents(num_latents: int, size: int, draw: Draw, device: torch.device) -> Tensor:
    """``size`` of ``num_latents`` indices, uniformly without replacement, ascending; int64
    (size,).
    """
    chosen = torch.empty(size, dtype=torch.int64, device=device)
    seed_value, seed_ptr = launch.word(draw.seed)
    step_value, step_ptr = launch.word(draw.step)
    with launch.on(chosen.device):
        draw_latents_kernel[(1,)](
            seed_ptr,
            step_ptr,
            chosen,
            seed_value,
            step_value,
            num_latents,
            size,
            SEED_ON_DEVICE=seed_ptr is not None,
            STEP_ON_DEVICE=step_ptr is not None,
            num_warps=4,
        )
    return chosen
