"""The hand-written gradients of what scalar tokens leave of multi-head attention, in float64."""

import pytest
import torch

from mam_kernels.value_attention.collapse import ScalarContext, ScalarProjections

N, H, D = 5, 2, 3  # latents, heads, head width
WIDTH = H * D


def parameters(*shapes: tuple[int, ...]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]


def projection_parameters() -> list[torch.Tensor]:
    return parameters((N, WIDTH), (3 * WIDTH, WIDTH), (3 * WIDTH,), (WIDTH, 1), (WIDTH,), (WIDTH, WIDTH))


def context_arguments(occupied: list[float]) -> list[torch.Tensor]:
    mean, directions, constant, bias = parameters((len(occupied), N, H), (H, WIDTH), (WIDTH,), (WIDTH,))
    return [mean, torch.tensor(occupied, dtype=torch.float64)[:, None], directions, constant, bias]


def test_gradients_of_the_projections():
    assert torch.autograd.gradcheck(lambda *x: ScalarProjections.apply(*x, H), projection_parameters())


@pytest.mark.parametrize("occupied", [[1.0], [1.0, 0.0, 1.0], []])
def test_gradients_of_the_context(occupied):
    assert torch.autograd.gradcheck(ScalarContext.apply, context_arguments(occupied))


def test_slopes_are_scaled_products_of_queries_and_keys():
    latents, in_weight, in_bias, token_weight, token_bias, out_weight = (x.detach() for x in projection_parameters())
    slope, directions, offset = ScalarProjections.apply(latents, in_weight, in_bias, token_weight, token_bias, out_weight, H)
    query = (latents @ in_weight[:WIDTH].T + in_bias[:WIDTH]).view(N, H, D)
    key = (in_weight[WIDTH : 2 * WIDTH] @ token_weight[:, 0]).view(H, D)
    torch.testing.assert_close(slope, torch.einsum("nhd,hd->nh", query, key) / D**0.5)
    gain = (in_weight[2 * WIDTH :] @ token_weight[:, 0]).view(H, D)
    torch.testing.assert_close(directions, torch.einsum("ohd,hd->ho", out_weight.view(WIDTH, H, D), gain))
    torch.testing.assert_close(offset, out_weight @ (in_weight[2 * WIDTH :] @ token_bias + in_bias[2 * WIDTH :]))


def test_the_penalty_is_the_mean_squared_norm_of_the_attended_output():
    mean, occupied, directions, constant, bias = (x.detach() for x in context_arguments([1.0, 0.0, 1.0]))
    output = mean @ directions + (occupied * constant + bias)[:, None]  # (B, N, Dz)
    context, penalty = ScalarContext.apply(mean, occupied, directions, constant, bias)
    torch.testing.assert_close(context, output.mean(dim=1))
    torch.testing.assert_close(penalty, output.square().sum(dim=(1, 2)).mean())


def test_a_second_derivative_is_refused():
    slope, _, _ = ScalarProjections.apply(*(inputs := projection_parameters()), H)
    (gradient,) = torch.autograd.grad(slope.square().sum(), inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
