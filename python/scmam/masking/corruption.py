"""What a model sees at a hidden position: nearly always a mask token, sometimes a wrong value, sometimes the true one."""

from typing import NamedTuple

import torch
from torch import Tensor

from mam_kernels import philox

from ..randomness import substream
from ..sequences import gather

CORRUPTIONS: dict[str, tuple[float, float]] = {  # shares of the mask token and of a random value; the rest is left as it is
    "all": (1.0, 0.0),
    "80/10/10": (0.8, 0.1),
    "90/10": (0.9, 0.1),
}


class Corrupted(NamedTuple):
    """The input of a model."""

    values: Tensor  # (B, G)
    token: Tensor  # (B, G) bool: behind a mask token


def corrupt(values: Tensor, mask: Tensor, scheme: str, cell_ids: Tensor, *, seed: int, step: int) -> Corrupted:
    """Replace what a mask hides.

    "all": every hidden position becomes the mask token. "80/10/10": 80 % the mask token, 10 % a random value, 10 % unchanged. "90/10":
    90 % the mask token, 10 % a random value. A random value is a non-zero value of the same cell, each as likely, so that the depth of the
    cell does not give it away. What a position becomes is a function of (seed, step, cell, position).

    Args:
        values: (B, G) float32.
        mask: (B, G) bool, True = hidden.
        scheme: one of ``CORRUPTIONS``.
        cell_ids: (B,) int64.
        seed, step: of the draw.
    """
    if scheme not in CORRUPTIONS:
        raise ValueError(f"corruption: expected one of {', '.join(CORRUPTIONS)}; got {scheme!r}")
    token_share, random_share = CORRUPTIONS[scheme]
    if token_share == 1.0:
        return Corrupted(values, mask)
    rows, genes = mask.nonzero(as_tuple=True)
    seed_word = torch.tensor(substream(seed, "corruption"), device=values.device)
    zero = torch.zeros((), dtype=torch.int64, device=values.device)
    kind, which, _, _ = philox.philox4x32(seed_word, (genes, cell_ids[rows], zero + step, zero))
    kind = philox.uniforms(kind)
    wrong = (kind >= token_share) & (kind < token_share + random_share)
    there = gather(values, values != 0)
    count = there.valid.sum(dim=1)[rows].clamp(min=1)  # a cell of zeros gets 0, which is what its sequence holds
    replacement = there.values[rows, which % count]
    corrupted = values.clone()
    corrupted[rows, genes] = torch.where(wrong, replacement, values[rows, genes])
    token = torch.zeros_like(mask)
    token[rows, genes] = kind < token_share
    return Corrupted(corrupted, token)
