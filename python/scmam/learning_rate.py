"""The course of a learning rate."""

import math


def rise_and_fall(step: int, rise: int, steps: int) -> float:
    """Factor of a learning rate at a step in [0, steps): it rises linearly over the first `rise`
    steps, and falls along half a cosine to 0.
    """
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))
