"""What the conformance tests share: comparisons that hold, and the race by an oracle of its own."""

import itertools
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from mam_kernels.testing.tolerances import Comparison
from tests.fuzz import oracles


def misses(found: Iterable[Comparison]) -> list[str]:
    """The comparisons that do not hold, in words. That nothing was compared is a failure."""
    found = tuple(found)
    assert found, "nothing was compared"
    return [str(comparison) for comparison in found if not comparison.holds]


def all_pairs(first: Sequence, second: Sequence, third: Sequence) -> list[tuple]:
    """Combinations in which any two values of different parameters meet; ``third`` has no more
    values than the others.
    """
    indices = itertools.product(range(len(first)), range(len(second)))
    return [(first[i], second[j], third[(i + j) % len(third)]) for i, j in indices]


def drawn_of_equal_weights(
    rows: int, positions: int, count: int, *, seed: int, step: int = 0
) -> Tensor:
    """What the race draws where all weights are equal: the smallest uniforms, ties to the lower
    index; (B, L) bool. Of numpy alone, so that the reference is held against it too.
    """
    uniform = oracles.uniforms(positions, np.arange(rows), step, seed, 0)
    order = np.argsort(uniform, axis=1, kind="stable")[:, :count]
    mask = np.zeros((rows, positions), dtype=bool)
    np.put_along_axis(mask, order, True, axis=1)
    return torch.from_numpy(mask)
