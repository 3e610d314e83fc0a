"""``scmam inspect``, ``config`` and ``doctor``: look before anything runs."""

import json
from pathlib import Path
from typing import Annotated

import typer

from . import options
from .endings import FAILED, ends_tidily


@ends_tidily("nothing was written")
@options.settable("label", "donor", "counts")
def inspect(
    *,
    file: Annotated[
        Path | None,
        typer.Argument(metavar="FILE.h5ad", help="the file; without it, scanpy's pbmc68k_reduced"),
    ] = None,
    given: options.Given,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON, for programs")] = False,
) -> None:
    """Say what an AnnData file holds, before anything is run on it.

    Reads FILE.h5ad in bounded memory and prints every place where raw counts could be (X, layers,
    .raw) with what is found there and which one is taken, how many values are not zero, how many
    counts and genes a cell has, the columns of .obs that could be cell types or donors with the
    sizes of their classes, and warnings: what would be refused and which setting helps. Nothing is
    written.

    Examples

      scmam inspect cells.h5ad
      scmam inspect cells.h5ad --counts counts_layer --label cell_type
      scmam inspect cells.h5ad --json | jq .warnings
      scmam inspect                  the example cells that come with scanpy
    """
    flags = given.flags | {"data.path": file}
    settings = options.configuration(given.file, given.assignments, flags)
    from ..data import inspect as look

    inspection = look(settings=settings.data)
    print(json.dumps(inspection.as_dict(), indent=2) if as_json else inspection.as_text())


@ends_tidily("nothing was written")
@options.settable()
def config(
    *,
    given: options.Given,
    arms: Annotated[
        bool, typer.Option("--arms", help="list the arms that a study can compare, instead")
    ] = False,
) -> None:
    """Print every setting with what it means, what it may be, its default and its value.

    What is printed is a YAML file for --config of the other commands. With --config or --set it is
    that configuration, resolved and checked, as it is saved with every run.

    Examples

      scmam config > study.yaml                  a file to start from
      scmam config --config study.yaml           checked, and completed
      scmam config --set training.steps=2000 > long.yaml
      scmam config --arms
    """
    from .settings_text import commented_yaml

    if arms:
        from ..study.arms import ARMS

        width = max(map(len, ARMS)) + 2
        print("\n".join(f"{name:{width}}{arm.what}" for name, arm in ARMS.items()))
    else:
        print(commented_yaml(options.configuration(*given)), end="")


@ends_tidily("nothing was changed")
def doctor(
    fast: Annotated[
        bool, typer.Option("--fast", help="versions, devices and backends only; no validation run")
    ] = False,
    quiet: options.Quiet = False,
) -> None:
    """Check this installation: versions, devices, masking backends, and a short pretraining on real
    cells.

    Compares every masking backend of this machine with the reference, and pretrains a tiny model
    twice for some steps on scanpy's pbmc68k_reduced in a temporary folder: the loss has to be
    finite and to fall, the masks have to be valid, and both runs have to be equal. Prints a line
    for each check; send it along when you report a defect. Exit status 1 if anything is wrong.

    Examples

      scmam doctor
      scmam doctor --fast
    """
    from ..doctor import examine, summary

    checks = examine(validation=not fast, progress=not quiet)
    print(summary(checks))
    if not all(check.ok for check in checks):
        raise typer.Exit(FAILED)
