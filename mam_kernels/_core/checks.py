"""Checks of the arguments of the public functions. Errors name the argument, the requirement and
the argument that came.

Only shapes, types and devices are checked, so nothing here waits for a GPU. Values are checked
inside ``check_values`` (or with the environment variable ``MAM_CHECK_VALUES=1``), which costs a
pass and a synchronisation.
"""

import contextlib
import math
import numbers
import os
from collections.abc import Iterator, Sequence
from typing import TypeGuard

import torch
from torch import Tensor
from torch.masked import MaskedTensor

from .call import Cells, Draw
from .describing import describe

FLOATING = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
INTEGERS = (
    *(torch.int64, torch.int32, torch.int16, torch.int8),
    *(torch.uint8, torch.uint16, torch.uint32, torch.uint64),
)
LARGEST_COUNT = 2**31 - 1

_values_are_checked = os.environ.get("MAM_CHECK_VALUES", "") not in ("", "0")


@contextlib.contextmanager
def check_values(enabled: bool = True) -> Iterator[None]:
    """While active, arguments are also searched for NaN, infinite, negative or out-of-range values
    where these are errors, and the indices of CSR matrices on every device.

    Costs a pass over the arguments and, on a GPU, a synchronisation. It holds for the whole
    process, as ``MAM_CHECK_VALUES=1`` does.
    """
    global _values_are_checked
    before, _values_are_checked = _values_are_checked, bool(enabled)
    try:
        yield
    finally:
        _values_are_checked = before


def values_are_checked() -> bool:
    """Whether ``check_values`` is active."""
    return _values_are_checked


def _is_dense(x: object) -> TypeGuard[Tensor]:
    """A tensor whose elements are in memory one by one: not nested, sparse or masked."""
    return (
        isinstance(x, Tensor)
        and not x.is_nested
        and x.layout is torch.strided
        and not isinstance(x, MaskedTensor)
    )


def require_floating(name: str, x: object, shape: str, rank: int, *, dense: bool = True) -> Tensor:
    """A floating-point tensor of the given rank; ``shape`` is how it is spelled in messages."""
    if not isinstance(x, Tensor):
        raise TypeError(
            f"{name}: expected a floating-point tensor of shape {shape}; got {describe(x)}"
        )
    if x.is_nested or isinstance(x, MaskedTensor):
        raise TypeError(
            f"{name}: expected a plain tensor of shape {shape}, padded where rows are shorter, "
            f"with valid to say where; got {describe(x)}"
        )
    if x.dtype not in FLOATING:
        raise TypeError(
            f"{name}: expected float32, float16, bfloat16 or float64; got {describe(x)}"
        )
    if dense and x.layout != torch.strided:
        raise TypeError(f"{name}: expected a dense tensor; got layout {x.layout}")
    if x.dim() != rank:
        raise ValueError(f"{name}: expected shape {shape}; got {describe(x)}")
    return x


def require_shape(name: str, x: Tensor, shape: Sequence[int | None], spelled: str) -> None:
    """Sizes as given; None stands for any."""
    if x.shape == shape:
        return
    if x.dim() != len(shape) or any(
        want is not None and have != want for have, want in zip(x.shape, shape, strict=True)
    ):
        wanted = tuple("any" if size is None else size for size in shape)
        raise ValueError(f"{name}: expected shape {spelled} = {wanted}; got {describe(x)}")


def require_cells(name: str, values: object, valid: object) -> Cells:
    """Values (B, L), dense or sparse CSR, and which of them are valid, as ``Cells``.

    Raises:
        TypeError, ValueError: not floating point, not (B, L), another sparse layout, values that
            want a gradient, or ``valid`` is not (B, L) bool on their device.
    """
    values = require_floating(name, values, "(B, L)", 2, dense=False)
    rows, positions = values.shape
    if torch.is_grad_enabled() and values.requires_grad:
        raise ValueError(
            f"{name}: expected values without gradient; got a tensor that requires one. Detach "
            "it, or give it as embeddings (B, L, 1) with input_dim=1, which is the same "
            "attention, differentiable in its tokens"
        )
    flags = require_flags("valid", valid, rows, positions, values.device)
    if values.layout == torch.sparse_csr:
        entries, crow = values.values(), values.crow_indices()
        # len() of a tensor is a function of Python.
        num_entries, num_offsets = entries.shape[0], crow.shape[0]
        if num_offsets != rows + 1:
            raise ValueError(
                f"{name}: expected {rows + 1} offsets in crow, for {rows} rows; got {num_offsets}"
            )
        if num_entries > rows * positions:
            raise ValueError(
                f"{name}: expected at most {rows * positions} stored entries, one a place; got "
                f"{num_entries}"
            )
        require_finite(name, entries)
        return Cells(entries, crow, values.col_indices(), flags, positions)
    if values.layout != torch.strided:
        raise TypeError(
            f"{name}: expected a dense tensor or sparse CSR; got layout {values.layout}"
        )
    require_finite(name, values, flags)
    return Cells(values, None, None, flags, positions)


def require_device(name: str, x: Tensor, device: torch.device, of: str) -> None:
    """On the same device as the tensor called ``of``."""
    if x.device != device:
        raise ValueError(f"{name}: expected on {device}, as {of} is; got {describe(x)}")


def require_whole(parameter: Tensor | None) -> None:
    """No parameter of which a process holds a part, as ``fully_shard`` leaves those of a module
    outside of its own forward pass.
    """
    if type(parameter).__name__ == "DTensor":
        raise ValueError(
            f"parameters: expected whole tensors; got a sharded one, {describe(parameter)}. Call "
            "fully_shard on the masking module or on one around it, not on its parts"
        )


def require_flags(
    name: str, x: object, rows: int, positions: int, device: torch.device
) -> Tensor | None:
    """None, or booleans (B, L) on ``device``."""
    if x is None:
        return None
    if not _is_dense(x) or x.dtype != torch.bool:
        raise TypeError(
            f"{name}: expected a torch.bool tensor of shape ({rows}, {positions}), or None; "
            f"got {describe(x)}"
        )
    require_shape(name, x, (rows, positions), "(B, L)")
    require_device(name, x, device, "the data")
    return x


def require_finite(name: str, x: Tensor, valid: Tensor | None = None) -> None:
    """No NaN and no infinity where ``valid``; looked at only inside ``check_values``."""
    if not _values_are_checked:
        return
    bad = ~torch.isfinite(x)
    if valid is not None:
        bad &= valid.reshape(valid.shape + (1,) * (x.dim() - valid.dim()))
    if bool(bad.any()):
        where = tuple(bad.nonzero()[0].tolist())
        raise ValueError(
            f"{name}: expected finite values; got {x[where].item()} at index {where} "
            f"({int(bad.sum())} in all)"
        )


def require_weights(weights: Tensor, valid: Tensor | None) -> None:
    """Finite and not negative where ``valid``; looked at only inside ``check_values``."""
    require_finite("weights", weights, valid)
    if _values_are_checked:
        negative = weights < 0 if valid is None else (weights < 0) & valid
        if bool(negative.any()):
            where = tuple(negative.nonzero()[0].tolist())
            raise ValueError(
                f"weights: expected values >= 0; got {weights[where].item()} at index {where}"
            )


def require_number(
    name: str, x: object, low: float, high: float, *, open_low: bool = False
) -> float:
    """A real number in [low, high], or in (low, high] with ``open_low``."""
    if not _is_real(x):
        raise TypeError(f"{name}: expected a number; got {describe(x)}")
    if not (low < x <= high if open_low else low <= x <= high):
        interval = f"{'(' if open_low else '['}{low}, {high}]"
        raise ValueError(f"{name}: expected a number in {interval}; got {x!r}")
    return float(x)


def _is_real(x: object) -> TypeGuard[float]:
    """A real number of Python, of numpy or of the standard library; no bool."""
    # float first: to ask the class of the standard library takes seven times as long.
    return type(x) is float or (isinstance(x, numbers.Real) and not isinstance(x, bool))


def require_count(name: str, x: object, low: int = 1) -> int:
    """An integer, at least ``low`` and below 2**31."""
    if not _is_integer(x):
        raise TypeError(f"{name}: expected an int; got {describe(x)}")
    if x < low:
        raise ValueError(f"{name}: expected an int >= {low}; got {x}")
    if x > LARGEST_COUNT:
        raise ValueError(f"{name}: expected an int <= {LARGEST_COUNT}; got {x}")
    return int(x)


def _is_integer(x: object) -> TypeGuard[int]:
    """An integer of Python, of numpy, or a symbolic one of torch; no bool.

    To the type checker all three are ``int``: they are compared and converted alike.
    """
    # int first: to ask the class of the standard library takes several times as long.
    return type(x) is int or (
        isinstance(x, (torch.SymInt, numbers.Integral)) and not isinstance(x, bool)
    )


def row_counts(name: str, x: object, rows: int, positions: int, device: torch.device) -> Tensor:
    """``x``, an int or integers (B,), as int32 (B,) in [0, L].

    A tensor on a GPU is checked for its range only inside ``check_values``; otherwise it is
    clamped, which needs no synchronisation.
    """
    required = f"an int or an integer tensor of shape ({rows},), each in [0, {positions}]"
    if isinstance(x, Tensor):
        if not _is_dense(x) or x.dtype not in INTEGERS:
            raise TypeError(f"{name}: expected {required}; got {describe(x)}")
        require_shape(name, x, (rows,), "(B,)")
        require_device(name, x, device, "the data")
        # A narrow type cannot hold the bound itself.
        x = x.to(torch.int64)
        if can_be_looked_at(device) and rows and (int(x.min()) < 0 or int(x.max()) > positions):
            raise ValueError(
                f"{name}: expected {required}; got values from {int(x.min())} to {int(x.max())}"
            )
        return x.clamp(0, positions).to(torch.int32).contiguous()
    if not _is_integer(x):
        raise TypeError(f"{name}: expected {required}; got {describe(x)}")
    if x < 0 or x > positions:
        raise ValueError(f"{name}: expected {required}; got {x}")
    return torch.full((rows,), x, dtype=torch.int32, device=device)


def can_be_looked_at(device: torch.device) -> bool:
    """Whether values are there to be looked at, and that waits for no GPU."""
    if device.type == "meta" or torch.compiler.is_compiling():
        return False
    return device.type == "cpu" or _values_are_checked


def indices(name: str, x: object, size: int, device: torch.device) -> Tensor:
    """Distinct indices in [0, size), int64 (R,) with R >= 1; ranges of GPU tensors are looked at
    only inside ``check_values``.
    """
    required = f"an int64 tensor of shape (R,) with R >= 1 distinct values in [0, {size})"
    if not _is_dense(x) or x.dtype != torch.int64:
        raise TypeError(f"{name}: expected {required}; got {describe(x)}")
    if x.dim() != 1 or x.shape[0] < 1:
        raise ValueError(f"{name}: expected {required}; got {describe(x)}")
    require_device(name, x, device, "the data")
    if can_be_looked_at(device) and (
        int(x.min()) < 0 or int(x.max()) >= size or x.unique().numel() != x.numel()
    ):
        raise ValueError(f"{name}: expected {required}; got {x.tolist()}")
    return x.contiguous()


def draw_source(
    seed: object, step: object, sample_ids: object, rows: int, device: torch.device
) -> Draw:
    """Validated ``seed``, ``step`` and ``sample_ids``; a missing seed comes from torch's own
    generator of the device.
    """
    step_word = _word("step", step, 0, 2**32, device)
    ids = None
    if sample_ids is not None:
        if not _is_dense(sample_ids) or sample_ids.dtype not in INTEGERS:
            raise TypeError(
                f"sample_ids: expected an integer tensor of shape ({rows},); "
                f"got {describe(sample_ids)}"
            )
        require_shape("sample_ids", sample_ids, (rows,), "(B,)")
        require_device("sample_ids", sample_ids, device, "the data")
        ids = sample_ids if sample_ids.dtype is torch.int64 else sample_ids.to(torch.int64)
        if _values_are_checked and rows and (int(ids.min()) < 0 or int(ids.max()) >= 2**32):
            raise ValueError(
                f"sample_ids: expected 32-bit words, 0 to {2**32 - 1}; got {ids.tolist()}"
            )
    if seed is None:  # last, so that a call that fails takes nothing from the generator
        limits = torch.iinfo(torch.int64)
        word = torch.randint(limits.min, limits.max, (), dtype=torch.int64, device=device)
        return Draw(word, step_word, ids)
    return Draw(_word("seed", seed, -(2**63), 2**64, device), step_word, ids)


def _word(name: str, x: object, low: int, high: int, device: torch.device) -> Tensor | int:
    if isinstance(x, Tensor):
        if not _is_dense(x) or x.dtype not in INTEGERS or x.numel() != 1:
            raise TypeError(
                f"{name}: expected an int or an integer tensor of one element; got {describe(x)}"
            )
        if x.device.type != "cpu" and x.device != device:
            raise ValueError(
                f"{name}: expected on the CPU or on {device}, as the data is; got {describe(x)}"
            )
        return x if x.dim() == 0 and x.dtype is torch.int64 else x.reshape(()).to(torch.int64)
    if not _is_integer(x):
        raise TypeError(
            f"{name}: expected an int or an integer tensor of one element; got {describe(x)}"
        )
    if type(x) is not int and not isinstance(x, torch.SymInt):
        x = int(x)  # an integer of numpy, which overflows
    if x < low or x >= high:
        raise ValueError(f"{name}: expected an int in [{low}, {high}); got {x}")
    return x if x < 2**63 else x - 2**64


def count_masked(
    mask_ratio: float, maskable: Tensor | None, rows: int, positions: int, device: torch.device
) -> Tensor:
    """``k[b] = floor(ratio * n[b])`` in float64, ``n`` the maskable positions of the row; int32
    (B,).
    """
    if maskable is None:
        return torch.full(
            (rows,), math.floor(mask_ratio * positions), dtype=torch.int32, device=device
        )
    return torch.floor(maskable.sum(dim=-1, dtype=torch.float64) * mask_ratio).to(torch.int32)
