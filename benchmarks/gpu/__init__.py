"""What `make gpu` does: check and measure every GPU kernel within a few minutes of device time."""

PATHS = (
    "selection",
    "inclusion",
    "inclusion_forward_backward",
    "value_path",
    "value_path_sparse",
    "value_path_forward_backward",
    "token_path_forward",
    "token_path_forward_backward",
)
"""What is measured for each backend; ``bounds_us`` of machine_code.json has the same names."""
