"""Every setting, its unit and its default, by sections."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Ratio = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Width = Annotated[int, Field(ge=1, le=2**16)]
Layers = Annotated[int, Field(ge=1, le=2**10)]
Natural = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]


class Section(BaseModel):
    """Settings that belong together.

    Unknown names are errors, and a section is never changed in place.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Data(Section):
    """The cells, and how they are prepared."""

    path: Path | Annotated[tuple[Path, ...], Field(min_length=1)] | None = Field(
        None,
        description="an .h5ad file, a folder of them, or a list of them with the same genes; null:"
        " scanpy's pbmc68k_reduced",
    )
    counts: str = Field(
        "auto", description="where the raw counts are: auto, X, raw, or the name of a layer"
    )
    label: str | None = Field(
        None,
        description="column of .obs with the cell types; null: found by name where only one fits",
    )
    donor: str | None = Field(
        None, description="column of .obs with the donor or batch; folds are then grouped by it"
    )
    transform: Literal["log1p_counts", "log1p_cp10k"] = Field(
        "log1p_counts",
        description="what the model sees: log1p of raw counts, or of counts per 10,000",
    )
    genes: Literal["all", "variable", "vocabulary"] = Field(
        "all", description="which genes are taken"
    )
    num_genes: Count = Field(2000, description="how many, with genes: variable")
    vocabulary: Path | None = Field(
        None, description="a text file with a gene name a line, with genes: vocabulary"
    )
    min_genes: Natural = Field(0, description="drop cells with fewer non-zero genes")
    min_cells: Natural = Field(0, description="drop genes that are not zero in fewer cells")
    max_mito: Ratio | None = Field(
        None,
        description="drop cells with a larger share of mitochondrial counts (genes MT-*, mt-*)",
    )
    min_class: Natural = Field(0, description="drop cells of classes with fewer cells; 0 keeps all")
    backed: Literal["auto", "always", "never"] = Field(
        "auto",
        description="read rows from the file when they are needed; auto: when its matrix takes"
        " more than 2 GiB",
    )
    shuffle_block: Count | None = Field(
        None,
        description="cells next to each other in the file that are drawn together: more of them"
        " are read faster from a compressed file; null: 16 when its matrix takes more than 2 GiB,"
        " else 1",
    )

    @model_validator(mode="after")
    def _complete(self) -> "Data":
        if (self.genes == "vocabulary") != (self.vocabulary is not None):
            raise ValueError(
                "genes: vocabulary and a vocabulary file go together; give both or neither"
            )
        return self


class Model(Section):
    """The encoder-decoder. Null takes the value of the size."""

    size: Literal["tiny", "small", "base", "paper"] = Field(
        "tiny", description="preset of the values below"
    )
    width: Width | None = Field(None, description="of the embeddings")
    heads: Width | None = Field(None, description="of the self-attention; divides the width")
    encoder_layers: Layers | None = Field(None, description="blocks of the encoder")
    decoder_layers: Layers | None = Field(None, description="blocks of the decoder")
    bins: Width | None = Field(None, description="soft bins of the value embedding")
    max_encoder_tokens: Count | None = Field(
        None, description="genes of a cell that the encoder sees at most; the excess is hidden"
    )
    decoder_genes: Count | None = Field(
        None, description="genes of a cell that the decoder predicts at most, hidden ones first"
    )
    recompute: bool | None = Field(
        None,
        description="compute activations again in the backward pass: less memory, a third more"
        " time",
    )
    depth: Literal["token", "none"] = Field(
        "token", description="whether the log of a cell's total count enters as a token of its own"
    )
    dropout: Ratio = Field(0.0, description="in the blocks, while training")


class Masking(Section):
    """Which genes are hidden, what replaces them, and how the latents' context is used."""

    strategy: Literal["none", "uniform", "expression", "mam", "mam-embedding", "matched"] = Field(
        "mam",
        description="none: no pretraining; uniform; expression: in proportion to the value; mam:"
        " by the latents' attention to values; mam-embedding: to gene and value embeddings of the"
        " non-zero genes; matched: uniform, at the hidden fractions of another run",
    )
    ratio: Ratio = Field(
        0.3,
        description="share of the positions that is hidden; of the non-zeros where zero_ratio is"
        " given",
    )
    zero_ratio: Ratio | None = Field(
        None,
        description="share of the zeros that is hidden; null: zeros and non-zeros are drawn"
        " together",
    )
    matched_to: str | None = Field(
        None,
        description="with strategy matched: the arm, or the run folder, whose hidden fractions are"
        " taken",
    )
    corruption: Literal["all", "80/10/10", "90/10"] = Field(
        "all",
        description="what stands at hidden positions: the mask token; the mask token at 80 % of"
        " them, a random value at 10 %, the true one at 10 %; or the mask token at 90 %, a random"
        " value at 10 %",
    )
    corruption_view: Literal["decoder", "both"] = Field(
        "decoder",
        description="who reads the values that stand at hidden positions: the decoder alone, as"
        " published, while the encoder reads visible non-zeros; or both",
    )
    random_values: Literal["observed", "uniform"] = Field(
        "observed",
        description="what a random value is. observed: a non-zero value of the same cell; uniform:"
        " U times the largest value of the batch, as published",
    )
    injection: Literal["none", "encoder", "decoder", "both", "separate"] = Field(
        "none", description="where the context is added"
    )
    injection_start: Literal["random", "zero"] = Field(
        "random",
        description="first weights of the injection's adapters; zero: the context comes in as far"
        " as training wants it",
    )
    context_from: Literal["all", "visible"] = Field(
        "all", description="all: as published, hidden values included; visible: without them"
    )
    gradient: Literal["none", "reward"] = Field(
        "none",
        description="what teaches the latents which genes to hide; none: only what their context"
        " and penalty do, as published; reward: the error at the genes that were hidden, with"
        " strategy mam-embedding",
    )
    reward_temperature: Positive = Field(
        1.0,
        description="with gradient reward: in standard deviations of the error; the smaller, the"
        " more the masks prefer genes of large error",
    )
    temperature: Positive = Field(1.0, description="1 is the published method, smaller is sharper")
    slope_norm: Positive | None = Field(
        None, description="fix the root mean square of the slopes at this; null: as trained"
    )
    latent_fraction: Ratio | None = Field(
        None, description="share of the latents that decide a mask; null: ratio, as published"
    )
    latent_dim: Width = Field(256, description="width of the latents")
    num_latents: Width = Field(128, description="number of latents")
    latent_heads: Width = Field(8, description="heads of their attention; divides latent_dim")
    penalty: NotNegative = Field(
        1e-5, description="weight of the mean squared norm of the attended output in the loss"
    )

    @model_validator(mode="after")
    def _complete(self) -> "Masking":
        if (self.strategy == "matched") != (self.matched_to is not None):
            raise ValueError("strategy: matched and matched_to go together; give both or neither")
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

    steps: Natural = Field(400, description="optimizer steps")
    batch_size: Count = Field(32, description="cells a step, on each process")
    accumulate: Count = Field(1, description="batches whose gradients are added before a step")
    lr: Positive = Field(3e-3, description="learning rate of the encoder and decoder")
    masking_lr: Positive = Field(
        3e-3, description="learning rate of latents, cross-attention and adapters"
    )
    warmup: Ratio = Field(
        0.1,
        description="share of the steps in which the learning rate rises from 0; it falls to 0"
        " along a cosine",
    )
    weight_decay: NotNegative = Field(
        5e-4, description="of Adam, whose step it enters as a gradient"
    )
    masking_weight_decay: NotNegative | None = Field(
        None,
        description="of latents, cross-attention and adapters; null: weight_decay, which can"
        " flatten their masks; 0: none",
    )
    clip: NotNegative = Field(1.0, description="largest norm of the gradient; 0: not clipped")
    loss: Literal["mse", "nb"] = Field(
        "mse", description="mse on transformed values; nb: negative binomial on counts"
    )
    cell_loss: NotNegative = Field(
        1.0, description="weight of the second head, which predicts genes from the cell embedding"
    )
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = Field(
        "32-true", description="32-bit, or mixed with 16-bit (autocast)"
    )
    validation: Ratio = Field(
        0.1, description="share of the cells kept aside to watch the loss; 0: none"
    )
    validate_every: Count = Field(100, description="steps")
    patience: Count | None = Field(
        None,
        description="stop after this many validations without improvement, and keep the best"
        " weights; null: never",
    )
    checkpoint_every: Count = Field(200, description="steps")
    seed: Natural = Field(
        0, description="of the initial weights, the order of the cells and the masks"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="auto: a GPU where there is one"
    )
    devices: Count = Field(1, description="processes, each with a device, on a machine")
    num_nodes: Count = Field(1, description="machines, started by torchrun or SLURM")
    workers: Natural = Field(
        0, description="processes that read cells ahead; for large backed files"
    )
    tensorboard: bool = Field(False, description="write TensorBoard logs beside the CSV")

    @property
    def decay_of_latents(self) -> float:
        """Weight decay of latents, cross-attention and adapters."""
        return self.weight_decay if self.masking_weight_decay is None else self.masking_weight_decay


class Evaluation(Section):
    """Cell-type classification from the pretrained encoder."""

    methods: tuple[Literal["linear-probe", "fine-tuning"], ...] = Field(
        ("linear-probe", "fine-tuning"),
        description="a linear classifier of the frozen features; embeddings, last block and a head"
        " trained",
    )
    folds: int = Field(5, ge=2, description="of the cross-validation")
    fold_seed: Natural = Field(
        0,
        description="of the split into folds; the same for all runs, so that differences are"
        " paired",
    )
    development: Ratio = Field(
        0.0,
        lt=1,
        description="share of the labelled cells, of each class alike, that is set aside to choose"
        " settings on; 0: none",
    )
    part: Literal["rest", "development"] = Field(
        "rest",
        description="which cells are scored: those not set aside, or, while settings are chosen,"
        " those set aside",
    )
    train_cells: Count | None = Field(
        None,
        description="labelled cells that a fold trains on at most, of each class alike; null: all",
    )
    hidden: Width = Field(256, description="hidden units of the fine-tuned head")
    epochs: Count = Field(10, description="of fine-tuning")
    batch_size: Count = Field(32, description="cells a step of fine-tuning")
    lr: Positive = Field(1e-3, description="of fine-tuning")
    head_input: Literal["whitened", "standardised"] = Field(
        "whitened",
        description="what the fine-tuned head reads: features along their principal axes, or each"
        " for itself, at variance 1",
    )
    max_tokens: Count | None = Field(
        None, description="non-zero genes of a cell that are read at most; null: as the model"
    )

    @model_validator(mode="after")
    def _complete(self) -> "Evaluation":
        if self.part == "development" and not self.development:
            raise ValueError(
                "part: development needs a share of the cells; give evaluation.development, 0.3"
                " for example"
            )
        return self


class Study(Section):
    """A comparison of arms: each arm is a name and the masking settings in which it differs."""

    arms: tuple[str, ...] = Field(
        ("none", "uniform", "mam"), description="what is compared; scmam config --arms lists them"
    )
    custom: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="own arms: a name, and settings of `masking` (and `training.NAME`,"
        " `model.NAME`, `evaluation.NAME`) for it",
    )
    seeds: tuple[Natural, ...] = Field(
        (0, 1, 2), description="every arm is run with each, so differences are paired"
    )
    reference: str = Field("uniform", description="the arm that differences are taken against")
    baselines: tuple[Literal["logistic-regression", "pca"], ...] = Field(
        ("logistic-regression", "pca"),
        description="classifiers of log1p of counts per 10,000 itself, and of its 64 principal"
        " components",
    )
    jobs: Count = Field(2, description="runs at a time, each on an equal share of the cores")
    scheduler: str | None = Field(
        None,
        description="address of a dask scheduler whose workers do the runs, such as"
        " tcp://host:8786; null: this machine",
    )
    retries: Natural = Field(
        1, description="how often a run whose process died is started again, from its checkpoint"
    )


class Config(Section):
    """All settings."""

    data: Data = Data()
    model: Model = Model()
    masking: Masking = Masking()
    training: Training = Training()
    evaluation: Evaluation = Evaluation()
    study: Study = Study()
