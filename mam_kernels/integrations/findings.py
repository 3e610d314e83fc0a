"""Findings of the check of a first batch, and the batch as the checks read it."""

from typing import NamedTuple

from torch import Tensor


class Finding(NamedTuple):
    """One thing that was looked at."""

    right: bool
    subject: str  # "padding", "special tokens", "mask value", "vocabulary", "values", "device"
    text: str  # one line

    def __str__(self) -> str:
        return f"{'ok   ' if self.right else 'WRONG'} {self.subject}: {self.text}"


class FirstBatch(NamedTuple):
    """What was found in a batch; printed, a line for each."""

    findings: tuple[Finding, ...]

    @property
    def right(self) -> bool:
        """Whether nothing looks wrong."""
        return all(finding.right for finding in self.findings)

    @property
    def wrong(self) -> tuple[Finding, ...]:
        """What looks wrong."""
        return tuple(finding for finding in self.findings if not finding.right)

    def __str__(self) -> str:
        return "\n".join(map(str, self.findings))


class Batch(NamedTuple):
    """A batch and what is said of it, on the CPU."""

    ids: Tensor | None
    values: Tensor | None
    padding: Tensor  # (B, L) bool, what the mask calls padding; nowhere without a mask
    has_mask: bool
    special: Tensor  # (B, L) bool, among the special ids, or said to be
    pad_id: int | None
    pad_value: float | None

    @property
    def inputs(self) -> Tensor:
        """What the model reads."""
        inputs = self.ids if self.values is None else self.values
        if inputs is None:
            raise ValueError("ids, values: expected at least one of them; got None and None")
        return inputs

    @property
    def genes(self) -> Tensor:
        """(B, L) bool, neither padding nor special."""
        return ~self.padding & ~self.special
