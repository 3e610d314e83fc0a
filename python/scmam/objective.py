"""What pretraining minimises: hide, inject, reconstruct.

    L = mean over hidden positions of (x - decoder)^2  +  w mean over hidden positions of (x - cell
    head)^2  +  lambda |O|^2

The first term and the penalty are the published objective (PMLR 333:295-311, 2026); the second
predicts each hidden gene from the cell's vector and the gene's embedding alone, which makes the
vector carry what the evaluation reads. With ``loss="nb"`` the squared errors are replaced by the
negative log-likelihood of the raw counts under a negative binomial.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import NegativeBinomial

import mam_kernels as mam
from mam_kernels.corruption import corrupt
from mam_kernels.gene_strategies import HarderFirst
from mam_kernels.integrations.parameter_groups import parameter_groups
from mam_kernels.randomness import substream
from mam_kernels.reward import strategy_reward_loss
from mam_kernels.sequences import Sequences, gather
from mam_kernels.strategies import CellValues, Draw, Masking, MaskingStrategy, masking_entropy

from .config import Config
from .masking import build_strategy
from .model import CellModel, build_model
from .sequences import CellBatch, expression

LATENT_PARAMETERS = ("strategy.", "injection.")


class Losses(NamedTuple):
    """Scalars of a batch; all but ``total`` without gradient."""

    total: Tensor
    reconstruction: Tensor  #: of the decoder, at hidden positions
    cell: Tensor  #: of the cell head, at hidden positions
    penalty: Tensor  #: before its weight
    hidden: Tensor  #: share of the genes that is hidden
    hidden_nonzero: Tensor  #: of the non-zero ones
    hidden_zero: Tensor  #: of the zeros
    entropy: Tensor  #: of the masking distribution; 1 = uniform


class HiddenCells(NamedTuple):
    """A batch of which a part is hidden; each (B, G)."""

    mask: Tensor  #: bool: hidden, to be reconstructed
    corrupted: Tensor  #: float32: the values, random ones in place of some hidden ones
    token: Tensor  #: bool: behind a mask token
    #: bool: read by the encoder; the decoder alone reads ``corrupted`` where it is neither visible
    #: nor behind a token
    visible: Tensor


class Pretraining(nn.Module):
    """A model, a masking strategy and the injection of its context, as one objective.

    Args:
        model: the encoder-decoder.
        strategy: which genes are hidden.
        config: `masking` says how values are corrupted, where the context is injected and what
            teaches the latents, `training` what the loss is, `data.transform` what the model reads.
    """

    def __init__(self, model: CellModel, strategy: MaskingStrategy, config: Config) -> None:
        super().__init__()
        self.model, self.strategy, self.config = model, strategy, config
        self.transform = config.data.transform
        self.injection: mam.ContextInjection | None = None
        scheme, start = config.masking.injection, config.masking.injection_start
        if scheme != "none":
            if strategy.latents is None:
                wanted = "a strategy without latents has no context to inject"
                raise ValueError(f"injection: {wanted}; got {scheme!r}")
            latent_dim = strategy.latents.latent_dim
            self.injection = mam.ContextInjection(latent_dim, model.width, scheme, start=start)

    def forward(self, batch: CellBatch, *, seed: int, step: int, entropy: bool = True) -> Losses:
        """The loss of a batch, a function of (parameters, batch, seed, step) where the model has no
        dropout.

        Sparse CSR counts go to the engine as they are; the model works on the dense values. Without
        the entropy, of which learned masks on values take a third of their time, it is NaN.
        """
        cells = self.cells(expression(batch.counts, batch.depth, self.transform))
        values = cells.values
        draw = Draw(seed, step, batch.cell_ids)
        masking = self.strategy(cells, draw)
        mask, corrupted, token, visible = self.hide(
            values, masking.mask, batch.cell_ids, seed=seed, step=step
        )
        encoder_shift, decoder_shift = (
            (None, None) if self.injection is None else self.injection(masking.context)
        )
        gene_ids = self.model.sample_genes(mask, batch.cell_ids, seed=seed, step=step)
        predicted = self.model.reconstruct(
            corrupted,
            visible,
            token,
            batch.depth,
            encoder_shift=encoder_shift,
            decoder_shift=decoder_shift,
            gene_ids=gene_ids,
        )
        target = values if self.config.training.loss == "mse" else _dense(batch.counts)
        scored = _of_genes(mask, gene_ids)
        errors = self._errors(predicted.genes, _of_genes(target, gene_ids), batch.depth)
        reconstruction = _mean(errors, scored)
        cell = _mean(self._errors(predicted.cell, target, batch.depth), mask)
        detached = errors.detach()
        if isinstance(self.strategy, HarderFirst) and self.training:
            seen = _of_genes(values, gene_ids) != 0
            self.strategy.observe(detached, scored & seen, gene_ids)
        penalty = values.new_zeros(()) if masking.penalty is None else masking.penalty
        if self.config.masking.penalty_norm == "plain":
            # At 0 the root has no slope.
            penalty = (penalty + torch.finfo(penalty.dtype).tiny).sqrt()
        total = reconstruction + self.config.training.cell_loss * cell
        total = torch.add(total, penalty, alpha=self.config.masking.penalty)
        if self.config.masking.gradient == "reward" and torch.is_grad_enabled():
            total = total + self._reward_loss(cells, draw, masking, detached, scored, gene_ids)
        parts = (reconstruction, cell, penalty, *_hidden_shares(values, mask))
        weighting = self.strategy.weighting()
        share = masking_entropy(masking, *weighting) if entropy else values.new_tensor(torch.nan)
        return Losses(total, *(part.detach() for part in (*parts, share)))

    def hide(
        self, values: Tensor, mask: Tensor, cell_ids: Tensor, *, seed: int, step: int
    ) -> HiddenCells:
        """What a mask leaves for the encoder and the decoder to read.

        Args:
            values: (B, G) float32.
            mask: (B, G) bool, as the strategy draws it.
            cell_ids: (B,) int64.
            seed, step: of the draw.
        """
        mask = _keep_something(values, mask)
        how, taken_from = self.config.masking.corruption, self.config.masking.random_values
        corrupted, token = corrupt(
            values, mask, how, cell_ids, seed=seed, step=step, random_values=taken_from
        )
        kept_from_encoder = mask if self.config.masking.corruption_view == "decoder" else token
        visible = (corrupted != 0) & ~kept_from_encoder
        excess = self._excess(visible, cell_ids, seed, step)
        if excess is not None:
            mask, token, visible = mask | excess, token | excess, visible & ~excess
        return HiddenCells(mask, corrupted, token, visible)

    def features(self, batch: CellBatch) -> Tensor:
        """Pooled encoder output (B, feature_dim), nothing hidden; with the context where it is
        injected into the encoder.
        """
        values = expression(batch.counts, batch.depth, self.transform)
        return self.model.features(_dense(values), batch.depth, self.encoder_shift(values))

    @property
    def shifts_encoder(self) -> bool:
        """Whether a context is added to the tokens that the encoder reads."""
        return self.injection is not None and self.injection.scheme != "decoder"

    def encoder_shift(self, values: Tensor) -> Tensor | None:
        """What the encoder's tokens are shifted by (B, 1, width) when nothing is hidden, as in the
        published evaluation; None where no context is injected there.

        Args:
            values: (B, G) float32, dense or sparse CSR.
        """
        latents = self.strategy.latents
        if self.injection is None or latents is None or not self.shifts_encoder:
            return None
        if latents.input_dim is None:
            out = latents(values, num_masked=0, seed=0)
        else:
            dense = _dense(values)
            there = gather(dense, dense != 0)
            out = latents(self._embed(there), there.valid, num_masked=0, seed=0)
        return self.injection(out.context)[0]

    def cells(self, values: Tensor) -> CellValues:
        """Values (B, G), dense or sparse CSR, as the strategy reads them: with this model's
        embeddings.
        """
        return CellValues.of(values, embed=self._embed)

    def parameter_groups(
        self,
        lr: float,
        masking_lr: float,
        weight_decay: float,
        masking_weight_decay: float | None = None,
        rate_groups: str = "masking",
    ) -> list[dict[str, Any]]:
        """Groups for an optimizer: "model", and "masking" (latents, cross-attention, adapters),
        which is left out where empty. With ``rate_groups="published"`` all of the model but the
        encoder and the decoder's blocks is a group of its own, "new", at ``masking_lr``.

        With Adam a weight decay is a gradient, which it rescales like any other: where the loss
        itself gives next to none, as for the slopes of the latents, the decay alone moves a
        parameter, by nearly a full learning rate a step, until the masks are uniform. So the group
        "masking" may have its own; None: the same.
        """
        masking = {
            name for name, _ in self.named_parameters() if name.startswith(LATENT_PARAMETERS)
        }
        groups = parameter_groups(self, masking, lr, masking_lr, weight_decay, masking_weight_decay)
        if rate_groups == "published":
            old = {
                id(parameter)
                for part in (self.model.encoder, self.model.decoder.blocks)
                for parameter in part.parameters()
            }
            model = groups[0]
            new = [parameter for parameter in model["params"] if id(parameter) not in old]
            model["params"] = [parameter for parameter in model["params"] if id(parameter) in old]
            groups.insert(1, {**model, "params": new, "lr": masking_lr, "name": "new"})
        return groups

    def _embed(self, sequences: Sequences) -> Tensor:
        return self.model.embedding(sequences.gene_ids, sequences.values)

    def _excess(self, visible: Tensor, cell_ids: Tensor, seed: int, step: int) -> Tensor | None:
        """What the encoder has no room for (B, G), chosen at random, to be hidden as well; None
        where there is room for all genes.
        """
        limit = self.model.max_encoder_tokens
        if limit is None or limit >= self.model.num_genes:
            return None
        counts = (visible.sum(dim=1) - limit).clamp(min=0)
        return mam.sample_without_replacement(
            visible.float(), counts, seed=substream(seed, "encoder"), step=step, sample_ids=cell_ids
        )

    def _errors(self, predicted: Tensor, target: Tensor, depth: Tensor) -> Tensor:
        """Of each prediction; as ``target``."""
        if self.config.training.loss == "mse":
            return F.mse_loss(predicted[..., 0], target, reduction="none")
        log_mean = predicted[..., 0] + torch.log(depth.clamp(min=1.0))[:, None]
        return negative_binomial_loss(target, log_mean, predicted[..., 1])

    def _reward_loss(
        self,
        cells: CellValues,
        draw: Draw,
        masking: Masking,
        errors: Tensor,
        scored: Tensor,
        gene_ids: Tensor | None,
    ) -> Tensor:
        """A loss that teaches the strategy to hide genes of large error; its value is 0."""
        if gene_ids is not None:  # the errors of some genes, to those of all
            errors = torch.zeros_like(cells.values).scatter(1, gene_ids, errors.float())
            scored = torch.zeros_like(masking.mask).scatter(1, gene_ids, scored)
        scored = scored & masking.mask
        if masking.importance is not None:
            scored = scored & (masking.importance > 0)
        mean = _mean(errors, scored)
        deviation = _mean((errors - mean).square(), scored).sqrt().clamp(min=1e-6)
        reward = (errors - mean) / deviation
        temperature = self.config.masking.reward_temperature
        return strategy_reward_loss(
            self.strategy, cells, draw, masking, reward, temperature=temperature, scored=scored
        )


def negative_binomial_loss(counts: Tensor, log_mean: Tensor, log_dispersion: Tensor) -> Tensor:
    """Negative log-likelihood of counts under a negative binomial of mean ``mu`` and inverse
    dispersion ``theta``, whose variance is ``mu + mu^2 / theta``; elementwise. Both logarithms are
    clamped to [-15, 15], beyond which float32 gradients vanish anyway.
    """
    log_mean, log_theta = log_mean.float().clamp(-15, 15), log_dispersion.float().clamp(-15, 15)
    logits = log_mean - log_theta  # of mu / (mu + theta)
    return -NegativeBinomial(log_theta.exp(), logits=logits, validate_args=False).log_prob(counts)


def build_pretraining(
    config: Config,
    num_genes: int,
    *,
    schedule: Tensor | None = None,
    knowledge: Tensor | None = None,
) -> Pretraining:
    """The objective of a configuration, its weights drawn from ``config.training.seed``; torch's
    own generator is left as it was.

    Model and strategy draw from generators of their own, so runs that differ in masking alone start
    from the same model.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(substream(config.training.seed, "model"))
        model = build_model(config.model, num_genes, loss=config.training.loss)
        torch.manual_seed(substream(config.training.seed, "strategy"))
        width = model.width
        strategy = build_strategy(
            config.masking, width, num_genes, schedule=schedule, knowledge=knowledge
        )
        return Pretraining(model, strategy, config)


def _dense(values: Tensor) -> Tensor:
    """Values (B, G), dense or sparse CSR, as a dense tensor."""
    return values.to_dense() if values.layout == torch.sparse_csr else values


def _of_genes(values: Tensor, gene_ids: Tensor | None) -> Tensor:
    """The columns (B, M) of values (B, G) that the decoder predicts."""
    return values if gene_ids is None else values.gather(1, gene_ids)


def _hidden_shares(values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Shares of all genes, of the non-zeros and of the zeros that are hidden."""
    nonzero = values != 0
    hidden, both, there = mask.sum(), (mask & nonzero).sum(), nonzero.sum()
    zeros = values.numel() - there
    return hidden / values.numel(), both / there.clamp(min=1), (hidden - both) / zeros.clamp(min=1)


def _mean(errors: Tensor, where: Tensor) -> Tensor:
    """Mean over some positions; 0, with a gradient of 0, where there is none."""
    return (errors * where).sum() / where.sum().clamp(min=1)


def _keep_something(values: Tensor, mask: Tensor) -> Tensor:
    """The mask without the rows that would leave the encoder no non-zero gene."""
    return mask & ((values != 0) & ~mask).any(dim=1, keepdim=True)
