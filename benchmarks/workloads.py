"""The inputs that are measured, and the loops of others that they are measured against."""

import warnings

import torch
from torch import Tensor

import mam_kernels as mam
from mam_kernels._core import dispatch
from mam_kernels.testing.inputs import expression

SELECTION_RATIO = 0.3

warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta state")


def cells(
    count: int, positions: int, density: float, *, seed: int = 0, device: str = "cpu"
) -> Tensor:
    """Values (count, positions) float32 like log-normalised counts."""
    return expression(count, positions, density, torch.Generator().manual_seed(seed)).to(device)


def embeddings(
    count: int,
    positions: int,
    width: int,
    *,
    seed: int = 0,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Token embeddings (count, positions, width) that require a gradient, as those of a model in
    training do.
    """
    generator = torch.Generator(device=device).manual_seed(seed)
    return (
        torch.randn(count, positions, width, generator=generator, device=device)
        .to(dtype)
        .requires_grad_()
    )


def near_uniform_weights(
    rows: int, positions: int, *, seed: int = 0, device: str = "cpu"
) -> Tensor:
    """Weights (rows, positions) that differ by a few per cent, as the importance of scalar tokens
    does.
    """
    generator = torch.Generator(device=device).manual_seed(seed)
    return 1.0 + 0.05 * torch.rand(rows, positions, generator=generator, device=device)


def backends_on(device: str, op: str, dtype: torch.dtype) -> list[str]:
    """The backends that `backend=None` would choose from and that run here; not the interpreter,
    which is no measure of speed.
    """
    return [
        name
        for name in dispatch.CHOICES[device]
        if dispatch.obstacle(name, op, device, dtype) is None
    ]


def num_selected(weights: Tensor) -> int:
    """How many positions of a row the selection benchmarks draw."""
    return int(SELECTION_RATIO * weights.shape[1])


def select_with(backend: str):
    """Our draw on one backend, as a function of the weights."""
    return lambda weights: mam.sample_without_replacement(
        weights, num_selected(weights), backend=backend
    )


def include_with(backend: str):
    """Our inclusion probabilities on one backend, as a function of the weights."""
    return lambda weights: mam.inclusion_probabilities(
        weights, num_selected(weights), backend=backend
    )


def include_with_gradient(backend: str):
    """The same and the gradient of the weights, as a function of them and of the probabilities'
    gradient.
    """

    def run(weights: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        given = weights.detach().requires_grad_()
        probabilities = include_with(backend)(given)
        (found,) = torch.autograd.grad(probabilities, given, gradient)
        return probabilities.detach(), found

    return run


def select_by_multinomial(weights: Tensor) -> Tensor:
    """What the published code calls, here for all rows at once, and the indices made a mask."""
    return _as_mask(weights, torch.multinomial(weights, num_selected(weights), replacement=False))


def select_by_exponential_topk(weights: Tensor) -> Tensor:
    """The usual way around `torch.multinomial`: the largest of weight / exponential."""
    keys = weights / torch.empty_like(weights).exponential_()
    return _as_mask(weights, keys.topk(num_selected(weights), dim=1, sorted=False).indices)


def topk_of_keys(keys: Tensor) -> Tensor:
    """`torch.topk` alone, on given keys: a bound for every selection that is
    built on it.
    """
    return keys.topk(num_selected(keys), dim=1, largest=False, sorted=False).indices


def _as_mask(weights: Tensor, indices: Tensor) -> Tensor:
    return torch.zeros_like(weights, dtype=torch.bool).scatter_(1, indices, True)
