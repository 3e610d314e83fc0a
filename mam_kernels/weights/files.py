"""Safetensors files that say what they hold, and checkpoints of ``torch.save``: written whole or
not at all, refused in one line.

A file is a safetensors file whose header holds, beside the tensors, a JSON object under
"mam_kernels": the version of the format, the kind of what is saved, the arguments that it is built
with, and the version of the package that wrote it. Nothing that is read here can run code:
safetensors hold tensors and text, and ``torch.load`` is called with ``weights_only=True``.
"""

import contextlib
import json
import os
import tempfile
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import __version__
from .._core.describing import describe

FORMAT = 1
ENTRY = "mam_kernels"  # of the header


class WeightsError(ValueError):
    """A file or a state dict does not hold the weights that were asked for; the message says what
    was found, in one line of printable characters whatever names the file holds.
    """

    def __init__(self, message: str) -> None:
        super().__init__("".join(c if c.isprintable() else repr(c)[1:-1] for c in message))


class Contents(NamedTuple):
    """The contents of a file."""

    kind: str
    arguments: dict[str, Any]
    tensors: dict[str, Tensor]  # on the CPU, in memory of their own


def write(
    path: str | os.PathLike, kind: str, arguments: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> None:
    """Write a file of a kind, with the JSON values that it is built with.

    Raises:
        ModuleNotFoundError: safetensors is not installed.
        OSError: it cannot be written there.
    """
    files = _safetensors()
    path = Path(path)
    description = {
        "format": FORMAT,
        "kind": kind,
        "arguments": dict(arguments),
        "version": __version__,
    }
    # One entry: of several the order, and so the file, would vary.
    metadata = {ENTRY: json.dumps(description, allow_nan=False)}
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        files.torch.save_file(whole, beside, metadata=metadata)
        os.chmod(beside, 0o644)
        os.replace(beside, path)
    except BaseException as error:
        os.unlink(beside)
        if isinstance(error, files.SafetensorError):  # such as a full disk
            raise OSError(f"{path}: cannot be written ({one_line(error)})") from error
        raise


def read(path: str | os.PathLike, *kinds: str) -> Contents:
    """Read a file that `write` wrote, of one of these kinds.

    Raises:
        WeightsError: it is not there, damaged, or of another kind.
    """
    metadata, tensors = read_safetensors(Path(path))
    if ENTRY not in metadata:
        raise WeightsError(
            f"{path}: expected weights that mam_kernels saved; got a safetensors file of others"
            f" ({listed(tensors)})"
        )
    try:
        description = json.loads(metadata[ENTRY])
        layout, kind, arguments = (description[name] for name in ("format", "kind", "arguments"))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise WeightsError(
            f"{path}: expected format, kind and arguments in its header; got"
            f" {metadata[ENTRY][:80]!r}"
        ) from error
    if layout != FORMAT:
        raise WeightsError(
            f"{path}: expected format {FORMAT}, which mam_kernels {__version__} reads; got"
            f" {layout!r}, of {description.get('version')}"
        )
    if kind not in kinds:
        raise WeightsError(f"{path}: expected a {' or '.join(kinds)}; got a {kind}")
    if not isinstance(arguments, dict):
        raise WeightsError(
            f"{path}: expected arguments by name in its header; got {type(arguments).__name__}"
        )
    return Contents(kind, arguments, tensors)


def read_checkpoint(path: str | os.PathLike, map_location: Any = "cpu") -> Any:
    """Read a file of ``torch.save``: tensors and plain values only, nothing that could run code.
    Checksums are verified.

    Raises:
        WeightsError: it is not there, damaged or cut short, something else, or holds other objects.
    """
    path = Path(path)
    require_file(path)
    archive = is_archive(path)
    try:
        if archive:
            with zipfile.ZipFile(path) as file:
                wrong = file.testzip()
            if wrong is not None:
                raise WeightsError(
                    f"{path}: expected a whole checkpoint; got one with a wrong checksum ({wrong})"
                )
            if objects := sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path)):
                raise WeightsError(
                    f"{path}: expected tensors and plain values; got objects, which could run code"
                    f" ({listed(objects)}); save a state dict"
                )
        with path.open("rb") as file:  # given a path, torch.load would decide by the suffix
            return torch.load(file, map_location=map_location, weights_only=True)
    except WeightsError:
        raise
    except Exception as error:  # bytes that are no checkpoint fail in any way
        reason = f" ({one_line(error)})" if archive else ""
        raise WeightsError(
            f"{path}: expected a checkpoint that torch.save wrote; got {_found(path)}{reason}"
        ) from error


def fill(
    module: nn.Module, tensors: Mapping[str, Tensor], where: str, *, assign: bool = False
) -> None:
    """``module.load_state_dict`` whose error is one line.

    Raises:
        WeightsError: names or shapes are not the module's; nothing was changed.
    """
    require_tensors(module, tensors, where)
    module.load_state_dict(tensors, assign=assign)


def require_tensors(module: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Or a `WeightsError`: the names and shapes of a module's tensors."""
    if not isinstance(tensors, Mapping):
        raise WeightsError(f"{where}: expected tensors by name; got {type(tensors).__name__}")
    wanted = module.state_dict()
    problems = []
    if missing := [name for name in wanted if name not in tensors]:
        problems.append(f"no {listed(missing)}")
    if extra := [name for name in tensors if name not in wanted]:
        problems.append(f"{listed(extra)}, which it has not")
    for name, own in wanted.items():
        found = tensors.get(name, own)
        if not isinstance(found, Tensor):
            problems.append(f"{name}, a {type(found).__name__}, instead of a tensor")
        elif found.shape != own.shape or found.is_floating_point() != own.is_floating_point():
            problems.append(f"{name}, {describe(found)}, instead of shape {tuple(own.shape)}")
    if problems:
        raise WeightsError(
            f"{where}: expected the tensors of {type(module).__name__};"
            f" got {'; '.join(problems[:3])}"
        )


def _safetensors() -> ModuleType:
    try:
        import safetensors.torch
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "mam_kernels.weights: needs the package safetensors; install it: pip install"
            " safetensors"
        ) from error
    return safetensors


def require_file(path: Path) -> None:
    """Or a `WeightsError`."""
    if not path.exists():
        raise WeightsError(f"{path}: no such file")
    if not path.is_file():
        raise WeightsError(f"{path}: expected a file; got a folder")


def read_safetensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Header and tensors of any safetensors file, or a `WeightsError`."""
    files = _safetensors()
    require_file(path)
    try:
        with files.safe_open(path, framework="pt") as file:
            # a copy: what is read may be a map of the file, and would change or vanish with it
            return dict(file.metadata() or {}), {
                name: file.get_tensor(name).clone()
                for name in file.keys()  # noqa: SIM118
            }
    except (files.SafetensorError, OSError, RuntimeError, ValueError, OverflowError) as error:
        found = _found(path)
        reason = f" ({one_line(error)})" if found == DAMAGED else ""
        raise WeightsError(f"{path}: expected a safetensors file; got {found}{reason}") from error


DAMAGED = "a damaged safetensors file"
ZIP = b"PK\x03\x04"
SIGNATURES = {
    ZIP: "a zip archive, such as torch.save writes",
    b"\x89HDF": "an HDF5 file, such as .h5ad",
    b"\x1f\x8b": "a gzip archive",
    b"\x80": "a pickle",
}


def is_archive(path: Path) -> bool:
    """Whether a file is a zip archive, as torch.save writes; one of several disks is none."""
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:
        return False


def _found(path: Path) -> str:
    """The kind of a file, by its first bytes."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(80)
    if not head:
        return "an empty file"
    for signature, what in SIGNATURES.items():
        if head.startswith(signature):
            return f"{what}, cut short" if signature == ZIP and not is_archive(path) else what
    if is_safetensors(head):
        return _safetensors_found(path, size)
    text = head.decode("utf-8", errors="ignore")
    if text.replace("\n", " ").replace("\t", " ").isprintable():
        return f"a text file that begins with {text[:40]!r}"
    return f"{size} bytes of neither safetensors nor torch.save"


def is_safetensors(head: bytes) -> bool:
    """Whether a file begins as they do: the length of its header in 64 bits, at most 100 MB, and a
    JSON object.
    """
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= 100_000_000


def _safetensors_found(path: Path, size: int) -> str:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if 8 + length > size:
            least = f"{8 + length:,} or more"
            return f"a safetensors file cut short in its header: {size:,} bytes of {least}"
        header = file.read(length)
    with contextlib.suppress(ValueError, TypeError, AttributeError, LookupError, RecursionError):
        ends = [
            entry["data_offsets"][1]
            for name, entry in json.loads(header).items()
            if name != "__metadata__"
        ]
        promised = 8 + length + max(ends, default=0)
        if promised > size:
            return f"a safetensors file cut short: {size:,} bytes of {promised:,}"
    return DAMAGED


def listed(names: Iterable[str], most: int = 4) -> str:
    """The first names, and how many there are."""
    names = list(names) or ["nothing"]
    return ", ".join(names[:most]) + (f", ... ({len(names)} in all)" if len(names) > most else "")


def one_line(error: BaseException, longest: int = 160) -> str:
    """The message of an error, cut to a line; its type where it has none."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= longest else text[:longest] + " ..."
