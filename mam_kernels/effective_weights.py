"""The weights that a masking module computes with, where its submodules were wrapped or hooked.

The module reads parameters and never calls its submodules, so every change of a submodule's
forward pass has to be found in its weights, or refused: nothing is ignored.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from ._core import checks
from ._core.precision import without_autocast

WEIGHT_HOOKS = (WeightNorm, SpectralNorm)
"""Hooks before the forward pass that compute the weight, and do nothing else."""

DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)


def held(module: nn.Module, name: str) -> Tensor | None:
    """``module.<name>``, or None; a parameter past the look-up of ``torch.nn.Module``, which takes
    several times as long.
    """
    found = module._parameters.get(name)
    return getattr(module, name, None) if found is None else found


def linear(name: str, module: nn.Module, in_features: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Weight (out, in) and bias (out,) of a submodule that is a linear layer, or wraps one.

    A plain ``torch.nn.Linear`` gives its parameters, as ``torch.nn.utils.parametrize`` computes
    them. Any other module, such as one with LoRA, is applied to zero and to the unit vectors:
    ``weight = (f(I) - f(0))^T`` and ``bias = f(0)``, differentiable in its parameters.

    Raises:
        ValueError: the module has hooks, has no bias, or is not affine.
    """
    weight, bias = held(module, "weight"), held(module, "bias")
    checks.require_whole(weight)
    hooks = list(module._forward_pre_hooks.values())
    computed = bool(hooks) and all(isinstance(hook, WEIGHT_HOOKS) for hook in hooks)
    if module._forward_hooks or module._backward_hooks or (hooks and not computed):
        raise ValueError(
            f"{name}: expected a module without hooks, since its weights are read and its forward "
            f"pass is never called; got hooks on {type(module).__name__}"
        )
    if type(module).forward is nn.Linear.forward and not computed:
        if weight is None or bias is None:
            raise ValueError(f"{name}: expected a linear layer with a bias; got one without")
        return weight, bias
    return _by_application(name, module, in_features, like)


def _by_application(
    name: str, module: nn.Module, in_features: int, like: Tensor
) -> tuple[Tensor, Tensor]:
    """Weight and bias of an affine module, from what it returns."""
    if any(isinstance(x, DROPOUT) and x.training and x.p > 0 for x in module.modules()):
        raise ValueError(
            f"{name}: expected a module that is affine, so that its weights can be read; got "
            f"{type(module).__name__} with dropout inside, which has to be 0 in training"
        )
    unit = torch.eye(in_features, dtype=like.dtype, device=like.device)
    with without_autocast(like.device):
        images = module(torch.cat([torch.zeros_like(unit[:1]), unit, -unit]))
    bias, positive, negative = images.split((1, in_features, in_features))
    if checks.can_be_looked_at(like.device):
        with torch.no_grad():
            error = (positive + negative - 2 * bias).abs().max()
            allowed = 64 * torch.finfo(images.dtype).eps * images.abs().max()
        if bool(error > allowed):
            raise ValueError(
                f"{name}: expected a module that is affine, so that its weights can be read; got "
                f"{type(module).__name__}, which is not"
            )
    return (positive - bias).t(), bias[0]


def attention(
    name: str, module: nn.Module, width: int, heads: int
) -> tuple[Tensor, Tensor, nn.Module]:
    """Weight (3 Dz, Dz) and bias (3 Dz,) of queries, keys and values, and the output projection,
    of torch's own attention without hooks or options that change it.

    Raises:
        ValueError: it is something else.
    """
    weight, bias = held(module, "in_proj_weight"), held(module, "in_proj_bias")
    checks.require_whole(weight)
    if type(module).forward is not nn.MultiheadAttention.forward:
        raise ValueError(
            f"{name}: expected torch.nn.MultiheadAttention, whose parameters are read; got "
            f"{type(module).__name__}. To adapt it, use torch.nn.utils.parametrize"
        )
    if module._forward_pre_hooks or module._forward_hooks or module._backward_hooks:
        raise ValueError(
            f"{name}: expected a module without hooks, since its parameters are read and its "
            "forward pass is never called; got hooks. To adapt its weights, use "
            "torch.nn.utils.parametrize"
        )
    module = cast(nn.MultiheadAttention, module)  # by its forward pass
    plain = module.bias_k is None and not module.add_zero_attn and not module.dropout
    plain = plain and module.embed_dim == width and module.num_heads == heads
    if weight is None or bias is None or not plain:
        raise ValueError(
            f"{name}: expected MultiheadAttention({width}, {heads}) with its biases and nothing "
            f"else; got {type(module).__name__} with other options"
        )
    return weight, bias, module.out_proj
