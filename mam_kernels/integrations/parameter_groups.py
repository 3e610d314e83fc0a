"""Parameters by their learning rate: those of the model, and those of the masking."""

from collections.abc import Collection
from typing import Any

from torch import nn


def parameter_groups(
    module: nn.Module,
    masking: Collection[str],
    lr: float,
    masking_lr: float,
    weight_decay: float,
    masking_weight_decay: float | None = None,
) -> list[dict[str, Any]]:
    """Two groups for an optimizer, "model" and "masking"; one that is empty is left out.

    Args:
        module: whose parameters are divided.
        masking: names of the parameters of the second group.
        lr, masking_lr: learning rates.
        weight_decay, masking_weight_decay: None: the same.
    """
    rates = {"model": lr, "masking": masking_lr}
    decays = {
        "model": weight_decay,
        "masking": weight_decay if masking_weight_decay is None else masking_weight_decay,
    }
    groups: dict[str, list[nn.Parameter]] = {"model": [], "masking": []}
    for name, parameter in module.named_parameters():
        groups["masking" if name in masking else "model"].append(parameter)
    return [
        {"params": parameters, "lr": rates[name], "weight_decay": decays[name], "name": name}
        for name, parameters in groups.items()
        if parameters
    ]
