"""``python -m tests.fuzz``: attack the engine and the readers of files for a while.

Exit status: 0 nothing found, 1 something found, 2 wrong arguments.
"""

import argparse
import time

from .families import FAMILIES, PLANTED
from .parent import Crash, Run
from .sanitized import environment as sanitized


def main() -> int:
    """Run what the command line asks for; returns the exit status."""
    about = __doc__.partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=about)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long (default: 60)")
    parser.add_argument("--seed", type=int, help="number of the first case (default: the time)")
    parser.add_argument(
        "--only", action="append", choices=[*FAMILIES, *PLANTED], metavar="NAME",
        help=f"a family; may be repeated: {', '.join(FAMILIES)}",
    )  # fmt: skip
    parser.add_argument(
        "--asan", action="store_true", help="with AddressSanitizer in the C++, built when needed"
    )
    parser.add_argument(
        "--no-shrink", action="store_true", help="leave failures as they were found"
    )
    parser.add_argument(
        "--case", metavar="NAME:CASE", help="run one case again, as a failure's line says"
    )
    options = parser.parse_args()
    environment = sanitized() if options.asan else {}
    # numbers of a run begin far from those of any other
    seed = (time.time_ns() // 1000) % 10**12 if options.seed is None else options.seed
    run = Run(seed, environment, shrink=not options.no_shrink)
    try:
        if options.case:
            return _again(run, parser, options.case)
        start = time.monotonic()
        run.go(options.only or FAMILIES, options.seconds)
    except KeyboardInterrupt:
        print("interrupted")
    finally:
        run.close()
    print("\n" + run.table())
    print(f"cases from number {seed} on, in {time.monotonic() - start:.0f} s")
    for failure in run.failures.values():
        print(f"\n{failure}")
    print(f"\n{len(run.failures)} kinds of failure")
    return 1 if run.failures else 0


def _again(run: Run, parser: argparse.ArgumentParser, case: str) -> int:
    name, _, rest = case.partition(":")
    if name not in (*FAMILIES, *PLANTED) or not rest.replace(".", "").isdigit():
        parser.error(f"--case: expected NAME:NUMBER or NAME:CHOICES; got {case!r}")
    which = (
        {"choices": [int(word) for word in rest.split(".") if word]}
        if "." in rest
        else {"number": int(rest)}
    )
    try:
        answer = run.child.ask({"family": name, **which})
    except Crash as crash:
        watched = run.child.folder / "watched"
        print(watched.read_text() if watched.exists() else "")
        print(f"{crash.printed[-6000:]}\n{crash.ending}")
        return 1
    print("\n".join(answer["told"]))
    for entry in answer["failures"].values():
        print(entry["traceback"])
    print(answer["ending"])
    return 1 if answer["failures"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
