"""Sampling without replacement on every backend: the race in float64 decides who is right."""

import pytest
import torch

import mam_kernels as mam
from mam_kernels._core import dispatch
from mam_kernels._core.call import Draw, Weighting
from mam_kernels.testing import cases
from mam_kernels.testing.check import check_latents, check_selection
from mam_kernels.testing.tolerances import misplaced
from tests.conformance.comparing import drawn_of_equal_weights, misses
from tests.fuzz import oracles

CASES = {case.name: case for case in cases.selection_cases()}


@pytest.mark.parametrize("name", CASES)
def test_matches_the_race_in_float64(name, backend, device, dtype):
    assert misses(check_selection(CASES[name].to(device, dtype), backend)) == []


@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("kind", cases.SPREAD_WEIGHTS)
def test_weights_of_any_spread(kind, temperature, backend, device):
    eps, positions = 1e-8, 2100
    weights = cases.spread_weights(kind, 1, positions).to(device)
    valid = torch.rand(1, positions, generator=torch.Generator().manual_seed(3)) < 0.8
    run = dispatch.implementation("sample_without_replacement", backend, weights)
    for count, flags in ((630, None), (1050, valid.to(device))):
        counts = torch.tensor([count], dtype=torch.int32, device=device)
        draw = Draw(torch.tensor(1), torch.tensor(0), None)
        mask = run(weights, counts, flags, draw, Weighting(eps, 1 / temperature))
        options = {"valid": flags, "seed": 1, "eps": eps, "temperature": temperature}
        assert misplaced(mask, weights, counts, **options) == 0


def test_only_ratios_of_weights_matter(backend, device):
    case = cases.extreme_selection_case().to(device, torch.float32)
    assert misses(check_selection(case, backend)) == []
    ids = torch.zeros(5, dtype=torch.int64, device=device)
    plain = case.weights / case.weights.amax(dim=1, keepdim=True)
    scaled = mam.sample_without_replacement(
        case.weights, 90, seed=1, sample_ids=ids, backend=backend
    )
    unscaled = mam.sample_without_replacement(plain, 90, seed=1, sample_ids=ids, backend=backend)
    assert torch.equal(scaled, unscaled)


def test_every_position_is_drawn_by_its_own_word(backend, device):
    weights = torch.ones(3, 1001, device=device)
    for step in (0, 1, 2**32 - 1):
        got = mam.sample_without_replacement(
            weights, 301, seed=2**63 + 5, step=step, backend=backend
        )
        right = drawn_of_equal_weights(3, 1001, 301, seed=2**63 + 5, step=step)
        assert torch.equal(got, right.to(device))


def test_equal_keys_go_to_the_lower_index(backend, device):
    # 2**17 uniforms of 24 significant bits near 1 hold equal pairs; equal weights make their keys
    # equal.
    if device.type == "cpu" and backend in ("triton", "cuda"):
        positions, counts = 4096, range(3600, 4096, 45)
    else:
        positions, counts = 2**17, range(2**17 - 4000, 2**17, 400)
    weights = torch.ones(1, positions, device=device)
    for count in counts:
        got = mam.sample_without_replacement(weights, count, seed=3, backend=backend)
        right = drawn_of_equal_weights(1, positions, count, seed=3)
        assert torch.equal(got, right.to(device))


@pytest.mark.parametrize(
    ("num_latents", "size"), [(1, 1), (2, 1), (7, 3), (128, 38), (128, 128), (300, 90)]
)
def test_latents_are_drawn_to_the_bit(num_latents, size, backend, device):
    assert misses(check_latents(num_latents, size, backend, device)) == []
    # the same by the oracle, against which the reference is held too
    module = mam.MultinomialAttentionMasking(
        latent_dim=4, num_latents=num_latents, num_heads=1, backend=backend
    ).to(device)
    module.num_drawn_latents = size
    values = torch.ones(1, 8, device=device)
    values[0, 0] = 3.0
    drawn = oracles.drawn_latents(num_latents, size, 5, 7)
    by_itself = module(values, seed=5, step=7)
    given = module(values, seed=5, step=7, latents=torch.from_numpy(drawn).to(device))
    assert torch.equal(by_itself.importance, given.importance)


def test_two_runs_give_the_same_bits(backend, device, dtype):
    case = CASES["skewed"].to(device, dtype)
    first, second = (
        mam.sample_without_replacement(case.weights, 100, seed=8, backend=backend) for _ in range(2)
    )
    assert torch.equal(first, second)


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0)])
def test_empty_batches_give_empty_results(shape, backend, device):
    got = mam.sample_without_replacement(torch.ones(shape, device=device), 0, backend=backend)
    assert got.shape == shape
    assert got.dtype == torch.bool


def test_operation_is_registered_right(backend, device):
    case = CASES["padded, NaN in the padding"].to(device, torch.float32)
    arguments = (
        case.weights.nan_to_num(),
        case.num_samples,
        case.valid,
        torch.tensor(1),
        torch.tensor(0),
        None,
        backend,
    )
    torch.library.opcheck(torch.ops.mam_kernels.sample_without_replacement.default, arguments)


def test_compiles_whole(backend, device):
    weights = torch.rand(3, 50, generator=torch.Generator().manual_seed(0)).to(device)

    def draw(weights, seed, step):
        return mam.sample_without_replacement(weights, 20, seed=seed, step=step, backend=backend)

    arguments = (weights, torch.tensor(3), torch.tensor(9))
    compiled = torch.compile(draw, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*arguments), draw(*arguments))
