"""A benchmark of what to hide: many maskings on many sets of cells, paired by seed.

`benchmark` runs what is missing of arms x data sets x seeds; `arms.ARMS` are the maskings;
``runs.csv``, ``summary.csv``, ``choices.csv`` and ``benchmark.html`` in its folder are what came
out.
"""
