"""The random bits: Philox4x32-10 to the bit, the layout of its counter, and uniforms that cannot be
0 or 1.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mam_kernels as mam
from mam_kernels._core import dispatch, philox
from mam_kernels._core.call import Draw

BACKENDS = [name for name in ("reference", "cpu") if mam.backends()[name]]
words = st.integers(0, 2**32 - 1)
seeds = st.integers(0, 2**64 - 1)
settings.register_profile("philox", derandomize=True, deadline=None, database=None)
quick = settings(settings.get_profile("philox"), max_examples=100)


def philox_by_integers(seed: int, counter: tuple[int, int, int, int]) -> tuple[int, ...]:
    """Philox4x32-10 as its paper describes it, on Python's own integers: one S-P round is two 32 x
    32 -> 64 bit products.
    """
    key = [seed % 2**32, seed // 2**32]
    right_left = list(counter)
    for _ in range(10):
        high_0, low_0 = divmod(0xD2511F53 * right_left[0], 2**32)
        high_1, low_1 = divmod(0xCD9E8D57 * right_left[2], 2**32)
        right_left = [
            high_1 ^ right_left[1] ^ key[0],
            low_1,
            high_0 ^ right_left[3] ^ key[1],
            low_0,
        ]
        key = [(key[0] + 0x9E3779B9) % 2**32, (key[1] + 0xBB67AE85) % 2**32]
    return tuple(right_left)


def bits_by_integers(position: int, sample_id: int, step: int, seed: int, stream: int) -> int:
    """The bits of position l: word ``l & 3`` of counter ``(l >> 2, sample id, step, stream)``."""
    return philox_by_integers(seed, (position >> 2, sample_id, step, stream))[position & 3]


def signed(seed: int) -> torch.Tensor:
    """The 64 bits of a seed as int64 holds them."""
    return torch.tensor(seed if seed < 2**63 else seed - 2**64)


def by_torch(seed: int, counter: tuple[int, int, int, int]) -> tuple[int, ...]:
    return tuple(
        int(word)
        for word in philox.philox4x32(signed(seed), tuple(torch.tensor(word) for word in counter))
    )


KNOWN_ANSWERS = [
    (0, (0, 0, 0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    (2**64 - 1, (2**32 - 1,) * 4, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    # The third vector of the paper's own distribution: the digits of pi.
    (
        0x299F31D0A4093822,
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("seed", "counter", "expected"), KNOWN_ANSWERS)
def test_known_answers(seed, counter, expected):
    assert by_torch(seed, counter) == expected
    assert philox_by_integers(seed, counter) == expected


@quick
@given(seeds, st.tuples(words, words, words, words))
def test_philox_equals_an_independent_implementation(seed, counter):
    assert by_torch(seed, counter) == philox_by_integers(seed, counter)


@quick
@given(seeds, st.tuples(words, words, words, words), st.integers(1, 2**31 - 1))
def test_only_the_low_32_bits_of_a_counter_word_count(seed, counter, excess):
    beyond = (counter[0] + (excess << 32), *counter[1:])
    assert by_torch(seed, beyond) == by_torch(seed, counter)


@quick
@given(
    seeds,
    words,
    words,
    st.sampled_from([philox.STREAM_POSITIONS, philox.STREAM_LATENTS]),
    st.integers(1, 40),
)
def test_a_position_has_word_l_and_3_of_counter_l_shift_2_sample_id_step_stream(
    seed, step, sample_id, stream, positions
):
    ids = torch.tensor([sample_id, (sample_id + 1) % 2**32])
    got = philox.random_bits(positions, ids, torch.tensor(step), signed(seed), stream)
    assert got.tolist() == [
        [bits_by_integers(p, i, step, seed, stream) for p in range(positions)] for i in ids.tolist()
    ]


def test_positions_stream_is_0_and_latents_stream_is_1():
    assert (philox.STREAM_POSITIONS, philox.STREAM_LATENTS) == (0, 1)


def test_high_positions_of_a_row_take_high_counters():
    positions = 2**20
    bits = philox.random_bits(positions, torch.tensor([7]), torch.tensor(5), torch.tensor(3), 0)[0]
    for position in (0, 3, 4, 65535, 65536, positions - 1):
        assert int(bits[position]) == bits_by_integers(position, 7, 5, 3, 0)


# The bits as the backends use them: with equal weights the positions are drawn in the order of
# their bits


@pytest.mark.parametrize("backend", BACKENDS)
@settings(quick, max_examples=25)
@given(seeds, words, words)
def test_draws_of_equal_weights_follow_the_order_of_the_bits(backend, seed, step, sample_id):
    positions = 21
    bits = [bits_by_integers(p, sample_id, step, seed, 0) for p in range(positions)]
    order = sorted(range(positions), key=bits.__getitem__)
    ids = torch.full((positions + 1,), sample_id)
    counts = torch.arange(positions + 1)
    mask = mam.sample_without_replacement(
        torch.ones(positions + 1, positions),
        counts,
        seed=seed,
        step=step,
        sample_ids=ids,
        backend=backend,
    )
    for count in range(positions + 1):
        assert mask[count].nonzero()[:, 0].tolist() == sorted(order[:count])


@pytest.mark.parametrize("backend", BACKENDS)
@settings(quick, max_examples=25)
@given(seeds, words, st.integers(1, 19))
def test_latents_are_those_of_the_smallest_bits_of_stream_1(backend, seed, step, size):
    bits = [bits_by_integers(n, 0, step, seed, 1) for n in range(19)]
    run = dispatch.implementation("draw_latents", backend, torch.empty(1))
    got = run(19, size, Draw(signed(seed), torch.tensor(step), None), torch.device("cpu"))
    assert got.tolist() == sorted(sorted(range(19), key=bits.__getitem__)[:size])


@pytest.mark.parametrize("backend", BACKENDS)
def test_seeds_may_be_given_signed_or_unsigned(backend):
    weights = torch.ones(2, 50)
    unsigned = mam.sample_without_replacement(weights, 20, seed=2**64 - 5, backend=backend)
    assert torch.equal(
        unsigned, mam.sample_without_replacement(weights, 20, seed=-5, backend=backend)
    )
    assert torch.equal(
        unsigned,
        mam.sample_without_replacement(weights, 20, seed=torch.tensor(-5), backend=backend),
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_default_sample_id_is_the_index_of_the_row(backend):
    weights = torch.ones(5, 50)
    assert torch.equal(
        mam.sample_without_replacement(weights, 20, seed=1, backend=backend),
        mam.sample_without_replacement(
            weights, 20, seed=1, sample_ids=torch.arange(5), backend=backend
        ),
    )


# Uniforms

EDGES = [
    0,
    1,
    2,
    3,
    127,
    128,
    255,
    256,
    2**23 - 1,
    2**23,
    2**24 - 1,
    2**24,
    2**24 + 1,
    2**31,
    2**32 - 257,
    2**32 - 128,
    2**32 - 1,
]


def float32_uniform(bits: int) -> np.float32:
    """``(r + 1/2) 2**-32``, each operation rounded to float32 by numpy, below 1."""
    return min(
        (np.float32(bits) + np.float32(0.5)) * np.float32(2.0**-32), np.float32(1.0 - 2.0**-24)
    )


@quick
@given(st.one_of(words, st.sampled_from(EDGES)))
def test_uniforms_are_the_float32_arithmetic_of_the_definition(bits):
    got = philox.uniforms(torch.tensor([bits]))
    assert got.dtype == torch.float32
    assert float(got) == float(float32_uniform(bits))


@quick
@given(st.one_of(words, st.sampled_from(EDGES)))
def test_uniforms_are_within_three_quarters_of_a_unit_in_the_last_place_of_the_exact_ones(bits):
    exact = (bits + 0.5) * 2.0**-32  # exact in float64
    got = float(philox.uniforms(torch.tensor([bits])))
    assert abs(got - exact) <= float(np.spacing(np.float32(exact))) * 0.75


@quick
@given(st.one_of(words, st.sampled_from(EDGES)))
def test_uniforms_are_never_0_and_never_1(bits):
    assert 0.0 < float(philox.uniforms(torch.tensor([bits]))) < 1.0


def test_the_smallest_and_the_largest_uniform():
    smallest, largest = philox.uniforms(torch.tensor([0, 2**32 - 1])).tolist()
    assert smallest == 2.0**-33
    assert largest == 1.0 - 2.0**-24


@quick
@given(words, words)
def test_uniforms_increase_with_the_bits(a, b):
    low, high = philox.uniforms(torch.tensor([min(a, b), max(a, b)])).tolist()
    assert low <= high


def test_uniforms_increase_strictly_where_the_race_is_decided():
    v = philox.uniforms(torch.arange(2**22))
    assert bool((v[1:] > v[:-1]).all())
    assert v[: 2**22].double().tolist()[:4] == [
        0.5 * 2**-32,
        1.5 * 2**-32,
        2.5 * 2**-32,
        3.5 * 2**-32,
    ]
