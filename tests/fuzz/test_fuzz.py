"""The attack on the engine: property tests with hypothesis, a minute of random cases, and tests
that the attack itself sees what is planted.
"""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz import (
    cells,
    gradients,
    inclusion,
    layouts,
    numbers,
    oracles,
    parent,
    selection,
    steps,
    tokens,
)
from tests.fuzz.families import ready
from tests.fuzz.source import Source, Wrong, replayed, seeded

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 25  # with the start of the children and the tests below, a minute
pytestmark = pytest.mark.filterwarnings("ignore")

# What runs in this process: families whose inputs are all right, so that no signal is to be feared.
RIGHT = {
    "selection": selection.sample,
    "value_attention": cells.attend,
    "latent_attention": tokens.attend,
    "attention_importance": tokens.importance,
    "inclusion_probabilities": inclusion.probabilities,
    "gradients_module": gradients.step,
    "gradients_attention": gradients.attention,
    "values_module": steps.values,
    "embeddings_module": steps.embeddings,
}


@pytest.mark.parametrize("family", RIGHT)
@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(data=st.data())
def test_every_input_that_is_allowed_gets_the_answer_of_the_oracle(family, data):
    # The choices are hypothesis's, so a failure comes out as small as it can be made.
    case = Source(lambda bound: data.draw(st.integers(0, bound - 1)))
    assert RIGHT[family](case) in ("right", "refused")  # refused: a tangent, as it has to be


def fuzz(*arguments: str, seconds: float = SECONDS) -> subprocess.CompletedProcess:
    """``python -m tests.fuzz`` with arguments."""
    command = [sys.executable, "-m", "tests.fuzz", "--seconds", str(seconds), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20 * SECONDS)


def test_random_cases_of_every_family_find_nothing():
    run = fuzz("--seed", "0", "--no-asan")
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    for family in ready()[0]:
        tried = re.search(rf"^{family} +([\d,]+) inputs", run.stdout, re.MULTILINE)
        assert tried is not None, run.stdout
        assert int(tried[1].replace(",", "")) > 0


# The attack itself


def test_a_case_is_the_same_every_time_and_as_its_choices():
    for number in range(40):
        first = seeded("selection", number)
        x, truth = layouts.laid(first, numbers.weights(first, (3, 7)), torch.float32)
        for same in (seeded("selection", number), replayed(first.choices)):
            again, same_truth = layouts.laid(same, numbers.weights(same, (3, 7)), torch.float32)
            assert same.choices == first.choices
            assert again.stride() == x.stride()
            assert np.array_equal(truth, same_truth, equal_nan=True)


def draw(weights: np.ndarray, k: int, random: oracles.Random) -> np.ndarray:
    """The race by the shortest code there is, for one row."""
    uniform = oracles.uniforms(weights.shape[1], random.ids, random.step, random.seed, 0)
    keys = -np.log1p(-uniform.astype(float)) / weights
    mask = np.zeros(weights.shape, dtype=bool)
    np.put_along_axis(mask, np.argsort(keys, axis=1)[:, :k], True, axis=1)
    return mask


def test_oracle_of_the_draw_sees_one_position_exchanged():
    random = oracles.Random(3, 4, np.array([5]))
    weights, everywhere = np.linspace(0.5, 2.0, 40)[None], np.ones((1, 40), dtype=bool)
    mask = draw(weights, 10, random)
    oracles.check_draw(mask, weights, everywhere, np.array([10]), random)
    for hidden in np.flatnonzero(mask[0]):
        for shown in np.flatnonzero(~mask[0]):
            wrong = mask.copy()
            wrong[0, [hidden, shown]] = False, True
            with pytest.raises(Wrong):
                oracles.check_draw(wrong, weights, everywhere, np.array([10]), random)
    with pytest.raises(Wrong, match="drawn"):
        oracles.check_draw(mask, weights, everywhere, np.array([9]), random)
    with pytest.raises(Wrong, match="nothing may be drawn"):
        oracles.check_draw(mask, weights, ~mask, np.array([10]), random)


def test_oracle_of_philox_gives_the_known_answers():
    zero = np.zeros(1, dtype=np.int64)
    words = oracles.philox(0, zero, zero, 0, 0)
    assert [int(word[0]) for word in words] == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    ones = np.full(1, 2**32 - 1)
    words = oracles.philox(2**64 - 1, ones, ones, 2**32 - 1, 2**32 - 1)
    assert [int(word[0]) for word in words] == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]


@pytest.mark.parametrize("part", range(3))
def test_oracle_of_the_moments_sees_an_error_of_a_ten_thousandth(part):
    values = np.array([[0.0, 1.0, 2.0, 0.0, 3.0]])
    slope, exists = np.array([[0.5], [-1.0]]), np.ones((1, 5), dtype=bool)
    truth = oracles.moments(values, exists, slope, 2.0**-24)
    right = [x.copy() for x in truth.values]
    cells.check_moments(right, values, exists, slope, 2.0**-24)
    right[part][0, 0, 0] *= 1 + 1e-4
    with pytest.raises(Wrong):
        cells.check_moments(right, values, exists, slope, 2.0**-24)


def test_a_planted_signal_is_reported_with_the_case_that_made_it_and_made_small(capsys):
    run = parent.Run(0, {})
    try:
        run.go(["planted_crash"], 3.0, say=False)
    finally:
        run.close()
    ((family, kind),) = run.failures
    failure = run.failures[family, kind]
    assert "SIGSEGV" in kind
    assert failure.told[0].startswith("planted(")
    # nine choices below 10 of which the third is 7 or more, and nothing else matters
    assert parent.short(failure.choices) == "0.0.7."
    assert f"--case planted_crash:{failure.number}" in capsys.readouterr().out


def test_a_planted_wrong_answer_gives_exit_status_1_and_the_line_that_makes_it_again():
    run = fuzz("--only", "planted_wrong", "--seed", "1", seconds=1.0)
    assert run.returncode == 1
    assert "is too much" in run.stdout
    assert "planted(number=901)" in run.stdout
    assert "--case planted_wrong:901." in run.stdout
    again = fuzz("--case", "planted_wrong:901.")
    assert again.returncode == 1
    assert "901 is too much" in again.stdout
    assert fuzz("--case", "planted_wrong:900.").returncode == 0
