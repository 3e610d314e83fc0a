"""Rows of 20,000 positions are drawn in one pass, whatever their weights: a draw by all keys meets
several barriers for each 128 positions.
"""

import ctypes
import shutil

import pytest
import torch

from mam_kernels._core.call import Draw, Weighting
from mam_kernels.ops.selection import native
from mam_kernels.testing import cases
from mam_kernels.testing.tolerances import misplaced
from tests.cuda_shim import build

pytestmark = [
    pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++"),
    pytest.mark.slow,
]
POSITIONS = 20000
OF_ONE_PASS = 120  # barriers; of a draw by all keys, more than 600


@pytest.fixture(scope="module")
def shim():
    module = build.load()
    return module, ctypes.CDLL(module.__file__).mam_shim_barriers


def barriers_of(shim, weights: torch.Tensor, count: int, weighting: Weighting) -> int:
    """Of a draw, which is right."""
    module, barriers = shim
    counts = torch.tensor([count], dtype=torch.int32)
    draw = Draw(torch.tensor(5), torch.tensor(0), None)
    mask = native.select(module, weights, counts, None, draw, weighting)
    options = {"seed": 5, "eps": weighting.eps, "temperature": 1 / weighting.inverse_temperature}
    assert misplaced(mask, weights, counts, **options) == 0
    return barriers()


@pytest.mark.parametrize("inverse_temperature", [1.0, 2.0])
@pytest.mark.parametrize("part", [0.01, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("kind", cases.SPREAD_WEIGHTS)
def test_weights_of_any_spread_are_drawn_in_one_pass(shim, kind, part, inverse_temperature):
    weights = cases.spread_weights(kind, 1, POSITIONS)
    weighting = Weighting(1e-8, inverse_temperature)
    assert barriers_of(shim, weights, int(part * POSITIONS), weighting) < OF_ONE_PASS


def test_as_many_as_can_be_drawn_are_drawn_in_one_pass(shim):
    weights = cases.spread_weights("half zero", 1, POSITIONS)
    for count in (int((weights > 0).sum()) + extra for extra in (-30, -1, 0, 1, 30)):
        assert barriers_of(shim, weights, count, Weighting(0.0, 1.0)) < OF_ONE_PASS


def test_a_draw_by_all_keys_meets_more_barriers(shim):
    # beyond what the pass can scale
    weights = 1e-31 * cases.spread_weights("near-uniform", 1, POSITIONS)
    assert barriers_of(shim, weights, 6000, Weighting(0.0, 1.0)) > 5 * OF_ONE_PASS
