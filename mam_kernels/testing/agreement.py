"""Does a masking module compute what the paper computes? The gate before every reported ratio.

Errors are taken against the paper computation in float64, and a module may be as far from it as the
paper computation itself is at the module's precision, up to the factor and the floor of
`tolerances`. So the tolerance follows the problem instead of being guessed for it.
"""

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from .._core.checks import count_masked
from .paper import PaperMasking
from .tolerances import FACTOR, FLOORS, Comparison, compare_mask

if TYPE_CHECKING:
    from ..masking import MultinomialAttentionMasking

PENALTY_WEIGHT = 1e-5  # of the published loss


class Disagreement(RuntimeError):
    """Two computations that should give the same result do not, so no ratio of their times means
    anything.
    """


def paper_twin(module: nn.Module) -> PaperMasking:
    """The paper computation with the sizes and the weights of a
    `mam_kernels.MultinomialAttentionMasking`.
    """
    ours = cast("MultinomialAttentionMasking", module)
    num_latents, latent_dim = ours.latents.shape
    sizes = (ours.input_dim, latent_dim, num_latents, ours.num_heads)
    twin = PaperMasking(*sizes, ours.mask_ratio, ours.latent_fraction, ours.eps)
    twin.load_state_dict(ours.state_dict())
    return twin.to(ours.latents.device, ours.latents.dtype)


def forward(module: nn.Module) -> Callable[..., tuple[Tensor, ...]]:
    """The masking step without gradients, as a function of the tokens: (mask, importance, context,
    penalty).
    """

    def run(tokens: Tensor, **options) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return tuple(module(tokens, **options))

    return run


def forward_backward(module: nn.Module) -> Callable[..., tuple[Tensor, ...]]:
    """The masking step and its gradients, for the parameters and for tokens that want one: ``(mask,
    importance, *gradients)``.
    """
    parameters = list(module.parameters())
    weight = _weight(cast(Tensor, module.latents))

    def run(tokens: Tensor, **options) -> tuple[Tensor, ...]:
        out = module(tokens, **options)
        wanted = [*parameters, tokens] if tokens.requires_grad else parameters
        gradients = torch.autograd.grad(
            _loss(out, weight), wanted, allow_unused=True, materialize_grads=True
        )
        return (out.mask, out.importance, *gradients)

    return run


def _weight(latents: Tensor) -> Tensor:
    return torch.cos(torch.arange(latents.shape[1], device=latents.device, dtype=torch.float64)).to(
        latents.dtype
    )


def _loss(out, weight: Tensor) -> Tensor:
    """Any loss that depends on every entry of the context, each with another weight, and on the
    penalty.
    """
    return (out.context * weight).sum() + PENALTY_WEIGHT * out.penalty


def compare_with_paper(
    module: nn.Module,
    tokens: Tensor,
    valid: Tensor | None = None,
    *,
    paper: PaperMasking | None = None,
) -> list[Comparison]:
    """Hold a masking module against the paper computation on `tokens`: forward, backward and the
    draw.

    Args:
        module: a `mam_kernels.MultinomialAttentionMasking`.
        tokens: values (B, L), dense or sparse CSR, or embeddings (B, L, D). Every cell needs a
            valid token.
        valid: (B, L) bool, or None.
        paper: the paper computation with the same weights. None: it is made.
    """
    paper = paper_twin(module) if paper is None else paper
    dense = tokens.to_dense() if tokens.layout is torch.sparse_csr else tokens
    latents = torch.arange(paper.num_chosen, device=tokens.device)
    ours = _quantities(module, tokens, valid, latents)
    published = _quantities(paper, dense, valid, latents)
    truth = _quantities(copy.deepcopy(paper).double(), dense.double(), valid, latents)
    found = []
    for name, right in truth.items():
        allowed = FACTOR * _relative_error(published[name], right) + FLOORS[dense.dtype]
        found.append(Comparison(name, _relative_error(ours[name], right), allowed))
    return [*found, _compare_draw(module, tokens, valid, latents)]


def require_agreement(
    module: nn.Module,
    tokens: Tensor,
    valid: Tensor | None = None,
    *,
    paper: PaperMasking | None = None,
) -> list[Comparison]:
    """`compare_with_paper`, or `Disagreement` naming what is off."""
    found = compare_with_paper(module, tokens, valid, paper=paper)
    failed = [comparison for comparison in found if not comparison.holds]
    if failed:
        raise Disagreement(
            "the results disagree with the paper computation: " + "; ".join(map(str, failed))
        )
    return found


def _quantities(
    module: nn.Module, tokens: Tensor, valid: Tensor | None, latents: Tensor
) -> dict[str, Tensor]:
    names, wanted = zip(*module.named_parameters(), strict=True)
    if module.input_dim is not None:
        tokens = tokens.detach().requires_grad_()
        names, wanted = (*names, "tokens"), (*wanted, tokens)
    out = module(tokens, valid=valid, latents=latents)
    gradients = torch.autograd.grad(
        _loss(out, _weight(cast(Tensor, module.latents))),
        wanted,
        allow_unused=True,
        materialize_grads=True,
    )
    values = {
        "importance": out.importance,
        "context": out.context.detach(),
        "penalty": out.penalty.detach(),
    }
    return values | {
        f"gradient of {name}": gradient for name, gradient in zip(names, gradients, strict=True)
    }


def _relative_error(x: Tensor, truth: Tensor) -> float:
    return float(
        (x.double() - truth).norm() / truth.norm().clamp_min(torch.finfo(torch.float64).tiny)
    )


def _compare_draw(
    module: nn.Module, tokens: Tensor, valid: Tensor | None, latents: Tensor
) -> Comparison:
    """A draw cannot be compared with `torch.multinomial`'s: it is held against the race that its
    own importance defines.
    """
    out = module(tokens, valid=valid, latents=latents, seed=0)
    ratio = cast("MultinomialAttentionMasking", module).mask_ratio
    rows, positions = out.mask.shape
    counts = count_masked(ratio, valid, rows, positions, out.mask.device)
    return compare_mask(
        "mask",
        out.mask,
        out.importance,
        counts,
        valid=valid,
        eps=module.eps,
        temperature=module.temperature,
    )
