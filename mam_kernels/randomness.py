"""Seeds of draws that must not share their random bits.

A mask is a function of (seed, step, cell). A second draw of the same step, the genes that a decoder
predicts say, with the same seed would take the same bits at the same positions, and so depend on
the mask.
"""

import hashlib


def substream(seed: int, purpose: str) -> int:
    """A seed in [0, 2**63) for one purpose, a function of the two alone."""
    return (
        int.from_bytes(hashlib.blake2b(f"{seed} {purpose}".encode(), digest_size=8).digest()) >> 1
    )
