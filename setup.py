"""Builds the extension modules; everything else is in pyproject.toml.

``mam_kernels._cpu`` is built wherever there is a C++17 compiler: the kernels three times, for
AVX-512, for AVX2 with FMA and for the baseline, chosen when they run. Without a compiler the
installation succeeds all the same, and ``mam_kernels.backends()`` says
what is missing. ``mam_kernels._cuda`` needs ``nvcc``, but neither a GPU nor torch: no torch header
is included, so one build serves every torch version.

Environment variables:
    MAM_WITH_CUDA    1: build the CUDA part, an error if that fails; 0: leave it out; auto (the
    default): build it if nvcc is found. MAM_CUDA_ARCHS   compute capabilities to build for, such as
    "80;90". Default: 80, 90 and 100 as far as nvcc knows them. The newest is
                     embedded as PTX too, for GPUs that come later.
    MAM_COMPILE_ARGS further flags for every C++ file, such as "-g".
    CXX, NVCC        the compilers. Default: c++, or g++; nvcc on the PATH, or in CUDA_HOME/bin or
        /usr/local/cuda/bin.

Flags: -O3, and -fno-math-errno -fno-trapping-math, which change no result; never -ffast-math, which
would lose NaN and infinity.
"""

import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).resolve().parent
CUDA_ARCHS = ("80", "90", "100")
CXX_FLAGS = [
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-Wall",
    "-Wextra",
]
CXX_FLAGS += [
    "-Wno-psabi",
    "-Wno-maybe-uninitialized",
]  # vectors stay inside one file; gcc 12 warns of its own AVX-512 header
INSTRUCTION_SETS = {
    "baseline": [],
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": [
        "-mavx512f",
        "-mavx512bw",
        "-mavx512dq",
        "-mavx512vl",
        "-mfma",
        "-mf16c",
        "-mprefer-vector-width=512",
    ],
}


@dataclass
class Step:
    """One command of a build: what it makes, and from what."""

    output: Path
    inputs: list[Path]
    command: list[str]
    depfile: bool = False


def instruction_sets() -> dict[str, list[str]]:
    """The instruction sets that the CPU kernels are compiled for on this machine's architecture."""
    if platform.machine().lower() in ("x86_64", "amd64"):
        return INSTRUCTION_SETS
    return {"baseline": []}


def find_cxx() -> list[str]:
    """The C++ compiler's command."""
    if os.environ.get("CXX"):
        command = shlex.split(os.environ["CXX"])
        if shutil.which(command[0]) is None:
            raise CompileError(f"CXX: no such command: {command[0]}")
        return command
    for name in ("c++", "g++", "clang++"):
        if shutil.which(name):
            return [name]
    raise CompileError("no C++ compiler found (c++, g++ or clang++ on the PATH, or CXX)")


def find_nvcc() -> str | None:
    """The CUDA compiler, or None."""
    if os.environ.get("NVCC"):
        return shutil.which(os.environ["NVCC"])
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)] + [
        "/usr/local/cuda"
    ]
    candidates = ["nvcc", *(os.path.join(home, "bin", "nvcc") for home in homes)]
    return next((found for name in candidates if (found := shutil.which(name))), None)


def cuda_archs(nvcc: str) -> list[str]:
    """Compute capabilities to build for: what MAM_CUDA_ARCHS names, or those of ``CUDA_ARCHS`` that
    this nvcc knows.
    """
    named = os.environ.get("MAM_CUDA_ARCHS", "").replace(",", ";").replace(".", "").split(";")
    if any(named):
        return [arch for arch in named if arch]
    known = subprocess.run(
        [nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=True
    ).stdout.split()
    return [arch for arch in CUDA_ARCHS if f"compute_{arch}" in known]


def ninja() -> str:
    """The ninja program, from the PATH or from its Python package."""
    found = shutil.which("ninja")
    if found:
        return found
    try:
        import ninja as package
    except ImportError:
        raise CompileError("ninja was not found: pip install ninja") from None
    return os.path.join(package.BIN_DIR, "ninja")


def run_steps(steps: list[Step], folder: Path) -> None:
    """Run a build's commands, those that do not depend on each other in parallel."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        "ninja_required_version = 1.5",
        "rule step",
        "  command = $cmd",
        "rule compile",
        "  command = $cmd",
    ]
    lines += ["  deps = gcc", "  depfile = $out.d"]
    for step in steps:
        inputs = " ".join(_escaped(path) for path in step.inputs)
        lines.append(
            f"build {_escaped(step.output)}: {'compile' if step.depfile else 'step'} {inputs}"
        )
        lines.append("  cmd = " + shlex.join(step.command).replace("$", "$$"))
        step.output.parent.mkdir(parents=True, exist_ok=True)
    (folder / "build.ninja").write_text("\n".join(lines) + "\n")
    try:
        subprocess.run([ninja(), "-C", str(folder)], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise CompileError(f"the build in {folder} failed: {error}") from error


def _escaped(path: Path) -> str:
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


class NativeBuild(build_ext):
    """Compiles each extension module with ninja, from the steps that its builder lists."""

    def finalize_options(self) -> None:
        """The objects of editable installations and wheels stay in one folder, so that ninja
        compiles what has changed; setuptools gives an editable one a folder that it deletes.
        """
        named = self.build_temp
        super().finalize_options()
        if named is None:
            folder = f"temp.{self.plat_name}-{sys.implementation.cache_tag}"
            self.build_temp = str(ROOT / "build" / folder)

    def build_extension(self, ext: Extension) -> None:
        """Build one module; a failure is a warning if the extension is optional."""
        folder = (Path(self.build_temp) / ext.name).resolve()
        output = Path(self.get_ext_fullpath(ext.name)).resolve()
        output.parent.mkdir(parents=True, exist_ok=True)
        try:
            steps = {"mam_kernels._cpu": self.cpu_steps, "mam_kernels._cuda": self.cuda_steps}[
                ext.name
            ](folder, output)
        except (OSError, subprocess.CalledProcessError) as error:
            raise CompileError(f"{ext.name}: {error}") from error
        run_steps(steps, folder)

    def cpu_steps(self, folder: Path, output: Path) -> list[Step]:
        """The kernels for each instruction set, what chooses among them, and the bindings."""
        cxx, sources = find_cxx(), ROOT / "csrc" / "cpu"
        threads = ["-pthread"]
        sets = instruction_sets()
        flags = ["-DMAM_BACKEND=cpu", f"-DMAM_X86={int(len(sets) > 1)}"]
        steps = [
            self.compile(
                cxx,
                sources / "kernels.cpp",
                folder / f"kernels_{name}.o",
                [*flags, f"-DMAM_ISA={name}", *extra],
            )
            for name, extra in sets.items()
        ]
        for source in sorted(sources.glob("*.cpp")):
            if source.stem == "kernels":
                continue
            steps.append(self.compile(cxx, source, folder / f"{source.stem}.o", [*flags, *threads]))
        binding = [*flags, "-DMAM_CPU_DISPATCH", *self.described("_cpu", "cpu", ",".join(sets))]
        steps.append(
            self.compile(cxx, ROOT / "csrc" / "bindings.cpp", folder / "bindings.o", binding)
        )
        return [*steps, self.linked(cxx, steps, output, threads)]

    def cuda_steps(self, folder: Path, output: Path) -> list[Step]:
        """The CUDA sources by nvcc, the bindings by the C++ compiler."""
        nvcc = find_nvcc()
        if nvcc is None:
            raise CompileError(
                "MAM_WITH_CUDA=1, but nvcc was not found (on the PATH, in CUDA_HOME or by NVCC)"
            )
        cxx = find_cxx()
        archs = cuda_archs(nvcc)
        code = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
        code.append(f"-gencode=arch=compute_{archs[-1]},code=compute_{archs[-1]}")
        flags = ["-DMAM_BACKEND=cuda"]
        include = [f"-I{ROOT / 'csrc' / 'include'}", f"-I{ROOT / 'csrc'}"]
        steps = []
        for source in sorted((ROOT / "csrc" / "cuda").glob("*.cu")):
            target = folder / f"{source.stem}.o"
            command = [
                nvcc,
                "-std=c++17",
                "-O3",
                "-Xcompiler=-fPIC,-fvisibility=hidden",
                "-cudart=static",
                *include,
                *flags,
                *code,
            ]
            command += ["-MD", "-MF", f"{target}.d", "-c", str(source), "-o", str(target)]
            steps.append(Step(target, [source], command, depfile=True))
        binding = [
            *flags,
            *self.described("_cuda", "cuda", ",".join(f"sm_{arch}" for arch in archs)),
        ]
        steps.append(
            self.compile(cxx, ROOT / "csrc" / "bindings.cpp", folder / "bindings.o", binding)
        )
        objects = [step.output for step in steps]
        link = [nvcc, "-shared", "-cudart=static", *map(str, objects), "-o", str(output)]
        return [*steps, Step(output, objects, link)]

    def described(self, module: str, device: str, targets: str) -> list[str]:
        """What bindings.cpp needs to know of the build, and the headers it includes."""
        import pybind11

        macros = {"MAM_MODULE": module, "MAM_DEVICE": f'"{device}"', "MAM_TARGETS": f'"{targets}"'}
        macros["MAM_VERSION"] = f'"{self.distribution.get_version()}"'
        headers = [pybind11.get_include(), sysconfig.get_paths()["include"]]
        return [f"-D{name}={value}" for name, value in macros.items()] + [
            f"-isystem{path}" for path in headers
        ]

    @staticmethod
    def compile(cxx: list[str], source: Path, target: Path, flags: list[str]) -> Step:
        """One C++ file to one object."""
        extra = shlex.split(os.environ.get("MAM_COMPILE_ARGS", ""))
        include = [f"-I{ROOT / 'csrc' / 'include'}", f"-I{ROOT / 'csrc'}"]
        command = [
            *cxx,
            *CXX_FLAGS,
            *include,
            *flags,
            *extra,
            "-MD",
            "-MF",
            f"{target}.d",
            "-c",
            str(source),
            "-o",
            str(target),
        ]
        return Step(target, [source], command, depfile=True)

    @staticmethod
    def linked(cxx: list[str], steps: list[Step], output: Path, flags: list[str]) -> Step:
        """The objects of ``steps`` to one shared library."""
        objects = [step.output for step in steps]
        undefined = ["-undefined", "dynamic_lookup"] if platform.system() == "Darwin" else []
        return Step(
            output,
            objects,
            [*cxx, "-shared", *flags, *undefined, *map(str, objects), "-o", str(output)],
        )


def extensions() -> list[Extension]:
    """The modules to build here. Optional ones may fail; the installation goes on without them."""
    wish = os.environ.get("MAM_WITH_CUDA", "auto").lower()
    if wish not in ("0", "1", "auto"):
        raise SystemExit(f"MAM_WITH_CUDA: expected 0, 1 or auto; got {wish!r}")
    modules = [Extension("mam_kernels._cpu", [], optional=True)]
    has_cuda_sources = any((ROOT / "csrc" / "cuda").glob("*.cu"))
    if wish == "1" or (wish == "auto" and find_nvcc() and has_cuda_sources):
        modules.append(Extension("mam_kernels._cuda", [], optional=wish == "auto"))
    return modules


if __name__ == "__main__":
    setup(ext_modules=extensions(), cmdclass={"build_ext": NativeBuild})
