"""The command ``scmam``, also as ``python -m scmam``. It says what to install where the packages of
the study are missing, which a plain ``pip install mam-kernels`` leaves out.
"""

import sys

from .errors import WRONG_INPUT, missing_package


def main() -> None:
    """Run the command line with the arguments of the process; ends by `SystemExit`."""
    try:
        from .cli import main as command
    except ModuleNotFoundError as error:
        if (said := missing_package(error)) is None:
            raise
        print(f"error: {said}", file=sys.stderr)
        raise SystemExit(WRONG_INPUT) from None
    command()


if __name__ == "__main__":
    main()
