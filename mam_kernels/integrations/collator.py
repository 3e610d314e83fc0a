"""A collator that pads, and leaves masking to the device."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


class PaddingCollator:
    """Pads tokenised cells to the longest of a batch, and leaves masking to the device.

    Args:
        pad_token_id: id of the padding token.
        pad_to_multiple_of: of the length of a batch.

    Raises:
        ValueError: when called, for an example without ``input_ids`` or of no token.
    """

    def __init__(self, pad_token_id: int, pad_to_multiple_of: int = 1) -> None:
        self.pad_token_id, self.pad_to_multiple_of = pad_token_id, pad_to_multiple_of

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """From examples with ``input_ids`` (and ``sample_ids``, an int) to ``input_ids``,
        ``attention_mask`` (and ``sample_ids``).
        """
        for index, example in enumerate(examples):
            if "input_ids" not in example or not len(example["input_ids"]):
                raise ValueError(
                    "examples: expected at least one token in input_ids of each; "
                    f"got {sorted(example)} at {index} without any"
                )
        sequences = [
            torch.as_tensor(example["input_ids"], dtype=torch.int64) for example in examples
        ]
        longest = max(map(len, sequences))
        longest += -longest % self.pad_to_multiple_of
        input_ids = torch.full((len(sequences), longest), self.pad_token_id, dtype=torch.int64)
        attention_mask = torch.zeros_like(input_ids)
        for row, sequence in enumerate(sequences):
            input_ids[row, : len(sequence)] = sequence
            attention_mask[row, : len(sequence)] = 1
        batch = {"input_ids": input_ids, "attention_mask": attention_mask}
        if all("sample_ids" in example for example in examples):
            batch["sample_ids"] = torch.tensor([int(example["sample_ids"]) for example in examples])
        return batch
