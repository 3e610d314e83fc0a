"""The model inside ``MamForMaskedLM``: what it has to be, and how it is found again."""

import importlib
import inspect
import json
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import MODEL_FOR_MASKED_LM_MAPPING, AutoConfig, PreTrainedModel
from transformers.utils import cached_file


def require_masked_language_model(model: object) -> None:
    """A ``PreTrainedModel`` that predicts tokens of its own vocabulary, each from both sides, and
    reads ``inputs_embeds``.
    """
    if not isinstance(model, PreTrainedModel):
        raise TypeError(
            "model: expected a transformers.PreTrainedModel with a masked-language-modeling head; "
            f"got {type(model).__name__}"
        )
    name = type(model).__name__
    known = type(model) in MODEL_FOR_MASKED_LM_MAPPING.values()
    if model.get_output_embeddings() is None:
        raise ValueError(
            f"model: expected a masked-language model, as BertForMaskedLM; got {name}, "
            "which has no head that predicts tokens"
        )
    if model.config.is_encoder_decoder or (model.can_generate() and not known):
        raise ValueError(
            f"model: expected a masked-language model, as BertForMaskedLM; got {name}, "
            "which generates text"
        )
    accepted = inspect.signature(model.forward).parameters
    missing = [
        argument
        for argument in ("inputs_embeds", "attention_mask", "labels")
        if argument not in accepted
    ]
    if missing:
        raise ValueError(
            "model: expected a forward that takes inputs_embeds, attention_mask and labels; "
            f"{name} lacks {', '.join(missing)}"
        )


def require_mask_token(config: Any, vocab_size: int) -> int:
    """The id of the mask token, which is checked as the special ones are."""
    if config.mask_token_id is None:
        raise ValueError(
            "mask_token_id: expected the id of a mask token; got None: add one to the vocabulary, "
            "and resize the embeddings"
        )
    for name, ids in (
        ("mask_token_id", [config.mask_token_id]),
        ("special_token_ids", config.special_token_ids),
    ):
        outside = [i for i in ids if not 0 <= i < vocab_size]
        if outside:
            raise ValueError(
                f"{name}: expected ids in [0, {vocab_size}), the model's vocabulary; "
                f"got {outside[0]}"
            )
    return config.mask_token_id


def name_of(kind: type) -> str:
    """By which ``built`` finds a class again."""
    if getattr(transformers, kind.__name__, None) is kind:
        return kind.__name__
    return f"{kind.__module__}:{kind.__qualname__}"


def built(config: Any) -> PreTrainedModel:
    """The model of a configuration, with random weights."""
    module, _, name = config.architecture.rpartition(":")
    try:
        architecture: Any = importlib.import_module(module) if module else transformers
        for part in name.split("."):
            architecture = getattr(architecture, part)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"architecture: expected a class of transformers; got {config.architecture!r}: "
            "pass model= beside the folder"
        ) from error
    return architecture(AutoConfig.for_model(**config.backbone))


def stored_weights(folder: str) -> dict[str, Tensor]:
    """The tensors of a saved model, in one file or several."""
    from safetensors.torch import load_file

    index = cached_file(
        folder, "model.safetensors.index.json", _raise_exceptions_for_missing_entries=False
    )
    names = ["model.safetensors"]
    if index is not None:
        with open(index, encoding="utf-8") as file:
            names = sorted(set(json.load(file)["weight_map"].values()))
    weights: dict[str, Tensor] = {}
    for name in names:
        path = cached_file(folder, name)
        if path is None:
            raise FileNotFoundError(f"{folder}: expected a folder that holds {name}; got none")
        weights |= load_file(path)
    return weights


def width_of(module: nn.Module, name: str) -> int:
    """The last dimension of what a module makes of token ids."""
    parameter = next(module.parameters())
    with torch.no_grad():
        made = module(torch.zeros(1, 1, dtype=torch.int64, device=parameter.device))
    if not isinstance(made, Tensor) or made.dim() != 3:
        raise ValueError(
            "tokens_from: expected a submodule from input_ids (B, L) to embeddings (B, L, D); "
            f"got {name!r}"
        )
    return made.shape[2]
