"""Check the indices of a CSR matrix, for the reference and for ``check_values``. The C++ kernels
check them row by row (csrc/cpu/sparse.cpp).
"""

import torch
from torch import Tensor

from .call import Cells


def require_sound(cells: Cells) -> None:
    """Offsets that begin at 0, never fall and end at the number of entries; in each row columns in
    range, each of them once. Waits for a GPU.

    Raises:
        ValueError: something is not so. It names a row.
    """
    values, offsets, col, _, positions = cells
    if offsets is None or col is None:
        return
    stored, crow = len(values), offsets.to(torch.int64)
    first, last = crow[:-1], crow[1:]
    if int(crow[0]) != 0:
        raise ValueError(_wrong(0, f"crow to begin at 0; got {int(crow[0])}"))
    if (row := _first((last < first) | (last > stored))) is not None:
        start, end = int(first[row]), int(last[row])
        text = f"crow to grow from 0 to the {stored} stored entries; got {start} and then {end}"
        raise ValueError(_wrong(row, text))
    if int(crow[-1]) != stored:
        text = f"crow to end at the {stored} stored entries; got {int(crow[-1])}"
        raise ValueError(_wrong(len(first) - 1, text))
    if (row := _first(last - first > positions)) is not None:
        text = f"at most {positions} entries, one a column; got {int(last[row] - first[row])}"
        raise ValueError(_wrong(row, text))
    rows = torch.repeat_interleave(torch.arange(len(first), device=crow.device), last - first)
    if (entry := _first((col < 0) | (col >= positions))) is not None:
        text = f"columns in [0, {positions}); got {int(col[entry])}"
        raise ValueError(_wrong(int(rows[entry]), text))
    places = (rows * positions + col).sort().values
    if (place := _first(places[1:] == places[:-1])) is not None:
        row, column = divmod(int(places[place]), positions)
        raise ValueError(_wrong(row, f"each column once; got column {column} twice"))


def _first(bad: Tensor) -> int | None:
    """The first index at which ``bad``, if it is anywhere."""
    return int(bad.to(torch.uint8).argmax()) if bool(bad.any()) else None


def _wrong(row: int, expected: str) -> str:
    return f"CSR values, row {row}: expected {expected}"
