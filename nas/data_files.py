"""Readers of the file formats in which image data sets are published.

Every reader takes bytes or a file that may be damaged or hostile: sizes are
checked before memory is taken, and nothing in a file is ever executed. They
raise ConfigError with the file's name and what was wrong with it.
"""

from __future__ import annotations

import gzip
import io
import lzma
import pickle
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from fsim.errors import ConfigError

MAX_BYTES = 4 << 30
"""No array beyond this size is read from a file (4 GiB)."""

_CHUNK = 1 << 20


# What the system, the decompressors and numpy's header parser raise for files
# that are missing, damaged, encrypted or hostile.
_READ_ERRORS = (
    OSError,
    EOFError,
    ValueError,
    TypeError,
    SyntaxError,
    ArithmeticError,
    MemoryError,
    RuntimeError,
    lzma.LZMAError,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)


@contextmanager
def _errors_of(path: Path, kind: str):
    """Turn what goes wrong in reading `path` into a ConfigError that names it."""
    try:
        yield
    except ConfigError:
        raise
    except _READ_ERRORS as error:
        text = str(error) or type(error).__name__
        raise ConfigError(f"{path} is not a readable {kind} file: {text}") from error


def _read_exactly(file: IO[bytes], count: int, path: Path, what: str) -> np.ndarray:
    """`count` bytes of `file` as (count,) uint8, read in pieces; they must be all there."""
    out = np.empty(count, np.uint8)
    view = memoryview(out)
    got = 0
    while got < count:
        piece = file.read(min(_CHUNK, count - got))
        if not piece:
            raise ConfigError(f"{path}: {what} must have {count} bytes, got {got} (truncated?)")
        view[got : got + len(piece)] = piece
        got += len(piece)
    return out


def _checked_size(shape: tuple[int, ...], itemsize: int, path: Path, what: str) -> int:
    """Bytes of an array, in Python integers that cannot overflow."""
    size = itemsize
    for length in shape:
        if length < 0:
            raise ConfigError(f"{path}: {what} must have lengths >= 0, got shape {shape}")
        size *= length
    if size > MAX_BYTES:
        raise ConfigError(f"{path}: {what} must be at most {MAX_BYTES} bytes, got {size}")
    return size


def _read_npy(file: IO[bytes], path: Path, what: str, limit: int | None) -> np.ndarray:
    """One .npy stream: numbers in C order; only the first `limit` rows where given."""
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    elif version == (2, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
    else:
        raise ConfigError(f"{path}: {what} must be .npy format 1.0 or 2.0, got {version}")
    if dtype.hasobject or dtype.kind not in "buif":
        raise ConfigError(f"{path}: {what} must hold plain numbers, got dtype {dtype}")
    if fortran and len(shape) > 1:
        raise ConfigError(f"{path}: {what} must be in C order, got Fortran order")
    if not shape:
        raise ConfigError(f"{path}: {what} must be an array, got a single number")
    if limit is not None:
        shape = (min(shape[0], limit), *shape[1:])
    size = _checked_size(shape, dtype.itemsize, path, what)
    data = _read_exactly(file, size, path, what)
    return data.view(dtype).reshape(shape)


def read_npy(path: Path, limit: int | None = None) -> np.ndarray:
    """The array of a .npy or .npy.xz file; only the first `limit` rows where given."""
    opened: Callable[..., IO[bytes]] = lzma.open if path.suffix == ".xz" else open
    with _errors_of(path, ".npy"), opened(path, "rb") as file:
        return _read_npy(file, path, "the array", limit)


def read_npz(path: Path, keys: tuple[str, ...], limit: int | None = None) -> dict[str, np.ndarray]:
    """The arrays `keys` of an .npz archive, the first `limit` rows of each; others stay unread.

    Keys that the archive lacks are absent from the answer. Pickled objects are refused.
    """
    arrays = {}
    with _errors_of(path, ".npz"), zipfile.ZipFile(path) as archive:
        members = archive.namelist()
        for key in keys:
            if f"{key}.npy" in members:
                with archive.open(f"{key}.npy") as file:
                    arrays[key] = _read_npy(file, path, f"{key!r}", limit)
    return arrays


def read_idx(path: Path, limit: int | None = None) -> np.ndarray:
    """An IDX file of unsigned bytes (LeCun's MNIST format), plain or .gz.

    Header: 0, 0, 8 (unsigned byte), number of axes; then each length as a
    big-endian 32-bit integer.
    """
    opened: Callable[..., IO[bytes]] = gzip.open if path.suffix == ".gz" else open
    with _errors_of(path, "IDX"), opened(path, "rb") as file:
        magic = _read_exactly(file, 4, path, "the header")
        if magic[0] or magic[1] or magic[2] != 8 or not 1 <= magic[3] <= 4:
            raise ConfigError(
                f"{path}: an IDX file of bytes must start with 00 00 08 and 1 to 4 axes, "
                f"got {magic.tobytes().hex(' ')}"
            )
        lengths = _read_exactly(file, 4 * int(magic[3]), path, "the header").view(">u4")
        shape = tuple(int(length) for length in lengths)
        whole = _checked_size(shape, 1, path, "the array")
        if limit is not None and limit < shape[0]:
            shape = (limit, *shape[1:])
            return _read_exactly(file, _checked_size(shape, 1, path, ""), path, "").reshape(shape)
        data = _read_exactly(file, whole, path, "the array")
        if file.read(1):
            raise ConfigError(f"{path}: must end after {whole} bytes of shape {shape}, got more")
        return data.reshape(shape)


CIFAR_ROW = 3 * 32 * 32


def read_cifar_binary(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """CIFAR-10 "binary version": records of 1 label byte and 3,072 pixels.

    Returns images (n, 3, 32, 32) uint8 and labels (n,) uint8.
    """
    with _errors_of(path, "CIFAR-10 binary"):
        size = path.stat().st_size
        if size == 0 or size % (CIFAR_ROW + 1) or size > MAX_BYTES:
            raise ConfigError(
                f"{path}: must hold whole records of {CIFAR_ROW + 1} bytes, got {size} bytes"
            )
        with open(path, "rb") as file:
            records = _read_exactly(file, size, path, "the file").reshape(-1, CIFAR_ROW + 1)
    return np.ascontiguousarray(records[:, 1:]).reshape(-1, 3, 32, 32), records[:, 0].copy()


# --- CIFAR-10 "python version": a pickle, read without running any of it ---

_PICKLE_BYTES = 64 << 20  # the published batches have 31 MB


class _StandIn:
    """Keeps the state that a pickle gives it, and does nothing else.

    All stand-ins are classes with a __setstate__: a pickle that tries to set
    attributes of the stand-in itself (and not of an instance) fails in it.
    """

    state: Any = None

    def __init__(self, *arguments: Any):
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _ArrayRecord(_StandIn):
    """In place of numpy.ndarray and of the function that makes an empty one."""


class _DtypeRecord(_StandIn):
    """In place of numpy.dtype. Its state is byte order and fields, which bytes do not have."""


class _Latin1(_StandIn):
    """In place of _codecs.encode, with which Python 3 writes bytes into protocol 2."""

    def __new__(cls, text: Any = None, encoding: Any = "latin1", *_: Any) -> Any:
        if not isinstance(text, str) or encoding != "latin1":
            raise pickle.UnpicklingError("only latin1 text may be encoded")
        return text.encode("latin1")


class _DataUnpickler(pickle.Unpickler):
    """Admits dicts, lists, numbers, text, bytes and records of arrays, nothing else.

    No class or function outside this module can be reached, not even numpy's:
    arrays become records of their parts, which `_decode` checks.
    """

    _ADMITTED = {
        ("numpy.core.multiarray", "_reconstruct"): _ArrayRecord,
        ("numpy._core.multiarray", "_reconstruct"): _ArrayRecord,
        ("numpy", "ndarray"): _ArrayRecord,
        ("numpy", "dtype"): _DtypeRecord,
        ("_codecs", "encode"): _Latin1,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ADMITTED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not data")
        return self._ADMITTED[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it refers to objects outside the file")


def _decode(record: Any, path: Path) -> np.ndarray:
    """The (n, 3072) uint8 array that a record stands for."""
    state = record.state if isinstance(record, _ArrayRecord) else None
    # numpy's own layout of the state: version, shape, dtype, Fortran order, bytes
    if not (isinstance(state, tuple) and len(state) == 5):
        raise ConfigError(f"{path}: entry 'data' must be a numpy array")
    _, shape, dtype, fortran, raw = state
    name = dtype.arguments[0] if isinstance(dtype, _DtypeRecord) and dtype.arguments else None
    if name not in ("u1", b"u1", "uint8") or fortran or not isinstance(raw, bytes):
        raise ConfigError(f"{path}: entry 'data' must be uint8 bytes in C order, got {name!r}")
    if not (
        isinstance(shape, tuple)
        and len(shape) == 2
        and all(isinstance(length, int) for length in shape)
        and shape[1] == CIFAR_ROW
        and shape[0] * shape[1] == len(raw)
    ):
        raise ConfigError(
            f"{path}: entry 'data' must have shape (n, {CIFAR_ROW}) and as many bytes, "
            f"got shape {shape!r} and {len(raw)} bytes"
        )
    return np.frombuffer(raw, np.uint8).reshape(shape)


def read_cifar_pickle(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """CIFAR-10 "python version": a pickled dict with b"data" and b"labels".

    Returns images (n, 3, 32, 32) uint8 and labels (n,) uint8. Nothing in the
    pickle is executed; what is not plain data is refused.
    """
    with _errors_of(path, "CIFAR-10 batch"):
        size = path.stat().st_size
        if size > _PICKLE_BYTES:
            raise ConfigError(f"{path}: a batch must be at most {_PICKLE_BYTES} bytes, got {size}")
        raw = path.read_bytes()
    try:
        content = _DataUnpickler(io.BytesIO(raw), encoding="bytes").load()
    # A damaged pickle makes the unpickler fail in many ways (IndexError, KeyError,
    # AttributeError, MemoryError, ...); none of them has run anything.
    except Exception as error:
        raise ConfigError(f"{path} is not a CIFAR-10 batch: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: a batch must be a dict, got {type(content).__name__}")
    data = content.get(b"data", content.get("data"))
    labels = content.get(b"labels", content.get("labels"))
    pixels = _decode(data, path)
    if not (
        isinstance(labels, list)
        and len(labels) == len(pixels)
        and all(type(label) is int and 0 <= label <= 9 for label in labels)
    ):
        raise ConfigError(f"{path}: entry 'labels' must be a list of {len(pixels)} integers 0..9")
    return pixels.reshape(-1, 3, 32, 32).copy(), np.array(labels, np.uint8)
