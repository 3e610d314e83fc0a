"""``scmam benchmark``: many maskings on many sets of cells."""

from pathlib import Path
from typing import Annotated

import typer

from . import options
from .endings import FAILED, GOES_ON, ends_tidily


@ends_tidily(GOES_ON)
@options.settable("seeds", "jobs", "scheduler", "steps")
def benchmark(
    *,
    out: Annotated[Path, options.out("FOLDER", "of the benchmark, new or to be continued")],
    data: Annotated[
        list[Path] | None,
        options.own("--data", "FILE", "an .h5ad file; may be repeated; none: pbmc68k_reduced"),
    ] = None,
    example: Annotated[
        bool, typer.Option("--example", help="scanpy's pbmc68k_reduced too, beside --data")
    ] = False,
    genes: Annotated[
        str, typer.Option(metavar="N,N", help="most variable genes of each data set")
    ] = "300",
    arms: Annotated[
        str,
        typer.Option(
            metavar="A,B",
            help="grid (shares, zeros, corruption), strategies, all, names, or patterns like 50-*",
        ),
    ] = "all",
    curve: Annotated[
        int | None,
        options.own(
            "--curve",
            "STEPS",
            "score runs after every so many steps too, for learning curves",
            least=1,
        ),
    ] = None,
    until: Annotated[
        float | None,
        options.own("--until", "POINTS", "add seeds until each 95 % interval is +- so many points"),
    ] = None,
    most_seeds: Annotated[
        int, typer.Option(metavar="N", min=2, help="of an arm on a data set, with --until")
    ] = 16,
    given: options.Given,
    quiet: options.Quiet = False,
) -> None:
    """Benchmark maskings: arms x data sets x seeds, paired, as tables and a page of pictures.

    Every arm is pretrained with every seed on every data set, and its embedding is scored: a linear
    probe and nearest neighbours over ten splits, the adjusted Rand index of k-means, the silhouette
    of the cell types. 30 % of the cells are set aside to choose settings on, and scored apart.
    Shares of the non-zeros are 15, 30, 50, 70 and 85 %; of the zeros a tenth of it, the same, or
    none; behind mask tokens, or 80/10/10 in the decoder's input. Stop it at any moment and start
    the same command again: only what is missing is done. Add arms, seeds and data sets by naming
    them; other settings need another folder. With --until, arms get seeds beyond --seeds until
    their difference to uniform (linear probe) is known to so many points, or --most-seeds are
    reached. A run takes some 15 s of one core at 300 genes.
    `--set 'evaluation.methods=\\[fine-tuning]'` fine-tunes each model too, which takes 1.6 times as
    long as pretraining it.

    Writes FOLDER/: config.yaml, benchmark.json, scores/ (a file a run), logs/, runs.csv (every
    score), summary.csv (means over seeds, differences paired by seed against uniform over all
    positions and against uniform at the same shares, with 95 % intervals), choices.csv (the arm
    that is best on the cells set aside, and its score on the others), with --curve curves.csv, and
    benchmark.html.

    Examples

      scmam benchmark --data cells.h5ad --out benchmark --jobs 8
      scmam benchmark --data a.h5ad --data b.h5ad --arms '*-tenth,random-ratio' --out shares
      scmam benchmark --arms grid --genes 300,2000 --seeds 0-7 --out benchmark
      scmam benchmark --arms 50-tenth,mam --seeds 0-4 --until 1 --out decided
      scmam benchmark --out benchmark --scheduler tcp://host:8786   on a dask cluster
    """
    from ..benchmark.arms import SETTINGS
    from ..benchmark.folder import DataSet
    from ..benchmark.page import draw_page
    from ..benchmark.running import benchmark as run

    settings = options.configuration(*given, SETTINGS)
    paths = [str(path.absolute()) for path in data or ()]
    files: list[str | None] = [*([None] if example or not paths else []), *paths]
    sizes = options.numbers(genes, "--genes") or ()
    sets = [DataSet(path, size) for size in sizes for path in files]
    asked = options.names(arms) or ("all",)
    outcomes = run(
        settings,
        sets,
        out,
        arms=asked,
        curve=curve,
        until=until,
        most_seeds=most_seeds,
        progress=not quiet,
    )
    if any((out / "scores").glob("*/*/seed-*.json")):
        print(f"Pictures: {draw_page(out)}")
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    for outcome in failed:
        print(f"  {outcome.task.name}: {outcome.error} (log: {outcome.task.log})")
    if failed:
        raise typer.Exit(FAILED)
