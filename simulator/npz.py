"""Reading .npz files of unknown origin: everything is checked before it is allocated.

An .npz is a zip of .npy files. A hostile one can hold pickled objects, members
that unpack to terabytes, or headers that declare shapes nobody can allocate. This
reader knows the size of every array from the zip directory and the .npy headers
before it reads one, takes plain numbers and text only, and evaluates nothing.
"""

from __future__ import annotations

import math
import re
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np

from fsim.errors import ConfigError

MAX_BYTES = 256 * 2**20
"""Largest file, and largest sum of unpacked arrays, in bytes."""

MAX_MEMBERS = 20_000
"""Most arrays in a file."""

_MAX_DIRECTORY = 4 * 2**20  # bytes of zip directory: about 50 000 entries
_END = b"PK\x05\x06"  # signature of the zip's end record, the last 22 bytes and a comment
_ZIP64_LOCATOR = b"PK\x06\x07"  # lies in the 20 bytes before the end record of a zip64
_MAGIC = b"\x93NUMPY"
_MAX_HEADER = 1024  # numpy pads to 128 bytes for plain types
_DESCR = re.compile(r"'descr'\s*:\s*'([<>|=]?[biufU]\d{1,7})'")
_ORDER = re.compile(r"'fortran_order'\s*:\s*(True|False)")
_SHAPE = re.compile(r"'shape'\s*:\s*\(\s*((?:\d{1,12}(?:\s*,\s*\d{1,12})*)?)\s*,?\s*\)")
_MAX_DIMENSIONS = 8

# What a damaged zip makes the standard library raise.
_DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    NotImplementedError,
    OSError,
    RuntimeError,
    ValueError,
)


def read_npz(path: str | Path, max_bytes: int = MAX_BYTES) -> dict[str, np.ndarray]:
    """Every array of an .npz file, by key.

    Arrays of booleans, integers, floats and text; no pickled objects, no
    structured types. Raises ConfigError, naming file and key, for a file that
    is missing, damaged, or larger than `max_bytes` packed or unpacked.
    """
    path = Path(path)
    try:
        if not path.is_file():
            raise ConfigError(f"an .npz file must be a regular file that exists, got {path}")
        size = path.stat().st_size
        if size > max_bytes:
            raise ConfigError(
                f"an .npz file must take at most {max_bytes} bytes, got {size} ({path})"
            )
        with path.open("rb") as file:
            _check_directory(file, size, path)
            with zipfile.ZipFile(file) as archive:
                return _read_members(archive, path, max_bytes)
    except ConfigError:
        raise
    except _DAMAGED as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ConfigError(f"cannot read the .npz file: {reason} ({path})") from None


def _check_directory(file, size: int, path: Path) -> None:
    """Refuse a zip whose directory alone would fill the memory."""
    file.seek(max(0, size - 22 - 65_535))
    tail = file.read()
    end = tail.rfind(_END)
    if end < 0 or len(tail) - end < 22:
        raise ConfigError(f"an .npz file must be a zip archive, got something else ({path})")
    directory = struct.unpack_from("<I", tail, end + 12)[0]
    zip64 = tail[max(0, end - 20) : end].startswith(_ZIP64_LOCATOR)
    if zip64 or directory > _MAX_DIRECTORY:
        raise ConfigError(
            f"an .npz file must have at most {_MAX_DIRECTORY} bytes of zip directory, "
            f"got {'a zip64 directory' if zip64 else directory} ({path})"
        )
    file.seek(0)


def _read_members(archive: zipfile.ZipFile, path: Path, max_bytes: int) -> dict[str, np.ndarray]:
    members = archive.infolist()
    if len(members) > MAX_MEMBERS:
        raise ConfigError(
            f"an .npz file must hold at most {MAX_MEMBERS} arrays, got {len(members)} ({path})"
        )
    total = sum(member.file_size for member in members)
    if total > max_bytes:
        raise ConfigError(
            f"the arrays of an .npz file must take at most {max_bytes} bytes unpacked, "
            f"got {total} ({path})"
        )
    arrays = {}
    for member in members:
        key = member.filename.removesuffix(".npy")
        where = f"({path}: {key})"
        if key == member.filename:
            raise ConfigError(f"an .npz file must hold .npy members only, got {key!r} ({path})")
        if key in arrays:
            raise ConfigError(f"a key must occur once, got it twice {where}")
        if member.flag_bits & 1:
            raise ConfigError(f"an array must not be encrypted {where}")
        try:
            with archive.open(member) as stream:
                arrays[key] = _read_array(stream, member.file_size, where)
        except ConfigError:
            raise
        except _DAMAGED as error:
            reason = str(error) or type(error).__name__
            raise ConfigError(f"cannot read the array: {reason} {where}") from None
    return arrays


def _read_array(stream, size: int, where: str) -> np.ndarray:
    """One .npy member of `size` bytes; its header must account for all of them."""
    start = stream.read(8)
    if start[:6] != _MAGIC or len(start) < 8 or start[6] not in (1, 2):
        raise ConfigError(f"an array must be an .npy file of version 1 or 2 {where}")
    width = 2 if start[6] == 1 else 4
    length = int.from_bytes(stream.read(width), "little")
    if length > _MAX_HEADER:
        raise ConfigError(
            f"an .npy header must be at most {_MAX_HEADER} bytes, got {length} {where}"
        )
    header = stream.read(length).decode("latin-1")
    descr, order, shape = (pattern.search(header) for pattern in (_DESCR, _ORDER, _SHAPE))
    if not (descr and order and shape):
        raise ConfigError(
            f"an array must hold booleans, integers, floats or text, and its header must state "
            f"descr, fortran_order and shape; got {header[:80].strip()!r} {where}"
        )
    try:
        dtype = np.dtype(descr[1])
    except TypeError:
        raise ConfigError(f"a dtype must be one of numpy's, got {descr[1]!r} {where}") from None
    dimensions = tuple(int(text) for text in shape[1].split(",") if text.strip())
    if len(dimensions) > _MAX_DIMENSIONS:
        raise ConfigError(
            f"an array must have at most {_MAX_DIMENSIONS} dimensions, "
            f"got {len(dimensions)} {where}"
        )
    declared, held = math.prod(dimensions) * dtype.itemsize, size - 8 - width - length
    if declared != held or dtype.itemsize == 0:
        raise ConfigError(
            f"shape {dimensions} of {dtype} takes {declared} bytes, the file holds {held} {where}"
        )
    data = stream.read(declared)  # zipfile checks the CRC at the member's end
    if len(data) != declared:
        raise ConfigError(f"the array must hold {declared} bytes, got {len(data)} {where}")
    flat = np.frombuffer(data, dtype)
    return flat.reshape(dimensions, order="F" if order[1] == "True" else "C")
