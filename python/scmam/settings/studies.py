"""Settings of the evaluation, and of a comparison of arms."""

from typing import Annotated, Any, Literal, get_args

from pydantic import Field, model_validator

from .section import Count, Fraction, Natural, Positive, Ratio, Section, Width

Method = Literal["linear-probe", "mlp-probe", "fine-tuning"]
METHODS: tuple[str, ...] = get_args(Method)
"""How cell types are predicted from an encoder."""
SPLIT = ("test", "fold_seed", "development", "part")
"""Settings of the evaluation that decide which cells protocol "published" tests on."""


class Evaluation(Section):
    """Cell-type classification from the pretrained encoder."""

    methods: tuple[Method, ...] = ("linear-probe", "fine-tuning")
    """linear-probe: a linear classifier of the frozen features; mlp-probe: the published head on
    the frozen encoder; fine-tuning: embeddings, a block and a head learn
    """

    protocol: Literal["folds", "published"] = "folds"
    """folds: cross-validation; published: one test set, scored on as many bootstraps of it as folds
    says, and fine-tuning by the published recipe (max pooling, batch norm, Adam with amsgrad, class
    weights, early stop)
    """

    folds: Annotated[int, Field(ge=2)] = 5
    """of the cross-validation, or bootstraps of the test set"""
    fold_seed: Natural = 0
    """of the split into folds, or into training and test cells; the same for all runs, so that
    differences are paired
    """

    test: Fraction = 0.2
    """share of the scored cells that protocol published tests on, of each class alike"""
    validation: Fraction = 0.1
    """share of the training cells that the published recipe stops early by"""
    patience: Count = 5
    """epochs without improvement that the published recipe stops after"""
    block: Annotated[int, Field(lt=0)] = -1
    """which block of the encoder is fine-tuned, counted from the last, which is -1; published: -2
    """

    development: Annotated[Ratio, Field(lt=1)] = 0.0
    """share of the labelled cells, of each class alike, that is set aside to choose settings on; 0:
    none
    """

    part: Literal["rest", "development"] = "rest"
    """which cells are scored: those not set aside, or, while settings are chosen, those set aside
    """

    train_cells: Count | None = None
    """labelled cells that a fold trains on at most, of each class alike; null: all"""
    hidden: Width = 256
    """hidden units of the head"""
    epochs: Count = 10
    """of fine-tuning, at most where it stops early"""
    batch_size: Count = 32
    """cells a step of fine-tuning"""
    lr: Positive = 1e-3
    """of fine-tuning; published: 1e-4"""
    head_input: Literal["whitened", "standardised"] = "whitened"
    """what the fine-tuned head reads: features along their principal axes, or each for itself, at
    variance 1
    """

    max_tokens: Count | None = None
    """non-zero genes of a cell that are read at most; null: as the model"""

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

    arms: tuple[str, ...] = ("none", "uniform", "uniform-half", "mam")
    """what is compared; scmam config --arms lists them"""
    custom: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """own arms: a name, and settings of `masking` (and `training.NAME`, `model.NAME`,
    `evaluation.NAME`) for it
    """

    seeds: tuple[Natural, ...] = (0, 1, 2)
    """every arm is run with each, so differences are paired"""
    reference: str = "uniform"
    """the arm that differences are taken against"""
    baselines: tuple[Literal["logistic-regression", "pca"], ...] = ("logistic-regression", "pca")
    """classifiers of log1p of counts per 10,000 itself, and of its 64 principal components"""
    jobs: Count = 2
    """runs at a time, each on an equal share of the cores"""
    scheduler: str | None = None
    """address of a dask scheduler whose workers do the runs, such as tcp://host:8786; null: this
    machine
    """

    retries: Natural = 1
    """how often a run whose process died is started again, from its checkpoint"""
