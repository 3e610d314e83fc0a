"""The single-cell layer over `mam_kernels`: real cells in, masks and what they mean out."""

from .cells import Cells, CellsError, example_cells, read_cells

__all__ = ["Cells", "CellsError", "example_cells", "read_cells"]
