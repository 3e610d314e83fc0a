"""``python -m mam_kernels.integrations check FRAMEWORK``: train the example of its page."""

import argparse
import importlib
import sys
from pathlib import Path

from .examples import NAMES
from .formats import FRAMEWORKS


def main(arguments: list[str] | None = None) -> int:
    """Check a framework; 0 where all is as its page says."""
    parser = argparse.ArgumentParser(prog="python -m mam_kernels.integrations")
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("check", help="train the example of a framework's page")
    check.add_argument("framework", choices=sorted(NAMES))
    check.add_argument(
        "--source", type=Path, help="a checkout of its repository, where it is no package"
    )
    check.add_argument("--steps", type=int, default=20)
    options = parser.parse_args(arguments)
    if options.steps < 1:
        parser.error(f"--steps: expected at least 1; got {options.steps}")
    from .examples.training import train

    module = importlib.import_module(f".examples.{NAMES[options.framework]}", __package__)
    try:
        theirs = module.code(options.source)
    except (ImportError, FileNotFoundError) as error:
        print(f"{FRAMEWORKS[options.framework].title} cannot be imported: {error}", file=sys.stderr)
        return 2
    found = train(module.example(theirs), options.steps)
    print(found)
    wrong = len(found.wrong)
    print("pass" if found.right else f"{wrong} of {len(found.findings)} differ")
    return 0 if found.right else 1


if __name__ == "__main__":
    sys.exit(main())
