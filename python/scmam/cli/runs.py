"""``scmam pretrain``, ``evaluate``, ``genes`` and ``export``: commands on one model."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..config import Config
from . import options
from .endings import ends_tidily

if TYPE_CHECKING:
    from ..evaluation.scores import Evaluation
    from ..interpretation.folder import Interpretation

SHOWN_GENES = 10

RunFolder = Annotated[
    Path, typer.Argument(metavar="RUN", help="folder of a run, as `scmam pretrain` writes it")
]
MovedData = Annotated[
    Path | None,
    options.own("--data", "FILE.h5ad", "other cells than those of the run, or its file, moved"),
]


@ends_tidily("the last checkpoint is kept; the same command goes on from there")
@options.settable(
    *("data", "label", "donor", "counts", "strategy", "injection", "start_from", "size", "steps"),
    *("batch_size", "lr", "seed", "device"),
)
def pretrain(
    *,
    out: Annotated[Path, options.out("RUN", "folder of the run, new or to be continued")],
    arm: Annotated[
        str | None,
        options.own("--arm", "NAME", "a set of masking settings; see `scmam config --arms`"),
    ] = None,
    given: options.Given,
    quiet: options.Quiet = False,
) -> None:
    """Pretrain one model on the cells of a file, with one way of masking.

    Reads an .h5ad file (see `scmam inspect`) and writes the folder RUN: config.yaml (every setting,
    resolved), run.json (versions, times, sizes), genes.txt, metrics.csv (losses and what was
    hidden, step by step), checkpoints/ and model.pt (the final weights). Cell types are not used.
    An interrupted run goes on from its last checkpoint by the same command, with the same masks and
    losses; a finished one is left as it is; a folder of other settings is refused.

    Examples

      scmam pretrain --data cells.h5ad --out runs/mam
      scmam pretrain --data cells.h5ad --arm uniform --seed 1 --out runs/u1
      scmam pretrain --data cells.h5ad --start-from model.safetensors --out runs/more
      scmam pretrain --config my.yaml --set training.clip=0 --out runs/2
      scmam pretrain --out runs/example             the 700 example cells
    """
    settings = options.configuration(*given)
    if arm is not None:
        settings = _as_arm(settings, arm, "masking.strategy" in given.flags)
    from ..training import pretrain as train

    run = train(settings, out, progress=not quiet)
    print(
        f"Run: {run.folder} ({run.record['steps']} steps on {run.record['cells']} cells in"
        f" {run.record['seconds']:.0f} s)"
    )
    print(f"Next: scmam evaluate {run.folder}; scmam genes {run.folder}; scmam report {run.folder}")


def _as_arm(settings: Config, arm: str, has_strategy: bool) -> Config:
    from ..errors import ConfigError
    from ..study.arms import arm_config

    if has_strategy:
        raise ConfigError("--arm and --strategy both say how to mask; give one of them")
    settings = arm_config(settings, arm, settings.training.seed)
    target = settings.masking.matched_to
    if target is not None and not Path(target).is_dir():
        raise ConfigError(
            f"--arm {arm} takes the hidden fractions of another run; give --set"
            " masking.strategy=matched --set masking.matched_to=RUN"
        )
    return settings


@ends_tidily("methods that were finished are kept; the same command does the rest")
@options.settable("label", "donor", "methods", "folds", file=False)
def evaluate(
    *, run: RunFolder, data: MovedData = None, given: options.Given, quiet: options.Quiet = False
) -> None:
    """Predict cell types from a pretrained encoder, by cross-validation.

    Reads the folder RUN and the cells that it was trained on (or --data), which need a column of
    cell types. A linear probe is a logistic regression on the frozen features; partial fine-tuning
    trains the embeddings, the last encoder block and a two-layer head. Folds keep the shares of the
    classes, and are grouped by donor where a donor column is named. Writes RUN/evaluation/: a JSON
    file for each method (scores and confusion matrix of every fold) and the features of all cells.
    A method that is there with the same settings is not computed again.

    Examples

      scmam evaluate runs/mam
      scmam evaluate runs/mam --methods linear-probe --folds 10
      scmam evaluate runs/mam --label cell_type --set evaluation.epochs=20
    """
    from ..data import open_cells
    from ..evaluation.folder import evaluate as score
    from ..runs import open_run

    opened = open_run(run)
    settings = _changed(opened.config, given, data)
    cells = open_cells(settings.data, need_label=True)
    evaluations = score(opened, cells, settings.evaluation, progress=not quiet)
    print(_evaluations_text(evaluations.values()))
    print(f"Written: {opened.folder / 'evaluation'}")


@ends_tidily("nothing was written; the same command starts again")
@options.settable(file=False)
def genes(
    *,
    run: RunFolder,
    data: MovedData = None,
    draws: Annotated[int, typer.Option(min=1, help="masks of every cell")] = 20,
    gmt: Annotated[
        Path | None,
        options.own("--gmt", "FILE.gmt", "gene sets, tested among the genes that are hidden most"),
    ] = None,
    top: Annotated[
        int, typer.Option(min=1, help="genes, hidden most, that are tested against the gene sets")
    ] = 100,
    seed: Annotated[int, typer.Option(min=0, help="of the masks")] = 0,
    given: options.Given,
    quiet: options.Quiet = False,
) -> None:
    """Say which genes the masks of a run hide, for all cells and by cell type.

    Reads the folder RUN and its cells (or --data), draws masks of every cell with the trained
    latents, and writes RUN/genes/: frequencies.csv and frequencies_by_type.csv (how often each gene
    is hidden, beside its mean expression), latents.json (entropy of the masks, overlap of the
    latents' attention, warnings where they collapsed), masks.npz (some cells, for pictures), plots
    as PNG, and with --gmt enrichment.csv: gene sets over-represented among the genes hidden most,
    computed offline with the genes of the run as background.

    Examples

      scmam genes runs/mam
      scmam genes runs/mam --gmt c7.immunesigdb.gmt --top 200
    """
    from ..data import open_cells
    from ..interpretation.folder import interpret
    from ..runs import open_run

    opened = open_run(run)
    cells = open_cells(_changed(opened.config, given, data).data)
    found = interpret(opened, cells, draws=draws, gmt=gmt, top=top, seed=seed, progress=not quiet)
    print(_genes_text(found))
    print(f"Written: {found.folder}")


@ends_tidily("nothing was written; the same command starts again")
def export(
    run: RunFolder,
    out: Annotated[
        Path, typer.Argument(metavar="OUT.safetensors", help="the file; what is there is replaced")
    ],
) -> None:
    """Write the model of a finished run to one file, to be kept, passed on and used without the
    folder.

    Reads the folder RUN and writes OUT.safetensors: the weights of the encoder-decoder, the masking
    and the injection, and in its header the settings and the genes. The file holds no cells, and of
    paths only the names. In Python, scmam.load_model("OUT.safetensors").embed(cells) gives the
    features that `scmam evaluate` classifies.

    Examples

      scmam export runs/mam mam.safetensors
    """
    from ..runs import open_run
    from ..weights import export_model

    opened = open_run(run)
    path = export_model(opened, out)
    print(
        f"Written: {path} ({opened.record['parameters']:,} parameters, {len(opened.genes):,}"
        f" genes, {path.stat().st_size / 1e6:.1f} MB)"
    )
    print(f'Next: scmam.load_model("{path}") in Python')


def _changed(config: Config, given: options.Given, data: Path | None) -> Config:
    """The configuration of a run with what this call changes."""
    flags, own = given.flags | {"data.path": data}, config.model_dump(mode="json")
    return options.configuration(None, given.assignments, flags, defaults=own)


def _evaluations_text(evaluations: Iterable["Evaluation"]) -> str:
    """A line per method: mean and standard deviation over its folds, in per cent."""
    lines = [
        f"{'method':22}{'accuracy':>14}{'macro-F1':>14}{'micro-F1':>14}   (per cent, mean ±"
        " standard deviation over the folds)"
    ]
    for evaluation in evaluations:
        line = f"{evaluation.method:22}"
        for metric in ("accuracy", "macro_f1", "micro_f1"):
            scores = 100 * evaluation.values(metric)
            line += f"{f'{scores.mean():.1f} ± {scores.std(ddof=1):.1f}':>14}"
        lines.append(line)
    return "\n".join(lines)


def _genes_text(found: "Interpretation") -> str:
    """The genes hidden most, how far the masks are from uniform, and warnings."""
    most = found.frequencies.nlargest(SHOWN_GENES, "hidden")
    lines = [f"{'gene':20}{'hidden':>10}{'mean expression':>18}{'detected':>10}"]
    lines += [
        f"{row.gene:20}{row.hidden:>10.1%}{row.mean_expression:>18.3f}{row.detected:>10.1%}"
        for row in most.itertuples()
    ]
    summary = found.latents
    if summary["spearman"] is not None:
        lines.append(
            f"Spearman correlation of hidden with mean expression: {summary['spearman']:+.2f}"
        )
    if summary["entropy"] is not None:
        lines.append(
            f"entropy of the masking distribution: {summary['entropy']:.4f} of its maximum, which"
            " is uniform"
        )
    if (scatter := summary["dispersion"]) is not None:
        chance = f"uniform draws: {scatter['low']:.2f} to {scatter['high']:.2f}"
        lines.append(f"variance over genes, chi^2/df: {scatter['chi_square']:.2f} ({chance})")
    lines += [f"warning: {warning}" for warning in found.warnings]
    return "\n".join(lines)
