"""The CPU's draw in one pass gives the bits of the draw by all keys.

Times a power of two, weights have the same relative weights to the bit, and rows of very small
weights are always drawn by all keys.
"""

import pytest
import torch
from torch import Tensor

import mam_kernels as mam
from mam_kernels._core import philox

pytestmark = pytest.mark.skipif(not mam.backends()["cpu"], reason="no CPU extension")

ROWS = 24
LENGTHS = (2048, 2063, 4096, 5000, 19264)
SHARES = (0.001, 0.05, 0.3, 0.6, 0.9, 0.99)
TINY = 2.0**-60


def rows_of(kind: str, positions: int, generator: torch.Generator) -> Tensor:
    """Weights (ROWS, positions)."""
    uniform = torch.rand(ROWS, positions, generator=generator)
    normal = torch.randn(ROWS, positions, generator=generator)
    if (
        kind == "misleading"
        # what is looked at to tell where the k-th key lies is not like the rest, for any width of
        # vectors
    ):
        weights = torch.full_like(uniform, 2.0**-10)
        for lanes in (4, 8, 16):
            taken = 512 // lanes
            first = (positions // lanes * torch.arange(taken) // taken * lanes)[
                :, None
            ] + torch.arange(lanes)
            weights[:, first.flatten()] = 1.0
        return weights
    return {
        "near-uniform": 1 + 0.05 * uniform,
        "equal": torch.ones_like(uniform),
        "uniform": uniform,
        "log-normal": normal.exp(),
        "wide": (3 * normal).exp(),
        "in order": (1 + uniform).sort(dim=1).values,
        "half zero": (2 * uniform - 1).clamp(min=0),
        "one large": torch.cat([torch.full((ROWS, 1), 1e5), uniform[:, 1:]], dim=1),
    }[kind]


@pytest.mark.parametrize("flags", [False, True])
@pytest.mark.parametrize(
    "kind",
    [
        "near-uniform",
        "equal",
        "uniform",
        "log-normal",
        "wide",
        "in order",
        "half zero",
        "one large",
        "misleading",
    ],
)
def test_one_pass_gives_the_bits_of_all_keys(kind, flags):
    generator = torch.Generator().manual_seed(3)
    for step, positions in enumerate(LENGTHS):
        weights = rows_of(kind, positions, generator)
        valid = torch.rand(weights.shape, generator=generator) < 0.8 if flags else None
        for share in SHARES:
            counts = int(share * positions) + torch.arange(ROWS) % 3
            fused, by_keys = (
                mam.sample_without_replacement(
                    factor * weights, counts, valid=valid, seed=11, step=step, backend="cpu"
                )
                for factor in (1.0, TINY)
            )
            assert torch.equal(fused, by_keys)
            drawable = (weights > 0) if valid is None else (weights > 0) & valid
            assert torch.equal(fused.sum(dim=1), torch.minimum(counts, drawable.sum(dim=1)))


def test_of_equal_keys_the_lower_index_is_drawn():
    # Large uniforms have 24 bits, so that some repeat, and with equal weights their keys do.
    positions, none = 2**17, torch.tensor([0])
    weights = torch.ones(1, positions)
    uniforms = philox.uniforms(
        philox.random_bits(positions, none, none[0], none[0], philox.STREAM_POSITIONS)
    )[0]
    order = torch.argsort(uniforms, stable=True)
    pairs = (uniforms[order[1:]] == uniforms[order[:-1]]).nonzero()[:, 0]
    lower, higher = order[pairs], order[pairs + 1]
    parted = 0
    for rank in pairs[:: len(pairs) // 40].tolist():
        drawn = mam.sample_without_replacement(weights, rank + 1, seed=0, backend="cpu")[0]
        assert not (drawn[higher] & ~drawn[lower]).any()
        parted += int((drawn[lower] & ~drawn[higher]).sum())
    assert parted > 10
