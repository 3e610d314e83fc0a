"""Kernels counted from their machine code: ``python -m benchmarks.machine_code``.

``table.py`` says what is counted and how to add a kernel, ``annotations.py`` which comments of the
sources state the trips of their loops, ``device.py`` what the GPU does at most, and
``docs/machine_code.md`` how to read the result.
"""
