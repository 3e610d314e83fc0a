"""The value path of every backend: moments, importance and mask against the reference, gradients,
layouts, determinism.
"""

import pytest
import torch

import mam_kernels as mam
from mam_kernels._core import checks, dispatch
from mam_kernels._core.call import Choice, Weighting
from mam_kernels.ops.value_attention.ops import ValueMoments, moments
from mam_kernels.testing import cases
from mam_kernels.testing.check import EPS, check_value_path

CASES = {case.name: case for case in cases.value_cases()}


def cell_mask(
    case: cases.ValueCase, backend: str, *, seed: int = 5, step: int = 0, sample_ids=None
):
    """The fused pass over the cells: (mask, importance, moments)."""
    cells = checks.require_cells("values", case.values, case.valid)
    draw = checks.draw_source(seed, step, sample_ids, cells.rows, cells.values.device)
    choice = Choice(case.maskable, case.num_masked, 0.0, case.latents, len(case.latents))
    run = dispatch.implementation("value_mask", backend, cells.values)
    mask, importance, *found = run(cells, case.slope, choice, Weighting(EPS, 1.0), draw)
    return mask, importance, ValueMoments(*found)


@pytest.mark.parametrize("name", CASES)
def test_matches_the_reference(name, backend, device, dtype):
    misses = [
        str(c) for c in check_value_path(CASES[name].to(device, dtype), backend) if not c.holds
    ]
    assert not misses


@pytest.mark.parametrize("temperature", [0.05, 0.5, 3.0])
@pytest.mark.parametrize("name", ["cells", "CSR, padded", "some may not be hidden", "large slopes"])
def test_draws_in_proportion_to_the_power_of_the_importance(name, temperature, backend, device):
    case = CASES[name].to(device, torch.float32)
    misses = [str(c) for c in check_value_path(case, backend, temperature) if not c.holds]
    assert not misses


def test_matches_the_reference_at_the_published_size(backend, device):
    interpreted = backend == "triton" and device.type == "cpu"
    if interpreted or (backend == "cuda" and device.type == "cpu"):
        pytest.skip("one GPU thread after another takes minutes at this size on the host")
    misses = [
        str(c)
        for c in check_value_path(cases.large_value_case().to(device, torch.float32), backend)
        if not c.holds
    ]
    assert not misses


@pytest.mark.parametrize(
    "name", ["cells", "CSR, padded", "padded, NaN in the padding", "far from zero"]
)
def test_gradient_of_the_slope_is_that_of_the_equations(name, backend, device):
    case = CASES[name].to(device, torch.float32)
    exact = case.to(device, torch.float64)
    slope = case.slope.clone().requires_grad_()
    truth = exact.slope.clone().requires_grad_()
    weights = torch.randn(3, *slope.shape, generator=torch.Generator().manual_seed(0)).to(device)

    def loss(moments, scale):
        finite = torch.isfinite(moments.log_partition)
        log_partition = torch.where(finite, moments.log_partition, 0.0)
        return (log_partition * scale[0]).sum() + (moments.mean * scale[1]).sum()

    loss(
        mam.value_attention(case.values, slope, valid=case.valid, backend=backend), weights
    ).backward()
    loss(
        mam.reference.value_attention(exact.values, truth, valid=case.valid), weights.double()
    ).backward()
    scale = truth.grad.abs().max()
    assert ((slope.grad - truth.grad).abs().max() / scale) < 1e-5
    assert not mam.value_attention(case.values, slope, backend=backend).variance.requires_grad


def test_gradient_passes_gradcheck_in_float64(backend, device):
    if backend != "reference":
        pytest.skip("float64 is computed by the reference alone")
    case = CASES["odd sizes"].to(device, torch.float64)
    slope = case.slope.clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda a: mam.value_attention(case.values, a, backend=backend)[:2], (slope,), atol=1e-7
    )


def test_second_derivative_is_refused(backend, device):
    case = CASES["odd sizes"].to(device, torch.float32)
    slope = case.slope.clone().requires_grad_()
    mean = mam.value_attention(case.values, slope, backend=backend).mean
    (gradient,) = torch.autograd.grad(mean.sum(), slope, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivative"):
        gradient.sum().backward()


@pytest.mark.parametrize("name", ["cells", "CSR, padded", "padded, NaN in the padding"])
def test_two_runs_give_the_same_bits(name, backend, device):
    case = CASES[name].to(device, torch.float32)
    first, second = cell_mask(case, backend), cell_mask(case, backend)
    for one, other in zip((*first[:2], *first[2]), (*second[:2], *second[2]), strict=True):
        assert torch.equal(one, other)


def test_strides_of_flags_do_not_matter(backend, device):
    case = CASES["some may not be hidden"].to(device, torch.float32)
    expected = cell_mask(case, backend)
    moved = cases.replace(case, valid=_transposed(case.valid), maskable=_transposed(case.maskable))
    got = cell_mask(moved, backend)
    assert torch.equal(got[0], expected[0])
    assert torch.equal(got[1], expected[1])


def _transposed(flags: torch.Tensor) -> torch.Tensor:
    return flags.t().contiguous().t()


def test_csr_equals_dense(backend, device):
    case = CASES["CSR"].to(device, torch.float32)
    dense = cases.replace(case, values=case.values.to_dense())
    (mask, importance, moments), (dense_mask, dense_importance, dense_moments) = (
        cell_mask(case, backend),
        cell_mask(dense, backend),
    )
    assert torch.equal(mask, dense_mask)
    torch.testing.assert_close(importance, dense_importance, rtol=1e-6, atol=0.0)
    torch.testing.assert_close(moments.mean, dense_moments.mean, rtol=1e-6, atol=1e-7)


def test_csr_columns_may_stand_in_any_order(backend, device):
    case = CASES["CSR"].to(device, torch.float32)
    crow, col, data = (
        case.values.crow_indices(),
        case.values.col_indices().clone(),
        case.values.values().clone(),
    )
    start, stop = int(crow[0]), int(crow[1])
    col[start:stop], data[start:stop] = col[start:stop].flip(0), data[start:stop].flip(0)
    with torch.sparse.check_sparse_tensor_invariants(enable=False):
        shuffled = torch.sparse_csr_tensor(crow, col, data, case.values.shape)
    (mask, importance, _), (expected_mask, expected, _) = (
        cell_mask(cases.replace(case, values=shuffled), backend),
        cell_mask(case, backend),
    )
    torch.testing.assert_close(importance, expected, rtol=1e-6, atol=0.0)
    assert torch.equal(mask, expected_mask)


def test_seed_step_and_sample_ids_decide_the_mask(backend, device):
    case = CASES["cells"].to(device, torch.float32)
    rows = case.values.shape[0]
    ids = torch.tensor([11, 7, 2**32 - 1, 11], device=device)[:rows]
    mask = cell_mask(case, backend, seed=-3, step=2**32 - 1, sample_ids=ids)[0]
    expected = cell_mask(case, "reference", seed=-3, step=2**32 - 1, sample_ids=ids)[0]
    assert torch.equal(mask, expected)
    assert not torch.equal(mask, cell_mask(case, backend, seed=-3, step=0, sample_ids=ids)[0])
    on_device = cell_mask(
        case,
        backend,
        seed=torch.tensor(-3, device=device),
        step=torch.tensor([2**32 - 1], device=device),
        sample_ids=ids,
    )
    assert torch.equal(mask, on_device[0])


def test_a_row_with_nan_harms_no_other(backend, device):
    case = CASES["cells"].to(device, torch.float32)
    values = case.values.clone()
    values[1, 3] = torch.nan
    mask, importance, moments = cell_mask(cases.replace(case, values=values), backend)
    clean_mask, clean_importance, clean = cell_mask(case, backend)
    others = torch.arange(values.shape[0], device=device) != 1
    assert torch.equal(mask[others], clean_mask[others])
    torch.testing.assert_close(importance[others], clean_importance[others], rtol=2e-6, atol=0.0)
    torch.testing.assert_close(moments.mean[others], clean.mean[others], rtol=2e-6, atol=1e-7)
    assert torch.isnan(moments.mean[1]).all()
    assert not mask[1].any()


def test_a_row_is_the_same_bits_whatever_is_beside_it(backend, device):
    case = CASES["cells"].to(device, torch.float32)
    values = case.values.clone()
    values[1:] *= -7.0  # another range: another series
    together = cell_mask(cases.replace(case, values=values), backend)
    alone = cell_mask(
        cases.replace(case, values=values[:1], num_masked=case.num_masked[:1]), backend
    )
    for one, other in zip((*together[:2], *together[2]), (*alone[:2], *alone[2]), strict=True):
        assert torch.equal(one[:1], other)


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0)])
def test_empty_batches_give_empty_results(shape, backend, device):
    slope = torch.randn(4, 2, device=device, requires_grad=True)
    log_partition, mean, variance = mam.value_attention(
        torch.zeros(shape, device=device), slope, backend=backend
    )
    assert log_partition.shape == mean.shape == variance.shape == (shape[0], 4, 2)
    assert torch.isneginf(log_partition).all()
    mean.sum().backward()
    assert torch.equal(slope.grad, torch.zeros_like(slope))


@pytest.mark.parametrize("name", ["cells", "CSR, padded", "some may not be hidden"])
def test_the_operation_is_registered_right(name, backend, device):
    case = CASES[name].to(device, torch.float32)
    cells = checks.require_cells("values", case.values, case.valid)
    # Copies: the parts of a CSR tensor are views of it, and tracing does not know sparse tensors.
    cells = cells._replace(
        **{name: x.clone() for name, x in cells._asdict().items() if isinstance(x, torch.Tensor)}
    )
    torch.library.opcheck(moments.overload, moments.flat(cells, case.slope, backend))
    # With gradient: all but the test that differentiates every output, since the variance refuses
    # it.
    utilities = ("test_schema", "test_autograd_registration", "test_faketensor")
    slope = case.slope.clone().requires_grad_()
    torch.library.opcheck(
        moments.overload, moments.flat(cells, slope, backend), test_utils=utilities
    )


def test_compiles_whole(backend, device):
    case = CASES["padded, NaN in the padding"].to(device, torch.float32)
    module = mam.MultinomialAttentionMasking(
        latent_dim=16, num_latents=8, num_heads=2, backend=backend
    ).to(device)

    def loss(values, seed):
        out = module(values, valid=case.valid, seed=seed)
        return out.mask, out.context.square().sum() + out.penalty

    seed = torch.tensor(4)
    mask, expected = loss(case.values, seed)
    expected_gradient = torch.autograd.grad(expected, module.latents)[0]
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    compiled_mask, got = compiled(case.values, seed)
    assert torch.equal(mask, compiled_mask)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(torch.autograd.grad(got, module.latents)[0], expected_gradient)
