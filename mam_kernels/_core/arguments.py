"""Check the arguments of a backend's functions, once for all backends.

The operations under ``torch.ops.mam_kernels`` can be called directly, without the checks of the
public functions, and a kernel trusts the addresses and sizes that it is given. So types, shapes and
devices are checked here, between the operations and the backends (``dispatch.py``), and tensors
whose addresses are taken without strides are made contiguous. The C++ looks at type, device and
layout once more (csrc/arguments.h), but knows no names. The checks take microseconds, and no
synchronisation: values on a GPU are not read, and the kernels there follow no index out of bounds.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .call import Cells, Choice, Draw, Parameters, Weighting
from .checks import FLOATING, LARGEST_COUNT, values_are_checked
from .csr import require_sound
from .describing import describe

SMALLEST_EPS = 2.0**-100
"""An ``eps`` below this counts as 0, so that flushing subnormals cannot change a draw."""

LARGEST_EPS = 1e6
"""As the module has it."""

LARGEST_EXPONENT = 1e30
"""Under it every weight but the largest vanishes, and it is finite in float32."""

INT64 = (torch.int64,)
INDICES = (torch.int64, torch.int32)


def one(
    name: str,
    x: Tensor,
    dtypes: Sequence[torch.dtype],
    shape: Sequence[int | None],
    device: torch.device | None,
) -> Tensor:
    """A dense tensor of one of the types, the shape (None: any size) and the device (None: any)."""
    if (
        x.dtype in dtypes
        and x.layout is torch.strided
        and (x.shape == shape or _fits(x.shape, shape))
        and (device is None or x.device == device)
    ):
        return x
    wanted = " or ".join(str(dtype) for dtype in dtypes)
    sizes = ", ".join("any" if size is None else str(size) for size in shape)
    sizes += "," if len(shape) == 1 else ""
    where = "" if device is None else f" on {device}"
    message = f"{name}: expected a dense tensor, {wanted} of shape ({sizes}){where}; got "
    kind = TypeError if x.dtype not in dtypes or x.layout is not torch.strided else ValueError
    raise kind(message + (describe(x) if x.layout is torch.strided else f"layout {x.layout}"))


def _fits(sizes: Sequence[int], shape: Sequence[int | None]) -> bool:
    return len(sizes) == len(shape) and all(
        want is None or have == want for have, want in zip(sizes, shape, strict=True)
    )


def flat(
    name: str,
    x: Tensor,
    dtypes: Sequence[torch.dtype],
    shape: Sequence[int | None],
    device: torch.device,
) -> Tensor:
    """As ``one``, and contiguous."""
    return one(name, x, dtypes, shape, device).contiguous()


def flags(
    name: str, x: Tensor | None, rows: int, positions: int, device: torch.device
) -> Tensor | None:
    """Booleans (B, L) of any strides, or None."""
    return None if x is None else one(name, x, (torch.bool,), (rows, positions), device)


def integer(name: str, x: int, low: int, high: float = math.inf) -> None:
    """A whole number in [low, high]."""
    if not low <= x <= high:
        above = "" if high == math.inf else f" and <= {high}"
        raise ValueError(f"{name}: expected an integer >= {low}{above}; got {x}")


def accumulation(x: Tensor) -> tuple[torch.dtype]:
    """The type that sums over values of this type have."""
    return (torch.float64 if x.dtype == torch.float64 else torch.float32,)


# The parts


def checked_cells(cells: Cells) -> Cells:
    """The indices of a CSR matrix are looked at by the kernels that follow them, and here only
    inside ``check_values``.
    """
    values, crow, col, valid, positions = cells
    integer("num_positions", positions, 0, LARGEST_COUNT)
    device = values.device
    if crow is None and col is None:
        one("values", values, FLOATING, (None, positions), None)
        flags("valid", valid, len(values), positions, device)
        return cells
    if crow is None or col is None:
        raise ValueError(
            "crow, col: expected both for a CSR matrix, or neither for a dense one; got one of them"
        )
    values = flat("values", values, FLOATING, (None,), device)
    crow = flat("crow", crow, INDICES, (None,), device)
    col = flat("col", col, (crow.dtype,), values.shape, device)
    if len(crow) < 1:
        raise ValueError("crow: expected the offsets of B rows, B + 1 of them; got none")
    valid = flags("valid", valid, len(crow) - 1, positions, device)
    cells = Cells(values, crow, col, valid, positions)
    if values_are_checked():
        require_sound(cells)
    return cells


def checked_choice(
    choice: Choice,
    rows: int,
    positions: int,
    num_latents: int,
    device: torch.device,
    *,
    zeros: bool = False,
) -> Choice:
    """With num_masked and latents where they are given, else with a ratio and a number; zeros drawn
    apart where ``zeros``.
    """
    maskable, num_masked, mask_ratio, latents, num_drawn, num_zeros, zero_ratio = choice
    flags("maskable", maskable, rows, positions, device)
    if num_masked is not None:
        num_masked = flat("num_masked", num_masked, (torch.int32,), (rows,), device)
    elif not 0.0 <= mask_ratio <= 1.0:
        raise ValueError(f"mask_ratio: expected a number in [0, 1]; got {mask_ratio}")
    if latents is not None:
        latents = flat("latents", latents, INT64, (None,), device)
    else:
        integer("num_drawn", num_drawn, 1, num_latents)
    if not zero_ratio <= 1.0:
        raise ValueError(f"zero_ratio: expected a number <= 1; got {zero_ratio}")
    if choice.zeros_apart and not zeros:
        raise ValueError(
            "num_zeros, zero_ratio: expected None and a number below 0, since zeros are drawn "
            f"apart in a step on values alone; got {num_zeros} and {zero_ratio}"
        )
    if num_zeros is not None:
        num_zeros = flat("num_zeros", num_zeros, (torch.int32,), (rows,), device)
    if num_masked is None and latents is None and num_zeros is None:
        return choice
    return Choice(maskable, num_masked, mask_ratio, latents, num_drawn, num_zeros, zero_ratio)


def existing(latents: Tensor, num_latents: int) -> Tensor:
    """Indices of latents that exist. On the CPU others are an error; on a GPU they become the
    nearest that exist, which needs no synchronisation.
    """
    if latents.device.type == "cpu":
        require_indices("latents", latents, num_latents)
        return latents
    return latents.clamp(0, max(num_latents - 1, 0))


def require_given(choice: Choice) -> None:
    """A choice whose num_masked and latents are known."""
    for name in ("num_masked", "latents"):
        if getattr(choice, name) is None:
            raise TypeError(f"{name}: expected a tensor; got None")


def checked_draw(draw: Draw, rows: int | None, device: torch.device) -> Draw:
    """Words on the CPU or on the device; rows of None: without sample ids."""
    for name, word in (("seed", draw.seed), ("step", draw.step)):
        if isinstance(word, Tensor):
            one(name, word, INT64, (), None)
            if word.device != device and word.device.type != "cpu":
                raise ValueError(
                    f"{name}: expected on the CPU or on {device}; got {describe(word)}"
                )
    if draw.sample_ids is None or rows is None:
        return draw
    return draw._replace(sample_ids=flat("sample_ids", draw.sample_ids, INT64, (rows,), device))


def checked_weighting(weighting: Weighting) -> Weighting:
    """Finite, and not below 0; the sum of a weight and ``eps`` is finite in float32."""
    eps, exponent = weighting
    if not 0.0 <= eps <= LARGEST_EPS:
        raise ValueError(f"eps: expected a number in [0, {LARGEST_EPS:g}]; got {eps}")
    if not 0.0 < exponent < math.inf:
        raise ValueError(f"inverse_temperature: expected a finite number > 0; got {exponent}")
    if eps >= SMALLEST_EPS and exponent <= LARGEST_EXPONENT:
        return weighting
    return Weighting(eps if eps >= SMALLEST_EPS else 0.0, min(exponent, LARGEST_EXPONENT))


def checked_parameters(
    parameters: Parameters, heads: int, device: torch.device, token_width: int = 1
) -> Parameters:
    """Of one type, by the shapes of Linear and MultiheadAttention; out_bias may be None."""
    latents = one("latents", parameters.latents, FLOATING, (None, None), device)
    count, width = latents.shape
    integer("heads", heads, 1)
    if width % heads:
        raise ValueError(f"heads: expected a divisor of the latents' width, {width}; got {heads}")
    shapes = (
        (count, width),
        (3 * width, width),
        (3 * width,),
        (width, token_width),
        (width,),
        (width, width),
        (width,),
    )
    return Parameters(
        *(
            None if x is None else flat(name, x, (latents.dtype,), shape, device)
            for name, x, shape in zip(Parameters._fields, parameters, shapes, strict=True)
        )
    )


def require_indices(name: str, x: Tensor, size: int) -> None:
    """Indices in [0, size); waits for a GPU."""
    if x.numel() and (int(x.min()) < 0 or int(x.max()) >= size):
        got = next(i for i in x.tolist() if not 0 <= i < size)
        raise ValueError(f"{name}: expected indices in [0, {size}); got {got}")


def incoming(
    grad_context: Tensor | None,
    grad_penalty: Tensor | None,
    dtypes: Sequence[torch.dtype],
    shape: Sequence[int],
    device: torch.device,
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of a loss by context and penalty, either of which may be None."""
    if grad_context is not None:
        grad_context = flat("grad_context", grad_context, dtypes, shape, device)
    if grad_penalty is not None:
        grad_penalty = flat("grad_penalty", grad_penalty, dtypes, (), device)
    return grad_context, grad_penalty
