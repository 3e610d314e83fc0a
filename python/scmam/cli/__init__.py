"""The command ``scmam``: it parses, calls the Python function of each command, and prints.

Help and completion import neither torch nor anndata: every command imports what it needs when it
runs.
"""

import inspect
from collections.abc import Sequence

import typer

from . import benchmarks, look, runs, studies

app = typer.Typer(
    name="scmam",
    no_args_is_help=True,
    rich_markup_mode="rich",
    # a defect shows Python's own traceback, which can be sent to the maintainers as it is
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 140},
)


MANUAL = """
Pretrain single-cell transformers with masks that learn, and compare them with masks that do not.

From a file to a comparison that can be shown:

  scmam inspect cells.h5ad                     what it holds, where counts are
  scmam compare --data cells.h5ad --out study  the whole study, and a report

Many maskings on many sets of cells:

  scmam benchmark --data cells.h5ad --out DIR  what to hide, measured

One model by itself:

  scmam pretrain --data cells.h5ad --out run   a model, its losses, its masks
  scmam evaluate run                           how well it tells cell types
  scmam genes run                              which genes its masks hide
  scmam report run                             a page to look at
  scmam export run model.safetensors           one file to keep or pass on

Without --data each takes scanpy's 700 labelled blood cells. Every setting can come from a YAML file
(`scmam config > study.yaml` writes one with all of them explained); flags go before the file.

Exit status: 0 done; 1 something failed, and is listed; 2 wrong input, or no place to write to, said
in one line; 130 interrupted.
"""


def reflowed(text: str) -> str:
    """A docstring as a page of help: the lines of each paragraph joined, examples as they are."""
    paragraphs = inspect.cleandoc(text).split("\n\n")
    return "\n\n".join(x if x.startswith(" ") else " ".join(x.split("\n")) for x in paragraphs)


@app.callback(help=reflowed(MANUAL))
def _top() -> None:
    """Options of the command itself: none but those of Typer."""


for command in (
    *(look.inspect, look.config),
    *(runs.pretrain, runs.evaluate, runs.genes, runs.export),
    *(studies.compare, studies.report, studies.demo),
    *(benchmarks.benchmark, look.doctor),
):
    app.command(help=reflowed(command.__doc__ or ""))(command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line, by default with the arguments of the process; ends by `SystemExit`, as
    console scripts do.
    """
    app(args=None if arguments is None else list(arguments), prog_name="scmam")
