"""``scmam compare``, ``report`` and ``demo``: whole studies and their reports."""

from pathlib import Path
from typing import Annotated

import typer

from ..errors import ConfigError
from ..study.folder import Study
from .endings import ends_tidily
from .manual import add_command
from .options import (
    Assignments,
    BatchSize,
    ConfigFile,
    Counts,
    DataFile,
    Device,
    Donor,
    Folds,
    Label,
    Methods,
    Quiet,
    Size,
    StartFrom,
    Steps,
    configuration,
    given,
    setting,
)

SOMETHING_FAILED = 1
GOES_ON = (
    "runs that were finished are kept, others go on from their last checkpoint, by the same command"
)


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    for command in (compare, report, demo):
        add_command(app, command)


@ends_tidily(GOES_ON)
def compare(
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", metavar="STUDY", help="folder of the study, new or to be gone on with"
        ),
    ],
    data: DataFile = None,
    label: Label = None,
    donor: Donor = None,
    counts: Counts = None,
    arms: Annotated[
        str | None,
        setting(
            "study.arms",
            "--arms",
            metavar="A,B",
            help="what is compared; see `scmam config --arms`",
        ),
    ] = None,
    seeds: Annotated[
        str | None,
        setting(
            "study.seeds",
            "--seeds",
            metavar="0-4,7",
            help="every arm is run with each; numbers and ranges",
        ),
    ] = None,
    reference: Annotated[
        str | None, setting("study.reference", "--reference", metavar="ARM")
    ] = None,
    baselines: Annotated[
        str | None,
        setting(
            "study.baselines",
            "--baselines",
            metavar="A,B",
            help="classifiers of the data itself; '' for none",
        ),
    ] = None,
    jobs: Annotated[int | None, setting("study.jobs", "--jobs", metavar="N")] = None,
    scheduler: Annotated[
        str | None, setting("study.scheduler", "--scheduler", metavar="ADDRESS")
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            "--protocol",
            metavar="published",
            help="the paper's table: its settings and eleven arms, beside an untrained model, where"
            " file and flags say nothing else; needs --start-from",
            show_default=False,
        ),
    ] = None,
    start_from: StartFrom = None,
    size: Size = None,
    steps: Steps = None,
    batch_size: BatchSize = None,
    methods: Methods = None,
    folds: Folds = None,
    device: Device = None,
    config: ConfigFile = None,
    assignments: Assignments = None,
    genes: Annotated[
        bool,
        typer.Option(
            "--genes/--no-genes", help="of each arm's first seed, also what its masks hide"
        ),
    ] = True,
    quiet: Quiet = False,
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
    flags = given(locals())
    from ..study import compare as run
    from ..study import published

    if protocol not in (None, "published"):
        raise ConfigError(f"--protocol: expected published; got {protocol!r}")
    settings = configuration(config, assignments, flags, published.SETTINGS if protocol else None)
    study = run(settings, out, interpret=genes, progress=not quiet)
    _conclude(study)


@ends_tidily("no report was written; the same command starts again")
def report(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="a study, or a single run")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", metavar="FILE.html", help="where; default: report.html in the folder"
        ),
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
    from ..report import write_report
    from ..study import is_study, summarize

    if is_study(folder):
        summarize(folder)
    print(f"Report: {write_report(folder, out)}")


@ends_tidily(GOES_ON)
def demo(
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", metavar="STUDY", help="folder to write, new or to be gone on with"
        ),
    ] = Path("report"),
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", min=1, help="runs at a time (default: 2)", show_default=False),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Show everything on 700 real blood cells: a small study with its report, in some minutes on
    two cores.

    Takes scanpy's pbmc68k_reduced, which comes with it: nothing is downloaded. Pretrains with
    uniform masks over all genes, with the default masks (half of the non-zeros, few zeros) and with
    MAM, three seeds each, predicts cell types in folds, looks at which genes are hidden, writes
    STUDY/report.html as `scmam compare` does, and prints the comparison
    last. Its models are small and shortly trained: it shows the way, and is no measurement of the
    method.

    Examples

      scmam demo
      scmam demo --out /tmp/demo --jobs 4
    """
    from ..demo import run

    _conclude(run(out, jobs=jobs, progress=not quiet))


def _conclude(study: Study) -> None:
    """The report, the comparison, and last what failed."""
    from ..report import write_report
    from ..study import summary_text
    from ..study.published import verdict

    page = write_report(study.folder) if study.finished() else None
    if page is not None:
        parts = (summary_text(study), verdict(study.summary()), f"Report: {page}")
        print("\n" + "\n\n".join(part for part in parts if part is not None))
    if study.failures:
        print(f"\n{len(study.failures)} failed; the same command tries them again:")
        for failure in study.failures:
            print(f"  {failure.task}: {failure.message} (log: {failure.log})")
        raise typer.Exit(SOMETHING_FAILED)
