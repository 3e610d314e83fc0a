"""What a backend's function is given, checked once for all backends.

The operations under ``torch.ops.mam_kernels`` can be called by anybody, past the checks of the
public functions, and a kernel follows addresses and sizes wherever they lead. So types, shapes and
devices are looked at here, between the operations and the backends (``dispatch.py``), and parts
whose addresses are taken without strides are made contiguous. It takes microseconds, and no
synchronisation: values on a GPU are not looked at, and its kernels follow no index out of bounds.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .call import AS_GIVEN, Cells, Choice, Draw, Parameters, Weighting
from .checks import FLOATING, describe, values_are_checked
from .csr import require_sound

SMALLEST_EPS = 2.0**-100
"""An ``eps`` below this counts as 0; one above hides every weight that is not a normal float32."""

INT64 = (torch.int64,)
INDICES = (torch.int64, torch.int32)


def _one(
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
    where = "" if device is None else f" on {device}"
    message = f"{name}: expected a dense tensor, {wanted} of shape ({sizes}){where}; got "
    kind = TypeError if x.dtype not in dtypes or x.layout is not torch.strided else ValueError
    raise kind(message + (describe(x) if x.layout is torch.strided else f"layout {x.layout}"))


def _fits(sizes: Sequence[int], shape: Sequence[int | None]) -> bool:
    return len(sizes) == len(shape) and all(
        want is None or have == want for have, want in zip(sizes, shape, strict=True)
    )


def _flat(
    name: str,
    x: Tensor,
    dtypes: Sequence[torch.dtype],
    shape: Sequence[int | None],
    device: torch.device,
) -> Tensor:
    """As ``_one``, and contiguous."""
    return _one(name, x, dtypes, shape, device).contiguous()


def _flags(
    name: str, x: Tensor | None, rows: int, positions: int, device: torch.device
) -> Tensor | None:
    return None if x is None else _one(name, x, (torch.bool,), (rows, positions), device)


def _integer(name: str, x: int, low: int, high: float = math.inf) -> None:
    if not low <= x <= high:
        above = "" if high == math.inf else f" and <= {high}"
        raise ValueError(f"{name}: expected an integer >= {low}{above}; got {x}")


def _accumulation(x: Tensor) -> tuple[torch.dtype]:
    """The type that sums over values of this type have."""
    return (torch.float64 if x.dtype == torch.float64 else torch.float32,)


# The parts


def checked_cells(cells: Cells) -> Cells:
    """The indices of a CSR matrix are looked at by the kernels that follow them, and here only
    inside ``check_values``.
    """
    values, crow, col, valid, positions = cells
    _integer("num_positions", positions, 0)
    device = values.device
    if crow is None and col is None:
        _one("values", values, FLOATING, (None, positions), None)
        flags = _flags("valid", valid, len(values), positions, device)
        return cells._replace(valid=flags)
    if crow is None or col is None:
        raise ValueError(
            "crow, col: expected both for a CSR matrix, or neither for a dense one; got one of them"
        )
    values = _flat("values", values, FLOATING, (None,), device)
    crow = _flat("crow", crow, INDICES, (None,), device)
    col = _flat("col", col, (crow.dtype,), values.shape, device)
    if len(crow) < 1:
        raise ValueError("crow: expected the offsets of B rows, B + 1 of them; got none")
    valid = _flags("valid", valid, len(crow) - 1, positions, device)
    cells = Cells(values, crow, col, valid, positions)
    if values_are_checked():
        require_sound(cells)
    return cells


def checked_choice(
    choice: Choice, rows: int, positions: int, num_latents: int, device: torch.device
) -> Choice:
    """With num_masked and latents where they are given, else with a ratio and a number."""
    maskable, num_masked, mask_ratio, latents, num_drawn = choice
    maskable = _flags("maskable", maskable, rows, positions, device)
    if num_masked is not None:
        num_masked = _flat("num_masked", num_masked, (torch.int32,), (rows,), device)
    elif not 0.0 <= mask_ratio <= 1.0:
        raise ValueError(f"mask_ratio: expected a number in [0, 1]; got {mask_ratio}")
    if latents is not None:
        latents = _flat("latents", latents, INT64, (None,), device)
    else:
        _integer("num_drawn", num_drawn, 1, num_latents)
    return Choice(maskable, num_masked, mask_ratio, latents, num_drawn)


def _given(choice: Choice) -> None:
    for name in ("num_masked", "latents"):
        if getattr(choice, name) is None:
            raise TypeError(f"{name}: expected a tensor; got None")


def checked_draw(draw: Draw, rows: int | None, device: torch.device) -> Draw:
    """Words on the CPU or on the device; rows of None: without sample ids."""
    for name, word in (("seed", draw.seed), ("step", draw.step)):
        if isinstance(word, Tensor):
            _one(name, word, INT64, (), None)
            if word.device != device and word.device.type != "cpu":
                raise ValueError(
                    f"{name}: expected on the CPU or on {device}; got {describe(word)}"
                )
    if draw.sample_ids is None or rows is None:
        return draw
    return draw._replace(sample_ids=_flat("sample_ids", draw.sample_ids, INT64, (rows,), device))


def checked_weighting(weighting: Weighting) -> Weighting:
    """Finite, and not below 0."""
    eps, exponent = weighting
    if not 0.0 <= eps < math.inf:
        raise ValueError(f"eps: expected a finite number >= 0; got {eps}")
    if not 0.0 < exponent < math.inf:
        raise ValueError(f"inverse_temperature: expected a finite number > 0; got {exponent}")
    return weighting if eps >= SMALLEST_EPS else Weighting(0.0, exponent)


def checked_parameters(parameters: Parameters, heads: int) -> Parameters:
    """Of one type, by the shapes of Linear and MultiheadAttention; out_bias may be None."""
    latents = parameters.latents
    _one("latents", latents, FLOATING, (None, None), None)
    _, width = latents.shape
    _integer("heads", heads, 1)
    if width % heads:
        raise ValueError(f"heads: expected a divisor of the latents' width, {width}; got {heads}")
    shapes = Parameters(
        latents=latents.shape,
        in_weight=(3 * width, width),
        in_bias=(3 * width,),
        token_weight=(width, 1),
        token_bias=(width,),
        out_weight=(width, width),
        out_bias=(width,),
    )
    kind, device = (latents.dtype,), latents.device
    return Parameters(
        *(
            None if x is None else _flat(name, x, kind, shape, device)
            for name, x, shape in zip(Parameters._fields, parameters, shapes, strict=True)
        )
    )


def state_size(rows: int, latents: int, heads: int, width: int) -> int:
    """Elements of what a masking step keeps for its backward pass."""
    by_row = 2 * latents * heads + 1 + heads
    return rows * by_row + 2 * heads * width + 4 * width + 2 * heads * heads


def _slope(slope: Tensor, cells: Cells) -> Tensor:
    return _flat("slope", slope, _accumulation(cells.values), (None, None), cells.values.device)


def require_indices(name: str, x: Tensor, size: int) -> None:
    """Indices in [0, size), for the reference; waits for a GPU."""
    if x.numel() and (int(x.min()) < 0 or int(x.max()) >= size):
        got = next(i for i in x.tolist() if not 0 <= i < size)
        raise ValueError(f"{name}: expected indices in [0, {size}); got {got}")


# The functions of value_attention


def value_moments(cells: Cells, slope: Tensor) -> tuple:
    """Arguments of ``moments``."""
    cells = checked_cells(cells)
    return cells, _slope(slope, cells)


def value_mask(
    cells: Cells, slope: Tensor, choice: Choice, weighting: Weighting, draw: Draw
) -> tuple:
    """Arguments of ``mask``."""
    cells = checked_cells(cells)
    slope, device = _slope(slope, cells), cells.values.device
    _given(choice)
    choice = checked_choice(choice, cells.rows, cells.num_positions, len(slope), device)
    draw = checked_draw(draw, cells.rows, device)
    return cells, slope, choice, checked_weighting(weighting), draw


def value_step(
    cells: Cells,
    parameters: Parameters,
    heads: int,
    choice: Choice,
    weighting: Weighting,
    draw: Draw,
    visible: bool,
) -> tuple:
    """Arguments of ``step``."""
    cells, parameters = checked_cells(cells), checked_parameters(parameters, heads)
    device, num_latents = cells.values.device, len(parameters.latents)
    _one("latents", parameters.latents, FLOATING, (None, None), device)
    choice = checked_choice(choice, cells.rows, cells.num_positions, num_latents, device)
    draw = checked_draw(draw, cells.rows, device)
    return cells, parameters, heads, choice, checked_weighting(weighting), draw, visible


def value_step_backward(
    grad_context: Tensor | None,
    grad_penalty: Tensor | None,
    parameters: Parameters,
    heads: int,
    state: Tensor,
    rows: int,
) -> tuple:
    """Arguments of ``step_backward``."""
    parameters = checked_parameters(parameters, heads)
    _integer("rows", rows, 0)
    (count, width), device = parameters.latents.shape, parameters.latents.device
    size, kinds = state_size(rows, count, heads, width), (torch.float32, torch.float64)
    state = _flat("state", state, kinds, (size,), device)
    kinds = kinds[:1] if state.dtype == torch.float32 else kinds
    if grad_context is not None:
        grad_context = _flat("grad_context", grad_context, kinds, (rows, width), device)
    if grad_penalty is not None:
        grad_penalty = _flat("grad_penalty", grad_penalty, kinds, (), device)
    return grad_context, grad_penalty, parameters, heads, state, rows


def value_project(parameters: Parameters, heads: int) -> tuple:
    """Arguments of ``project``."""
    return checked_parameters(parameters, heads), heads


# The functions of latent_attention


def _dense_width(x: Tensor) -> Tensor:
    """The same with an innermost stride of 1, which kernels rely on."""
    return x if x.shape[-1] == 1 or x.stride(-1) == 1 else x.contiguous()


def _tokens(query: Tensor, keys: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """query (N, H, d), then key and value (B, L, H, d), of one type."""
    _one("query", query, FLOATING, (None, None, None), None)
    shape: Sequence[int | None] = (None, None, *query.shape[1:])
    for name, x in keys.items():
        shape = _one(name, x, (query.dtype,), shape, query.device).shape
    return tuple(_dense_width(x) for x in (query, *keys.values()))


def _scale(scale: float) -> None:
    if not math.isfinite(scale):
        raise ValueError(f"scale: expected a finite number; got {scale}")


def _sums(name: str, x: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """The log-sum-exp, or its gradient."""
    shape = (key.shape[0], *query.shape[:2])
    return _flat(name, x, _accumulation(query), shape, query.device)


def token_forward(
    query: Tensor, key: Tensor, value: Tensor, valid: Tensor | None, scale: float
) -> tuple:
    """Arguments of ``forward``."""
    query, key, value = _tokens(query, {"key": key, "value": value})
    _scale(scale)
    return query, key, value, _flags("valid", valid, *key.shape[:2], key.device), scale


def token_logsumexp(query: Tensor, key: Tensor, valid: Tensor | None, scale: float) -> tuple:
    """Arguments of ``logsumexp``."""
    query, key = _tokens(query, {"key": key})
    _scale(scale)
    return query, key, _flags("valid", valid, *key.shape[:2], key.device), scale


def token_backward(
    grad_output: Tensor,
    grad_logsumexp: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    valid: Tensor | None,
    output: Tensor,
    logsumexp: Tensor,
    scale: float,
) -> tuple:
    """Arguments of ``backward``."""
    query, key, value, valid, scale = token_forward(query, key, value, valid, scale)
    kind, shape, device = (query.dtype,), (key.shape[0], *query.shape), key.device
    if grad_logsumexp is not None:
        grad_logsumexp = _sums("grad_logsumexp", grad_logsumexp, query, key)
    return (
        _flat("grad_output", grad_output, kind, shape, device),
        grad_logsumexp,
        query,
        key,
        value,
        valid,
        _flat("output", output, kind, shape, device),
        _sums("logsumexp", logsumexp, query, key),
        scale,
    )


def token_importance(
    query: Tensor,
    key: Tensor,
    logsumexp: Tensor,
    latents: Tensor,
    valid: Tensor | None,
    scale: float,
) -> tuple:
    """Arguments of ``importance``."""
    query, key, valid, scale = token_logsumexp(query, key, valid, scale)
    logsumexp = _sums("logsumexp", logsumexp, query, key)
    latents = _flat("latents", latents, INT64, (None,), key.device)
    return query, key, logsumexp, latents, valid, scale


def token_mask(
    query: Tensor,
    key: Tensor,
    logsumexp: Tensor,
    valid: Tensor | None,
    scale: float,
    choice: Choice,
    weighting: Weighting,
    draw: Draw,
) -> tuple:
    """Arguments of ``mask``."""
    query, key, valid, scale = token_logsumexp(query, key, valid, scale)
    logsumexp = _sums("logsumexp", logsumexp, query, key)
    (rows, positions), device = key.shape[:2], key.device
    _given(choice)
    choice = checked_choice(choice, rows, positions, len(query), device)
    draw = checked_draw(draw, rows, device)
    return query, key, logsumexp, valid, scale, choice, checked_weighting(weighting), draw


# The functions of selection


def selection_select(
    weights: Tensor,
    num_samples: Tensor,
    valid: Tensor | None,
    draw: Draw,
    weighting: Weighting = AS_GIVEN,
) -> tuple:
    """Arguments of ``select``."""
    _one("weights", weights, FLOATING, (None, None), None)
    (rows, positions), device = weights.shape, weights.device
    num_samples = _flat("num_samples", num_samples, (torch.int32,), (rows,), device)
    valid = _flags("valid", valid, rows, positions, device)
    return (
        weights,
        num_samples,
        valid,
        checked_draw(draw, rows, device),
        checked_weighting(weighting),
    )


def selection_draw_latents(num_latents: int, size: int, draw: Draw, device: torch.device) -> tuple:
    """Arguments of ``draw_latents``."""
    _integer("num_latents", num_latents, 0)
    _integer("size", size, 0, num_latents)
    return num_latents, size, checked_draw(draw, None, device), device


CHECKS: dict[tuple[str, str], Callable[..., tuple]] = {
    ("value_attention", "moments"): value_moments,
    ("value_attention", "mask"): value_mask,
    ("value_attention", "step"): value_step,
    ("value_attention", "step_backward"): value_step_backward,
    ("value_attention", "project"): value_project,
    ("latent_attention", "forward"): token_forward,
    ("latent_attention", "backward"): token_backward,
    ("latent_attention", "logsumexp"): token_logsumexp,
    ("latent_attention", "importance"): token_importance,
    ("latent_attention", "mask"): token_mask,
    ("selection", "select"): selection_select,
    ("selection", "draw_latents"): selection_draw_latents,
}
"""Folder and function -> what checks its arguments and returns them ready for use."""
