"""What scalar tokens leave of multi-head attention: both versions against plain attention in float64, and their hand-written gradients."""

import subprocess
import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import mam_kernels as mam
from mam_kernels import dispatch
from mam_kernels.value_attention import collapse, cpu
from mam_kernels.value_attention.collapse import ScalarMasking, ScalarProjections

N, H, D = 5, 2, 3  # latents, heads, head width
WIDTH = H * D

needs_cpp = pytest.mark.skipif(not dispatch.backends()["cpu"], reason="the C++ kernels were not built")


def randoms(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float64, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]


def projection_parameters(count: int = N, heads: int = H, head: int = D, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    width = heads * head
    parameters = randoms((count, width), (3 * width, width), (3 * width,), (width, 1), (width,), (width, width), dtype=dtype)
    for weight in (parameters[1], parameters[5]):
        weight *= width**-0.5
    return parameters


def context_arguments(rows: int, count: int = N, heads: int = H, head: int = D, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    """Means, variances, log-partitions, directions, constant, bias; the second cell has no tokens."""
    shape, width = (rows, count, heads), heads * head
    mean, variance, log_partition, *others = randoms(shape, shape, shape, (heads, width), (width,), (width,), dtype=dtype, seed=1)
    if rows > 1:
        mean[1], variance[1], log_partition[1] = 0.0, 0.0, -torch.inf
    return [mean, variance.abs(), log_partition, *others]


def masking_arguments(rows: int, positions: int = 7) -> list:
    """Of ``ScalarMasking``, from the choice of the context on."""
    (values,) = randoms((rows, positions), seed=2)
    values = values.abs() * (values > -0.3)
    valid = torch.ones(rows, positions, dtype=torch.bool)
    if rows > 1:
        valid[1] = False
    counts = valid.sum(dim=1, dtype=torch.int32) // 2
    chosen, seed, step = torch.tensor([0, 3]), torch.tensor(5), torch.tensor(0)
    return [values, None, None, valid, valid, counts, chosen, None, seed, step, 1e-8, 1.0, positions, ""]


def test_gradients_of_the_projections():
    parameters = [x.requires_grad_() for x in projection_parameters()]
    assert torch.autograd.gradcheck(lambda *x: ScalarProjections.apply(*x, H), parameters)


@pytest.mark.parametrize("visible", [False, True])
@pytest.mark.parametrize("rows", [1, 3, 0])
def test_gradients_from_slopes_to_context(rows, visible):
    inputs = [x.requires_grad_() for x in randoms((N, H), (H, WIDTH), (WIDTH,), (WIDTH,))]
    arguments = masking_arguments(rows)
    assert torch.autograd.gradcheck(lambda *x: ScalarMasking.apply(*x, visible, *arguments)[2:], inputs)


def test_slopes_are_scaled_products_of_queries_and_keys():
    latents, in_weight, in_bias, token_weight, token_bias, out_weight = parameters = projection_parameters()
    slope, directions, offset = ScalarProjections.apply(*parameters, H)
    query = (latents @ in_weight[:WIDTH].T + in_bias[:WIDTH]).view(N, H, D)
    key = (in_weight[WIDTH : 2 * WIDTH] @ token_weight[:, 0]).view(H, D)
    torch.testing.assert_close(slope, torch.einsum("nhd,hd->nh", query, key) / D**0.5)
    gain = (in_weight[2 * WIDTH :] @ token_weight[:, 0]).view(H, D)
    torch.testing.assert_close(directions, torch.einsum("ohd,hd->ho", out_weight.view(WIDTH, H, D), gain))
    torch.testing.assert_close(offset, out_weight @ (in_weight[2 * WIDTH :] @ token_bias + in_bias[2 * WIDTH :]))


def test_the_penalty_is_the_mean_squared_norm_of_the_attended_output():
    mean, _, _, directions, constant, bias = arguments = context_arguments(3)
    occupied = torch.tensor([1.0, 0.0, 1.0], dtype=mean.dtype)[:, None]
    output = mean @ directions + (occupied * constant + bias)[:, None]  # (B, N, Dz)
    context, penalty, *_ = collapse.context(*arguments)
    torch.testing.assert_close(context, output.mean(dim=1))
    torch.testing.assert_close(penalty, output.square().sum(dim=(1, 2)).mean())


def test_a_second_derivative_is_refused():
    inputs = [x.requires_grad_() for x in projection_parameters()]
    slope, _, _ = ScalarProjections.apply(*inputs, H)
    (gradient,) = torch.autograd.grad(slope.square().sum(), inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


# The C++ version: as near to float64 as the products of torch in float32 are, times two

SIZES = [(128, 8, 32, 32), (5, 2, 3, 3), (1, 1, 1, 1), (7, 3, 5, 0), (32, 4, 16, 2), (9, 2, 10, 4), (64, 12, 64, 3)]


def assert_as_good(found, plain, exact):
    for number, (ours, theirs, truth) in enumerate(zip(found, plain, exact, strict=True)):
        assert ours.shape == theirs.shape == truth.shape
        if truth.numel():
            scale = truth.abs().max().clamp(min=1.0)
            error, allowed = ((x.double() - truth).abs().max() / scale for x in (ours, theirs))
            assert error <= 2 * allowed + 3e-7, f"output {number}: {error:.1e}, in products of torch {allowed:.1e}"


@needs_cpp
@pytest.mark.parametrize(("count", "heads", "head", "rows"), SIZES)
def test_projections_in_cpp(count, heads, head, rows):
    single = projection_parameters(count, heads, head, torch.float32)
    double = [x.double() for x in single]
    plain, exact = collapse.project(*single, heads), collapse.project(*double, heads)
    assert_as_good(cpu.project(*single, heads), plain, exact)
    incoming = randoms(*(x.shape for x in plain[:3]), dtype=torch.float32, seed=3)
    saved = plain[3:]
    assert_as_good(
        cpu.project_backward(*incoming, *single, *saved),
        collapse.project_backward(*incoming, *single, *saved),
        collapse.project_backward(*(x.double() for x in incoming), *double, *exact[3:]),
    )


@needs_cpp
@pytest.mark.parametrize(("count", "heads", "head", "rows"), SIZES)
def test_context_in_cpp(count, heads, head, rows):
    single = context_arguments(rows, count, heads, head, torch.float32)
    double = [x.double() for x in single]
    plain, exact = collapse.context(*single), collapse.context(*double)
    assert_as_good(cpu.context(*single), plain, exact)
    incoming = randoms((rows, heads * head), (), dtype=torch.float32, seed=3)
    assert_as_good(
        cpu.context_backward(*incoming, *single, *plain[2:]),
        collapse.context_backward(*incoming, *single, *plain[2:]),
        collapse.context_backward(*(x.double() for x in incoming), *double, *exact[2:]),
    )


@needs_cpp
def test_many_cells_lose_nothing():
    single = context_arguments(3000, 4, 2, 4, torch.float32)
    single[0] += 3.0  # means of one sign, whose sums grow
    exact = collapse.context(*(x.double() for x in single))
    found = cpu.context(*single)
    for ours, truth in zip(found, exact, strict=True):
        assert ((ours.double() - truth).abs().max() / truth.abs().max()).item() < 1e-6


@needs_cpp
def test_parameters_of_any_strides_are_taken():
    parameters = projection_parameters(dtype=torch.float32)
    apart = [torch.stack([x, x], dim=-1)[..., 0] for x in parameters]
    assert not any(x.is_contiguous() for x in apart if x.numel() > 1)
    for ours, theirs in zip(cpu.project(*apart, H), cpu.project(*parameters, H), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_operations_are_registered_as_torch_asks(dtype):
    parameters = projection_parameters(dtype=dtype)
    ops, checks = torch.ops.mam_kernels, ("test_schema", "test_faketensor")
    outputs = ops.scalar_projections(*parameters, H, "")
    torch.library.opcheck(ops.scalar_projections.default, (*parameters, H, ""), test_utils=checks)
    torch.library.opcheck(ops.scalar_projections_backward.default, (*outputs[:3], *parameters, *outputs[3:], ""), test_utils=checks)
    arguments = context_arguments(3, dtype=dtype)
    outputs = ops.scalar_context(*arguments, "")
    torch.library.opcheck(ops.scalar_context.default, (*arguments, ""), test_utils=checks)
    torch.library.opcheck(ops.scalar_context_backward.default, (*outputs[:2], *arguments, *outputs[2:], ""), test_utils=checks)


@needs_cpp
@pytest.mark.parametrize("rows", [1, 3, 37])  # fewer than the threads, so that several work on one row; some; more
@pytest.mark.parametrize("density", [0.1, 0.9])
def test_the_number_of_threads_changes_no_bit(rows, density):
    generator = torch.Generator().manual_seed(rows)
    values = torch.rand(rows, 3000, generator=generator) * (torch.rand(rows, 3000, generator=generator) < density)
    torch.manual_seed(0)
    module = mam.MultinomialAttentionMasking(latent_dim=256, num_latents=70, backend="cpu")
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            module.zero_grad()
            out = module(values, seed=1)
            (out.context.square().sum() + out.penalty).backward()
            results.append([*(x.detach() for x in out), *(parameter.grad for parameter in module.parameters())])
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
callers = [threading.Thread(target=lambda: found.extend(draw() for _ in range(50))) for _ in range(4)]
for caller in callers: caller.start()
for caller in callers: caller.join()
assert len(found) == 200 and all(torch.equal(mask, expected) for mask in found)
print("equal")
"""


@needs_cpp
def test_forked_processes_and_several_callers_draw_the_same():
    done = subprocess.run([sys.executable, "-c", FORKING], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "equal\n"), done.stderr[-2000:]


class Largest(TorchDispatchMode):
    """Notes the size of the largest tensor that an operation returns."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.numbers = max(self.numbers, *(x.numel() for x in tree_leaves(out) if isinstance(x, torch.Tensor)), 0)
        return out


def test_the_backward_pass_makes_nothing_of_the_size_of_the_cells():
    module = mam.MultinomialAttentionMasking(latent_dim=8, num_latents=4, num_heads=2)
    out = module(torch.rand(3, 5000), seed=1)
    for result in (out.context.sum(), out.penalty):
        with Largest() as largest:
            result.backward(retain_graph=True)
        assert 0 < largest.numbers < 1000
