"""How the Triton kernels that give each row a program are launched: its warps, its registers, and
how much of the row it holds at a time.

``row_configurations.json`` keeps what was measured, on which device and at how many positions;
``python -m benchmarks.tune`` writes it. A launch takes what was measured nearest to it, or the
default. Nothing is tuned while a program runs, so its first step is like every other.
"""

import functools
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch

FILE = Path(__file__).with_suffix(".json")
KERNELS = ("value", "selection")


class RowConfiguration(NamedTuple):
    """A way of launching; what it computes does not depend on it but for the rounding of sums."""

    warps: int = 16
    registers: int = 128  #: at most so many a thread; a multiprocessor has 65,536
    #: positions at a time, at most: enough to hide the latency of reading them, few enough to spill
    #: no register
    block: int = 2048
    series_block: int = 512  #: slopes, or values, whose power series are summed at a time


class Measured(NamedTuple):
    """What was found to be the fastest configuration of a kernel on a device, for rows of so many
    positions.
    """

    kernel: str
    device: str  #: as torch.cuda.get_device_name has it
    architecture: str  #: such as "sm_90" or "gfx942"
    positions: int
    configuration: RowConfiguration
    microseconds: float
    date: str


def read(path: Path = FILE) -> list[Measured]:
    """What a file keeps.

    Raises:
        ValueError: an entry is not as ``Measured``.
    """
    try:
        entries = json.loads(path.read_text())
        return [
            Measured(**entry | {"configuration": RowConfiguration(**entry["configuration"])})
            for entry in entries
        ]
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{path.name}: expected a list of measured configurations; {error}"
        ) from error


def write(measured: Iterable[Measured], path: Path = FILE) -> None:
    """Keep them, ordered, in place of what the file held."""
    ordered = sorted(measured, key=lambda m: (m.kernel, m.device, m.positions))
    entries = [m._asdict() | {"configuration": m.configuration._asdict()} for m in ordered]
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps(entries, indent=1) + "\n")
    temporary.replace(path)


def nearest(
    measured: Iterable[Measured], kernel: str, device: str, architecture: str, positions: int
) -> RowConfiguration:
    """What was measured on this device, else on its architecture, at the nearest number of
    positions by their ratio; else the default.
    """
    of_kernel = [m for m in measured if m.kernel == kernel]
    same = [m for m in of_kernel if m.device == device] or [
        m for m in of_kernel if m.architecture == architecture
    ]
    if not same:
        return RowConfiguration()
    return min(same, key=lambda m: abs(math.log(m.positions / max(positions, 1)))).configuration


_measured = functools.cache(read)


def names_of(device: torch.device) -> tuple[str, str]:
    """A GPU's name and its architecture."""
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        return properties.name, properties.gcnArchName.split(":")[0]
    return properties.name, f"sm_{properties.major}{properties.minor}"


@functools.lru_cache(maxsize=4096)
def row_configuration(kernel: str, device: torch.device, positions: int) -> RowConfiguration:
    """The configuration of one of ``KERNELS`` for rows of so many positions; on the CPU, where
    Triton only interprets, the default.
    """
    if device.type != "cuda":
        return RowConfiguration()
    return nearest(_measured(), kernel, *names_of(device), positions)
