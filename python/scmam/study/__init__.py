"""A study: arms times seeds, each pretrained and evaluated, compared with intervals and differences
paired by seed.
"""
