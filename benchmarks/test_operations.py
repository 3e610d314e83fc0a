"""Micro-benchmarks of every operation on every backend of this machine, at sizes of real cells:
`pytest benchmarks`.
"""

import pytest
import torch

import mam_kernels as mam
from benchmarks import workloads
from mam_kernels.testing.agreement import forward, forward_backward

CELLS, POSITIONS, DENSITY = 8, 19264, 0.08
TOKEN_CELLS, TOKENS, WIDTH = 2, 1024, 256
LATENTS, HEADS = 128, 8


def values(device: str, layout: str) -> torch.Tensor:
    dense = workloads.cells(CELLS, POSITIONS, DENSITY, device=device)
    return dense.to_sparse_csr() if layout == "CSR" else dense


def attention_inputs(device: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    shape = (TOKEN_CELLS, TOKENS, HEADS, WIDTH // HEADS)
    query = torch.randn(LATENTS, HEADS, WIDTH // HEADS, device=device)
    return query, torch.randn(shape, device=device), torch.randn(shape, device=device)


@pytest.mark.parametrize("layout", ["dense", "CSR"])
def test_value_attention(timed, backend, device, layout):
    torch.manual_seed(0)
    slope = 0.3 * torch.randn(LATENTS, HEADS, device=device)
    timed(lambda x: mam.value_attention(x, slope, backend=backend), values(device, layout))


@pytest.mark.parametrize("layout", ["dense", "CSR"])
@pytest.mark.parametrize("step", [forward, forward_backward])
def test_masking_of_values(timed, backend, device, layout, step):
    torch.manual_seed(0)
    module = mam.MultinomialAttentionMasking(backend=backend).to(device)
    timed(step(module), values(device, layout))


@pytest.mark.parametrize("step", [forward, forward_backward])
def test_masking_of_embeddings(timed, backend, device, step):
    torch.manual_seed(0)
    module = mam.MultinomialAttentionMasking(input_dim=WIDTH, backend=backend).to(device)
    timed(step(module), workloads.embeddings(TOKEN_CELLS, TOKENS, WIDTH, device=device))


def test_latent_attention(timed, backend, device):
    timed(
        lambda *tensors: mam.latent_attention(*tensors, backend=backend), *attention_inputs(device)
    )


def test_latent_attention_with_gradients(timed, backend, device):
    tensors = [tensor.requires_grad_() for tensor in attention_inputs(device)]

    def step(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        output, _ = mam.latent_attention(*tensors, backend=backend)
        return torch.autograd.grad(output.sum(), tensors)

    timed(step, *tensors)


def test_attention_importance(timed, backend, device):
    query, key, value = attention_inputs(device)
    _, logsumexp = mam.latent_attention(query, key, value, backend=backend)
    latents = torch.arange(int(0.3 * LATENTS), device=device)
    timed(
        lambda *tensors: mam.attention_importance(*tensors, backend=backend),
        query,
        key,
        logsumexp,
        latents,
    )


def test_sample_without_replacement(timed, backend, device):
    timed(
        workloads.select_with(backend),
        workloads.near_uniform_weights(CELLS, POSITIONS, device=device),
    )
