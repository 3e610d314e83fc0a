"""Bring the scores of benchmark folders into the repository, with the tables that follow from them.

python -m benchmarks.maskings FOLDER ...     # of `scmam benchmark`, all of the same settings, or
                                             # of results that are here, to be kept beside them
python -m benchmarks.pictures                # then the pictures,
python -m benchmarks.tables                  # and the tables of the documentation
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import pandas
from scmam.benchmark.folder import RECORD, read_curves, read_runs
from scmam.benchmark.summary import CHOICES, CURVES, RUNS, SUMMARY, write_tables

from . import results

MASKINGS = results.COMMITTED / "maskings"


def main(arguments: list[str] | None = None) -> int:
    """Write the tables from the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.maskings", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--out", type=Path, default=MASKINGS, help="default: the committed results")
    chosen = parser.parse_args(arguments)
    runs, curves = (
        _joined([_rows(one, read, table) for one in chosen.folders])
        for read, table in ((read_runs, RUNS), (read_curves, CURVES))
    )
    chosen.out.mkdir(parents=True, exist_ok=True)
    write_tables(chosen.out, runs, curves)
    number = len(runs[["data", "genes", "arm", "seed"]].drop_duplicates())
    print(f"{number} runs: {', '.join((RUNS, SUMMARY, CHOICES, CURVES))} in {chosen.out}")
    return 0


def _rows(folder: Path, read: Callable[[Path], pandas.DataFrame], table: str) -> pandas.DataFrame:
    """The scores of a benchmark, or those that were brought into the repository."""
    if (folder / RECORD).is_file() or not (folder / table).is_file():
        return read(folder)
    return pandas.read_csv(folder / table)


def _joined(tables: list[pandas.DataFrame]) -> pandas.DataFrame:
    """The rows of several folders; of a run that several have, those of the first."""
    rows = pandas.concat([one for one in tables if len(one)] or tables[:1], ignore_index=True)
    return rows.drop_duplicates([column for column in rows if column != "value"])


if __name__ == "__main__":
    raise SystemExit(main())
