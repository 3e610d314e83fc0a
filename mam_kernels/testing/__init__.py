"""Oracles for users and tests: validate a machine, compare with the published computation, measure
without fooling oneself.
"""

from .check import ValidationError, check

__all__ = ["ValidationError", "check"]
