"""Hugging Face: masked-language models of ``transformers`` (BERT-like, as Geneformer is), trained
by ``Trainer`` or ``accelerate``.

The collator only pads. Masking happens on the device, inside the model that is trained.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from ..masking import MultinomialAttentionMasking
from . import core
from .backbone import (
    built,
    name_of,
    require_mask_token,
    require_masked_language_model,
    stored_weights,
    width_of,
)
from .checking import FirstBatch, check_batch
from .formats import BatchFormat, require_ids

if TYPE_CHECKING:
    from transformers import PretrainedConfig as Config
else:  # the second is how it is spelled up to version 4
    Config = getattr(transformers, "PreTrainedConfig", None) or transformers.PretrainedConfig


class MamConfig(Config):
    """Configuration of ``MamForMaskedLM``.

    Args:
        backbone: the configuration of the model inside, as a dict.
        architecture: the name of its class in ``transformers``, or "module:class" of another.
        mask_token_id: id of the mask token.
        special_token_ids: ids that are never hidden and that latents do not attend to: padding,
            mask, begin, end and the like.
        masking: arguments of ``mam_kernels.MultinomialAttentionMasking``, as ``{"mask_ratio": 0.15,
            "num_latents": 128}``; its ``mask_ratio`` is 0.15 where none is given, and ``input_dim``
            is that of the embeddings.
        corruption: "80/10/10", as in BERT; "all"; "90/10"; or the shares of mask token and random
            token.
        tokens_from: name of the submodule that makes of ``input_ids`` the embeddings which the
            latents attend to, as "bert.embeddings", which knows ranks too; None: the model's input
            embeddings.
        injection: "encoder": the context is added to the token embeddings; "none".
        injection_start: first weights of its adapter, "random" or "zero".
        penalty_weight: of the latents' squared output norm in the loss.
        masking_seed: of the masks; None: from torch's generator.
    """

    model_type = "mam"

    def __init__(
        self,
        backbone: Mapping[str, Any] | None = None,
        architecture: str = "BertForMaskedLM",
        mask_token_id: int | None = None,
        special_token_ids: Sequence[int] = (),
        masking: Mapping[str, Any] | None = None,
        corruption: str | Sequence[float] = "80/10/10",
        tokens_from: str | None = None,
        injection: str = "encoder",
        injection_start: str = "random",
        penalty_weight: float = core.PENALTY,
        masking_seed: int | None = 0,
        **options: Any,
    ) -> None:
        self.backbone = dict(backbone or {})
        self.architecture = architecture
        self.mask_token_id = mask_token_id
        self.special_token_ids = list(special_token_ids)
        self.masking = {"mask_ratio": 0.15, **(masking or {})}
        self.corruption = corruption if isinstance(corruption, str) else list(corruption)
        self.tokens_from = tokens_from
        self.injection, self.injection_start = injection, injection_start
        self.penalty_weight, self.masking_seed = penalty_weight, masking_seed
        super().__init__(**options)


class MamForMaskedLM(PreTrainedModel):
    """A masked-language model with its masking learned: ``loss`` is that of the model at hidden
    tokens plus the penalty.

    ``save_pretrained``, ``from_pretrained`` and the checkpoints of ``Trainer`` hold the model, the
    masking and how many batches were masked. ``wrapped.model.save_pretrained(folder)`` writes the
    model by itself, as it would be without masking.

    Args:
        config: of the wrapper.
        model: what is wrapped; None: one with random weights, of ``config.backbone``.
    """

    config_class = MamConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    accepts_loss_kwargs = False  # the number of predicted tokens is not known before the masking
    supports_gradient_checkpointing = True

    def __init__(self, config: MamConfig, model: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        self.model = built(config) if model is None else model
        require_masked_language_model(self.model)
        vocab_size = self.model.get_output_embeddings().weight.shape[0]
        mask_token_id = require_mask_token(config, vocab_size)
        config.tie_word_embeddings = getattr(self.model.config, "tie_word_embeddings", True)
        tied = getattr(self.model, "_tied_weights_keys", None)
        if isinstance(tied, (list, tuple, set)):  # up to version 4, which does not look inside
            patterns: Any = list(tied)  # which are searched for
            self._tied_weights_keys = patterns
        width = self.model.get_input_embeddings().weight.shape[1]
        seen = (
            width
            if config.tokens_from is None
            else width_of(self.model.get_submodule(config.tokens_from), config.tokens_from)
        )
        self.masking = core.MaskingStep(
            MultinomialAttentionMasking(input_dim=seen, **config.masking),
            mask_value=mask_token_id,
            embed_dim=width,
            corruption=config.corruption
            if isinstance(config.corruption, str)
            else tuple(config.corruption),
            random_ids=set(range(vocab_size)) - {*config.special_token_ids, mask_token_id},
            scheme=config.injection,
            injection_start=config.injection_start,
            seed=config.masking_seed,
            batches=BatchFormat(
                "hugging-face",
                "input_ids",
                "attention_mask",
                "token",
                tuple(sorted({*config.special_token_ids, mask_token_id})),
            ),
        )
        if model is not None:
            modules: Iterable[Any] = model.modules()
            for module in modules:  # so that post_init leaves its weights as they came
                module._is_hf_initialized = True
        self.post_init()

    @classmethod
    def wrap(
        cls,
        model: PreTrainedModel,
        *,
        mask_token_id: int | None,
        special_token_ids: Iterable[int],
        **options: Any,
    ) -> "MamForMaskedLM":
        """Wrap a model, whose weights stay as they are.

        Args:
            model: with a masked-language-modeling head.
            mask_token_id, special_token_ids: of its vocabulary: ``tokenizer.mask_token_id``,
                ``tokenizer.all_special_ids``.
            **options: further arguments of ``MamConfig``.

        Raises:
            TypeError, ValueError: the model is not a masked-language model, or the vocabulary has
                no mask token.
        """
        require_masked_language_model(model)
        config = MamConfig(
            model.config.to_dict(),
            name_of(type(model)),
            mask_token_id=mask_token_id,
            special_token_ids=list(special_token_ids),
            **options,
        )
        device: Any = model.device  # the types of transformers hide what ``to`` takes
        return cls(config, model).to(device)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str,
        *arguments: Any,
        model: PreTrainedModel | None = None,
        **options: Any,
    ) -> "MamForMaskedLM":
        """Read what ``save_pretrained`` wrote; arguments as of ``transformers``.

        Args:
            pretrained_model_name_or_path: a folder, or a name in the hub.
            *arguments: as there.
            model: of the class that was wrapped, whose weights are replaced; needed where that
                class cannot be imported. None: it is built.
            **options: as there.
        """
        if model is None:
            return super().from_pretrained(pretrained_model_name_or_path, *arguments, **options)
        # Theirs would build on a meta device, and leave buffers that no file holds as they fall.
        wrapped = cls(cls.config_class.from_pretrained(pretrained_model_name_or_path), model)
        missing, unexpected = wrapped.load_state_dict(
            stored_weights(pretrained_model_name_or_path), strict=False
        )
        wrapped.tie_weights()
        tensors = wrapped.state_dict(keep_vars=True)
        held = {id(tensor) for name, tensor in tensors.items() if name not in missing}
        lacking = [name for name in missing if id(tensors[name]) not in held]
        if lacking or unexpected:
            raise ValueError(
                f"model: expected the class that was saved in {pretrained_model_name_or_path}; "
                f"{type(model).__name__} lacks {unexpected[:3]}, and the file {lacking[:3]}"
            )
        return wrapped.eval()

    def mask_batch(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        sample_ids: Tensor | None = None,
        seed: int | Tensor | None = None,
        step: int | Tensor | None = None,
    ) -> core.MaskedBatch:
        """The masked batch of ``forward``; arguments as there."""
        require_ids(
            "input_ids",
            input_ids,
            self.model.get_input_embeddings().weight.shape[0],
            self.masking.device,
        )
        embed = (
            self.model.get_input_embeddings()
            if self.config.tokens_from is None
            else self.model.get_submodule(self.config.tokens_from)
        )
        return self.masking.mask(
            input_ids,
            embeddings=embed(input_ids),
            ids=input_ids,
            padding_mask=attention_mask,
            seed=seed,
            step=step,
            sample_ids=sample_ids,
        )

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        sample_ids: Tensor | None = None,
        seed: int | Tensor | None = None,
        step: int | Tensor | None = None,
        return_loss: bool = True,
        **model_arguments: Any,
    ) -> ModelOutput:
        """Mask a batch and predict what was hidden.

        Args:
            input_ids: (B, L) int64, nothing masked.
            attention_mask: (B, L), 1 = token, 0 = padding. None: no padding.
            sample_ids: (B,) int64, a stable id of each cell; masks follow (seed, step, sample id).
                None: the index of the row.
            seed, step: of the masks. None: ``config.masking_seed``, and the number of batches
                trained on (0 in evaluation).
            return_loss: True; ``Trainer`` asks for it.
            **model_arguments: passed to the model: ``position_ids``, ``output_hidden_states`` and
                the like.

        Returns:
            The model's own output; ``logits`` are at all positions, ``loss`` is with the penalty.

        Raises:
            TypeError, ValueError: an argument is not as above.
        """
        if not return_loss:
            raise ValueError(
                "return_loss: expected True; call the model inside, wrapped.model, for outputs "
                "without masking"
            )
        for name in ("labels", "inputs_embeds"):
            if model_arguments.pop(name, None) is not None:
                raise ValueError(
                    f"{name}: expected None, since masking makes them; pass input_ids as they are, "
                    "padded by PaddingCollator"
                )
        masked = self.mask_batch(input_ids, attention_mask, sample_ids, seed, step)
        embeddings = self.model.get_input_embeddings()(masked.inputs)
        if masked.encoder_shift is not None:
            embeddings = embeddings + masked.encoder_shift.to(embeddings.dtype)
        model_arguments = {**model_arguments, "return_dict": True}
        output = self.model(
            inputs_embeds=embeddings,
            attention_mask=attention_mask,
            labels=masked.labels.long(),
            **model_arguments,
        )
        output.loss = output.loss + self.config.penalty_weight * masked.penalty
        return output

    def parameter_groups(
        self,
        lr: float,
        masking_lr: float,
        weight_decay: float = 0.0,
        masking_weight_decay: float | None = None,
    ) -> list[dict[str, Any]]:
        """Two groups for an optimizer, "model" and "masking", each with its learning rate and
        weight decay (None: the same).
        """
        return self.masking.parameter_groups(
            self.model, lr, masking_lr, weight_decay, masking_weight_decay
        )

    def check(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> FirstBatch:
        """Whether a batch is what ``forward`` takes it for."""
        return check_batch(
            self.masking,
            ids=input_ids,
            padding_mask=attention_mask,
            vocab_size=self.model.get_input_embeddings().weight.shape[0],
        )

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        return self.model.get_output_embeddings()

    def _init_weights(self, module: nn.Module) -> None:
        """The masking draws its own; the model inside does too."""
