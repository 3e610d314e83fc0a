"""``python -m tests.fuzz``: attack the engine and the readers of files for a while.

Exit status: 0 nothing found, 1 something found, 2 wrong arguments.
"""

import argparse
import signal
import time

from . import sanitized
from .families import FAMILIES, PLANTED, ready
from .parent import Crash, Run

ASAN_SHARE = 0.2  # of the time of a whole run, where the compiler has AddressSanitizer
IN_PLAIN_PYTHON = ("h5ad_files", "weight_files", "run_folders", "settings_files", "objects")


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
        "--asan",
        action=argparse.BooleanOptionalAction,
        help="all of it with AddressSanitizer in the C++, or none; default: the last fifth of a "
        "run of all families",
    )
    parser.add_argument(
        "--no-shrink", action="store_true", help="leave failures as they were found"
    )
    parser.add_argument(
        "--case", metavar="NAME:CASE", help="run one case again, as a failure's line says"
    )
    options = parser.parse_args()
    # Started in the background of a script, this process would ignore Ctrl-C.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    # numbers of a run begin far from those of any other
    seed = (time.time_ns() // 1000) % 10**12 if options.seed is None else options.seed
    run = Run(seed, sanitized.environment() if options.asan else {}, shrink=not options.no_shrink)
    try:
        if options.case:
            return _again(run, parser, options.case)
        _run(run, options)
    except KeyboardInterrupt:
        print("interrupted")
    finally:
        run.close()
    print("\n" + run.table())
    for failure in run.failures.values():
        print(f"\n{failure}")
    seconds = sum(run.seconds.values())
    print(f"\ncases from number {seed} on, {seconds:.0f} s: {len(run.failures)} kinds of failure")
    return 1 if run.failures else 0


def _run(run: Run, options: argparse.Namespace) -> None:
    names, missing = ready()
    if missing and not options.only:
        print(f"without the families of files, which need {', '.join(missing)}")
    share = 0.0
    if options.asan is None and not options.only and sanitized.runtime():
        share = ASAN_SHARE
    run.go(options.only or names, (1 - share) * options.seconds)
    if share:
        print("with AddressSanitizer; it is built first where it is not there")
        run.use(sanitized.environment())
        in_cpp = [name for name in names if name not in IN_PLAIN_PYTHON]
        run.go(in_cpp, share * options.seconds, label="asan ")


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
