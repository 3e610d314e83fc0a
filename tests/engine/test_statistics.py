"""The draws have the distribution they claim, at a stated rate of false alarms.

Every statement here is tested with an exact or rigorous bound (binomial, hypergeometric,
Dvoretzky-Kiefer-Wolfowitz, Hoeffding), never with an asymptotic one. A test may raise a false alarm
with probability at most ``TEST_ALPHA``, shared among its comparisons (Bonferroni); with at most
``MAX_TESTS`` tests, the file does with probability at most 500 * 1e-9 = 5e-7 < 1e-6 over the choice
of the seeds below. The seeds are fixed, so a test that passes once passes always.
"""

import math
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import special, stats
from torch import Tensor

import mam_kernels as mam
from mam_kernels._core import dispatch, philox
from mam_kernels._core.call import Draw

pytestmark = pytest.mark.filterwarnings("ignore:Sparse")  # torch calls its CSR support beta

TEST_ALPHA = 1e-9
MAX_TESTS = 500
BACKENDS = [name for name in ("reference", "cpu") if mam.backends()[name]]
SEED = 20260917
# As many replicates as fit into a fraction of a second.
ROWS = {
    "reference": 50_000,
    "cpu": 200_000,
}
FUSED_ROWS = {"reference": 3_000, "cpu": 200_000}  # the reference takes one cell at a time
LATENT_DRAWS = {"reference": 1_000, "cpu": 5_000}  # one call each

WEIGHTS = {
    "uniform": [1.0] * 8,
    "mild": [1.0, 1.1, 0.9, 1.3, 0.8, 1.2, 1.0, 0.7],
    "geometric": [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0],
    "skewed": [1e-3, 1.0, 1.0, 5.0, 10.0, 100.0, 1e3, 1e-6],
    "one dominates": [1e4, 1.0, 1.0, 1.0, 1.0],
    "with zeros": [0.0, 3.0, 0.0, 1.0, 2.0, 0.5],
}


# What is expected: sequential sampling, enumerated


def subset_probabilities(weights: list[float], k: int) -> dict[int, float]:
    """The probability of every set of ``k`` positions (as bits) under sequential sampling without
    replacement.
    """
    reached = {0: 1.0}
    for _ in range(k):
        following: dict[int, float] = {}
        for subset, probability in reached.items():
            left = math.fsum(w for position, w in enumerate(weights) if not subset >> position & 1)
            for position, weight in enumerate(weights):
                if weight > 0 and not subset >> position & 1:
                    larger = subset | 1 << position
                    following[larger] = following.get(larger, 0.0) + probability * weight / left
        reached = following
    return reached


def inclusion_probability(subsets: dict[int, float], positions: tuple[int, ...]) -> float:
    """The probability that all of ``positions`` are drawn."""
    wanted = sum(1 << position for position in positions)
    return math.fsum(
        probability for subset, probability in subsets.items() if subset & wanted == wanted
    )


# What is concluded: exact tests and rigorous bounds


def binomial_p_value(count: int, trials: int, probability: float) -> float:
    """Two-sided and valid: under the hypothesis, P(p-value <= a) <= a for every a.

    Twice the smaller tail.
    """
    low = special.bdtr(count, trials, probability)
    high = special.bdtrc(count - 1, trials, probability) if count else 1.0
    return min(1.0, 2.0 * min(float(low), float(high)))


def two_sample_p_value(first: int, trials_first: int, second: int, trials_second: int) -> float:
    """Of two counts with the same unknown probability: the hypergeometric law of one given their
    sum.
    """
    law = stats.hypergeom(trials_first + trials_second, first + second, trials_first)
    return min(1.0, 2.0 * min(float(law.cdf(first)), float(law.sf(first - 1))))


def require_all(p_values: dict[object, float]) -> None:
    """No p-value below its share of ``TEST_ALPHA``."""
    assert p_values, "nothing was compared"
    level = TEST_ALPHA / len(p_values)
    rejected = {name: p for name, p in p_values.items() if not p >= level}
    assert not rejected, f"rejected at {level:.1e}: {rejected}"


def dkw_bound(count: int, alpha: float = TEST_ALPHA) -> float:
    """P(sup |F_n - F| > bound) <= alpha: Dvoretzky, Kiefer and Wolfowitz, Massart's constant."""
    return math.sqrt(math.log(2.0 / alpha) / (2.0 * count))


def as_bits(mask: Tensor) -> np.ndarray:
    """Each row of a mask (B, L <= 8) as an integer."""
    return (mask.long() << torch.arange(mask.shape[1])).sum(dim=1).numpy()


def enumeration_p_values(mask: Tensor, weights: list[float], k: int) -> dict[object, float]:
    """Every set, every inclusion and every pair-inclusion of the masks (B, L), whose rows are
    replicates, against enumeration.
    """
    trials, positions = mask.shape
    k = min(k, sum(w > 0 for w in weights))
    subsets = subset_probabilities(weights, k)
    drawn, counts = np.unique(as_bits(mask), return_counts=True)
    seen = dict(zip(drawn.tolist(), counts.tolist(), strict=True))
    p_values: dict[object, float] = {"possible sets": 1.0 if set(seen) <= set(subsets) else 0.0}
    for subset, probability in subsets.items():
        p_values[f"set {subset:b}"] = binomial_p_value(seen.get(subset, 0), trials, probability)
    chosen = mask.numpy()
    for size in (1, 2):
        for some in combinations(range(positions), size):
            count = int(chosen[:, list(some)].all(axis=1).sum())
            p_values[some] = binomial_p_value(count, trials, inclusion_probability(subsets, some))
    return p_values


def sequential_draws(weights: list[float], k: int, rows: int, seed: int) -> Tensor:
    """Sampling one position after the other by inverting the cumulative sum, with numpy's
    generator: independent of what is tested.
    """
    generator = np.random.default_rng(seed)
    left = np.tile(np.asarray(weights, dtype=np.float64), (rows, 1))
    mask = np.zeros(left.shape, dtype=bool)
    for _ in range(k):
        point = generator.random((rows, 1)) * left.sum(axis=1, keepdims=True)
        chosen = (left.cumsum(axis=1) <= point).sum(axis=1)
        mask[np.arange(rows), chosen] = True
        left[np.arange(rows), chosen] = 0.0
    return torch.from_numpy(mask)


# The instruments themselves


def test_the_false_alarm_rate_of_this_file_is_below_one_in_a_million(request):
    here = [item for item in request.session.items if Path(item.path) == Path(__file__)]
    assert len(here) <= MAX_TESTS
    assert MAX_TESTS * TEST_ALPHA < 1e-6


def test_enumeration_of_two_from_three_is_the_sum_over_both_orders():
    a, b, c = 0.5, 0.3, 0.2
    expected = {0b011: a * b / (b + c) + b * a / (a + c), 0b101: a * c / (b + c) + c * a / (a + b)}
    expected[0b110] = b * c / (a + c) + c * b / (a + b)
    assert subset_probabilities([a, b, c], 2) == pytest.approx(expected, rel=1e-14)
    assert inclusion_probability(expected, (0,)) == pytest.approx(expected[0b011] + expected[0b101])


@pytest.mark.parametrize("k", range(9))
def test_enumerated_probabilities_sum_to_one_and_inclusions_to_k(k):
    subsets = subset_probabilities(WEIGHTS["skewed"], k)
    assert len(subsets) == math.comb(8, k)
    assert math.fsum(subsets.values()) == pytest.approx(1.0, rel=1e-12)
    assert math.fsum(
        inclusion_probability(subsets, (position,)) for position in range(8)
    ) == pytest.approx(k, rel=1e-12)


@pytest.mark.parametrize("probability", [0.5, 0.03, 1e-4])
@pytest.mark.parametrize("trials", [1, 50, 4000])
def test_binomial_p_value_is_valid_at_every_level(trials, probability):
    counts = np.arange(trials + 1)
    p_values = np.array([binomial_p_value(int(count), trials, probability) for count in counts])
    masses = stats.binom.pmf(counts, trials, probability)
    for level in (1e-12, 1e-9, 1e-6, 1e-3, 0.05, 0.5):
        assert masses[p_values <= level].sum() <= level * (1 + 1e-9)


def test_two_sample_p_value_is_valid_at_every_level():
    trials_first, trials_second, total = 60, 90, 40
    law = stats.hypergeom(trials_first + trials_second, total, trials_first)
    counts = np.arange(max(0, total - trials_second), min(total, trials_first) + 1)
    p_values = np.array(
        [two_sample_p_value(int(c), trials_first, int(total - c), trials_second) for c in counts]
    )
    for level in (1e-9, 1e-3, 0.05, 0.5):
        assert law.pmf(counts)[p_values <= level].sum() <= level * (1 + 1e-9)


def test_sound_draws_of_another_generator_are_accepted():
    for name, k in (("geometric", 3), ("skewed", 2), ("uniform", 4)):
        require_all(
            enumeration_p_values(
                sequential_draws(WEIGHTS[name], k, 200_000, seed=7), WEIGHTS[name], k
            )
        )


@pytest.mark.parametrize(
    ("bias", "rows"), [(1.05, 200_000), (0.95, 200_000), (1.1, 50_000), (0.9, 50_000)]
)
@pytest.mark.parametrize("name", ["uniform", "mild", "geometric"])
def test_a_planted_bias_of_five_per_cent_in_one_weight_is_detected_or_ten_by_fewer_replicates(
    name, bias, rows
):
    biased = [w * (bias if position == 6 else 1.0) for position, w in enumerate(WEIGHTS[name])]
    with pytest.raises(AssertionError, match="rejected"):
        require_all(
            enumeration_p_values(sequential_draws(biased, 3, rows, seed=8), WEIGHTS[name], 3)
        )


def test_right_inclusions_with_wrong_pairs_are_detected():
    # Systematic sampling of 2 from 8 gives every position the probability 1/4 but only four of the
    # pairs.
    first = torch.arange(50_000) % 4
    mask = torch.zeros(50_000, 8, dtype=torch.bool)
    mask[torch.arange(50_000), first] = mask[torch.arange(50_000), first + 4] = True
    p_values = enumeration_p_values(mask, WEIGHTS["uniform"], 2)
    assert all(p_values[position,] > 0.01 for position in range(8))
    with pytest.raises(AssertionError, match="rejected"):
        require_all(p_values)


def test_drawing_in_proportion_to_inclusion_instead_of_sequentially_is_detected():
    # Accepting only distinct independent draws (rejective sampling) looks alike and is another
    # distribution.
    weights, generator = WEIGHTS["geometric"], np.random.default_rng(9)
    probabilities = np.asarray(weights) / sum(weights)
    pairs = generator.choice(8, size=(200_000, 2), p=probabilities)
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    mask = torch.zeros(len(pairs), 8, dtype=torch.bool)
    mask[torch.arange(len(pairs))[:, None], torch.from_numpy(pairs)] = True
    with pytest.raises(AssertionError, match="rejected"):
        require_all(enumeration_p_values(mask, weights, 2))


def test_the_distance_bound_accepts_uniform_numbers_and_rejects_a_shift_of_half_a_per_cent():
    u = np.random.default_rng(10).random(2**20)
    assert kolmogorov_distance(u) <= dkw_bound(u.size)
    assert kolmogorov_distance(0.995 * u) > dkw_bound(u.size)


def test_copying_one_word_or_one_bit_in_three_per_cent_is_detected_and_independence_accepted():
    generator = torch.Generator().manual_seed(10)
    one, other = torch.randint(2**32, (2, 2**20), generator=generator)
    require_all(
        independence_p_values(one, other) | {"correlation": correlation_p_value(one, other)}
    )
    copied = torch.rand(2**20, generator=generator) < 0.03
    with pytest.raises(AssertionError, match="rejected"):
        require_all({"correlation": correlation_p_value(one, torch.where(copied, one, other))})
    one_bit = torch.where(copied, (other & ~1) | (one & 1), other)
    with pytest.raises(AssertionError, match="rejected"):
        require_all(independence_p_values(one, one_bit))


# sample_without_replacement


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("k", [1, 2, 4, 7])
@pytest.mark.parametrize("name", WEIGHTS)
def test_draws_follow_the_enumeration_of_sequential_sampling(name, k, backend):
    weights = WEIGHTS[name]
    k = min(k, len(weights))
    mask = mam.sample_without_replacement(
        torch.tensor([weights]).expand(ROWS[backend], -1), k, seed=SEED + k, backend=backend
    )
    require_all(enumeration_p_values(mask, weights, k))


@pytest.mark.parametrize("backend", BACKENDS)
def test_draws_with_padding_follow_the_enumeration_of_what_is_valid(backend):
    weights, hole = (
        [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
        torch.tensor([True, True, False, True, False, True]),
    )
    padded = torch.tensor([weights]).masked_fill(~hole, torch.nan)
    rows = ROWS[backend]
    mask = mam.sample_without_replacement(
        padded.expand(rows, -1), 2, valid=hole.expand(rows, -1), seed=SEED, backend=backend
    )
    require_all(
        enumeration_p_values(
            mask, [w if kept else 0.0 for w, kept in zip(weights, hole.tolist(), strict=True)], 2
        )
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_draws_of_narrow_types_follow_the_enumeration_of_the_rounded_weights(dtype, backend):
    weights = torch.tensor([WEIGHTS["mild"]]).to(dtype)
    mask = mam.sample_without_replacement(
        weights.expand(ROWS[backend], -1), 3, seed=SEED, backend=backend
    )
    require_all(enumeration_p_values(mask, weights[0].double().tolist(), 3))


@pytest.mark.parametrize("backend", BACKENDS)
def test_draws_over_steps_follow_the_enumeration_as_those_over_rows_do(backend):
    weights, rows, steps = WEIGHTS["mild"], 1000, 100
    values = torch.tensor([weights]).expand(rows, -1)
    masks = [
        mam.sample_without_replacement(values, 3, seed=SEED, step=step, backend=backend)
        for step in range(steps)
    ]
    require_all(enumeration_p_values(torch.cat(masks), weights, 3))


@pytest.mark.parametrize("backend", BACKENDS)
def test_draws_over_seeds_of_torch_follow_the_enumeration(backend):
    weights, rows, calls = WEIGHTS["mild"], 1000, 100
    values = torch.tensor([weights]).expand(rows, -1)
    torch.manual_seed(SEED)
    masks = [mam.sample_without_replacement(values, 3, backend=backend) for _ in range(calls)]
    require_all(enumeration_p_values(torch.cat(masks), weights, 3))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["uniform", "mild", "geometric"])
def test_draws_agree_with_torch_multinomial(name, backend):
    weights = torch.tensor([WEIGHTS[name]]).expand(ROWS[backend], -1)
    generator = torch.Generator().manual_seed(SEED)
    theirs = torch.zeros(len(weights), 8, dtype=torch.bool)
    theirs.scatter_(1, torch.multinomial(weights, 3, replacement=False, generator=generator), True)
    ours = mam.sample_without_replacement(weights, 3, seed=SEED, backend=backend)
    counts_ours, counts_theirs = (
        np.bincount(as_bits(mask), minlength=256) for mask in (ours, theirs)
    )
    sets = np.flatnonzero(counts_ours + counts_theirs)
    require_all(
        {
            int(s): two_sample_p_value(
                int(counts_ours[s]), len(weights), int(counts_theirs[s]), len(weights)
            )
            for s in sets
        }
    )


# The draws fused into the masking step


def unit_slope_module(
    input_dim: int | None, backend: str, **options
) -> mam.MultinomialAttentionMasking:
    """A module whose only latent gives the scalar token ``x`` the attention ``exp(x) / sum
    exp(x)``.
    """
    module = mam.MultinomialAttentionMasking(
        input_dim, latent_dim=1, num_latents=1, num_heads=1, backend=backend, **options
    )
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
    return module


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("path", ["values", "CSR", "embeddings"])
def test_fused_draws_follow_the_enumeration_of_known_importance(path, temperature, backend):
    weights = [1.0, 2.0, 1.0, 0.5, 3.0, 1.0, 0.25, 1.5]
    rows = FUSED_ROWS["reference" if path == "embeddings" else backend]
    values = torch.tensor([weights]).log().expand(rows, -1).contiguous()
    tokens = {
        "values": lambda: values,
        "CSR": values.to_sparse_csr,
        "embeddings": lambda: values[:, :, None],
    }[path]()
    module = unit_slope_module(
        1 if path == "embeddings" else None, backend, temperature=temperature
    )
    out = module(tokens, num_masked=3, seed=SEED)
    torch.testing.assert_close(out.importance[0], torch.tensor(weights) / sum(weights))
    require_all(enumeration_p_values(out.mask, [w ** (1.0 / temperature) for w in weights], 3))


@pytest.mark.parametrize("backend", BACKENDS)
def test_fused_draws_leave_what_may_not_be_hidden_to_the_attention_alone(backend):
    weights, maskable = (
        [1.0, 2.0, 4.0, 8.0, 3.0, 1.0],
        torch.tensor([True, True, False, True, True, False]),
    )
    values = torch.tensor([weights]).log().expand(FUSED_ROWS[backend], -1)
    module = unit_slope_module(None, backend)
    out = module(values, maskable=maskable.expand(len(values), -1), num_masked=2, seed=SEED)
    torch.testing.assert_close(out.importance[0], torch.tensor(weights) / sum(weights))
    require_all(
        enumeration_p_values(
            out.mask, [w * kept for w, kept in zip(weights, maskable.tolist(), strict=True)], 2
        )
    )


# The random subset of the latents


def latent_draws(num_latents: int, size: int, draws: int, backend: str) -> Tensor:
    """Masks (draws, N) of the subsets of as many steps."""
    run = dispatch.implementation("draw_latents", backend, torch.empty(1))
    seed, mask = torch.tensor(SEED), torch.zeros(draws, num_latents, dtype=torch.bool)
    for step in range(draws):
        mask[
            step, run(num_latents, size, Draw(seed, torch.tensor(step), None), torch.device("cpu"))
        ] = True
    return mask


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("num_latents", "size"), [(5, 2), (8, 3)])
def test_every_subset_of_the_latents_is_equally_likely(num_latents, size, backend):
    mask = latent_draws(num_latents, size, LATENT_DRAWS[backend], backend)
    require_all(enumeration_p_values(mask, [1.0] * num_latents, size))


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_one_and_every_pair_of_many_latents_is_equally_likely(backend):
    num_latents, size, draws = 32, 9, LATENT_DRAWS[backend]
    mask = latent_draws(num_latents, size, draws, backend).long()
    both = mask.T @ mask
    one, pair = size / num_latents, size * (size - 1) / (num_latents * (num_latents - 1))
    p_values = {(i, i): binomial_p_value(int(both[i, i]), draws, one) for i in range(num_latents)}
    p_values |= {
        (i, j): binomial_p_value(int(both[i, j]), draws, pair)
        for i, j in combinations(range(num_latents), 2)
    }
    require_all(p_values)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_subset_of_the_latents_and_the_mask_of_a_step_are_independent(backend):
    # Sample id 0 shares seed, step and counter words with the draw of the latents: only the stream
    # tells them apart.
    size, steps = 4, LATENT_DRAWS[backend]
    latents = latent_draws(8, size, steps, backend).long()
    ones, ids = torch.ones(1, 8), torch.zeros(1, dtype=torch.int64)
    masks = [
        mam.sample_without_replacement(
            ones, size, seed=SEED, step=step, sample_ids=ids, backend=backend
        )
        for step in range(steps)
    ]
    both = latents.T @ torch.cat(masks).long()
    require_all(
        {
            (n, pos): binomial_p_value(int(both[n, pos]), steps, 0.25)
            for n in range(8)
            for pos in range(8)
        }
    )


# The uniforms, and the independence of what must be independent


def kolmogorov_distance(u: np.ndarray) -> float:
    """sup |F_n - F| for the uniform distribution."""
    u = np.sort(u)
    steps = np.arange(1, u.size + 1) / u.size
    return float(max((steps - u).max(), (u - steps + 1 / u.size).max()))


def bits_of(
    stream: int = 0,
    step: int = 3,
    seed: int = SEED,
    first_id: int = 0,
    rows: int = 512,
    positions: int = 512,
) -> Tensor:
    ids = torch.arange(first_id, first_id + rows)
    return philox.random_bits(positions, ids, torch.tensor(step), torch.tensor(seed), stream)


@pytest.mark.parametrize("stream", [philox.STREAM_POSITIONS, philox.STREAM_LATENTS])
def test_uniforms_are_uniform_on_the_unit_interval(stream):
    u = philox.uniforms(bits_of(stream)).double().numpy().ravel()
    # A float32 below 1 is at most half of 2**-23 from what it rounds.
    assert kolmogorov_distance(u) <= dkw_bound(u.size) + 2.0**-24
    cells = np.bincount((u * 256).astype(int), minlength=256)
    require_all(
        {cell: binomial_p_value(int(count), u.size, 1 / 256) for cell, count in enumerate(cells)}
    )


def test_small_uniforms_are_as_frequent_as_they_should_be():
    # 2**20 draws: 64 uniforms below 2**-14 and 4 below 2**-18 are expected, each an exact binomial.
    u = philox.uniforms(bits_of(rows=2048)).numpy().ravel()
    require_all(
        {
            power: binomial_p_value(int((u < 2.0**-power).sum()), u.size, 2.0**-power)
            for power in range(1, 21)
        }
    )


def test_every_bit_of_the_random_words_is_fair():
    bits = bits_of().numpy().ravel()
    require_all(
        {bit: binomial_p_value(int((bits >> bit & 1).sum()), bits.size, 0.5) for bit in range(32)}
    )


NEIGHBOURS = {
    "streams": ({"stream": 0}, {"stream": 1}),
    "steps": ({"step": 3}, {"step": 4}),
    "seeds": ({"seed": SEED}, {"seed": SEED + 1}),
    "seeds that differ in the high word": ({"seed": SEED}, {"seed": SEED + 2**32}),
    "sample ids": ({"first_id": 0}, {"first_id": 5000}),
    "step and stream exchanged": ({"stream": 0, "step": 1}, {"stream": 1, "step": 0}),
}


def independence_p_values(one: Tensor, other: Tensor) -> dict[object, float]:
    """Exact: each bit agrees in half of the pairs, and the leading bits of one follow those of the
    other as 16 fair dice pairs do.
    """
    one, other = one.numpy().ravel(), other.numpy().ravel()
    agree = ~(one ^ other)
    p_values: dict[object, float] = {
        bit: binomial_p_value(int((agree >> bit & 1).sum()), one.size, 0.5) for bit in range(32)
    }
    table = np.bincount((one >> 30) * 4 + (other >> 30), minlength=16)
    return p_values | {
        ("quarters", cell): binomial_p_value(int(count), one.size, 1 / 16)
        for cell, count in enumerate(table)
    }


def correlation_p_value(one: Tensor, other: Tensor) -> float:
    """Of the mean product of the uniforms, centred and scaled to [-1, 1]; a bound, by Hoeffding."""
    mean = float(
        ((2 * philox.uniforms(one).double() - 1) * (2 * philox.uniforms(other).double() - 1)).mean()
    )
    return min(1.0, 2.0 * math.exp(-0.5 * one.numel() * mean**2))


@pytest.mark.parametrize("what", NEIGHBOURS)
def test_words_of_different_streams_steps_seeds_and_samples_are_independent(
    what,
):
    one, other = (bits_of(**options) for options in NEIGHBOURS[what])
    require_all(
        independence_p_values(one, other) | {"correlation": correlation_p_value(one, other)}
    )


@pytest.mark.parametrize("distance", [1, 2, 3, 4, 8])
def test_words_of_neighbouring_positions_are_independent(distance):
    # Pairs (l, l + distance) that share no position: the first half of each block of 2 * distance
    # with its second half.
    blocks = bits_of(positions=512 - 512 % (2 * distance)).unflatten(1, (-1, 2, distance))
    one, other = blocks[:, :, 0].flatten(), blocks[:, :, 1].flatten()
    require_all(independence_p_values(one, other))
    assert one.numel() >= 125_000


def test_words_of_neighbouring_sample_ids_are_independent():
    bits = bits_of(rows=1024)
    require_all(independence_p_values(bits[0::2].flatten(), bits[1::2].flatten()))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("what", ["steps", "seeds", "sample ids"])
def test_masks_of_different_steps_seeds_and_samples_are_independent(what, backend):
    weights, k, rows = WEIGHTS["mild"], 3, ROWS[backend]
    values, ids = torch.tensor([weights]).expand(rows, -1), torch.arange(rows)
    one = {"seed": SEED, "step": 5, "sample_ids": ids}
    other = (
        one
        | {
            "steps": {"step": 6},
            "seeds": {"seed": SEED + 1},
            "sample ids": {"sample_ids": ids + rows},
        }[what]
    )
    first, second = (
        mam.sample_without_replacement(values, k, backend=backend, **draw).long()
        for draw in (one, other)
    )
    both = first.T @ second
    subsets = subset_probabilities(weights, k)
    inclusion = [inclusion_probability(subsets, (position,)) for position in range(8)]
    pairs = {(i, j): inclusion[i] * inclusion[j] for i in range(8) for j in range(8)}
    require_all(
        {
            pair: binomial_p_value(int(both[pair]), rows, probability)
            for pair, probability in pairs.items()
        }
    )


def test_the_same_uniforms_used_twice_are_found_dependent():
    one = bits_of()
    with pytest.raises(AssertionError, match="rejected"):
        require_all(independence_p_values(one, one ^ 0xFF))
    assert correlation_p_value(one, one) < TEST_ALPHA / 100


@pytest.mark.parametrize("backend", BACKENDS)
def test_long_rows_of_equal_weights_draw_every_position_and_every_pair_of_neighbours_equally_often(
    backend,
):
    rows, positions, k = 2000, 1000, 300
    mask = mam.sample_without_replacement(
        torch.ones(1, 1).expand(rows, positions), k, seed=SEED, backend=backend
    )
    one, pair = k / positions, k * (k - 1) / (positions * (positions - 1))
    singles, pairs = mask.sum(dim=0).tolist(), (mask[:, 1:] & mask[:, :-1]).sum(dim=0).tolist()
    p_values = {
        position: binomial_p_value(count, rows, one) for position, count in enumerate(singles)
    }
    require_all(
        p_values
        | {
            (left, left + 1): binomial_p_value(count, rows, pair)
            for left, count in enumerate(pairs)
        }
    )
