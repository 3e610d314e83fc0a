"""``scmam doctor``: check and describe this installation."""

from typing import Annotated

import typer

from .endings import FAILED, ends_tidily
from .options import Quiet


@ends_tidily("nothing was changed")
def doctor(
    fast: Annotated[
        bool, typer.Option("--fast", help="versions, devices and backends only; no validation run")
    ] = False,
    quiet: Quiet = False,
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
    from ..doctor import examine

    examination = examine(validation=not fast, progress=not quiet)
    print(examination.as_text())
    if not examination.ok:
        raise typer.Exit(FAILED)
