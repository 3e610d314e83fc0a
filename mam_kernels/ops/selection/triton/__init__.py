"""Selection by Triton kernels: an exponential race for the positions of a row, and one for the
latents.
"""

from .latents import choose_latents, draw_latents
from .selection import select

__all__ = ["choose_latents", "draw_latents", "select"]
