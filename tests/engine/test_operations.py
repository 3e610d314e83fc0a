"""``torch.ops.mam_kernels.*`` called past the public functions: what does not fit together is
refused by name, and never computed on memory that was not written.
"""

import pytest
import torch
from torch import Tensor

import mam_kernels as mam
from mam_kernels import BackendUnavailableError
from mam_kernels._core import registration
from tests.fuzz import operations

ops = torch.ops.mam_kernels
BACKENDS = [name for name in ("reference", "cpu") if mam.backends()[name]]
pytestmark = pytest.mark.filterwarnings("ignore:Sparse")


def recorded_calls():
    """One call of every operation, dense and sparse."""
    return [(name, call) for name in operations.names() for call in operations.recorded()[name][:3]]


@pytest.mark.skipif("cpu" not in BACKENDS, reason="the recorded calls are of both backends")
def test_one_tensor_on_meta_beside_others_is_refused_and_not_the_function_of_shapes():
    tried = 0
    for _, (operation, arguments) in recorded_calls():
        tensors = [key for key, x in arguments.items() if isinstance(x, Tensor)]
        for key in tensors:
            others = [arguments[other] for other in tensors if other != key]
            if not any(x.dim() for x in others):
                continue
            changed = arguments | {key: arguments[key].to("meta")}
            with pytest.raises(ValueError, match=r"expected on cpu.* meta"):
                operation(*changed.values())
            tried += 1
    assert tried > 60


def test_a_number_beside_a_tensor_on_meta_is_refused_by_name():
    """Words of a draw may be numbers on the CPU; a tensor of cells may not."""
    slope = torch.rand(3, 2, device="meta")
    with pytest.raises(ValueError, match=r"^slope: expected on cpu, as cells_values is"):
        ops.value_attention(torch.tensor(0.5), None, None, None, 10, slope, "cpu")


@pytest.mark.skipif("cpu" not in BACKENDS, reason="the recorded calls are of both backends")
def test_an_unknown_backend_is_refused_by_every_operation():
    for _, (operation, arguments) in recorded_calls():
        for backend in ("numpy", "CPU", "cpu\0"):
            with pytest.raises(ValueError, match="backend: expected one of"):
                operation(*(arguments | {"backend": backend}).values())
        with pytest.raises((BackendUnavailableError, ValueError), match="backend"):
            operation(*(arguments | {"backend": "cuda"}).values())


def test_an_empty_batch_is_checked_as_others_are():
    word = torch.tensor(0)
    for weights, counts, valid, wrong in (
        (torch.rand(0, 5), torch.zeros(3, dtype=torch.int32), None, "num_samples"),
        (torch.rand(3, 0), torch.zeros(3, dtype=torch.int64), None, "num_samples"),
        (torch.rand(0, 5), torch.zeros(0, dtype=torch.int32), torch.ones(2, 5).bool(), "valid"),
    ):
        for backend in BACKENDS:
            with pytest.raises((TypeError, ValueError), match=rf"^{wrong}: expected"):
                ops.sample_without_replacement(weights, counts, valid, word, word, None, backend)
    with pytest.raises(ValueError, match=r"^key: expected"):
        ops.latent_attention(
            torch.rand(2, 1, 3), torch.rand(0, 4, 2, 3), torch.rand(0, 4, 2, 3), None, 1.0, ""
        )


@pytest.mark.parametrize("eps", [1e300, 1e39, -1.0, float("nan"), float("inf")])
def test_an_eps_that_float32_does_not_hold_is_refused(eps):
    module = mam.MultinomialAttentionMasking(latent_dim=4, num_latents=3, num_heads=1)
    module.eps = eps
    for backend in BACKENDS:
        module.backend = backend
        with pytest.raises(ValueError, match=r"^eps: expected"):
            module(torch.rand(2, 3000), seed=1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_log_sum_exp_of_minus_infinity_means_no_attention(backend):
    query, key = torch.rand(2, 1, 3), torch.rand(2, 4, 1, 3)
    logsumexp = torch.full((2, 2, 1), -torch.inf)
    everything = torch.tensor([0, 1])
    got = mam.attention_importance(query, key, logsumexp, everything, backend=backend)
    assert torch.equal(got, torch.zeros(2, 4))
    logsumexp[:, 0] = 1.0
    one = mam.attention_importance(query, key, logsumexp, everything, backend=backend)
    alone = mam.attention_importance(query, key, logsumexp, torch.tensor([0]), backend=backend)
    assert torch.equal(one, alone)
    assert bool((one > 0).all())
    output = torch.rand(2, 2, 1, 3)
    given = (torch.rand(2, 2, 1, 3), None, query, key, key, None, output)
    gradients = ops.latent_attention_backward(
        *given, torch.full((2, 2, 1), -torch.inf), 1.0, backend
    )
    assert all(torch.equal(x, torch.zeros_like(x)) for x in gradients)


@pytest.mark.parametrize("backend", BACKENDS)
def test_importance_at_padding_is_zero_whatever_the_log_sum_exp_is(backend):
    query, key = torch.rand(2, 1, 3), torch.rand(1, 4, 1, 3)
    valid = torch.tensor([[True, False, True, False]])
    for wrong in (float("nan"), float("inf")):
        got = mam.attention_importance(
            query, key, torch.full((1, 2, 1), wrong), torch.tensor([0]), valid=valid,
            backend=backend,
        )  # fmt: skip
        assert got[~valid].tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("num_samples", torch.tensor([1, 2]).to_sparse()),
        ("seed", torch.tensor([1]).to_sparse()),
        ("step", torch.ones(1, 1, dtype=torch.int64).to_sparse_csr()),
        ("sample_ids", torch.tensor([1, 2]).to_sparse()),
        ("valid", torch.ones(2, 6, dtype=torch.bool).to_sparse()),
    ],
)
def test_a_sparse_tensor_is_no_count_no_word_and_no_flag(argument, value):
    arguments = {"weights": torch.rand(2, 6), "num_samples": 2} | {argument: value}
    with pytest.raises(TypeError, match=rf"^{argument}: expected .*sparse"):
        mam.sample_without_replacement(**arguments)


@pytest.mark.parametrize("scheme", [["decoder"], None, 3])
def test_a_scheme_that_is_no_name_is_refused_by_name(scheme):
    with pytest.raises(ValueError, match=r"^scheme: expected one of"):
        mam.ContextInjection(8, 3, scheme)


def test_torch_has_the_guard_that_leaves_its_layer_of_autograd_out():
    # Private to torch: without it calls are right, but slower, and nothing else would say so.
    assert registration._below_autograd is torch._C._AutoDispatchBelowAutograd
