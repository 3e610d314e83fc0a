"""Warnings where the latents have collapsed: what it means, and what to try."""

ENTROPY_UNIFORM = 0.999
"""Above this share of the maximal entropy masks count as uniform.

Weights whose standard deviation is ``c`` of their mean have an entropy of about ``log(L) - c^2 /
2``. At .999 and between 700 and 20,000 positions ``c`` is 0.11 to 0.14; with 30 % of the positions
hidden, the chance of being hidden then differs between genes by a tenth of itself, .30 +- .03."""

OVERLAP_ALIKE = 0.99
"""Above this mean cosine similarity latents count as attending alike.

Attention vectors that deviate from a common one by ``c`` of it, each in its own way, have a cosine
of ``1 / (1 + c^2)``: .99 is c = 0.1, so which of the latents are drawn for a mask changes the
weights by less than a tenth."""

UNDECAYED = (
    "training.masking_weight_decay=0, because under Adam the decay alone takes the slopes to zero"
)
"""The first thing to try where there is a decay."""

SHARPER = {
    "mam": "masking.temperature below 1 (0.1), masking.slope_norm=1 or larger, or masking.strategy=mam-embedding with masking.zero_ratio=0",
    "mam-embedding": "masking.temperature below 1 (0.1), or a smaller masking.penalty",
}
"""What makes masks sharper, by strategy."""

APART = {
    "mam": "masking.slope_norm=1 or larger, or masking.strategy=mam-embedding with masking.zero_ratio=0, whose latents see the gene too",
    "mam-embedding": "a larger masking.latent_dim, or a smaller masking.penalty",
}
"""What lets latents differ, by strategy.

The temperature does not: it acts on what they attend to together.
"""


def collapse_warnings(
    strategy: str, entropy: float | None, cosine: float | None, latents: int, *, decayed: bool
) -> list[str]:
    """A sentence or two for each kind of collapse.

    Args:
        strategy: "mam" or "mam-embedding".
        entropy: of the masking distribution, over its maximum; None where there is none.
        cosine: mean cosine similarity of the latents' attention; None where there is a single
            latent.
        latents: how many there are.
        decayed: whether they were trained with a weight decay.
    """
    warnings = []
    first = f"{UNDECAYED}, or " if decayed else ""
    if entropy is not None and entropy > ENTROPY_UNIFORM:
        warnings.append(
            f"masks are indistinguishable from uniform ones: their distribution has {entropy:.5f} of the largest entropy (limit"
            f" {ENTROPY_UNIFORM}), so what the latents learned hardly decides which genes are hidden, and a difference to uniform masking"
            f" comes from elsewhere, such as the injected context; try {first}{SHARPER[strategy]}"
        )
    if cosine is not None and cosine > OVERLAP_ALIKE:
        warnings.append(
            f"all {latents} latents attend alike: the mean cosine similarity of their attention is {cosine:.4f} (limit {OVERLAP_ALIKE}),"
            f" so it hardly matters which of them are drawn for a mask; try {first}{APART[strategy]}"
        )
    return warnings
