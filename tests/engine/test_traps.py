"""The traps that others fell into, each with a test by its name."""

import ast
import importlib.util
import itertools
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

import mam_kernels as mam
from mam_kernels._core import checks, philox
from mam_kernels.ops.selection import reference as selection_reference
from mam_kernels.testing import measure

PACKAGE = Path(mam.__file__).parent
BACKENDS = [name for name in ("reference", "cpu") if mam.backends()[name]]
SUBPROCESS_SECONDS = 240

both_backends = pytest.mark.parametrize("backend", BACKENDS)


def run_python(script: str, **environment: str) -> str:
    """What a fresh interpreter prints for a script; its failure is ours."""
    paths = os.pathsep.join([str(PACKAGE.parent), os.environ.get("PYTHONPATH", "")])
    inherited = {
        key: value
        for key, value in os.environ.items()
        if key not in ("MAM_BACKEND", "TRITON_INTERPRET")
    }
    result = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=SUBPROCESS_SECONDS,
        env={**inherited, "PYTHONPATH": paths, **environment},
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


# torch.multinomial: positions of probability zero, 0 / 0 in float16, 2**24 categories


@both_backends
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_multinomial_zero_probability_indices_are_never_drawn_when_k_exceeds_them(dtype, backend):
    weights = torch.tensor([[0.0, 1.0, 0.0, 2.0, 0.0, 3.0], [0.0] * 6, [1.0] * 6], dtype=dtype)
    for k in range(7):
        mask = mam.sample_without_replacement(weights, k, seed=k, backend=backend)
        assert not bool(mask[weights == 0].any())
        assert mask.sum(dim=1).tolist() == [min(k, 3), 0, k]


@both_backends
def test_multinomial_float16_zero_over_zero_gives_no_draw_and_no_nan(backend):
    # A sum that overflows float16, weights that vanish when divided by it, and no weight at all.
    weights = torch.tensor([[65504.0] * 100, [6e-8] * 100, [0.0] * 100], dtype=torch.float16)
    mask = mam.sample_without_replacement(
        weights, 40, seed=1, sample_ids=torch.zeros(3, dtype=torch.int64), backend=backend
    )
    assert mask.sum(dim=1).tolist() == [40, 40, 0]
    assert torch.equal(mask[0], mask[1])


def test_multinomial_categories_beyond_two_to_the_24_can_be_drawn():
    # In the C++ backend alone: the reference sorts 16.8 million float64 keys in 20 s, and has no
    # such limit in its arithmetic.
    if "cpu" not in BACKENDS:
        pytest.skip(f"the backend cpu does not run here: {mam.backends()['cpu']}")
    positions = 2**24 + 5
    with pytest.raises(RuntimeError, match="2\\^24"):
        torch.multinomial(torch.ones(1, 1).expand(1, positions), 3)
    mask = mam.sample_without_replacement(
        torch.ones(1, 1).expand(1, positions), 3, seed=1, backend="cpu"
    )
    drawn = mask[0].nonzero()[:, 0].tolist()
    assert len(drawn) == 3
    last = torch.zeros(1, positions)
    last[0, -2:] = 1.0
    mask = mam.sample_without_replacement(last, 3, seed=1, backend="cpu")
    assert mask[0].nonzero()[:, 0].tolist() == [positions - 2, positions - 1]


# Uniforms: the tail, and u = 1. The sample ids were found by a search of the stream of seed 0, step
# 0.

TINY_BITS = {"sample_id": 3441155, "position": 58, "bits": 1}
HUGE_BITS = {"sample_id": 58585, "position": 48, "bits": 2**32 - 29}


def found_bits(where: dict[str, int], positions: int = 64) -> Tensor:
    """The bits of the row (L,) that holds what was searched for."""
    bits = philox.random_bits(
        positions, torch.tensor([where["sample_id"]]), torch.tensor(0), torch.tensor(0), 0
    )[0]
    assert int(bits[where["position"]]) == where["bits"]
    return bits


@both_backends
def test_24_bit_uniform_tail_is_reached_so_that_a_tiny_weight_can_win_its_race(backend):
    bits, position = found_bits(TINY_BITS), TINY_BITS["position"]
    uniforms = philox.uniforms(bits)
    assert (
        float(uniforms[position]) == 1.5 * 2**-32
    )  # a uniform of 24 bits is 0, or at least 2**-25
    weights = torch.ones(1, 64)
    weights[0, position] = 2e-7
    others = uniforms[torch.arange(64) != position].min()
    assert (
        uniforms[position] / 2e-7 < others < 2.0**-25 / 2e-7
    )  # the right key wins, that of 24 bits would lose
    ids = torch.tensor([TINY_BITS["sample_id"]])
    mask = mam.sample_without_replacement(weights, 1, seed=0, sample_ids=ids, backend=backend)
    assert mask[0].nonzero()[:, 0].tolist() == [position]


@both_backends
def test_u_equal_to_1_does_not_make_an_infinite_key_that_is_never_drawn(backend):
    bits, position = found_bits(HUGE_BITS), HUGE_BITS["position"]
    assert (
        float(bits[position].float() * 2.0**-32) == 1.0
    )  # rounded to float32, which the clamp must undo
    assert float(philox.uniforms(bits)[position]) < 1.0
    ids, weights = torch.tensor([HUGE_BITS["sample_id"]]), torch.ones(1, 64)
    every = mam.sample_without_replacement(weights, 64, seed=0, sample_ids=ids, backend=backend)
    assert bool(every.all())
    but_one = mam.sample_without_replacement(weights, 63, seed=0, sample_ids=ids, backend=backend)
    assert (~but_one[0]).nonzero()[:, 0].tolist() == [position]


@both_backends
def test_tiny_weight_with_a_large_uniform_still_has_a_finite_key(backend):
    weights = torch.full((1, 64), 1.0)
    weights[0, HUGE_BITS["position"]] = 1.2e-38  # a normal number; lighter ones count as zero
    mask = mam.sample_without_replacement(
        weights, 64, seed=0, sample_ids=torch.tensor([HUGE_BITS["sample_id"]]), backend=backend
    )
    assert bool(mask.all())


# Ties


def tied_pair(row: Tensor) -> tuple[int, int, int]:
    """(lower, upper, rank) of two positions with equal uniforms, ``rank`` positions being before
    both in the race.
    """
    order = row.argsort(stable=True)
    equal = (row[order][1:] == row[order][:-1]).nonzero()[:, 0]
    assert equal.numel() > 0, "the row holds no tie"
    rank = int(equal[equal.numel() // 2])
    return int(order[rank]), int(order[rank + 1]), rank


@both_backends
@pytest.mark.parametrize("path", ["selection", "values"])
def test_ties_go_to_the_lower_index_in_a_row_of_20k_which_has_some(path, backend):
    positions, seed = 20_000, 5
    bits = philox.random_bits(positions, torch.tensor([0]), torch.tensor(0), torch.tensor(seed), 0)[
        0
    ]
    lower, upper, rank = tied_pair(philox.uniforms(bits))
    assert lower < upper
    if path == "selection":
        mask = mam.sample_without_replacement(
            torch.ones(1, positions), rank + 1, seed=seed, backend=backend
        )
    else:
        module = mam.MultinomialAttentionMasking(
            latent_dim=8, num_latents=4, num_heads=2, backend=backend
        )
        mask = module(torch.zeros(1, positions), num_masked=rank + 1, seed=seed).mask
    assert int(mask.sum()) == rank + 1
    assert bool(mask[0, lower])
    assert not bool(mask[0, upper])


# Counts: floor, once, in float64


def test_floor_not_round_of_k_at_every_length_up_to_20000():
    ratio, lengths = 0.3, range(20_001)
    expected = [math.floor(ratio * n) for n in lengths]
    assert (
        sum(expected[n] != round(ratio * n) for n in lengths) > 5000
    )  # where rounding would be seen
    assert (
        sum(math.floor(ratio * n + 0.5) != round(ratio * n) for n in lengths) > 500
    )  # and the two roundings differ
    device = torch.device("cpu")
    assert [int(checks.count_masked(ratio, None, 1, n, device)) for n in lengths[::7]] == expected[
        ::7
    ]


@pytest.mark.parametrize("ratio", [0.1, 0.15, 0.29, 0.3, 0.3 * 0.08, 0.7, 1.0])
def test_floor_in_float64_is_the_same_with_and_without_padding(ratio):
    lengths = torch.arange(0, 3000, 13)
    maskable = torch.arange(3000) < lengths[:, None]
    got = checks.count_masked(ratio, maskable, len(lengths), 3000, torch.device("cpu"))
    assert got.tolist() == [math.floor(ratio * n) for n in lengths.tolist()]


def test_floor_in_float32_would_differ_at_some_length():
    # 0.29 * 100 is 28.999999999999996 in float64 and 29 in float32: the type is part of the
    # definition.
    single = math.floor(float(torch.tensor(0.29) * 100))
    assert single == 29
    assert (
        int(checks.count_masked(0.29, None, 1, 100, torch.device("cpu")))
        == math.floor(0.29 * 100)
        == 28
    )


@both_backends
@pytest.mark.parametrize("positions", [5, 15, 25, 105, 115])
def test_floor_not_round_of_k_in_a_masking_step(positions, backend):
    ratio = 0.3
    assert math.floor(ratio * positions) != math.floor(ratio * positions + 0.5)
    module = mam.MultinomialAttentionMasking(
        latent_dim=8, num_latents=4, num_heads=2, mask_ratio=ratio, backend=backend
    )
    assert int(module(torch.rand(1, positions), seed=0).mask.sum()) == math.floor(ratio * positions)


# Addresses: elements that lie beyond 2**31 from the first

FAR = 2**31 + 64


def far_storage(path: Path, elements: int, dtype: torch.dtype) -> Tensor:
    """So many elements in a sparse file: only the pages that are touched take memory."""
    path.touch()
    os.truncate(path, elements * dtype.itemsize)
    return torch.from_file(str(path), shared=True, size=elements, dtype=dtype)


@both_backends
def test_int64_addresses_of_rows_and_positions_of_weights(tmp_path, backend):
    storage = far_storage(tmp_path / "weights", 2 * FAR, torch.float16)
    weights = torch.rand(2, 40, generator=torch.Generator().manual_seed(1)).half()
    far_rows = storage.as_strided((2, 40), (FAR, 1))
    far_positions = storage.as_strided((1, 3), (1, FAR // 2))
    far_rows.copy_(weights)
    expected = mam.sample_without_replacement(weights, 13, seed=2, backend="reference")
    assert torch.equal(
        mam.sample_without_replacement(far_rows, 13, seed=2, backend=backend), expected
    )
    far_positions.copy_(torch.tensor([[0.0, 0.0, 1.0]]))
    assert mam.sample_without_replacement(far_positions, 3, seed=2, backend=backend).tolist() == [
        [False, False, True]
    ]


@both_backends
def test_int64_addresses_of_values_and_flags(tmp_path, backend):
    values = far_storage(tmp_path / "values", FAR + 64, torch.float16).as_strided((2, 40), (FAR, 1))
    valid = (
        far_storage(tmp_path / "valid", FAR + 64, torch.uint8)
        .view(torch.bool)
        .as_strided((2, 40), (FAR, 1))
    )
    generator = torch.Generator().manual_seed(2)
    values.copy_(torch.rand(2, 40, generator=generator))
    valid.copy_(torch.rand(2, 40, generator=generator) < 0.7)
    slope = torch.randn(3, 2, generator=generator)
    got = mam.value_attention(values, slope, valid=valid, backend=backend)
    near = mam.value_attention(
        values.contiguous(), slope, valid=valid.contiguous(), backend=backend
    )
    assert all(torch.equal(a, b) for a, b in zip(got, near, strict=True))
    mask = mam.sample_without_replacement(values, 13, valid=valid, seed=3, backend=backend)
    assert torch.equal(
        mask,
        mam.sample_without_replacement(
            values.contiguous(), 13, valid=valid.contiguous(), seed=3, backend=backend
        ),
    )
    assert not bool((mask & ~valid).any())


@both_backends
def test_int64_addresses_of_keys_and_values_of_tokens(tmp_path, backend):
    storage = far_storage(tmp_path / "tokens", FAR + 4096, torch.float16)
    tokens = torch.randn(2, 10, 2, 8, generator=torch.Generator().manual_seed(3)).half()
    far = storage.as_strided(tokens.shape, (FAR, 16, 8, 1))
    far.copy_(tokens)
    query = torch.randn(3, 2, 8, generator=torch.Generator().manual_seed(4)).half()
    got = mam.latent_attention(query, far, far, backend=backend)
    near = mam.latent_attention(query, tokens, tokens, backend=backend)
    assert all(torch.equal(a, b) for a, b in zip(got, near, strict=True))


@both_backends
def test_expanded_rows_share_their_memory_and_not_their_masks(backend):
    row = torch.rand(1, 60, generator=torch.Generator().manual_seed(4))
    expanded = mam.sample_without_replacement(row.expand(4, -1), 20, seed=6, backend=backend)
    assert torch.equal(
        expanded, mam.sample_without_replacement(row.repeat(4, 1), 20, seed=6, backend=backend)
    )
    assert not torch.equal(expanded[0], expanded[1])


# Triton: 32-bit words for tl.philox, tl.histogram, and when it decides to interpret

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="the package triton is not installed"
)


@needs_triton
def test_triton_takes_32_bit_counter_words_and_its_histogram_counts_right():
    # Words with the top bit set would become 64-bit offsets, and 3000 positions need the histogram
    # of the radix selection.
    script = """
import torch, mam_kernels as mam
ids = torch.tensor([2**31 + 1, 2**32 - 1, 0])
for positions, k in ((3000, 900), (70, 23)):
    draw = dict(seed=2**63 + 5, step=2**32 - 1, sample_ids=ids)
    masks = [mam.sample_without_replacement(torch.ones(3, positions), k, **draw, backend=b) for b in ("triton", "reference")]
    print(torch.equal(*masks), masks[0].sum(dim=1).tolist() == [k] * 3)
"""
    assert run_python(script, TRITON_INTERPRET="1").split() == ["True"] * 4


@needs_triton
def test_triton_decides_at_import_whether_to_interpret_and_backends_says_which():
    script = "import mam_kernels as mam; print(mam.backends()['triton'])"
    assert "interpreter" in run_python(script, TRITON_INTERPRET="1")
    without = run_python(script, TRITON_INTERPRET="0")
    assert "interpreter'" not in without
    assert torch.cuda.is_available() or "no GPU" in without


@needs_triton
def test_interpreter_is_seen_although_triton_is_imported_after_the_library():
    script = """
import sys, torch, mam_kernels as mam
assert "triton" not in sys.modules
mask = mam.sample_without_replacement(torch.ones(2, 30), 7, seed=1, backend="triton")
print(mask.sum(dim=1).tolist())
"""
    assert run_python(script, TRITON_INTERPRET="1").strip() == "[7, 7]"


# Host cost: how operations are registered


def test_custom_op_which_costs_twice_as_much_is_not_used_anywhere():
    names = {
        node.attr if isinstance(node, ast.Attribute) else node.id
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, (ast.Attribute, ast.Name))
    }
    assert "define" in names
    assert not names & {"custom_op", "triton_op", "CustomOpDef"}


def test_every_operation_is_registered_once_writes_nothing_in_place_and_ends_with_its_backend():
    operations = {
        name.removeprefix("mam_kernels::").removesuffix(".default")
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("mam_kernels::")
    }
    assert operations == {
        "attention_importance",
        "inclusion_probabilities",
        "inclusion_probabilities_backward",
        "latent_attention",
        "latent_attention_backward",
        "sample_without_replacement",
        "scalar_masking",
        "scalar_masking_backward",
        "token_masking",
        "token_masking_backward",
        "value_attention",
    }
    for name in operations:
        (overload,) = getattr(torch.ops.mam_kernels, name).overloads()
        assert overload == "default"
        schema = getattr(torch.ops.mam_kernels, name).default._schema
        assert schema.arguments[-1].name == "backend", name
        aliased = [x.name for x in (*schema.arguments, *schema.returns) if x.alias_info]
        assert aliased == [], name


# A warm cache flatters small benchmarks


def test_warm_cache_does_not_flatter_input_sets_exceed_the_last_level_cache_and_take_turns():
    size = measure.last_level_cache_bytes() // 8
    sets = measure.input_sets(lambda index: (index,), size)
    assert len(sets) * size > 2 * measure.last_level_cache_bytes()
    called: list[int] = []
    measure.time_interleaved({"one": measure.Contender(called.append, sets)}, samples=3)
    assert all(first != second for first, second in itertools.pairwise(called))
    assert set(called) == set(range(len(sets)))


# DDP: parameters without gradient

DDP_SCRIPT = """
import datetime, os, sys
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
import mam_kernels as mam

rank, rendezvous = int(sys.argv[1]), sys.argv[2]
store = dist.FileStore(rendezvous, 2)
dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=datetime.timedelta(seconds=60))
torch.set_num_threads(1)

class Model(nn.Module):
    def __init__(self, scheme, use):
        super().__init__()
        self.use = use
        self.masking = mam.MultinomialAttentionMasking(latent_dim=8, num_latents=4, num_heads=2)
        self.injection = mam.ContextInjection(8, 6, scheme)
        self.embed, self.head = nn.Linear(1, 6), nn.Linear(6, 1)

    def forward(self, values, step):
        out = self.masking(values, seed=5, step=step, sample_ids=torch.arange(2) + 2 * rank)
        hidden = self.embed(values.masked_fill(out.mask, -1.0)[..., None])
        encoder, decoder = self.injection(out.context)
        for name, shift in (("encoder", encoder), ("decoder", decoder)):
            if name in self.use and shift is not None:
                hidden = hidden + shift
        penalty = 1e-5 * out.penalty if "penalty" in self.use else 0.0
        return ((self.head(hidden)[..., 0] - values)[out.mask] ** 2).mean() + penalty

def train(scheme, use, **options):
    torch.manual_seed(0)
    model = DistributedDataParallel(Model(scheme, use), **options)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(3):
        values = torch.rand(2, 20, generator=torch.Generator().manual_seed(10 * step + rank))
        optimizer.zero_grad()
        model(values, step).backward()
        optimizer.step()
    mine = torch.cat([p.detach().flatten() for p in model.parameters()])
    both = [torch.empty_like(mine) for _ in range(2)]
    dist.all_gather(both, mine)
    without = [name for name, p in model.module.named_parameters() if p.grad is None]
    print(scheme, "+".join(use) or "nothing", torch.equal(*both), bool(mine.isfinite().all()), len(without))

for scheme in ("encoder", "decoder", "both", "separate"):
    train(scheme, ("encoder", "decoder", "penalty"))
train("decoder", ("decoder",))
train("separate", ("decoder",), find_unused_parameters=True)
train("separate", (), find_unused_parameters=True)
train("decoder", (), find_unused_parameters=True)

# Both have printed before either leaves: gloo's own threads abort a process whose peer closes the
# connection too early.
sys.stdout.flush()
store.set(f"finished {rank}", "")
store.wait(["finished 0", "finished 1"])
os._exit(0)
"""


def run_both_ranks(script: Path, rendezvous: Path) -> list[str]:
    """What the two ranks print; a hang is killed and fails."""
    paths = os.pathsep.join([str(PACKAGE.parent), os.environ.get("PYTHONPATH", "")])
    environment = {
        **os.environ,
        "MAM_BACKEND": "",
        "PYTHONPATH": paths,
        "MASTER_ADDR": "127.0.0.1",
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, str(script)]
    ranks = [
        subprocess.Popen(
            [*command, str(r), str(rendezvous)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for r in range(2)
    ]
    try:
        printed = [process.communicate(timeout=SUBPROCESS_SECONDS) for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    assert [process.returncode for process in ranks] == [0, 0], "\n".join(
        error[-2000:] for _, error in printed
    )
    return [output for output, _ in printed]


@pytest.mark.skipif(
    not torch.distributed.is_available(), reason="torch was built without torch.distributed"
)
def test_ddp_does_not_hang_on_unused_adapters_or_masks_without_injection(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(DDP_SCRIPT)
    first, second = run_both_ranks(script, tmp_path / "rendezvous")
    assert first == second
    everything = "encoder+decoder+penalty"
    assert first.splitlines() == [
        *(
            f"{scheme} {everything} True True 0"
            for scheme in ("encoder", "decoder", "both", "separate")
        ),
        "decoder decoder True True 0",
        "separate decoder True True 2",  # weight and bias of the adapter that was not used
        # those of both adapters, and all seven of the masking module
        "separate nothing True True 11",
        "decoder nothing True True 9",
    ]


@pytest.mark.parametrize("context_from", ["all", "visible"])
@pytest.mark.parametrize("input_dim", [None, 5])
@pytest.mark.parametrize("use", ["context", "penalty"])
def test_ddp_every_parameter_gets_a_gradient_from_the_context_alone_and_from_the_penalty_alone(
    use, input_dim, context_from
):
    module = mam.MultinomialAttentionMasking(input_dim, 8, 4, 2, context_from=context_from)
    tokens = torch.rand(2, 20) if input_dim is None else torch.rand(2, 20, input_dim)
    getattr(module(tokens, seed=1), use).sum().backward()
    assert [name for name, parameter in module.named_parameters() if parameter.grad is None] == []


# The tests above can fail: each is run with the mistake that it is named after


def drawn_although_zero(weights, valid, eps, inverse_temperature):
    return torch.ones_like(weights)


def divided_by_the_sum_in_half_precision(weights, valid, eps, inverse_temperature):
    half = weights.half()
    ratio = half / half.sum(dim=-1, keepdim=True)
    return torch.where(weights > 0, ratio.to(weights.dtype), 0.0)


def of_24_bits(bits):
    return (bits >> 8).to(torch.float32) * 2.0**-24


def without_a_clamp(bits):
    return (bits.to(torch.float32) + 0.5) * 2.0**-32


def ties_to_the_higher_index(keys, count):
    return SMALLEST(keys.flip(-1), count).flip(-1)


def rounded_half_up(mask_ratio, maskable, rows, positions, device):
    if maskable is None:
        return torch.full((rows,), math.floor(mask_ratio * positions + 0.5), dtype=torch.int32)
    return torch.floor(maskable.sum(dim=-1) * mask_ratio + 0.5).to(torch.int32)


def rounded_half_even(mask_ratio, maskable, rows, positions, device):
    if maskable is None:
        return torch.full((rows,), round(mask_ratio * positions), dtype=torch.int32)
    return torch.round(maskable.sum(dim=-1) * mask_ratio).to(torch.int32)


def floored_in_float32(mask_ratio, maskable, rows, positions, device):
    count = positions if maskable is None else maskable.sum(dim=-1)
    product = torch.tensor(mask_ratio, dtype=torch.float32) * count
    return torch.floor(product).to(torch.int32).expand(rows)


SMALLEST = selection_reference.smallest
SELECTION = "mam_kernels.ops.selection.reference"
UNIFORMS = "mam_kernels._core.philox.uniforms"
COUNT = "mam_kernels._core.checks.count_masked"
MISTAKES = [
    (test_multinomial_zero_probability_indices_are_never_drawn_when_k_exceeds_them,
     (torch.float32, "reference"), f"{SELECTION}.relative_weights", drawn_although_zero),
    (test_multinomial_float16_zero_over_zero_gives_no_draw_and_no_nan,
     ("reference",), f"{SELECTION}.relative_weights", divided_by_the_sum_in_half_precision),
    (test_24_bit_uniform_tail_is_reached_so_that_a_tiny_weight_can_win_its_race,
     ("reference",), UNIFORMS, of_24_bits),
    (test_u_equal_to_1_does_not_make_an_infinite_key_that_is_never_drawn,
     ("reference",), UNIFORMS, without_a_clamp),
    (test_ties_go_to_the_lower_index_in_a_row_of_20k_which_has_some,
     ("selection", "reference"), f"{SELECTION}.smallest", ties_to_the_higher_index),
    (test_ties_go_to_the_lower_index_in_a_row_of_20k_which_has_some,
     ("values", "reference"), f"{SELECTION}.smallest", ties_to_the_higher_index),
    (test_floor_not_round_of_k_at_every_length_up_to_20000, (), COUNT, rounded_half_up),
    (test_floor_not_round_of_k_at_every_length_up_to_20000, (), COUNT, rounded_half_even),
    (test_floor_in_float64_is_the_same_with_and_without_padding, (0.29,), COUNT, rounded_half_up),
    (test_floor_in_float32_would_differ_at_some_length, (), COUNT, floored_in_float32),
    (test_floor_not_round_of_k_in_a_masking_step, (15, "reference"), COUNT, rounded_half_up),
    (test_expanded_rows_share_their_memory_and_not_their_masks,
     ("reference",), f"{SELECTION}.race_keys", lambda weights, bits: RACE_KEYS(weights, bits[:1])),
]  # fmt: skip
RACE_KEYS = selection_reference.race_keys


@pytest.mark.parametrize(("test", "arguments", "where", "mistake"), MISTAKES)
def test_each_of_these_tests_fails_with_its_mistake(test, arguments, where, mistake, monkeypatch):
    test(*arguments)
    monkeypatch.setattr(where, mistake)
    with pytest.raises(AssertionError):
        test(*arguments)
