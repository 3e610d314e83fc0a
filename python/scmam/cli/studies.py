"""``scmam compare``, ``report`` and ``demo``: whole studies and their reports."""

from pathlib import Path
from typing import Annotated

import typer

from ..errors import ConfigError
from ..study.folder import Study
from . import options
from .endings import FAILED, GOES_ON, ends_tidily


@ends_tidily(GOES_ON)
@options.settable(
    *("data", "label", "donor", "counts", "arms", "seeds", "reference", "baselines", "jobs"),
    *("scheduler", "start_from", "size", "steps", "batch_size", "methods", "folds", "device"),
)
def compare(
    *,
    out: Annotated[Path, options.out("STUDY", "folder of the study, new or to be continued")],
    protocol: Annotated[
        str | None,
        options.own(
            "--protocol",
            "published",
            "the paper's table: its settings and eleven arms, beside an untrained model, where file"
            " and flags say nothing else; needs --start-from",
        ),
    ] = None,
    given: options.Given,
    genes: Annotated[
        bool,
        typer.Option(
            "--genes/--no-genes", help="of each arm's first seed, also what its masks hide"
        ),
    ] = True,
    quiet: options.Quiet = False,
) -> None:
    """Run the whole study: every arm with every seed, evaluated, beside baselines, with differences
    paired by seed.

    Reads an .h5ad file with a column of cell types. Each run is pretrained and evaluated in a
    process of its own, --jobs at a time on equal shares of the cores, and is kept as it finishes:
    stop at any moment, start the same command again, and only what is missing is done. With
    --scheduler the workers of a dask cluster do the runs; they need scmam and the folder STUDY
    under the same path. A run whose process dies is started again from its last checkpoint. More
    arms and seeds can be added to a study by naming them; other settings need another folder. One
    run that fails does not end the others; it is listed last, and the exit status is 1.

    Writes STUDY/: config.yaml, study.json, runs/ARM/seed-N/ (as `scmam pretrain` and `scmam
    evaluate` write them), baselines/, logs/, results.csv (a line per arm, seed, fold and method),
    summary.csv (means, 95 % Student-t intervals over seeds, paired differences to the reference arm
    with interval and p value) and report.html.

    Examples

      scmam compare --data cells.h5ad --out study
      scmam compare --data cells.h5ad --arms uniform,mam --seeds 0-9 --out study
      scmam compare --config study.yaml --out study --jobs 8
      scmam compare --out study --scheduler tcp://host:8786   on a dask cluster
      scmam compare --out try --steps 50 --seeds 0,1    the 700 example cells
      scmam compare --protocol published --start-from RUN --data cells.h5ad --out table
    """
    from ..study import published
    from ..study.comparison import compare as run

    if protocol not in (None, "published"):
        raise ConfigError(f"--protocol: expected published; got {protocol!r}")
    defaults = published.SETTINGS if protocol else None
    study = run(options.configuration(*given, defaults), out, interpret=genes, progress=not quiet)
    _conclude(study)


@ends_tidily("no report was written; the same command starts again")
def report(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="a study, or a single run")],
    out: Annotated[
        Path | None, options.out("FILE.html", "where; default: report.html in the folder")
    ] = None,
) -> None:
    """Write the report of a study or of a run: one HTML file that opens without a network.

    Reads the files of the folder and computes nothing of the models again. For a study its tables
    (results.csv, summary.csv) are brought up to date first, also while it is still running. The
    page shows what was run on what, loss curves, the comparison with intervals, confusion matrices,
    pictures of masks, a map of the cells, and times.

    Examples

      scmam report study
      scmam report runs/mam --out mam.html
    """
    from ..report.page import write_report
    from ..study.folder import is_study
    from ..study.statistics import summarize

    if is_study(folder):
        summarize(folder)
    print(f"Report: {write_report(folder, out)}")


@ends_tidily(GOES_ON)
def demo(
    out: Annotated[Path, options.out("STUDY", "folder to write, new or to be continued")] = Path(
        "report"
    ),
    jobs: Annotated[int | None, typer.Option(min=1, help="runs at a time (default: 2)")] = None,
    quiet: options.Quiet = False,
) -> None:
    """Show everything on 700 real blood cells: a small study with its report, in some minutes on
    two cores.

    Takes scanpy's pbmc68k_reduced, which comes with it: nothing is downloaded. Pretrains with
    uniform masks over all genes, the default, with half of the non-zeros and few zeros hidden, and
    with MAM, three seeds each, predicts cell types in folds, looks at which genes are hidden,
    writes STUDY/report.html as `scmam compare` does, and prints the comparison last. Its models
    are small and shortly trained: it shows the way, and is no measurement of the method.

    Examples

      scmam demo
      scmam demo --out /tmp/demo --jobs 4
    """
    from ..demo import run

    _conclude(run(out, jobs=jobs, progress=not quiet))


def _conclude(study: Study) -> None:
    """The report, the comparison, and last what failed."""
    from ..report.page import write_report
    from ..study.published import verdict
    from ..study.table import summary_text

    page = write_report(study.folder) if study.finished() else None
    if page is not None:
        parts = (summary_text(study), verdict(study.summary()), f"Report: {page}")
        print("\n" + "\n\n".join(part for part in parts if part is not None))
    if study.failures:
        print(f"\n{len(study.failures)} failed; the same command tries them again:")
        for failure in study.failures:
            print(f"  {failure.task}: {failure.message} (log: {failure.log})")
        raise typer.Exit(FAILED)
