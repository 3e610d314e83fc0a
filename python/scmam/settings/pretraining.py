"""Settings of a run: the cells, the model, what is hidden, and how it is trained."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from .section import Count, Layers, Natural, NotNegative, Positive, Ratio, Section, Width


class Data(Section):
    """The cells, and how they are prepared."""

    path: Path | Annotated[tuple[Path, ...], Field(min_length=1)] | None = None
    """an .h5ad file, a folder of them, or a list of them with the same genes; null: scanpy's
    pbmc68k_reduced
    """

    counts: str = "auto"
    """where the raw counts are: auto, X, raw, or the name of a layer"""
    label: str | None = None
    """column of .obs with the cell types; null: found by name where only one fits"""
    donor: str | None = None
    """column of .obs with the donor or batch; folds are then grouped by it"""
    transform: Literal["log1p_counts", "log1p_cp10k"] = "log1p_counts"
    """what the model sees: log1p of raw counts, or of counts per 10,000"""
    genes: Literal["all", "variable", "vocabulary"] = "all"
    """which genes are taken"""
    num_genes: Count = 2000
    """how many, with genes: variable"""
    vocabulary: Path | None = None
    """a text file with a gene name a line, with genes: vocabulary"""
    min_genes: Natural = 0
    """drop cells with fewer non-zero genes"""
    min_cells: Natural = 0
    """drop genes that are not zero in fewer cells"""
    max_mito: Ratio | None = None
    """drop cells with a larger share of mitochondrial counts (genes MT-*, mt-*)"""
    min_class: Natural = 0
    """drop cells of classes with fewer cells; 0 keeps all"""
    backed: Literal["auto", "always", "never"] = "auto"
    """read rows from the file when they are needed; auto: when its matrix takes more than 2 GiB"""
    shuffle_block: Count | None = None
    """cells next to each other in the file that are drawn together: more of them are read faster
    from a compressed file; null: 16 when its matrix takes more than 2 GiB, else 1
    """

    @model_validator(mode="after")
    def _complete(self) -> "Data":
        if (self.genes == "vocabulary") != (self.vocabulary is not None):
            raise ValueError(
                "genes: vocabulary and a vocabulary file go together; give both or neither"
            )
        return self


class Model(Section):
    """The encoder-decoder. Null takes the value of the size."""

    size: Literal["tiny", "small", "base", "paper"] = "tiny"
    """preset of the values below"""
    width: Width | None = None
    """of the embeddings"""
    heads: Width | None = None
    """of the self-attention; divides the width"""
    encoder_layers: Layers | None = None
    """blocks of the encoder"""
    decoder_layers: Layers | None = None
    """blocks of the decoder"""
    bins: Width | None = None
    """soft bins of the value embedding"""
    max_encoder_tokens: Count | None = None
    """genes of a cell that the encoder sees at most; the excess is hidden"""
    decoder_genes: Count | None = None
    """genes of a cell that the decoder predicts at most, hidden ones first"""
    recompute: bool | None = None
    """compute activations again in the backward pass: less memory, a third more time"""
    depth: Literal["token", "none"] = "token"
    """whether the log of a cell's total count enters as a token of its own"""
    dropout: Ratio = 0.0
    """in the blocks, while training"""


MATCHED = ("matched", "replayed", "permuted")
"""Strategies that take what they hide from another run."""


class Masking(Section):
    """Which genes are hidden, what replaces them, and how the latents' context is used."""

    strategy: Literal[
        "none",
        "uniform",
        "expression",
        "mam",
        "mam-embedding",
        "matched",
        "modules",
        "harder",
        "labels",
        "replayed",
        "permuted",
    ] = "uniform"
    """none: no pretraining; uniform; expression: in proportion to the value; mam: by the latents'
    attention to values; mam-embedding: to gene and value embeddings of the non-zero genes; matched:
    uniform, at the hidden fractions of another run; modules: co-expressed genes together; harder:
    genes that are predicted worse more often; labels: genes that tell the cell types apart more
    often, which uses the labels; replayed: each gene as often as another run hides it in the end;
    permuted: the same, exchanged among genes of about equal mean
    """
    ratio: Ratio = 0.3
    """share of the positions that is hidden; of the non-zeros where zero_ratio is given"""
    ratio_to: Ratio | None = None
    """each cell draws its ratio between ratio and this, and its share of the zeros in the same
    proportion; null: all cells alike
    """

    zero_ratio: Ratio | None = None
    """share of the zeros that is hidden; null: zeros and non-zeros are drawn together"""
    matched_to: str | None = None
    """with strategy matched, replayed or permuted: the arm, or the run folder, whose hidden
    fractions are taken
    """

    corruption: Literal["all", "80/10/10", "90/10"] = "80/10/10"
    """what stands at hidden positions: the mask token; the mask token at 80 % of them, a random
    value at 10 %, the true one at 10 %; or the mask token at 90 %, a random value at 10 %
    """

    corruption_view: Literal["decoder", "both"] = "decoder"
    """who reads the values that stand at hidden positions: the decoder alone, as published, while
    the encoder reads visible non-zeros; or both
    """

    random_values: Literal["observed", "uniform"] = "observed"
    """what a random value is. observed: a non-zero value of the same cell; uniform: U times the
    largest value of the batch, as published
    """

    injection: Literal["none", "encoder", "decoder", "both", "separate"] = "none"
    """where the context is added"""
    injection_start: Literal["random", "zero", "published"] = "random"
    """first weights of the injection's adapters; zero: the context comes in as far as training
    wants it; published: Xavier, without bias
    """

    context_from: Literal["all", "visible"] = "all"
    """all: as published, hidden values included; visible: without them"""
    gradient: Literal["none", "reward"] = "none"
    """what teaches the latents which genes to hide; none: only what their context and penalty do,
    as published; reward: the error at the genes that were hidden, with strategy mam-embedding
    """

    reward_temperature: Positive = 1.0
    """with gradient reward: in standard deviations of the error; the smaller, the more the masks
    prefer genes of large error
    """

    temperature: Positive = 1.0
    """1 is the published method, smaller is sharper"""
    slope_norm: Positive | None = None
    """fix the root mean square of the slopes at this; null: as trained"""
    latent_fraction: Ratio | None = None
    """share of the latents that decide a mask; null: ratio, as published"""
    latent_dim: Width = 256
    """width of the latents"""
    num_latents: Width = 128
    """number of latents"""
    latent_heads: Width = 8
    """heads of their attention; divides latent_dim"""
    latent_start: Literal["standard", "published"] = "standard"
    """first weights of latents and projection; standard: latents of standard deviation 1;
    published: of 0.02, and Xavier without bias
    """
    penalty: NotNegative = 1e-5
    """weight of the norm of the attended output in the loss"""
    penalty_norm: Literal["squared", "plain"] = "squared"
    """squared: the mean over cells of the squared norm; plain: its root, which is what the
    published code takes, for batches of one cell
    """

    @model_validator(mode="after")
    def _complete(self) -> "Masking":
        if (self.strategy in MATCHED) != (self.matched_to is not None):
            raise ValueError(
                f"strategy: {', '.join(MATCHED)} and matched_to go together; give both or neither"
            )
        if self.ratio_to is not None and self.ratio_to < self.ratio:
            raise ValueError(
                f"ratio_to: expected at least ratio = {self.ratio}; got {self.ratio_to}"
            )
        if self.strategy == "mam-embedding" and self.zero_ratio is None:
            raise ValueError(
                "strategy: mam-embedding draws among the non-zero genes; give zero_ratio (0 hides"
                " no zero)"
            )
        if self.gradient == "reward" and self.strategy != "mam-embedding":
            raise ValueError(
                f"gradient: reward requires strategy mam-embedding; got {self.strategy}"
            )
        return self


class Training(Section):
    """Pretraining."""

    start_from: Path | None = None
    """a run folder or an exported model, whose encoder-decoder training continues from; genes are
    matched by name; null: from random weights
    """

    steps: Natural = 400
    """optimizer steps"""
    batch_size: Count = 32
    """cells a step, on each process"""
    accumulate: Count = 1
    """batches whose gradients are added before a step"""
    lr: Positive = 3e-3
    """learning rate of the encoder and decoder"""
    masking_lr: Positive = 3e-3
    """learning rate of latents, cross-attention and adapters"""
    rate_groups: Literal["masking", "published"] = "masking"
    """what learns at masking_lr. masking: latents, cross-attention and adapters; published:
    embeddings, the decoder's input and final norm, and the heads too
    """

    warmup: Ratio = 0.1
    """share of the steps in which the learning rate rises from 0"""
    schedule: Literal["cosine", "constant"] = "cosine"
    """the learning rate after the warmup: it falls to 0, or stays"""
    amsgrad: bool = False
    """Adam with amsgrad, as published"""
    weight_decay: NotNegative = 5e-4
    """of Adam, whose step it enters as a gradient"""
    masking_weight_decay: NotNegative | None = None
    """of latents, cross-attention and adapters; null: weight_decay, which can flatten their masks;
    0: none
    """
    clip: NotNegative = 1.0
    """largest norm of the gradient; 0: not clipped"""
    loss: Literal["mse", "nb"] = "mse"
    """mse on transformed values; nb: negative binomial on counts"""
    cell_loss: NotNegative = 1.0
    """weight of the second head, which predicts genes from the cell embedding"""
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    """32-bit, or mixed with 16-bit (autocast)"""
    validation: Ratio = 0.1
    """share of the cells kept aside to watch the loss; 0: none"""
    validate_every: Count = 100
    """steps"""
    patience: Count | None = None
    """stop after this many validations without improvement, and keep the best weights; null: never
    """

    keep: Literal["last", "best"] = "last"
    """the weights that are kept: the last, or those of the best validation"""
    cells: Literal["all", "training"] = "all"
    """which cells are seen: all, without their labels; or all but the test cells of
    evaluation.protocol: published
    """

    checkpoint_every: Count = 200
    """steps"""
    seed: Natural = 0
    """of the initial weights, the order of the cells and the masks"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU where there is one"""
    devices: Count = 1
    """processes, each with a device, on a machine"""
    num_nodes: Count = 1
    """machines, started by torchrun or SLURM"""
    workers: Natural = 0
    """processes that read cells ahead; for large backed files"""
    tensorboard: bool = False
    """write TensorBoard logs beside the CSV"""

    @property
    def keeps_best(self) -> bool:
        """Whether the weights of the best validation are kept."""
        return self.patience is not None or self.keep == "best"

    @property
    def decay_of_latents(self) -> float:
        """Weight decay of latents, cross-attention and adapters."""
        return self.weight_decay if self.masking_weight_decay is None else self.masking_weight_decay
