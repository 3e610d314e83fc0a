"""What holds for every input: properties of the draws and of the masking step, searched for
counterexamples.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import mam_kernels as mam
from mam_kernels.testing.tolerances import FLOORS, element_error, row_error

pytestmark = pytest.mark.filterwarnings("ignore:Sparse")  # torch calls its CSR support beta

settings.register_profile(
    "properties", derandomize=True, deadline=None, max_examples=40, database=None
)
quick = settings(settings.get_profile("properties"))
both_backends = pytest.mark.parametrize(
    "backend", [name for name in ("reference", "cpu") if mam.backends()[name]]
)

shapes = st.tuples(st.integers(1, 5), st.one_of(st.integers(1, 12), st.integers(13, 90)))
seeds = st.integers(0, 2**64 - 1)
steps = st.integers(0, 2**32 - 1)
ratios = st.floats(0.0, 1.0)


@st.composite
def weight_rows(draw) -> Tensor:
    """Weights (B, L): near-uniform, skewed over many orders of magnitude, equal, or mostly zero."""
    rows, positions = draw(shapes)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    uniform = torch.rand(rows, positions, generator=generator)
    kind = draw(st.sampled_from(["near-uniform", "skewed", "equal", "sparse", "not drawable"]))
    if kind == "not drawable":
        odd = torch.tensor([math.nan, -1.0, math.inf, 0.0])[
            torch.randint(4, uniform.shape, generator=generator)
        ]
        return torch.where(uniform < 0.5, odd, uniform)
    return {
        "near-uniform": 1 + 0.1 * uniform,
        "skewed": uniform**20,
        "equal": torch.ones_like(uniform),
        "sparse": torch.where(uniform < 0.8, 0.0, uniform),
    }[kind]


@st.composite
def flag_rows(draw, rows: int, positions: int) -> Tensor | None:
    """None, or flags (B, L), which may be empty in a row."""
    density = draw(st.sampled_from([None, 0.0, 0.3, 0.9]))
    if density is None:
        return None
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    return torch.rand(rows, positions, generator=generator) < density


@st.composite
def cells(draw) -> Tensor:
    """Values (B, L) like expression: zeros and positive numbers, or numbers of both signs."""
    rows, positions = draw(shapes)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    values = torch.randn(rows, positions, generator=generator)
    values = values.abs() if draw(st.booleans()) else values
    return torch.where(
        torch.rand(rows, positions, generator=generator)
        < draw(st.sampled_from([0.0, 0.1, 0.5, 1.0])),
        values,
        0.0,
    )


def drawable(weights: Tensor) -> Tensor:
    return (weights > 0) & torch.isfinite(weights)


def module_of(
    backend: str, input_dim: int | None = None, **options
) -> mam.MultinomialAttentionMasking:
    torch.manual_seed(4)
    return mam.MultinomialAttentionMasking(
        input_dim, latent_dim=12, num_latents=5, num_heads=3, backend=backend, **options
    )


def sample(weights: Tensor, k: int | Tensor, backend: str, **options) -> Tensor:
    return mam.sample_without_replacement(weights, k, backend=backend, **{"seed": 11} | options)


# The draw


@both_backends
@quick
@given(st.data(), weight_rows(), seeds, steps)
def test_exactly_k_or_all_drawable_positions_are_drawn_and_no_other(
    backend, data, weights, seed, step
):
    rows, positions = weights.shape
    valid = data.draw(flag_rows(rows, positions))
    counts = torch.tensor(
        data.draw(st.lists(st.integers(0, positions), min_size=rows, max_size=rows))
    )
    mask = sample(weights, counts, backend, valid=valid, seed=seed, step=step)
    allowed = drawable(weights) if valid is None else drawable(weights) & valid
    assert torch.equal(mask.sum(dim=1), torch.minimum(counts, allowed.sum(dim=1)))
    assert not bool((mask & ~allowed).any())


@both_backends
@quick
@given(weight_rows(), st.integers(-60, 60), ratios)
def test_scaling_the_weights_by_a_power_of_two_changes_nothing(backend, weights, exponent, ratio):
    # Exact as long as no weight becomes subnormal: the smallest of these is 1e-30 or so, and then
    # counts as zero in both.
    weights = torch.where(weights.abs() < 1e-15, 0.0, weights)
    k = int(ratio * weights.shape[1])
    assert torch.equal(sample(weights, k, backend), sample(weights * 2.0**exponent, k, backend))


@both_backends
@quick
@given(st.data(), weight_rows(), ratios)
def test_permuting_rows_with_their_sample_ids_permutes_the_masks(backend, data, weights, ratio):
    rows, positions = weights.shape
    ids = torch.tensor(data.draw(st.lists(st.integers(0, 2**32 - 1), min_size=rows, max_size=rows)))
    order = torch.tensor(data.draw(st.permutations(range(rows))))
    k = int(ratio * positions)
    mask = sample(weights, k, backend, sample_ids=ids)
    assert torch.equal(sample(weights[order], k, backend, sample_ids=ids[order]), mask[order])


@both_backends
@quick
@given(st.data(), weight_rows(), ratios)
def test_splitting_the_batch_changes_nothing(backend, data, weights, ratio):
    rows, positions = weights.shape
    ids = torch.tensor(data.draw(st.lists(st.integers(0, 2**32 - 1), min_size=rows, max_size=rows)))
    k = int(ratio * positions)
    alone = [sample(weights[b : b + 1], k, backend, sample_ids=ids[b : b + 1]) for b in range(rows)]
    assert torch.equal(torch.cat(alone), sample(weights, k, backend, sample_ids=ids))


@both_backends
@quick
@given(weight_rows(), seeds)
def test_the_mask_of_k_is_a_subset_of_the_mask_of_k_plus_1(backend, weights, seed):
    positions = weights.shape[1]
    row, ids = weights[:1].expand(positions + 1, -1), torch.zeros(positions + 1, dtype=torch.int64)
    nested = sample(row, torch.arange(positions + 1), backend, seed=seed, sample_ids=ids)
    assert not bool((nested[:-1] & ~nested[1:]).any())
    assert not bool(nested[0].any())


@both_backends
@quick
@given(seeds, steps)
def test_another_seed_step_or_sample_id_gives_another_mask(backend, seed, step):
    # 64 of 128 equal weights: two independent masks coincide with probability 4e-38.
    weights, ids = torch.ones(1, 128), torch.tensor([3])
    mask = sample(weights, 64, backend, seed=seed, step=step, sample_ids=ids)
    assert torch.equal(mask, sample(weights, 64, backend, seed=seed, step=step, sample_ids=ids))
    assert not torch.equal(
        mask, sample(weights, 64, backend, seed=seed ^ 1, step=step, sample_ids=ids)
    )
    assert not torch.equal(
        mask, sample(weights, 64, backend, seed=seed ^ (1 << 63), step=step, sample_ids=ids)
    )
    assert not torch.equal(
        mask, sample(weights, 64, backend, seed=seed, step=step ^ 1, sample_ids=ids)
    )
    assert not torch.equal(
        mask, sample(weights, 64, backend, seed=seed, step=step, sample_ids=ids + 1)
    )


@both_backends
@quick
@given(st.data(), weight_rows(), ratios, st.integers(1, 40))
def test_columns_of_padding_change_nothing_for_the_other_positions(
    backend, data, weights, ratio, extra
):
    rows, positions = weights.shape
    k = int(ratio * positions)
    padded = torch.cat([weights, torch.full((rows, extra), math.nan)], dim=1)
    valid = (torch.arange(positions + extra) < positions).expand(rows, -1)
    wide = sample(padded, k, backend, valid=valid)
    assert torch.equal(wide[:, :positions], sample(weights, k, backend))
    assert not bool(wide[:, positions:].any())


@both_backends
@quick
@given(weight_rows(), ratios, st.sampled_from([torch.float16, torch.bfloat16]))
def test_narrow_weights_are_drawn_as_the_float32_numbers_they_stand_for(
    backend, weights, ratio, dtype
):
    k, narrow = int(ratio * weights.shape[1]), weights.to(dtype)
    assert torch.equal(sample(narrow, k, backend), sample(narrow.float(), k, backend))


@both_backends
@quick
@given(weight_rows(), ratios)
def test_raising_one_weight_never_takes_its_position_out_of_the_mask(backend, weights, ratio):
    weights = weights.nan_to_num(0.0, 0.0, 0.0).clamp(min=0.0)
    k = int(ratio * weights.shape[1])
    raised = weights.clone()
    raised[:, 0] = weights[:, 0] * 2 + 0.5
    before, after = sample(weights, k, backend), sample(raised, k, backend)
    assert not bool((before[:, 0] & ~after[:, 0]).any())


# The masking step


@both_backends
@quick
@given(st.data(), cells(), ratios)
def test_a_masking_step_hides_floor_of_the_ratio_of_what_is_maskable_and_only_that(
    backend, data, values, ratio
):
    rows, positions = values.shape
    valid, maskable = data.draw(flag_rows(rows, positions)), data.draw(flag_rows(rows, positions))
    out = module_of(backend, mask_ratio=ratio)(values, valid=valid, maskable=maskable, seed=2)
    everywhere = torch.ones(rows, positions, dtype=torch.bool)
    attended = everywhere if valid is None else valid
    allowed = attended if maskable is None else attended & maskable
    assert out.mask.sum(dim=1).tolist() == [
        math.floor(ratio * n) for n in allowed.sum(dim=1).tolist()
    ]
    assert not bool((out.mask & ~allowed).any())
    assert bool((out.importance[~attended] == 0).all())
    assert bool((out.importance[attended] > 0).all())


@both_backends
@quick
@given(cells(), st.integers(1, 5))
def test_importance_of_a_cell_sums_to_latents_times_heads(backend, values, drawn):
    out = module_of(backend)(values, seed=2, latents=torch.arange(drawn))
    expected = torch.full((values.shape[0],), 3.0 * drawn)
    torch.testing.assert_close(out.importance.sum(dim=1), expected, rtol=2e-5, atol=0)


@both_backends
@quick
@given(st.data(), cells(), st.sampled_from([torch.int32, torch.int64]))
def test_csr_equals_dense(backend, data, values, index_type):
    rows, positions = values.shape
    valid = data.draw(flag_rows(rows, positions))
    csr = values.to_sparse_csr()
    csr = torch.sparse_csr_tensor(
        csr.crow_indices().to(index_type), csr.col_indices().to(index_type), csr.values(), csr.shape
    )
    module = module_of(backend, mask_ratio=0.4)
    dense, sparse = (module(tokens, valid=valid, seed=9, step=1) for tokens in (values, csr))
    assert torch.equal(sparse.mask, dense.mask)
    assert element_error(sparse.importance, dense.importance) <= 2 * FLOORS[torch.float32]
    slope = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    for ours, theirs in zip(
        mam.value_attention(csr, slope, valid=valid, backend=backend),
        mam.value_attention(values, slope, valid=valid, backend=backend),
        strict=True,
    ):
        assert row_error(ours, theirs) <= 2 * FLOORS[torch.float32]


@both_backends
@quick
@given(st.data(), cells())
def test_csr_entries_in_any_order_and_stored_zeros_change_nothing(backend, data, values):
    rows, positions = values.shape
    columns = torch.stack(
        [torch.tensor(data.draw(st.permutations(range(positions)))) for _ in range(rows)]
    )
    crow = torch.arange(rows + 1) * positions
    full = torch.sparse_csr_tensor(
        crow,
        columns.flatten(),
        values.gather(1, columns).flatten(),
        (rows, positions),
        check_invariants=False,
    )
    slope = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    for ours, theirs in zip(
        mam.value_attention(full, slope, backend=backend),
        mam.value_attention(values, slope, backend=backend),
        strict=True,
    ):
        assert row_error(ours, theirs) <= 2 * FLOORS[torch.float32]
    module = module_of(backend)
    assert torch.equal(module(full, seed=3).mask, module(values, seed=3).mask)


@both_backends
@quick
@given(st.data(), cells(), st.sampled_from([None, 1]))
def test_a_cell_is_masked_alike_alone_and_in_a_batch_of_any_order(backend, data, values, input_dim):
    rows = values.shape[0]
    tokens = values if input_dim is None else values[:, :, None]
    ids = torch.tensor(data.draw(st.lists(st.integers(0, 2**32 - 1), min_size=rows, max_size=rows)))
    order = torch.tensor(data.draw(st.permutations(range(rows))))
    module = module_of(backend, input_dim)
    together = module(tokens, seed=6, step=2, sample_ids=ids)
    permuted = module(tokens[order], seed=6, step=2, sample_ids=ids[order])
    assert torch.equal(permuted.mask, together.mask[order])
    torch.testing.assert_close(permuted.context, together.context[order], rtol=1e-4, atol=1e-6)
    for b in range(rows):
        alone = module(tokens[b : b + 1], seed=6, step=2, sample_ids=ids[b : b + 1])
        assert torch.equal(alone.mask[0], together.mask[b])


@both_backends
@quick
@given(st.data(), cells(), st.integers(1, 30), st.sampled_from([None, 1]))
def test_padding_a_batch_changes_no_mask_no_importance_and_no_context(
    backend, data, values, extra, input_dim
):
    rows, positions = values.shape
    padding = torch.full((rows, extra), data.draw(st.sampled_from([math.nan, math.inf, 0.0, -5.0])))
    wide, valid = (
        torch.cat([values, padding], dim=1),
        (torch.arange(positions + extra) < positions).expand(rows, -1),
    )
    if input_dim is not None:
        values, wide = values[:, :, None], wide[:, :, None]
    module = module_of(backend, input_dim, mask_ratio=0.4)
    plain, padded = module(values, seed=8), module(wide, valid=valid, seed=8)
    assert torch.equal(padded.mask[:, :positions], plain.mask)
    assert not bool(padded.mask[:, positions:].any())
    torch.testing.assert_close(
        padded.importance[:, :positions], plain.importance, rtol=1e-5, atol=0
    )
    torch.testing.assert_close(padded.context, plain.context, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(padded.penalty, plain.penalty, rtol=1e-4, atol=1e-6)


@both_backends
@quick
@given(st.data(), cells())
def test_moments_of_the_visible_do_not_depend_on_hidden_values(backend, data, values):
    mask = module_of(backend, mask_ratio=0.5)(values, seed=5).mask
    visible = ~mask
    slope = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    changed = values.masked_fill(mask, data.draw(st.sampled_from([math.nan, 100.0, 0.0, math.inf])))
    before = mam.value_attention(values, slope, valid=visible, backend=backend)
    after = mam.value_attention(changed, slope, valid=visible, backend=backend)
    for ours, theirs in zip(after, before, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


@both_backends
@quick
@given(cells(), st.sampled_from([None, 1]))
def test_visible_context_is_the_context_of_the_visible_alone(backend, values, input_dim):
    # Recomputed by a module that sees everything it is given, from a batch in which the hidden
    # positions are padding of another value.
    tokens = values if input_dim is None else values[:, :, None]
    visible = module_of(backend, input_dim, mask_ratio=0.5, context_from="visible")
    everything = module_of(backend, input_dim, mask_ratio=0.5, context_from="all")
    out = visible(tokens, seed=5)
    assert torch.equal(out.mask, everything(tokens, seed=5).mask)
    hidden = out.mask if input_dim is None else out.mask[:, :, None]
    again = everything(tokens.masked_fill(hidden, 77.0), valid=~out.mask, seed=5)
    torch.testing.assert_close(out.context, again.context, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(out.penalty, again.penalty, rtol=1e-4, atol=1e-6)


@both_backends
@quick
@given(cells(), st.floats(-3.0, 3.0))
def test_shifting_all_values_shifts_the_log_partition_and_the_mean_alone(backend, values, shift):
    # log sum exp(a (x + s)) = a s + log sum exp(a x): attention, variance and mask depend on
    # differences of values only.
    slope = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    here = mam.value_attention(values, slope, backend=backend)
    there = mam.value_attention(values + shift, slope, backend=backend)
    torch.testing.assert_close(
        there.log_partition, here.log_partition + slope * shift, rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(there.mean, here.mean + shift, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(there.variance, here.variance, rtol=1e-4, atol=1e-5)


@both_backends
@quick
@given(cells())
def test_variance_is_never_negative_and_zero_for_equal_values(backend, values):
    slope = 5.0 * torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    assert bool((mam.value_attention(values, slope, backend=backend).variance >= 0).all())
    same = values[:, :1].expand_as(values)
    assert float(mam.value_attention(same, slope, backend=backend).variance.max()) <= 1e-6 * float(
        1 + same.square().max()
    )
