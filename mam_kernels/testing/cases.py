"""Cases on which backends are held against the reference: arguments of each operation in shapes,
paddings and layouts, and cells that look like cells.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .inputs import expression, ids, ragged, shuffled, strided, to_csr, transposed


def _moved(case: object, device: torch.device | str) -> dict[str, Any]:
    """The fields of a case by their names, tensors on ``device``."""
    return {key: x.to(device) if isinstance(x, Tensor) else x for key, x in vars(case).items()}


@dataclass(frozen=True)
class ValueCase:
    """Arguments of the value path."""

    name: str
    values: Tensor  # (B, L) dense, or CSR
    slope: Tensor  # (N, H)
    valid: Tensor | None
    maskable: Tensor | None
    num_masked: Tensor  # (B,)
    latents: Tensor  # (R,)
    sample_ids: Tensor | None = None  # (B,)

    def to(self, device: torch.device | str, dtype: torch.dtype) -> "ValueCase":
        """On another device, with values of another type.

        Slopes stay float32, or become float64 with the values.
        """
        moved = _moved(self, device)
        moved["values"] = moved["values"].to(dtype)
        moved["slope"] = moved["slope"].to(torch.promote_types(dtype, torch.float32))
        return replace(self, **moved)


@dataclass(frozen=True)
class TokenCase:
    """Arguments of the token path."""

    name: str
    query: Tensor  # (N, H, d)
    key: Tensor  # (B, L, H, d)
    value: Tensor  # (B, L, H, d)
    valid: Tensor | None
    maskable: Tensor | None
    num_masked: Tensor  # (B,)
    latents: Tensor  # (R,)
    sample_ids: Tensor | None = None  # (B,)

    def to(self, device: torch.device | str, dtype: torch.dtype) -> "TokenCase":
        """On another device, in another type."""
        moved = _moved(self, device)
        for name in ("query", "key", "value"):
            moved[name] = moved[name].to(dtype)
        return replace(self, **moved)


@dataclass(frozen=True)
class SelectionCase:
    """Arguments of a draw."""

    name: str
    weights: Tensor  # (B, L)
    num_samples: Tensor  # (B,)
    valid: Tensor | None
    sample_ids: Tensor | None = None  # (B,)

    def to(self, device: torch.device | str, dtype: torch.dtype) -> "SelectionCase":
        """On another device, in another type."""
        moved = _moved(self, device)
        return replace(self, **(moved | {"weights": moved["weights"].to(dtype)}))


def _counts(rows: int, positions: int, ratio: float) -> Tensor:
    """The share of the positions, for each row one fewer than for the row before; all or none where
    the share is 1 or 0.
    """
    fewer = torch.arange(rows, dtype=torch.int32) * (0.0 < ratio < 1.0)
    return (int(ratio * positions) - fewer).clamp(min=0).to(torch.int32)


def value_cases() -> Iterator[ValueCase]:
    """Dense, padded, strided and CSR; one position, no zeros, no values, large slopes, no cell at
    all.
    """
    generator = torch.Generator().manual_seed(1)

    def slopes(latents: int, heads: int, scale: float = 0.5) -> Tensor:
        return scale * torch.randn(latents, heads, generator=generator)

    def drawn(latents: int) -> Tensor:
        return torch.randperm(latents, generator=generator)[: max(1, latents // 3)].sort().values

    def case(
        name: str, values: Tensor, slope: Tensor, ratio: float = 0.3, valid=None, maskable=None
    ) -> ValueCase:
        rows, positions = values.shape
        counts = _counts(rows, positions, ratio)
        return ValueCase(name, values, slope, valid, maskable, counts, drawn(slope.shape[0]))

    yield case("cells", expression(4, 300, 0.1, generator), slopes(16, 4))
    yield case("one position", expression(2, 1, 1.0, generator), slopes(3, 1), ratio=1.0)
    yield case("odd sizes", expression(3, 67, 0.4, generator), slopes(5, 3))
    yield case("no zeros", expression(2, 130, 1.0, generator) - 3.0, slopes(7, 2))
    yield case("nothing but zeros", torch.zeros(2, 40), slopes(4, 2))
    yield case("everything hidden", expression(2, 50, 0.2, generator), slopes(4, 2), ratio=1.0)
    yield case("nothing hidden", expression(2, 50, 0.2, generator), slopes(4, 2), ratio=0.0)
    yield case("large slopes", expression(3, 200, 0.3, generator), slopes(6, 2, scale=40.0))
    yield case("far from zero", 30.0 + expression(2, 90, 0.5, generator), slopes(4, 2, scale=1.0))
    yield case("strided", strided(expression(3, 77, 0.3, generator)), slopes(4, 2))

    valid = ragged(4, 200, generator)
    values = expression(4, 200, 0.2, generator).masked_fill(~valid, torch.nan)
    padded = case(
        "padded, NaN in the padding", values, slopes(8, 2), ratio=0.2, valid=valid, maskable=valid
    )
    yield padded
    maskable = valid & (torch.rand(4, 200, generator=generator) < 0.5)
    partly = case(
        "some may not be hidden", values, slopes(8, 2), ratio=0.4, valid=valid, maskable=maskable
    )
    yield partly
    yield replace(padded, name="sample ids", sample_ids=ids(4))
    yield replace(
        partly,
        name="strided flags",
        valid=transposed(valid),
        maskable=transposed(maskable),
        sample_ids=ids(4),
    )

    sparse = expression(5, 150, 0.1, generator)
    sparse[1] = 0.0
    csr = to_csr(sparse)
    yield case("CSR", csr, slopes(8, 4))
    narrow = torch.sparse_csr_tensor(
        csr.crow_indices().int(),
        csr.col_indices().int(),
        csr.values(),
        csr.shape,
        check_invariants=True,
    )
    yield case("CSR, 32-bit indices", narrow, slopes(8, 4))
    valid = ragged(5, 150, generator)
    yield case("CSR, padded", csr, slopes(8, 4), ratio=0.2, valid=valid, maskable=valid)
    yield replace(case("CSR, any order", shuffled(csr, generator), slopes(8, 4)), sample_ids=ids(5))

    # Several panels of the power series.
    yield case("steep slopes", expression(3, 200, 0.3, generator), slopes(6, 2, scale=6.0))


def large_value_case() -> ValueCase:
    """Cells of the size that the method was published with."""
    generator = torch.Generator().manual_seed(2)
    slope = 0.3 * torch.randn(128, 8, generator=generator)
    latents = torch.randperm(128, generator=generator)[:38].sort().values
    return ValueCase(
        "19264 genes",
        expression(2, 19264, 0.08, generator),
        slope,
        None,
        None,
        _counts(2, 19264, 0.024),
        latents,
    )


def token_cases() -> Iterator[TokenCase]:
    """Head widths that are and are not powers of two, padding, strides, one token, one latent."""
    generator = torch.Generator().manual_seed(3)

    def case(
        name: str, rows: int, positions: int, latents: int, heads: int, width: int, **options
    ) -> TokenCase:
        query, key, value = (
            torch.randn(*shape, generator=generator)
            for shape in (
                (latents, heads, width),
                (rows, positions, heads, width),
                (rows, positions, heads, width),
            )
        )
        drawn = torch.randperm(latents, generator=generator)[: max(1, latents // 3)].sort().values
        counts = _counts(rows, positions, options.pop("ratio", 0.3))
        return TokenCase(
            name, query, key, value, options.get("valid"), options.get("maskable"), counts, drawn
        )

    yield case("tokens", 2, 150, 16, 4, 32)
    yield case("odd sizes", 3, 67, 5, 3, 20)
    yield case("one token, one latent", 2, 1, 1, 1, 8, ratio=1.0)
    yield case("wide heads", 1, 40, 4, 1, 96)
    yield case("narrow heads", 2, 33, 3, 2, 3)
    yield case("everything hidden", 2, 30, 4, 2, 16, ratio=1.0)

    both = case("one buffer for keys and values", 2, 90, 6, 2, 16)
    buffer = torch.stack([both.key, both.value], dim=2)
    yield replace(both, key=buffer[:, :, 0], value=buffer[:, :, 1])
    columns = case("strided", 2, 50, 4, 2, 8)
    yield replace(columns, key=strided(columns.key), value=strided(columns.value))

    sharp = case("large scores", 2, 60, 4, 2, 16)
    yield replace(sharp, query=30.0 * sharp.query)

    valid = ragged(4, 120, generator)
    padded = case(
        "padded, NaN in the padding", 4, 120, 8, 2, 16, ratio=0.2, valid=valid, maskable=valid
    )
    hole = ~valid[:, :, None, None]
    padded = replace(
        padded,
        key=padded.key.masked_fill(hole, torch.nan),
        value=padded.value.masked_fill(hole, torch.nan),
    )
    yield padded
    maskable = valid & (torch.rand(4, 120, generator=generator) < 0.5)
    yield replace(padded, name="some may not be hidden", maskable=maskable)
    flags = {"valid": transposed(valid), "maskable": transposed(maskable)}
    yield replace(padded, name="strided flags, sample ids", sample_ids=ids(4), **flags)


def selection_cases() -> Iterator[SelectionCase]:
    """Near-uniform, skewed, sparse and degenerate weights; every edge of num_samples."""
    generator = torch.Generator().manual_seed(4)

    def case(
        name: str,
        weights: Tensor,
        ratio: float = 0.3,
        valid: Tensor | None = None,
        counts: Tensor | None = None,
    ) -> SelectionCase:
        if counts is None:
            rows, positions = weights.shape
            counts = _counts(rows, positions, ratio)
        return SelectionCase(name, weights, counts, valid)

    yield case("near-uniform", 1.0 + 0.1 * torch.rand(4, 700, generator=generator))
    yield case("skewed", torch.rand(3, 400, generator=generator) ** 8)
    yield case("one position", torch.ones(2, 1), ratio=1.0)
    yield case("odd sizes", torch.rand(5, 67, generator=generator))
    yield case("all drawn", torch.rand(2, 90, generator=generator), ratio=1.0)
    yield case("none drawn", torch.rand(2, 90, generator=generator), ratio=0.0)
    yield case(
        "all but one",
        torch.rand(2, 90, generator=generator),
        counts=torch.tensor([89, 1], dtype=torch.int32),
    )
    yield case(
        "a count for each row",
        torch.rand(4, 100, generator=generator),
        counts=torch.tensor([0, 1, 50, 100], dtype=torch.int32),
    )
    few = torch.where(torch.rand(3, 200, generator=generator) < 0.1, 1.0, 0.0)
    yield case("more samples than weights", few, ratio=0.5)
    yield case("no weight at all", torch.zeros(2, 64))
    odd = torch.rand(3, 120, generator=generator)
    odd[:, ::3] = torch.tensor([torch.nan, -1.0, torch.inf])[:, None]
    yield case("NaN, negative and infinite weights", odd)
    yield case("strided", strided(torch.rand(3, 88, generator=generator)))
    valid = ragged(4, 150, generator)
    weights = torch.rand(4, 150, generator=generator).masked_fill(~valid, torch.nan)
    padded = case("padded, NaN in the padding", weights, ratio=0.2, valid=valid)
    yield padded
    yield replace(
        padded,
        name="strided flags, sample ids",
        weights=weights.nan_to_num(2.0),
        valid=transposed(valid),
        sample_ids=ids(4),
    )


SPREAD_WEIGHTS = (
    "near-uniform", "log-normal, 3", "log-normal, 5", "two levels", "half zero", "infinite",
    "log-normal and infinite",
)  # fmt: skip


def spread_weights(kind: str, rows: int, positions: int) -> Tensor:
    """(rows, positions) float32 weights of a kind: rows long enough are drawn by a sample of them,
    which some kinds mislead.
    """
    generator = torch.Generator().manual_seed(7)
    normal = torch.randn(rows, positions, generator=generator)
    uniform = torch.rand(rows, positions, generator=generator)
    weights = {
        "near-uniform": 1 + 0.05 * uniform,
        "log-normal, 3": (3 * normal).exp(),
        "log-normal, 5": (5 * normal).exp(),
        "two levels": torch.where(uniform < 0.5, 1.0, 1e6),
        "half zero": torch.where(uniform < 0.5, 0.0, 1 + uniform),
        "infinite": 1 + 0.05 * uniform,
        "log-normal and infinite": (3 * normal).exp(),
    }[kind]
    some = torch.rand(rows, positions, generator=generator) < 0.01
    return weights.masked_fill(some, torch.inf) if "infinite" in kind else weights


def extreme_selection_case() -> SelectionCase:
    """Weights over the whole range of float32; only their ratios may matter."""
    generator = torch.Generator().manual_seed(5)
    exponents = torch.tensor([-120.0, -40.0, 0.0, 40.0, 110.0])[:, None]
    weights = (1.0 + torch.rand(5, 300, generator=generator)) * 2.0**exponents
    return SelectionCase("scaled by powers of two", weights, _counts(5, 300, 0.3), None)


def race_cases() -> Iterator[SelectionCase]:
    """Draws that a single wrong bit decides, each row of 64 equal weights; found by a search of the
    stream of ``check.words()``.
    """

    def case(name: str, sample_id: int, counts: list[int]) -> SelectionCase:
        weights = torch.ones(len(counts), 64)
        return SelectionCase(
            name,
            weights,
            torch.tensor(counts, dtype=torch.int32),
            None,
            torch.full((len(counts),), sample_id),
        )

    # Positions 27 and 62 have different bits and the same uniform in float32, the 23rd and 24th
    # smallest; likewise 35 and 57, the 37th.
    yield case("two equal keys", 2446, [22, 23, 24])
    yield case("two other equal keys", 9425, [36, 37, 38])
    # The bits of position 41 are 2**32 - 13: a uniform that rounds to 1 unless it is clamped. It
    # must be drawn, and last.
    yield case("the largest uniform", 7715133, [63, 64])
    # The bits of position 60 are 0: the smallest uniform there is, which lets a weight of 1e-7 win.
    tiny = case("the smallest uniform", 6147997, [1, 2])
    tiny.weights[:, 60] = 1e-7
    yield tiny
