"""Atomic files and folders, and locks on folders.

A file is written under a hidden name in its folder, and renamed. The writer holds a lock on the
hidden file. A hidden file without a lock was left by a killed writer, and the next writer in the
folder removes it.
"""

import errno
import fcntl
import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import RunError, ScmamError, one_line

if TYPE_CHECKING:
    import pandas

UNFINISHED = ".unfinished"  # how hidden names end
LONGEST = 100  # characters of a name that its hidden name repeats
# Seconds to wait for a lock whose owner was killed. The processes that it had started hold the lock
# until they have written their checkpoints.
ORPHANS = 15.0
# System errors of a place that cannot be written to. Any other OSError is a defect.
CANNOT_WRITE = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO),
    *(errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY, errno.EEXIST),
)


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Write a file atomically: the yielded path is renamed to `path`, or removed after an error.

    Raises:
        OSError: the folder cannot be written to, or is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_unfinished(path.parent)
    with _locked_name(path, folder=False) as beside:
        yield beside
        with open(beside, "rb+") as file:  # the data are on the disk before the name is
            os.fsync(file.fileno())
        beside.chmod(0o644)
        beside.replace(path)


def write_file(path: Path, contents: str | bytes) -> None:
    """Write a file, text in UTF-8.

    Raises:
        OSError: the folder cannot be written to, or is full.
    """
    with new_file(path) as beside:
        beside.write_bytes(contents.encode() if isinstance(contents, str) else contents)


def read_json(path: Path, remedy: str) -> Any:
    """Read a JSON file.

    Args:
        path: the file.
        remedy: what to do if it cannot be read, as the end of the error.

    Raises:
        RunError: it holds no JSON, or a number that is not finite, which is none of JSON's.
        OSError: it is not there.
    """
    try:
        text = path.read_text(encoding="utf-8")
        return json.loads(text, parse_float=_finite, parse_constant=_finite)
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path}: damaged ({one_line(error)}); {remedy}") from error


def _finite(text: str) -> float:
    """A number of a JSON file; those that are too large become infinite, and Python reads NaN."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"expected finite numbers; got {text}")
    return number


def read_csv(path: Path, remedy: str) -> "pandas.DataFrame":
    """Read a CSV file; as `read_json`."""
    import pandas

    try:
        return pandas.read_csv(path)
    except ValueError as error:  # pandas raises what derives from it
        raise RunError(f"{path}: damaged ({one_line(error)}); {remedy}") from error


def require_writable(folder: Path) -> None:
    """Make a folder where there is none, and test that it can be written to.

    Raises:
        OSError: it cannot.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _locked_name(folder / "test", folder=False):
        pass


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, which takes the place of `path` at the end, or is removed after an error.

    Raises:
        OSError: the folder above cannot be written to, or is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_unfinished(path.parent)
    with _locked_name(path, folder=True) as beside:
        yield beside
        beside.chmod(0o755)
        try:
            beside.replace(path)  # takes the place of an empty folder too
        except OSError:
            if not path.is_dir():
                raise
            with _locked_name(path, folder=True) as earlier:
                path.replace(earlier)
                try:
                    beside.replace(path)
                except OSError:
                    earlier.replace(path)
                    raise


def remove_unfinished(*folders: Path) -> None:
    """Remove the files of killed writers from these folders; files being written stay."""
    for folder in folders:
        for left in folder.glob(f".*{UNFINISHED}"):
            with suppress(OSError):  # another process may remove it, or hold it, at this moment
                descriptor = os.open(left, os.O_RDONLY)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    _remove(left)
                finally:
                    os.close(descriptor)


@contextmanager
def alone(path: Path, refusal: str, patience: float = ORPHANS) -> Iterator[int]:
    """Hold a lock file against other processes.

    The system releases it when the last process that holds the descriptor ends, however it ends.

    Args:
        path: of the lock file, which is removed at the end.
        refusal: the error where another process holds it; ``{owner}`` becomes its number.
        patience: seconds to wait for it where its owner is no longer there.

    Yields:
        The descriptor. A process that inherits it holds the lock too.

    Raises:
        RunError: `refusal`.
        OSError: the folder cannot be written to.
    """
    import psutil

    path.parent.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + patience
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_open_at(descriptor, path):
                break
        except BlockingIOError:
            owner = os.pread(descriptor, 9, 0).decode(errors="replace") or "unknown"
            if time.monotonic() >= end or (owner.isdecimal() and psutil.pid_exists(int(owner))):
                os.close(descriptor)
                raise RunError(refusal.replace("{owner}", owner)) from None
        os.close(descriptor)  # it is held, or its owner removed it a moment ago
        time.sleep(min(0.2, max(0.0, end - time.monotonic())))
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield descriptor
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


@contextmanager
def writing(
    where: str | Path, remedy: str, error_type: type[ScmamError] = RunError
) -> Iterator[None]:
    """Turn an `OSError` about a place that cannot be written to into one line.

    Args:
        where: the file or folder, where the error does not name one.
        remedy: what to do, as the end of the line.
        error_type: of the error that is raised.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in CANNOT_WRITE:
            raise
        reason = os.strerror(error.errno)
        raise error_type(f"{where}: cannot be written ({reason}); {remedy}") from error


@contextmanager
def held(folder: Path, busy: str) -> Iterator[int]:
    """`alone` with a folder of many runs, whose errors say how to go on.

    Args:
        folder: made where there is none.
        busy: what another process computes; see `alone`.

    Yields:
        The descriptor of the lock.

    Raises:
        RunError: another process holds it, or it cannot be written to.
    """
    remedy = "make room, or give another folder; the same command goes on with what is done"
    with writing(folder, remedy), alone(folder / ".lock", f"{folder}: {busy}") as lock:
        yield lock


@contextmanager
def _locked_name(path: Path, *, folder: bool) -> Iterator[Path]:
    """A new hidden file or folder beside `path`, locked while the block runs, and removed then
    where it is still there.
    """
    prefix = f".{path.name[:LONGEST]}."
    while True:
        if folder:
            beside = Path(tempfile.mkdtemp(UNFINISHED, prefix, path.parent))
            descriptor = os.open(beside, os.O_RDONLY)
        else:
            descriptor, name = tempfile.mkstemp(UNFINISHED, prefix, path.parent)
            beside = Path(name)
        with suppress(OSError):  # a file system without locks: then nothing is ever removed there
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if _is_open_at(descriptor, beside):
            break
        os.close(descriptor)  # another process removed it before it was locked
    try:
        yield beside
    finally:
        _remove(beside)
        os.close(descriptor)


def _is_open_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
