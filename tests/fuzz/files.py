"""Files that nobody should have written: cells, weights, run folders and settings.

Whatever they hold, a command of ``scmam`` ends with status 0, or with one line of error; the Python
functions raise their documented errors. What is taken is what another reader finds in the file.
"""

import contextlib
import copy
import functools
import io
import json
import pickle
import shutil
import struct
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import mam_kernels as mam

from . import broken_csr
from .source import Source, Wrong

CELLS, GENES = 30, 12
LINE_ENDS = "\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"
SMALL_RUN = {
    "model.width": 8, "model.heads": 2, "model.encoder_layers": 1, "model.decoder_layers": 1,
    "masking.num_latents": 4, "masking.latent_dim": 8, "masking.latent_heads": 2,
    "masking.injection": "decoder",
    "training.batch_size": 8, "training.steps": 3, "training.validation": 0,
    "training.checkpoint_every": 1,
    "evaluation.folds": 2,
}  # fmt: skip


@functools.cache
def folder() -> Path:
    """Of this process, for whatever it writes; it goes with the parent's."""
    return Path(tempfile.mkdtemp(prefix="files-"))


def shared(name: str, make: Callable[[Path], None]) -> Path:
    """A file or folder that is made once, and stays as it is, for all processes of a run."""
    path = Path(tempfile.gettempdir()) / f"shared-{name}"
    if not path.exists():
        beside = Path(tempfile.mkdtemp(prefix="made-")) / name
        make(beside)
        with contextlib.suppress(OSError):  # another process was faster
            beside.rename(path)
    return path


def command(*arguments: str) -> int:
    """Run ``scmam`` with arguments in this process.

    Raises:
        Wrong: it did not end with a documented status, or not with one line of error.
        BaseException: whatever it raised, which a user would see as a traceback.
    """
    from scmam import cli

    said, wrong = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(wrong):
            cli.main(list(arguments))
    except SystemExit as end:
        status = 0 if end.code is None else end.code
    lines = wrong.getvalue().splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    if status not in (0, 1, 2):
        raise Wrong(f"scmam {arguments[0]}: exit status {status!r}")
    if "Traceback" in wrong.getvalue() + said.getvalue():
        raise Wrong(f"scmam {arguments[0]}: a traceback: {lines[-1]}")
    usage = any("Usage:" in line for line in lines)
    if status == 2 and not usage and (len(errors) != 1 or lines[-1] != errors[0]):
        raise Wrong(f"scmam {arguments[0]}: not one line of error but {lines[-3:]}")
    return status


# Cells


def _make_cells(path: Path) -> None:
    import anndata
    import pandas as pd
    import scipy.sparse as sp

    counts = sp.csr_matrix(np.random.default_rng(0).poisson(0.7, (CELLS, GENES)).astype(np.float32))
    types = pd.DataFrame(
        {"cell_type": pd.Categorical(list("abc") * (CELLS // 3))},
        index=[f"c{i}" for i in range(CELLS)],
    )
    genes = pd.DataFrame(index=[f"G{i}" for i in range(GENES)])
    anndata.AnnData(counts, obs=types, var=genes).write_h5ad(path)


def h5ad(source: Source) -> str:
    """A damaged file of cells, inspected by the command or opened by the function."""
    import h5py

    path = folder() / "cells.h5ad"
    path.unlink(missing_ok=True)
    shutil.copyfile(shared("cells.h5ad", _make_cells), path)
    damages = []
    with h5py.File(path, "r+") as file:
        for _ in range(source.between(0, 2)):
            damage = source.one_of(DAMAGES)
            # two damages need not go together
            with contextlib.suppress(KeyError, AttributeError, TypeError, IndexError, ValueError,
            OSError, RuntimeError):  # fmt: skip
                damage(source, file)
            damages.append(damage.__name__)
    if source.chance(6):
        content = path.read_bytes()
        path.write_bytes(content[: source.below(len(content))])
        damages.append("cut")
    reading = source.one_of(["open", "inspect"])
    source.calling(reading, damages=damages)
    if reading == "inspect":
        options = source.one_of(
            [
                (),
                ("--json",),
                ("--label", "cell_type"),
                ("--label", "none"),
                ("--donor", "x"),
                ("--counts", "X"),
            ]
        )
        return f"status {command('inspect', str(path), *options)}"
    return _open(path)


def _open(path: Path) -> str:
    from scmam.data import open_cells
    from scmam.errors import ScmamError
    from scmam.settings import Data

    try:
        cells = open_cells(Data(path=path))
        if cells.counts.shape[0] * cells.counts.shape[1] > 10**6:
            raise Wrong(f"taken: the shape {cells.counts.shape} of {CELLS} cells")
        counts = cells.counts.whole().toarray()
    except ScmamError as error:
        if "\n" in str(error):
            raise Wrong(f"an error of more than one line: {error}") from error
        return "refused"
    if cells.unit != "counts":  # of values that no longer are counts
        return f"taken, as {cells.unit}"
    truth, names = _read_cells(path)
    truth = truth[cells.cell_ids]  # cells without a count are left out, and a note says so
    if any(set(LINE_ENDS) & set(name) for name in cells.genes):
        raise Wrong("a gene whose name ends a line was taken")
    if tuple(names) != tuple(cells.genes):
        raise Wrong("other gene names than those of the file")
    if counts.shape != truth.shape or not np.array_equal(counts, truth.astype(np.float32)):
        raise Wrong(f"other counts than those of the file, which are {cells.unit!r}")
    return "taken"


def _read_cells(path: Path) -> tuple[np.ndarray, list[str]]:
    """Counts and gene names by h5py alone.

    Raises:
        Wrong: the file, which was taken, holds no such thing.
    """
    import h5py

    with h5py.File(path, "r") as file:
        index = file["var"].attrs["_index"]
        names = [x.decode() if isinstance(x, bytes) else str(x) for x in file["var"][index][:]]
        names = [name.strip() for name in names]  # as documented
        for table in ("obs", "var"):
            if file[table].attrs.get("encoding-type") != "dataframe":
                raise Wrong(f"taken: {table}, which does not say that it is a table")
        index = file["obs"][file["obs"].attrs["_index"]]
        cells = len(index) if isinstance(index, h5py.Dataset) else None
        x = file["X"]
        if isinstance(x, h5py.Dataset):
            dense = x[:]
        else:
            shape = tuple(int(size) for size in x.attrs["shape"])
            parts = [x[name][:] for name in ("indptr", "indices", "data")]
            if shape != (shape[0] if cells is None else cells, len(names)):
                raise Wrong(f"taken: the shape {shape} of {cells} cells and {len(names)} genes")
            by_columns = x.attrs["encoding-type"] == "csc_matrix"
            rows, columns = shape[::-1] if by_columns else shape
            if any(part.dtype.kind not in "iufb" for part in parts):
                raise Wrong("taken: parts that are no numbers")
            dense = broken_csr.read(*parts, rows, columns, summed=True)
            if dense is None:
                raise Wrong("taken: a matrix that breaks its invariants")
            dense = dense.T if by_columns else dense
    if dense.shape != (len(dense) if cells is None else cells, len(names)):
        raise Wrong(f"taken: {dense.shape} values of {cells} cells and {len(names)} genes")
    return dense, names


def _replaced(file: Any, name: str, content: Any, **options: Any) -> None:
    attributes = dict(file[name].attrs)
    del file[name]
    made = file.create_dataset(name, data=content, **options)
    made.attrs.update(attributes)


def _indptr(source: Source, file: Any) -> None:
    x = file["X/indptr"][:].astype(np.int64)
    kind = source.below(7)
    at = source.below(len(x))
    if kind < 4:
        x[at] += source.one_of([1, -1, 5, -5, 1000, -1000, 2**40])
    elif kind == 4:
        x = x[: source.below(len(x))]
    elif kind == 5:
        x = np.concatenate([x, x[-1:]])
    else:
        x = source.one_of(
            [x.astype(np.float64), x.astype(str).astype("S"), x[None], x[::-1].copy()]
        )
    _replaced(file, "X/indptr", x)


def _indices(source: Source, file: Any) -> None:
    x = file["X/indices"][:].astype(np.int64)
    at = source.below(len(x))
    kind = source.below(4)
    if kind == 0:
        x[at] = source.one_of([GENES, -1, 10**6, 2**40, -(2**40)])
    elif kind == 1:
        x = x[: source.below(len(x))]
    elif kind == 2:
        x[at] = x[max(at - 1, 0)]
    else:
        x = source.one_of([x.astype(np.float32), x.astype(str).astype("S"), x[None], x + 0.5])
    _replaced(file, "X/indices", x)


def _data(source: Source, file: Any) -> None:
    x = file["X/data"][:]
    kind = source.below(4)
    if kind == 0:
        x[source.below(len(x))] = source.one_of(
            [np.nan, np.inf, -1.0, 0.0, 0.5, 1e30, 2.0**24 + 2, -np.inf, 1e-40]
        )
    elif kind == 1:
        x = x[: source.below(len(x))]
    elif kind == 2:
        with np.errstate(all="ignore"):
            x = x.astype(
                source.one_of(
                    [np.int64, np.complex64, bool, np.float16, np.uint8, np.float64, "S4"]
                )
            )
    else:
        x = source.one_of([x[None], np.float32(1.0), x * 1e30, -x, x * 0, x + 0.25])
    _replaced(file, "X/data", x)


def _shape(source: Source, file: Any) -> None:
    wild = [
        (CELLS, GENES + 1), (CELLS + 1, GENES), (CELLS, GENES - 1), (CELLS - 1, GENES), (0, 0), (-1,
        GENES), (2**40, 2**40),
        (CELLS,), (CELLS, GENES, 1), "shape", 3.5, (CELLS + 0.5, GENES), (GENES, CELLS), (CELLS,
        2**31),
    ]  # fmt: skip
    file["X"].attrs["shape"] = source.one_of(wild)


def _encoding(source: Source, file: Any) -> None:
    name = source.one_of(["X", "obs", "var", "obs/cell_type", "var/_index", "obs/_index", "uns"])
    attribute = source.one_of(["encoding-type", "encoding-version", "_index", "column-order"])
    if source.chance(40):
        file[name].attrs.pop(attribute, None)
        return
    file[name].attrs[attribute] = source.one_of(
        ["csc_matrix", "csr_matrix", "array", "dataframe", "categorical", "", "no such thing", 3,
        "9.9.9", "string-array",
         "dict", ["a", "b"], "_index", "cell_type", "../X", "null"]
    )  # fmt: skip


def _dense(source: Source, file: Any) -> None:
    size = source.one_of(
        [(CELLS, GENES), (CELLS, GENES + 1), (CELLS - 1, GENES), (CELLS,), (CELLS, GENES, 1), (0,
        GENES), (CELLS, 0), ()]
    )  # fmt: skip
    x = source.numbers.poisson(0.7, size)
    kind = source.one_of([np.float32, np.int64, np.complex64, "S3", bool, np.float16, np.uint8])
    del file["X"]
    made = file.create_dataset("X", data=np.asarray(x).astype(kind))
    made.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})


def _gone(source: Source, file: Any) -> None:
    del file[
        source.one_of(
            ["X", "obs", "var", "X/data", "X/indices", "X/indptr", "var/_index", "obs/_index",
            "obs/cell_type", "obs/cell_type/codes",
             "obs/cell_type/categories", "layers", "uns"]
        )
    ]  # fmt: skip


NAMES = (
    "G\nA", "G\rA", "G\x0bA", "G\x1cA", "G\x85A", "G\u2028A", "G\u2029", "", " ", "G1", "-G",
    "--help", "a" * 5000, "\u202eG", "é", "\x07",
    "../../G", "G\x0c", "nan", "None", "#G", '"G"', "G,1", "\ufeff", "\x1e",
)  # fmt: skip


def _names(source: Source, file: Any) -> None:
    which = source.one_of(["var", "var", "obs"])
    x = [name.decode() for name in file[f"{which}/_index"][:]]
    kind = source.below(5)
    if kind < 3:
        x[source.below(len(x))] = source.one_of(NAMES)
    elif kind == 3:
        x = x[: source.below(len(x))]
    else:
        x = [*x, "one more"]
    content: Any = x
    if source.chance(10):
        content = [name.encode("utf-16") + b"\xff" for name in x]
    elif source.chance(10):
        content = np.arange(len(x))
    _replaced(file, f"{which}/_index", content)


def _labels(source: Source, file: Any) -> None:
    codes = file["obs/cell_type/codes"][:]
    kind = source.below(4)
    if kind == 0:
        codes[source.below(len(codes))] = source.one_of([-1, 3, 100, -100])
        _replaced(file, "obs/cell_type/codes", codes)
    elif kind == 1:
        _replaced(file, "obs/cell_type/codes", codes[: source.below(len(codes))])
    elif kind == 2:
        given = [
            ["a", "a", "c"],
            ["a", "b\nc", "c"],
            ["a", "b"],
            [],
            ["", " ", "\x00"],
            ["a" * 9000] * 3,
        ]
        _replaced(file, "obs/cell_type/categories", source.one_of(given))
    else:
        _replaced(file, "obs/cell_type/codes", source.one_of([codes.astype(float),
        codes.astype("S"), codes[None]]))  # fmt: skip


def _other(source: Source, file: Any) -> None:
    """Something else where a table or a matrix is expected."""
    name = source.one_of(["X", "obs", "var", "layers", "uns", "obs/cell_type", "raw"])
    if name in file:
        del file[name]
    kind = source.below(4)
    if kind == 0:
        file.create_group(name)
    elif kind == 1:
        file[name] = source.one_of([3, "text", 2.5, [1, 2, 3]])
    elif kind == 2:
        import h5py

        file[name] = h5py.SoftLink(source.one_of(["/nowhere", "/X", "/", f"/{name}"]))
    else:
        import h5py

        file[name] = h5py.ExternalLink("no such file.h5", "/X")


DAMAGES = (
    _indptr, _indices, _data, _shape, _names, _encoding, _dense, _gone, _labels, _other
)  # fmt: skip


# Weights


@functools.cache
def _weights() -> dict[str, bytes]:
    """Right files: of a masking module, of an injection, by torch.save, and an exported model."""
    path, out = folder() / "right", {}
    module = mam.MultinomialAttentionMasking(None, 8, 4, 2)
    mam.weights.save(module, path)
    out["module"] = path.read_bytes()
    mam.weights.save(mam.ContextInjection(8, 3), path)
    out["injection"] = path.read_bytes()
    torch.save({"state_dict": module.state_dict()}, path)
    out["checkpoint"] = path.read_bytes()
    out["exported"] = (shared("run", _make_run) / "exported.safetensors").read_bytes()
    return out


def weights(source: Source) -> str:
    """A damaged file of weights, read by every reader of such files."""
    from scmam.errors import ScmamError
    from scmam.weights import load_model

    kind = source.one_of(sorted(_weights()))
    content, damages = _weights()[kind], []
    for _ in range(source.between(0, 2)):
        damage = source.one_of(_ZIP if kind == "checkpoint" else _SAFE)
        content = damage(source, content)
        damages.append(damage.__name__)
    path = folder() / source.one_of(["weights.safetensors", "weights.pt", "weights"])
    path.write_bytes(content)
    readers: dict[str, Callable[[], Any]] = {
        "load": lambda: mam.weights.load(path),
        "load into": lambda: mam.weights.load(path, into=mam.MultinomialAttentionMasking(None, 8, 4,
        2)),
        "from_published": lambda: mam.weights.from_published(path, num_heads=2),
        "load_model": lambda: load_model(path),
    }  # fmt: skip
    own = {"module": ["load", "load into", "from_published"], "injection": ["load"]}
    own |= {"checkpoint": ["from_published"], "exported": ["load_model"]}
    name = source.one_of([*own[kind], *readers])
    source.calling(name, kind=kind, damages=damages, size=len(content))
    try:
        readers[name]()
    except (mam.weights.WeightsError, ScmamError) as error:
        if "\n" in str(error):
            raise Wrong(f"{name}: an error of more than one line: {error}") from error
        # torch reads a file that is named like the other format as that format
        misnamed = kind == "checkpoint" and path.suffix == ".safetensors"
        if not damages and name in own[kind] and not misnamed:
            raise Wrong(f"{name}: a right file was refused: {error}") from error
        return "refused"
    return "taken"


def _cut(source: Source, content: bytes) -> bytes:
    return content[: source.below(max(len(content), 1))]


def _flipped(source: Source, content: bytes) -> bytes:
    if not content:
        return content
    out = bytearray(content)
    for _ in range(source.between(1, 3)):
        at = source.below(min(len(out), source.one_of([len(out), 400])))
        out[at] = source.below(256)
    return bytes(out)


def _longer(source: Source, content: bytes) -> bytes:
    return content + bytes(source.between(1, 9))


def _garbage(source: Source, content: bytes) -> bytes:
    return source.one_of(
        [b"", b"\0", b"text\n", b"\x89HDF\r\n\x1a\n", b"\x80\x04.", b"\x1f\x8b", b"PK\x03\x04",
        b"{}", b"\xff" * 100,
         struct.pack("<Q", 2**63) + b"{", struct.pack("<Q", 10**8) + b"{}", struct.pack("<Q",
         2) + b"{}",
         pickle.dumps({"state_dict": {"latents": 3}}), pickle.dumps(print)]
    )  # fmt: skip


def _header(source: Source, content: bytes) -> bytes:
    """Another header before the same numbers."""
    try:
        (length,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + length])
        body = content[8 + length :]
    except (struct.error, ValueError, RecursionError):
        return content
    if not isinstance(header, dict):
        return content
    text = None
    kind = source.below(8)
    names = [name for name, entry in header.items() if isinstance(entry, dict)]
    names = [name for name in names if name != "__metadata__"]
    if kind == 0 and names:
        entry = header[source.one_of(names)]
        entry["shape"] = source.one_of(
            [[2**62, 2**62], [-1], [], [0], [2**63], "8", [8.5], [1] * 500, [2**32, 2**32], None]
        )
    elif kind == 1 and names:
        entry = header[source.one_of(names)]
        entry["data_offsets"] = source.one_of(
            [
                [0, 2**62],
                [-4, 4],
                [8, 0],
                [2**63, 2**64],
                [0],
                "0",
                [0.5, 4.5],
                [1, 5],
                [2**64 - 4, 2**64],
            ]
        )
    elif kind == 2 and names:
        header[source.one_of(names)]["dtype"] = source.one_of(
            ["F16", "F64", "I64", "BF16", "BOOL", "F8_E4M3", "none", 3, None, "U8", "C64"]
        )
    elif kind == 3 and names:
        name = source.one_of(names)
        header[source.one_of(["latents", "x", "", "a\nb", name + ".", "../x"])] = header.pop(name)
    elif kind == 4:
        header["__metadata__"] = source.one_of([None, 3, [], {}, {"mam_kernels": 3},
        {"mam_kernels": "{"}, {"mam_kernels": "[]"}, {"a": "b"}])  # fmt: skip
    elif kind == 5 and isinstance(header.get("__metadata__"), dict):
        return _with_description(source, header, body)
    elif kind == 6:
        depth = source.one_of([100, 1000, 100_000])
        text = (
            "[" * depth + "]" * depth if source.chance(50) else '{"a":' * depth + "1" + "}" * depth
        )
    elif kind == 7:
        text = source.one_of(
            ["[]", "3", "null", '{"a": 1e400}', "{} {}", '{"a": NaN}', '{"\\ud800": 1}']
        )
    return _safetensors(json.dumps(header) if text is None else text, body)


def _with_description(source: Source, header: dict[str, Any], body: bytes) -> bytes:
    """Another description of what the file holds."""
    try:
        description = json.loads(header["__metadata__"]["mam_kernels"])
    except (KeyError, TypeError, ValueError, RecursionError):
        return _safetensors(json.dumps(header), body)
    if not isinstance(description, dict):
        return _safetensors(json.dumps(header), body)
    if source.chance(40):
        name = source.one_of(["format", "kind", "arguments", "version"])
        description[name] = source.one_of(STRANGE)
    else:
        _damage_json(source, description)
    text = json.dumps(description)
    if source.chance(10):
        depth = source.one_of([1000, 100_000])
        text = "[" * depth + "]" * depth
    header["__metadata__"]["mam_kernels"] = text
    return _safetensors(json.dumps(header), body)


def _safetensors(header: str, body: bytes) -> bytes:
    encoded = header.encode("utf-8", errors="surrogatepass")
    return struct.pack("<Q", len(encoded)) + encoded + body


STRANGE: tuple[Any, ...] = (
    None, True, -1, 0, 2**70, 1.5, 1e308, float("nan"), "", "x", "a\nb", "x" * 3000, [], [1], [[]],
    {}, {"a": 1}, [None], "\ud800", ["-x"],
    -(2**70), 10**7, "null",
)  # fmt: skip


def _damage_json(source: Source, value: Any, depth: int = 0) -> None:
    """Replace something somewhere in a tree of lists and dicts."""
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    if not keys:
        return
    key = source.one_of(keys)
    inner = value[key]
    if isinstance(inner, (dict, list)) and inner and depth < 3 and source.chance(75):
        _damage_json(source, inner, depth + 1)
    elif isinstance(value, dict) and source.chance(15):
        del value[key]
    elif isinstance(value, dict) and source.chance(10):
        value[source.one_of(["x", "", "a\nb", "__class__"])] = value.pop(key)
    else:
        value[key] = copy.deepcopy(source.one_of(STRANGE))


def _saved(source: Source, content: bytes) -> bytes:
    """What torch.save writes of something else."""
    tensor = torch.ones(4, 8)
    things = [
        {}, [], 3, None, "text", {"state_dict": None}, {"state_dict": []},
        {"state_dict": {"latents": tensor}}, {"latents": tensor},
        {"state_dict": {"latents": torch.ones(4)}}, {"state_dict": {3: tensor}},
        {"model": {"a": {"b": tensor}}}, {"latents": "x"},
        {"state_dict": {"latents": tensor, "input_proj.weight": torch.ones(3),
        "cross_attention.in_proj_weight": torch.ones(8, 8)}},
        {"latents": tensor.to_sparse()}, {"latents": tensor.to(torch.complex64)},
        {"latents": torch.ones(0, 0)},
        {"latents": tensor.to("meta")}, {"a\nb.latents": tensor},
    ]  # fmt: skip
    file = io.BytesIO()
    torch.save(source.one_of(things), file)
    return file.getvalue()


def _zipped(source: Source, content: bytes) -> bytes:
    """An archive in which a part is missing or is something else."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as file:
            parts = {name: file.read(name) for name in file.namelist()}
    except (zipfile.BadZipFile, NotImplementedError, OSError, EOFError, ValueError, RuntimeError):
        return content
    if not parts:
        return content
    name = source.one_of(sorted(parts))
    kind = source.below(4)
    if kind == 0:
        del parts[name]
    elif kind == 1:
        parts[name] = _flipped(source, parts[name])
    elif kind == 2:
        parts[name] = _cut(source, parts[name])
    else:
        parts[source.one_of(["data.pkl", "../x", "archive/data.pkl", "x" * 200])] = parts.pop(name)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        for name, part in parts.items():
            file.writestr(name, part)
    return out.getvalue()


_SAFE = (_header, _header, _header, _cut, _flipped, _longer, _garbage, _saved)
_ZIP = (_zipped, _saved, _cut, _flipped, _longer, _garbage)


# Runs


def _make_run(path: Path) -> None:
    import scmam
    from scmam.config import load_config
    from scmam.weights import export_model

    cells = shared("cells.h5ad", _make_cells)
    settings = load_config(None, SMALL_RUN | {"data.path": str(cells)})
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        run = scmam.pretrain(settings, path, progress=False)
        export_model(run, path / "exported.safetensors")


def runs(source: Source) -> str:
    """A run folder of which one file is damaged, given to a command."""
    run = folder() / "run"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(shared("run", _make_run), run)
    (run / "exported.safetensors").unlink()
    damaged = source.one_of(
        [
            "run.json",
            "config.yaml",
            "genes.txt",
            "metrics.csv",
            "model.pt",
            "checkpoints/last.ckpt",
            "checkpoints",
        ]
    )
    going_on = damaged.startswith("checkpoints") or source.chance(20)
    if going_on:
        record = json.loads((run / "run.json").read_text())
        (run / "run.json").write_text(json.dumps(record | {"status": "interrupted", "steps": 1}))
    how = _damage_file(source, run / damaged)
    name = "pretrain" if going_on else source.one_of(["export", "evaluate", "genes"])
    source.calling(name, damaged=damaged, how=how)
    if name == "pretrain":
        cells = shared("cells.h5ad", _make_cells)
        settings = [f"--set={key}={value}" for key, value in SMALL_RUN.items()]
        where = ("--data", str(cells), "--out", str(run), "--quiet")
        return f"pretrain {command('pretrain', *where, *settings)}"
    more = [str(folder() / "model.safetensors")] if name == "export" else []
    return f"{name} {command(name, str(run), *more)}"


def _damage_file(source: Source, path: Path) -> str:
    """Damage a file according to what it is; in words."""
    kind = source.below(6)
    if kind == 0:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        return "gone"
    if kind == 1:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        path.mkdir()
        return "a folder"
    if path.is_dir():
        shutil.rmtree(path)
        path.write_text("text")
        return "a file"
    content = path.read_bytes()
    if path.suffix == ".json" and kind > 2:
        value = json.loads(content)
        for _ in range(source.between(1, 2)):
            _damage_json(source, value)
        text = json.dumps(value) if source.chance(90) else "[" * 100_000
        path.write_text(text)
        return "other JSON"
    if path.suffix in (".pt", ".ckpt"):
        damage = source.one_of((*_ZIP, _rewritten, _rewritten))
        path.write_bytes(damage(source, content))
        return damage.__name__
    damage = source.one_of([_cut, _flipped, _lines, _lines, _garbage])
    path.write_bytes(damage(source, content))
    return damage.__name__


def _rewritten(source: Source, content: bytes) -> bytes:
    """The same checkpoint with something in it replaced."""
    value = torch.load(io.BytesIO(content), weights_only=False)
    if isinstance(value, dict):
        _damage_tree(source, value)
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def _damage_tree(source: Source, value: Any, depth: int = 0) -> None:
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    if not keys:
        return
    key = source.one_of(keys)
    inner = value[key]
    if isinstance(inner, (dict, list)) and inner and depth < 4 and source.chance(80):
        _damage_tree(source, inner, depth + 1)
    elif isinstance(value, dict) and source.chance(30):
        del value[key]
    elif isinstance(inner, torch.Tensor):
        tensors = [inner[..., :-1] if inner.dim() else inner, inner.double(), inner.to(torch.int64),
                   inner[None], inner * float("nan"), torch.zeros(0)]  # fmt: skip
        value[key] = source.one_of(tensors)
    else:
        value[key] = source.one_of([None, {}, [], -1, "x", 2**70, {"a": 1}, float("nan"), True])


def _lines(source: Source, content: bytes) -> bytes:
    """Lines that are missing, twice there, or others."""
    lines = content.split(b"\n")
    at = source.below(len(lines))
    kind = source.below(4)
    if kind == 0:
        del lines[at]
    elif kind == 1:
        lines.insert(at, lines[at])
    elif kind == 2:
        lines[at] = source.one_of(
            [b"", b"\xff\xfe", b"x: [", b"a,b,c", b"- - -", b"x: &a [*a]",
            b"!!python/object:os.system {}", b"\0", b"G1", b"{" * 20000, b"  : :",
             b"steps: -1", b"9" * 5000]
        )  # fmt: skip
    else:
        head, _, tail = lines[at].partition(b": ")
        lines[at] = (
            head
            + b": "
            + source.one_of(
                [b"x", b"-1", b"[]", b"{}", b"null", b"1e999", b"true", b"''", tail[::-1]]
            )
        )
    return b"\n".join(lines)


# Settings

ARMS = (
    "mine", "", " ", "a\nb", "-x", "--help", "x" * 300, "x" * 5000, "../x", "a/b", ".", "..", "con",
    "a\0b", "é", "a\u2028b", "a\x1b[0m", "UPPER",
    "uniform", "a b", "a,b", "a:b",
)  # fmt: skip


def settings(source: Source) -> str:
    """A YAML file of settings that may hold anything, resolved by the command."""
    import yaml

    path = folder() / "settings.yaml"
    arm = source.one_of(ARMS)
    value: dict[str, Any] = {
        "data": {"label": None, "num_genes": 100}, "training": {"steps": 5, "seed": 0},
        "masking": {"strategy": "mam", "ratio": 0.3},
        "study": {"arms": ["uniform", arm], "custom": {arm: {"strategy": "mam"}}, "seeds": [0, 1]},
    }  # fmt: skip
    for _ in range(source.between(0, 2)):
        _damage_json(source, value)
    text = yaml.safe_dump(value, allow_unicode=source.chance(50))
    content = text.encode("utf-8", errors="surrogatepass")
    if source.chance(25):
        content = source.one_of([_lines, _cut, _flipped])(source, content)
    path.write_bytes(content)
    more: tuple[str, ...] = ()
    if source.chance(30):
        name = source.one_of(["study.arms", "training.steps", "masking.ratio", "x.y", "data", ""])
        wild = ["[" * 5000, "", "-1", "nan", "{a", "x" * 300, "1e400", "[a", "!!x y", "a\nb"]
        more = (f"--set={name}={source.one_of(wild)}",)
    source.calling("config", content=content[:1500], more=more)
    return f"status {command('config', '--config', str(path), *more)}"
