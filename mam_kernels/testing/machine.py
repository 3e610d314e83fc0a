"""The machine that a measurement ran on."""

import contextlib
import datetime
import os
import platform
from importlib import metadata
from pathlib import Path

import torch

from .._core import extension

TYPICAL_CACHE_BYTES = 64 * 2**20  # assumed where the machine does not tell its last-level cache


def environment(device: torch.device | str = "cpu") -> dict:
    """The environment of a measurement: device, cores, threads, instruction set, versions, date."""
    device = torch.device(device)
    report = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "load_average": load_average(),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "last_level_cache_bytes": last_level_cache_bytes(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": _versions("mam-kernels", "torch", "triton", "numpy"),
        "native": extension.build_info(),
    }
    if device.type == "cuda":
        report["gpu"] = _gpu(device)
    return report


def load_average() -> float:
    """Processes that wanted a core, on average over the last minute."""
    return os.getloadavg()[0]


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _versions(*names: str) -> dict[str, str]:
    versions = {}
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions | {"torch": torch.__version__}


def _gpu(device: torch.device) -> dict:
    properties = torch.cuda.get_device_properties(device)
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "l2_bytes": properties.L2_cache_size,
        "cuda": torch.version.cuda,
    }


def last_level_cache_bytes() -> int:
    """Size of the CPU's largest cache, or a typical one where the machine does not tell."""
    units = {"K": 2**10, "M": 2**20, "G": 2**30}
    sizes = [
        int(text[:-1]) * units[text[-1]]
        for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
        if (text := path.read_text().strip())[-1:] in units
    ]
    return max(sizes, default=TYPICAL_CACHE_BYTES)
