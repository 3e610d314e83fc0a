"""A process that runs cases until it is told to stop, or until one of them ends it.

It reads one JSON object a line: ``{"family", "first", "seconds", "most"}`` runs cases from a number
on, ``{"family", "number"}`` or ``{"family", "choices"}`` one case. It answers each with one JSON
line. The number of the case that runs is in the shared file; of one case that is asked for, what is
about to be called is written down too.
"""

import json
import mmap
import os
import resource
import signal
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

import torch

from . import families, source
from .source import Source, Wrong

MOST_BYTES = 12 * 2**30  # so that a case that asks for all memory there is gets an error
SHOWN = 1500  # characters of one argument


def signature(error: BaseException) -> str:
    """What failures have in common: the kind, the words of the message, the place."""
    words = "".join(c if c.isalpha() or c in "_ ." else " " for c in str(error).partition("\n")[0])
    place = traceback.extract_tb(error.__traceback__)[-1]
    where = "" if isinstance(error, Wrong) else f" at {Path(place.filename).name}:{place.name}"
    return f"{type(error).__name__} {' '.join(words.split())[:60]}{where}"


def told(case: Source) -> list[str]:
    """The calls of a case, in words."""
    return [
        f"{name}({', '.join(f'{key}={shown(x)}' for key, x in arguments.items())})"
        for name, arguments in case.told
    ]


def shown(x: Any) -> str:
    """An argument as text; of a tensor also what cannot be seen in its numbers."""
    if not isinstance(x, torch.Tensor):
        return repr(x)[:SHOWN]
    try:
        about = f"<{x.dtype} {tuple(x.shape)} {x.layout}"
        if x.layout is torch.strided and not x.is_nested:
            about += f" stride {x.stride()} offset {x.storage_offset()} neg {x.is_neg()}"
        if x.layout is torch.sparse_csr:
            parts = (x.crow_indices(), x.col_indices(), x.values())
            return about + " " + " ".join(map(shown, parts)) + ">"
        return f"{about} {x.tolist()}"[:SHOWN] + ">"
    except Exception as error:  # whatever a broken tensor does when it is looked at
        return f"<tensor that cannot be shown: {type(error).__name__}>"


class Failures:
    """Of one request: the first of each kind in full, the others counted."""

    def __init__(self) -> None:
        self.found: dict[str, dict[str, Any]] = {}

    def add(self, number: int | None, case: Source, error: BaseException) -> None:
        """Take down what went wrong in a case."""
        entry = self.found.setdefault(signature(error), {"count": 0})
        entry["count"] += 1
        if entry["count"] == 1:
            entry |= {
                "number": number,
                "error": f"{type(error).__name__}: {error}"[:SHOWN],
                "traceback": "".join(traceback.format_exception(error))[-3000:],
                "told": told(case),
                "choices": case.choices,
            }


def run_one(name: str, number: int | None, case: Source, failures: Failures) -> str:
    """Run a case; how it ended."""
    try:
        return families.load(name)(case)
    except Exception as error:
        failures.add(number, case, error)
        return "failed"


def run_many(request: dict[str, Any], current: mmap.mmap) -> dict[str, Any]:
    """Cases of a family from a number on, as many as fit into the time."""
    name, number = request["family"], request["first"]
    run, failures, endings = families.load(name), Failures(), {}
    until = time.monotonic() + request["seconds"]
    last = number + request["most"]
    while number < last and time.monotonic() < until:
        current[:8] = number.to_bytes(8, "little")
        case = source.seeded(name, number)
        try:
            ending = run(case)
        except Exception as error:
            failures.add(number, case, error)
            ending = "failed"
        endings[ending] = endings.get(ending, 0) + 1
        number += 1
    return {"next": number, "endings": endings, "failures": failures.found}


def run_given(request: dict[str, Any], watched: Path) -> dict[str, Any]:
    """One case, of a number or of choices; what it calls is written down before it is called."""
    name, number = request["family"], request.get("number")
    case = source.replayed(request["choices"]) if number is None else source.seeded(name, number)

    def write(case: Source) -> None:
        watched.write_text(json.dumps({"told": told(case), "choices": case.choices}))

    case.watch = write
    failures = Failures()
    ending = run_one(name, number, case, failures)
    return {"ending": ending, "failures": failures.found, "told": told(case)}


def serve(folder: Path, requests: int, answers: int) -> None:
    """Answer requests until there are no more."""
    with (folder / "current").open("r+b") as file, mmap.mmap(file.fileno(), 8) as current:
        while line := next_line(requests):
            request = json.loads(line)
            torch.set_num_threads(request.get("threads", 1))
            if "seconds" in request:
                answer = run_many(request, current)
            else:
                answer = run_given(request, folder / "watched")
            os.write(answers, json.dumps(answer).encode() + b"\n")


def next_line(descriptor: int) -> bytes:
    """A line, read byte by byte: what comes after it may be for another process."""
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(descriptor, 1)
        if not byte:
            return b""
        line += byte
    return line


def main() -> None:
    """Fork a server, and another each time that one is ended by what it ran.

    A fork costs milliseconds where importing torch takes seconds. The argument is the folder shared
    with the parent. The answer for a server that ended is ``{"crash": how}``.
    """
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    if "LD_PRELOAD" not in os.environ:  # a sanitizer needs more addresses than there is memory
        resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
    requests, answers = os.dup(0), os.dup(1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)  # whatever else prints goes with the errors
    for name in families.FAMILIES:
        families.load(name)
    while True:
        server = os.fork()
        if server == 0:
            serve(folder, requests, answers)
            os._exit(0)
        _, status = os.waitpid(server, 0)
        code = os.waitstatus_to_exitcode(status)
        if code == 0:
            return
        ending = signal.Signals(-code).name if code < 0 else f"exit status {code}"
        os.write(answers, json.dumps({"crash": ending}).encode() + b"\n")


if __name__ == "__main__":
    main()
