"""The masking step on scalar values as one operation: both versions against attention in float64,
and their hand-written gradients.
"""

import platform
import subprocess
import sys
from typing import NamedTuple

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import mam_kernels as mam
from mam_kernels._core import dispatch, extension
from mam_kernels._core.call import Cells, Choice, Draw, Parameters, Weighting
from mam_kernels.ops.value_attention import collapse, composed, native, step
from mam_kernels.ops.value_attention.arguments import State, state_parts

N, H, D = 5, 2, 3  # latents, heads, head width
WIDTH = H * D

needs_cpp = pytest.mark.skipif(
    not dispatch.backends()["cpu"], reason="the C++ kernels were not built"
)


def randoms(
    *shapes: tuple[int, ...], dtype: torch.dtype = torch.float64, seed: int = 0
) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]


def parameters_of(
    count: int = N, heads: int = H, head: int = D, dtype: torch.dtype = torch.float64
) -> Parameters:
    width = heads * head
    shapes = Parameters(
        latents=(count, width),
        in_weight=(3 * width, width),
        in_bias=(3 * width,),
        token_weight=(width, 1),
        token_bias=(width,),
        out_weight=(width, width),
        out_bias=(width,),
    )
    parameters = Parameters(*randoms(*shapes, dtype=dtype))
    for weight in (parameters.in_weight, parameters.out_weight):
        weight *= width**-0.5
    return parameters


class Others(NamedTuple):
    """The other parts of a step but for the backend."""

    cells: Cells
    choice: Choice
    weighting: Weighting
    draw: Draw
    heads: int
    visible: bool


def others_of(
    rows: int,
    heads: int = H,
    count: int = N,
    visible: bool = False,
    dtype: torch.dtype = torch.float64,
    shift: float = 0.0,
) -> Others:
    """The second cell has no tokens."""
    positions = 7
    (values,) = randoms((rows, positions), seed=2, dtype=dtype)
    values = values.abs() * (values > -0.3) + shift
    valid = torch.ones(rows, positions, dtype=torch.bool)
    if rows > 1:
        valid[1] = False
    return Others(
        Cells(values, None, None, valid, positions),
        Choice(None, None, 0.5, torch.arange(0, count, 2), 1),
        Weighting(1e-8, 1.0),
        Draw(torch.tensor(5), torch.tensor(0), None),
        heads,
        visible,
    )


def step_in_cpp(parameters: Parameters, others: Others) -> tuple[torch.Tensor, ...]:
    """The outputs and the state of the C++ step."""
    cells, choice, weighting, draw, heads, visible = others
    run = dispatch.optional("value_mask", "step", "cpu")
    return run(cells, parameters, heads, choice, weighting, draw, visible)


def state_of(state: torch.Tensor, rows: int, count: int, heads: int, width: int) -> State:
    return state_parts(state, rows, count, heads, width)


@pytest.mark.parametrize("visible", [False, True])
@pytest.mark.parametrize("rows", [1, 3, 0])
def test_gradients_from_parameters_to_context(rows, visible):
    parameters = [x.requires_grad_() for x in parameters_of()]
    others = others_of(rows, visible=visible)
    assert torch.autograd.gradcheck(
        lambda *x: step.masking(Parameters(*x), *others, "")[2:4], parameters
    )


def test_slopes_are_scaled_products_of_queries_and_keys():
    parameters = parameters_of()
    latents, in_weight, in_bias, token_weight, token_bias, out_weight, _ = parameters
    slope, directions, offset, *_ = collapse.project(parameters, H)
    query = (latents @ in_weight[:WIDTH].T + in_bias[:WIDTH]).view(N, H, D)
    key = (in_weight[WIDTH : 2 * WIDTH] @ token_weight[:, 0]).view(H, D)
    torch.testing.assert_close(slope, torch.einsum("nhd,hd->nh", query, key) / D**0.5)
    gain = (in_weight[2 * WIDTH :] @ token_weight[:, 0]).view(H, D)
    torch.testing.assert_close(
        directions, torch.einsum("ohd,hd->ho", out_weight.view(WIDTH, H, D), gain)
    )
    torch.testing.assert_close(
        offset, out_weight @ (in_weight[2 * WIDTH :] @ token_bias + in_bias[2 * WIDTH :])
    )


def test_the_penalty_is_the_mean_squared_norm_of_the_attended_output():
    mean, directions, constant, bias = randoms((3, N, H), (H, WIDTH), (WIDTH,), (WIDTH,))
    occupied = torch.tensor([1.0, 0.0, 1.0], dtype=mean.dtype)
    mean[1] = 0.0
    output = mean @ directions + (occupied[:, None] * constant + bias)[:, None]  # (B, N, Dz)
    context, penalty, *_ = collapse.context(mean, occupied, directions, constant, bias)
    torch.testing.assert_close(context, output.mean(dim=1))
    torch.testing.assert_close(penalty, output.square().sum(dim=(1, 2)).mean())


def test_a_second_derivative_is_refused():
    parameters = Parameters(*(x.requires_grad_() for x in parameters_of()))
    _, _, context, *_ = step.masking(parameters, *others_of(3), "")
    (gradient,) = torch.autograd.grad(context.square().sum(), parameters[0], create_graph=True)
    with pytest.raises(RuntimeError, match="there is no second derivative"):
        gradient.sum().backward()


# The C++ version: as near to float64 as the products of torch in float32 are, times two

SIZES = [
    (128, 8, 32, 32),
    (5, 2, 3, 3),
    (1, 1, 1, 1),
    (7, 3, 5, 0),
    (32, 4, 16, 2),
    (9, 2, 10, 4),
    (64, 12, 64, 3),
]


def assert_as_good(found, plain, exact):
    for number, (ours, theirs, truth) in enumerate(zip(found, plain, exact, strict=True)):
        assert ours.shape == theirs.shape == truth.shape
        if truth.numel():
            scale = truth.abs().max().clamp(min=1.0)
            error, allowed = ((x.double() - truth).abs().max() / scale for x in (ours, theirs))
            assert error <= 2 * allowed + 3e-7, (
                f"output {number}: {error:.1e}, in products of torch {allowed:.1e}"
            )


def doubled(tensors):
    """The same in float64, in the same structure."""
    wide = [x.double() for x in tensors]
    return Parameters(*wide) if isinstance(tensors, Parameters) else wide


@needs_cpp
@pytest.mark.parametrize(("count", "heads", "head", "rows"), SIZES)
def test_products_in_cpp(count, heads, head, rows):
    single, width = parameters_of(count, heads, head, torch.float32), heads * head
    plain, exact = collapse.project(single, heads), collapse.project(doubled(single), heads)
    others = others_of(rows, heads, count, dtype=torch.float32)
    outputs = step_in_cpp(single, others)
    _, _, context, penalty, state = outputs
    kept = state_of(state, rows, count, heads, width)
    assert_as_good((kept.directions, kept.constant, kept.folded, kept.unit), plain[1:], exact[1:])
    # The slopes show in the means: one that is wrong in a part moves its mean as much.
    cells = others[0]
    moments = mam.value_attention(cells.values.double(), exact.slope, valid=cells.valid)
    torch.testing.assert_close(kept.mean.double(), moments.mean, rtol=1e-4, atol=1e-6)
    assert kept.occupied.tolist() == [float(row != 1) for row in range(rows)]

    inputs = (kept.mean, kept.occupied, kept.directions, kept.constant, single.out_bias)
    assert_as_good(
        (context, penalty, kept.average, kept.second, kept.gram),
        collapse.context(*inputs),
        collapse.context(*doubled(inputs)),
    )

    incoming = randoms((rows, width), (), dtype=torch.float32, seed=3)
    assert_as_good(
        native.step_backward(extension.cpu(), *incoming, single, heads, state, rows),
        composed.step_backward(*incoming, single, heads, state, rows),
        composed.step_backward(*doubled(incoming), doubled(single), heads, state.double(), rows),
    )


@needs_cpp
def test_many_cells_lose_nothing():
    rows, count, heads, head = 3000, 4, 2, 4
    single = parameters_of(count, heads, head, torch.float32)
    # Means of one sign, whose sums grow.
    outputs = step_in_cpp(single, others_of(rows, heads, count, dtype=torch.float32, shift=3.0))
    _, _, context, penalty, state = outputs
    kept = state_of(state, rows, count, heads, heads * head)
    inputs = (kept.mean, kept.occupied, kept.directions, kept.constant, single.out_bias)
    found = (context, penalty, kept.average, kept.second, kept.gram)
    for ours, truth in zip(found, collapse.context(*doubled(inputs)), strict=True):
        assert ((ours.double() - truth).abs().max() / truth.abs().max()).item() < 1e-6


@needs_cpp
def test_parameters_of_any_strides_are_taken():
    parameters, others = parameters_of(dtype=torch.float32), others_of(3, dtype=torch.float32)
    apart = Parameters(*(torch.stack([x, x], dim=-1)[..., 0] for x in parameters))
    assert not any(x.is_contiguous() for x in apart if x.numel() > 1)
    for ours, theirs in zip(
        step_in_cpp(apart, others), step_in_cpp(parameters, others), strict=True
    ):
        assert torch.equal(ours, theirs)


@needs_cpp
@pytest.mark.parametrize("visible", [False, True])
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("maskable", [False, True])
def test_a_step_is_the_same_in_one_call_and_composed(visible, sparse, maskable, monkeypatch):
    """The mask to the bit, where C++ makes the pass over the cells in both; the rest as near as
    float32.
    """
    rows, positions = 4, 600
    generator = torch.Generator().manual_seed(1)
    values = torch.rand(rows, positions, generator=generator) * (
        torch.rand(rows, positions, generator=generator) < 0.2
    )
    valid = torch.rand(rows, positions, generator=generator) < 0.9
    valid[1] = False
    may = valid & (torch.rand(rows, positions, generator=generator) < 0.8) if maskable else valid
    torch.manual_seed(0)
    module = mam.MultinomialAttentionMasking(
        None, 16, 8, 2, context_from="visible" if visible else "all", backend="cpu"
    )
    tokens = values.to_sparse_csr() if sparse else values
    options = {
        "valid": valid,
        "maskable": may,
        "seed": -7,
        "step": 3,
        "sample_ids": torch.tensor([4, 2, 9, 2**31]),
    }

    def run() -> tuple[mam.MaskingOutput, tuple[torch.Tensor, ...]]:
        out = module(tokens, **options)
        return out, torch.autograd.grad(out.context.sum() + out.penalty, list(module.parameters()))

    whole, gradients = run()
    monkeypatch.setattr(step, "optional", lambda *_: None)
    in_parts, expected = run()
    assert torch.equal(whole.mask, in_parts.mask)
    assert whole.mask.sum(dim=1).tolist() == [int(0.3 * n) for n in may.sum(dim=1).tolist()]
    for one, other in zip(whole[1:], in_parts[1:], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    for one, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("visible", [False, True])
def test_operations_are_registered_as_torch_asks(dtype, visible):
    parameters, others = parameters_of(dtype=dtype), others_of(3, visible=visible, dtype=dtype)
    arguments = step.masking.flat(parameters, *others, "")
    torch.library.opcheck(step.masking.overload, arguments)
    _, _, context, penalty, state = step.masking(parameters, *others, "")
    arguments = step.masking_backward.flat(context, penalty, parameters, state, 3, H, "")
    torch.library.opcheck(step.masking_backward.overload, arguments)


class Observed(TorchDispatchMode):
    """Notes the operations that pass."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def test_a_mode_sees_the_operation_and_changes_nothing():
    module, values = (
        mam.MultinomialAttentionMasking(latent_dim=8, num_latents=4, num_heads=2),
        torch.rand(3, 50),
    )
    plain = module(values, seed=1, step=2)
    with Observed() as observed:
        out = module(values, seed=1, step=2)
        (out.context.sum() + out.penalty).backward()
    assert {
        "mam_kernels.scalar_masking.default",
        "mam_kernels.scalar_masking_backward.default",
    } <= set(observed.names)
    assert torch.equal(plain.mask, out.mask)
    with torch.profiler.profile() as profiled:
        module(values, seed=1, step=2)
    assert "mam_kernels::scalar_masking" in {event.name for event in profiled.events()}


@needs_cpp
# Fewer rows than threads, so that several work on one row; some; more. Each is long enough to be
# shared.
@pytest.mark.parametrize(("rows", "positions"), [(1, 250_000), (3, 80_000), (67, 3000)])
@pytest.mark.parametrize("density", [0.1, 0.9])
def test_the_number_of_threads_changes_no_bit(rows, positions, density):
    generator = torch.Generator().manual_seed(rows)
    values = torch.rand(rows, positions, generator=generator) * (
        torch.rand(rows, positions, generator=generator) < density
    )
    torch.manual_seed(0)
    module = mam.MultinomialAttentionMasking(latent_dim=256, num_latents=70, backend="cpu")
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            module.zero_grad()
            out = module(values, seed=1)
            (out.context.square().sum() + out.penalty).backward()
            results.append(
                [*(x.detach() for x in out), *(parameter.grad for parameter in module.parameters())]
            )
            results[-1] = [x.clone() for x in results[-1]]
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(one, two) for one, two in zip(results[0], other, strict=True))


FORKING = """
import os, sys, threading, torch
import mam_kernels as mam
torch.set_num_threads(2)
weights = torch.rand(8, 5000)
draw = lambda: mam.sample_without_replacement(weights, 1000, seed=1, backend="cpu")
expected = draw()
child = os.fork()  # a worker of a data loader: the threads that help are not there
if child == 0:
    os._exit(0 if torch.equal(draw(), expected) else 3)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
found = []
many = lambda: found.extend(draw() for _ in range(50))
callers = [threading.Thread(target=many) for _ in range(4)]
for caller in callers: caller.start()
for caller in callers: caller.join()
assert len(found) == 200 and all(torch.equal(mask, expected) for mask in found)
print("equal")
"""


@needs_cpp
def test_forked_processes_and_several_callers_draw_the_same():
    done = subprocess.run(
        [sys.executable, "-c", FORKING], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout) == (0, "equal\n"), done.stderr[-2000:]


SCHED_GETATTR = {"x86_64": 315, "aarch64": 275}.get(platform.machine())

SCHEDULING = f"""
import ctypes, os, struct, torch
import mam_kernels as mam

libc = ctypes.CDLL(None, use_errno=True)

def scheduling():
    # affinity, policy, niceness, priority and time slice of every thread
    found = {{}}
    for thread in map(int, os.listdir("/proc/self/task")):
        attributes = ctypes.create_string_buffer(48)
        if libc.syscall({SCHED_GETATTR}, thread, attributes, 48, 0):
            raise OSError(ctypes.get_errno())
        _, *kept, runtime, _, _ = struct.unpack("<IIQiIQQQ", attributes.raw)
        found[thread] = (sorted(os.sched_getaffinity(thread)), kept, runtime)
    return found

torch.set_num_threads(2)
values = torch.rand(6, 50_000)  # long enough to be shared
module = mam.MultinomialAttentionMasking(latent_dim=64, num_latents=8, backend="cpu")
before = scheduling()
for _ in range(100):
    module(values, seed=1)
threads = scheduling()
assert len(threads) > len(before)  # the helper is there
assert all(found == before[os.getpid()] for found in threads.values()), (threads, before)
print("equal")
"""


@needs_cpp
@pytest.mark.skipif(
    sys.platform != "linux" or SCHED_GETATTR is None, reason="looks at threads as Linux names them"
)
def test_helpers_keep_the_affinity_and_scheduling_of_their_caller():
    done = subprocess.run(
        [sys.executable, "-c", SCHEDULING],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (0, "equal\n"), done.stderr[-2000:]


class Largest(TorchDispatchMode):
    """Notes the size of the largest tensor that an operation returns."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.numbers = max(
            self.numbers, *(x.numel() for x in tree_leaves(out) if isinstance(x, torch.Tensor)), 0
        )
        return out


def test_the_backward_pass_makes_nothing_of_the_size_of_the_cells():
    module = mam.MultinomialAttentionMasking(latent_dim=8, num_latents=4, num_heads=2)
    out = module(torch.rand(3, 5000), seed=1)
    for result in (out.context.sum(), out.penalty):
        with Largest() as largest:
            result.backward(retain_graph=True)
        assert 0 < largest.numbers < 1000
