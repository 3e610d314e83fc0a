"""Instructions that the CPU kernels execute on fixed inputs: a measure of their cost that no other
program on the machine disturbs.

    python -m benchmarks.instructions           # count, and compare with results/instructions.json
    python -m benchmarks.instructions --save    # and keep the new counts

Counted by valgrind's callgrind in a build of the kernels with the flags of setup.py, on one thread.
Valgrind knows AVX2 at most, so the AVX-512 kernels, which are the same source at twice the width,
are not counted. Another compiler gives other counts.
"""

import argparse
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]
KEPT = Path(__file__).resolve().parent / "results" / "instructions.json"
TOLERANCE = 0.03
"""How far a count may be from the one kept: small changes of the compiler's choice stay below, a
pass more over the data does not.
"""
SETS = ("avx2", "baseline")


class Uncountable(Exception):
    """Instructions cannot be counted here; the message says why."""


def build_script() -> ModuleType:
    """setup.py as a module, for its flags."""
    spec = importlib.util.spec_from_file_location("mam_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def compiler() -> tuple[str, str]:
    """The C++ compiler's command and its name with the major version, such as "g++ 12"."""
    command = shutil.which("g++")
    if command is None:
        raise Uncountable("no g++")
    version = subprocess.run(
        [command, "-dumpfullversion"], capture_output=True, text=True, check=True
    ).stdout
    return command, f"g++ {version.partition('.')[0]}"


def build(folder: Path) -> Path:
    """Compile the program that makes one call; returns its path."""
    script, (cxx, _) = build_script(), compiler()
    sets = script.instruction_sets()
    if set(SETS) - set(sets):
        raise Uncountable(
            f"the kernels are compiled for {', '.join(sets)} on this machine, and were counted for "
            f"{', '.join(SETS)}"
        )
    flags = [
        *script.CXX_FLAGS,
        "-DMAM_BACKEND=cpu",
        "-DMAM_X86=1",
        f"-I{ROOT / 'csrc' / 'include'}",
        f"-I{ROOT / 'csrc'}",
    ]
    sources = {
        f"kernels_{name}": (
            ROOT / "csrc" / "cpu" / "kernels.cpp",
            [f"-DMAM_ISA={name}", *sets[name]],
        )
        for name in SETS
    }
    sources |= {
        path.stem: (path, [])
        for path in sorted((ROOT / "csrc" / "cpu").glob("*.cpp"))
        if path.stem != "kernels"
    }
    sources["instructions"] = (Path(__file__).with_suffix(".cpp"), [])
    running = {
        folder / f"{name}.o": subprocess.Popen(
            [cxx, *flags, *extra, "-c", str(source), "-o", str(folder / f"{name}.o")]
        )
        for name, (source, extra) in sources.items()
    }
    if sum(abs(process.wait()) for process in running.values()):
        raise Uncountable("the kernels do not compile")
    program = folder / "instructions"
    subprocess.run([cxx, "-pthread", *map(str, running), "-o", str(program)], check=True)
    return program


def count(program: Path, name: str, instruction_set: str) -> int:
    """Instructions of the call of that name."""
    out = program.parent / "callgrind.out"
    command = [
        "valgrind",
        "--tool=callgrind",
        "--toggle-collect=measured",
        f"--callgrind-out-file={out}",
        str(program),
        name,
    ]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env={"MAM_CPU_ISA": instruction_set, "PATH": "/usr/bin:/bin"},
    )
    found = re.search(r"Collected : (\d+)", done.stderr)
    if done.returncode or found is None:
        raise Uncountable(f"valgrind failed: {done.stderr.strip()[-500:]}")
    return int(found.group(1))


def count_all() -> dict:
    """Counts by instruction set and call, and the compiler that they are of."""
    if shutil.which("valgrind") is None:
        raise Uncountable("no valgrind")
    with tempfile.TemporaryDirectory() as folder:
        program = build(Path(folder))
        names = subprocess.run(
            [str(program)], capture_output=True, text=True, check=True
        ).stdout.splitlines()
        counts = {name: {call: count(program, call, name) for call in names} for name in SETS}
    return {"compiler": compiler()[1], "instructions": counts}


def changes(kept: dict, now: dict) -> list[str]:
    """What differs by more than the tolerance, a line each; calls of only one of them too."""
    lines = []
    for name in SETS:
        before, after = kept["instructions"][name], now["instructions"][name]
        for call in sorted({*before, *after}):
            if call not in before or call not in after:
                lines.append(
                    f"{name}, {call}: {'no longer counted' if call in before else 'not kept yet'}"
                )
            elif abs(after[call] / before[call] - 1) > TOLERANCE:
                change = after[call] / before[call] - 1
                lines.append(f"{name}, {call}: {after[call]:,} instructions, {change:+.1%}")
    return lines


def main(arguments: list[str] | None = None) -> int:
    """Count from the command line; returns the exit status, 1 where a count has changed and is not
    saved.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.instructions", description=__doc__.partition("\n")[0]
    )
    parser.add_argument(
        "--save", action="store_true", help=f"keep the counts in {KEPT.relative_to(ROOT)}"
    )
    save = parser.parse_args(arguments).save
    try:
        now = count_all()
    except Uncountable as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for name, counts in now["instructions"].items():
        for call, instructions in counts.items():
            print(f"{name:10}{call:36}{instructions:>14,}")
    different = (
        changes(json.loads(KEPT.read_text()), now) if KEPT.is_file() else ["nothing was kept yet"]
    )
    print("\n".join(different) or f"none differs by more than {TOLERANCE:.0%} from what is kept")
    if save:
        KEPT.write_text(json.dumps(now, indent=1) + "\n")
    return int(bool(different) and not save)


if __name__ == "__main__":
    raise SystemExit(main())
