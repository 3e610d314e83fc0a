"""Measurements: `pytest benchmarks` for single operations, `python -m benchmarks.study` and `python
-m benchmarks.gpu` for the whole.
"""
