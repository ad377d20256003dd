"""Fault traces in HDF5: written so that a kill costs one shard, read with suspicion.

The format is specified in docs/trace-format.md. A trace under way is a folder
`<path>.parts` of shards, each a complete trace of some trials; `close` merges
them into one file whose bytes depend on the content alone.

Files are built in memory and written with plain system calls: HDF5 never meets
a full disk, and no reader ever sees half a file.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from fsim.errors import TraceError, TraceTooNewError
from fsim.simulator.trace_format import (
    ENCODING_TYPE,
    ENCODING_VERSION,
    GROUPS,
    MAX_JSON_BYTES,
    OUTCOME,
    OUTCOME_CODES,
    TRIALS,
    ContentDigest,
    canonical_json,
    check_tables,
    checked_batch,
    first_difference,
    hash_task,
    tensor_digest,
)

__all__ = [
    "ENCODING_VERSION",
    "OUTCOME",
    "OUTCOME_CODES",
    "TRIALS",
    "Trace",
    "TraceWriter",
    "canonical_json",
    "hash_task",
    "merge_traces",
    "read_trace",
    "tensor_digest",
]

try:
    import fcntl
except ImportError:  # no advisory locks on this platform
    fcntl = None

CHUNK_ROWS = 65536
MAX_CHUNK_ROWS = 1 << 20  # readers refuse more: one chunk must fit in memory
MAX_BYTES = 8 << 30
SHARD_SECONDS = 1.0
_MERGE_BYTES = 512 << 20  # uncompressed columns held at a time while merging
_FILTERS = [h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_FLETCHER32]

# What h5py and json raise on files that are not what they claim to be.
_DAMAGE = (OSError, RuntimeError, LookupError, ValueError, TypeError, ArithmeticError)


@dataclass(frozen=True)
class Trace:
    """A trace in memory, checked.

    faults      (f,) FAULT, sorted by trial; within a trial in the order applied
    outcomes    (o,) OUTCOME, sorted by (trial, image)
    trials      (t,) TRIALS, sorted by trial
    task        everything that decides the answers
    provenance  where and how it was run
    """

    faults: np.ndarray
    outcomes: np.ndarray
    trials: np.ndarray
    task: dict
    provenance: dict

    def faults_of(self, trial: int) -> np.ndarray:
        """The FAULT rows of one trial."""
        numbers = self.faults["trial"]
        begin = np.searchsorted(numbers, trial, side="left")
        end = np.searchsorted(numbers, trial, side="right")
        return self.faults[begin:end]


# Writing


def _chunk_rows(rows: int) -> int:
    """Rows a chunk: a short column is one chunk, because a chunk is written whole."""
    return min(CHUNK_ROWS, 1 << max(rows - 1, 0).bit_length())


def _file_image(columns, task_json: bytes, provenance_json: bytes) -> bytes:
    """The bytes of a trace. columns yields (group, name, values) in the order of GROUPS."""
    options = dict(compression="gzip", compression_opts=1, shuffle=True, fletcher32=True)
    digest = ContentDigest()
    with h5py.File(
        "fsim-trace", "w", driver="core", backing_store=False, libver=("earliest", "v110")
    ) as file:
        for group, name, values in columns:
            file.create_dataset(
                f"{group}/{name}",
                data=values,
                chunks=(_chunk_rows(len(values)),),
                maxshape=(None,),
                track_times=False,
                **options,
            )
            digest.column(group, name, values)
        for name, data in (("task", task_json), ("provenance", provenance_json)):
            file.create_dataset(
                name, data=np.array([data]), chunks=(1,), track_times=False, **options
            )
            digest.text(name, data)
        file.attrs["encoding-type"] = np.bytes_(ENCODING_TYPE)
        file.attrs["encoding-version"] = np.bytes_(str(ENCODING_VERSION))
        file.attrs["content-digest"] = np.bytes_(digest.hexdigest())
        file.flush()
        return file.id.get_file_image()


@contextmanager
def _writing(path: Path):
    """Turn what the system says about a failed write into one TraceError."""
    try:
        yield
    except TraceError:
        raise
    except OSError as error:
        raise TraceError(f"cannot write {path}: {error.strerror or error}") from error


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":  # a renamed file survives a power cut only with its folder
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _write_atomically(path: Path, data: bytes, scratch: Path) -> None:
    try:
        with open(scratch, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _merged_columns(parts: list[Path]) -> Iterator[tuple[str, str, np.ndarray]]:
    """Every column of several traces with disjoint trials, in canonical order."""
    for group, dtype in GROUPS.items():
        keys = ("image", "trial") if group == "outcomes" else ("trial",)
        key_columns = _gather(parts, group, keys)
        order = np.lexsort([key_columns[key] for key in keys])  # stable, last key first
        rows = len(order)
        if np.array_equal(order, np.arange(rows)):
            order = slice(None)
        names, held = [], 0
        for i, name in enumerate(dtype.names):
            names.append(name)
            held += rows * dtype[name].itemsize
            if held >= _MERGE_BYTES or i == len(dtype.names) - 1:
                columns = _gather(parts, group, names)
                for taken in names:
                    yield group, taken, columns.pop(taken)[order]
                names, held = [], 0


def _gather(parts: list[Path], group: str, names) -> dict[str, np.ndarray]:
    """Columns of several traces, one after the other."""
    columns = {name: [] for name in names}
    for part in parts:
        with _reading(part) as file:
            for name in names:
                columns[name].append(file[f"{group}/{name}"][...])
    empty = {name: np.empty(0, GROUPS[group][name]) for name in names}
    return {name: np.concatenate([empty[name], *columns[name]]) for name in names}


class TraceWriter:
    """Collects trials in shards and merges them into one trace.

    path        the trace to be made; shards are kept in `<path>.parts`
    task        what decides the answers: JSON values only
    provenance  versions, machine, command: JSON values only. Of a run that was
                resumed, the provenance of its beginning is kept
    resume      go on with an unfinished or finished trace of the same task
    overwrite   replace an existing trace; it stays until the new one is complete

    Without `resume` or `overwrite`, an existing trace or folder of shards is
    refused. Used as a context manager it closes at the end, and after an
    exception leaves the shards for a later resume. Raises TraceError.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        task: dict,
        provenance: dict,
        *,
        resume: bool = False,
        overwrite: bool = False,
    ):
        self.path = Path(path)
        self._parts_dir = _parts_dir(self.path)
        self._task_json = canonical_json(task)
        self._provenance_json = canonical_json(provenance, "provenance")
        self._overwrite = overwrite
        self._lock = None
        self._open = True
        self._finished = False
        self._next: int | None = None  # number of the next shard
        self._waiting: list[tuple[np.ndarray, np.ndarray]] = []
        if self.path.exists() and not (resume or overwrite):
            raise TraceError(f"{self.path} exists already: resume it, overwrite it or name another")
        if _shards(self._parts_dir) and not (resume or overwrite):
            raise TraceError(f"{self._parts_dir} holds an unfinished trace: resume or overwrite it")
        foreign = _foreign(self._parts_dir)
        if foreign:  # the folder is removed when the trace is complete
            raise TraceError(f"{self._parts_dir} must hold shards only, got {foreign}")
        with _writing(self._parts_dir):
            self._parts_dir.mkdir(parents=True, exist_ok=True)
            self._take_lock()
        try:
            if not resume:
                with _writing(self._parts_dir):
                    for shard in _shards(self._parts_dir):
                        shard.unlink()
            self._parts, self._stored = _stored(self.path, task, finished=not overwrite)
        except BaseException:
            self.abandon()
            raise

    @staticmethod
    def resume(path: str | os.PathLike, task: dict) -> np.ndarray:
        """Trials that `path` and its shards hold already, sorted int64.

        TraceError, naming the first field that differs, if they belong to another task.
        """
        return _stored(Path(path), task)[1]

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that hold the trials written so far; each is a trace of its own."""
        return tuple(self._parts)

    @property
    def stored_trials(self) -> np.ndarray:
        """Trials written so far, sorted int64."""
        return self._stored

    def append(self, faults: np.ndarray, outcomes: np.ndarray) -> None:
        """Write complete trials as one shard; on return they are safe.

        faults    (f,) FAULT, all rows of its trials; order within a trial is kept
        outcomes  (o,) OUTCOME, at least one row for every trial

        TraceError if a trial is stored already, if a row belongs to a trial
        without outcome, or if the shard cannot be written (then nothing changes).
        """
        if not self._open:
            raise TraceError(f"the writer of {self.path} is closed: no trial can be added")
        faults, outcomes, trials = checked_batch(faults, outcomes)
        if not len(trials):
            return
        known = np.isin(trials["trial"], self._stored)
        if known.any():
            raise TraceError(f"trial {trials['trial'][known][0]} is stored already in {self.path}")
        tables = {"faults": faults, "outcomes": outcomes, "trials": trials}
        image = _file_image(
            (
                (group, name, table[name])
                for group, table in tables.items()
                for name in table.dtype.names
            ),
            self._task_json,
            self._provenance_json,
        )
        if self._next is None:
            shards = _shards(self._parts_dir)
            self._next = int(shards[-1].stem) + 1 if shards else 1
        shard = self._parts_dir / f"{self._next:06d}.h5"
        with _writing(shard):
            _write_atomically(shard, image, shard.with_suffix(".tmp"))
        self._next += 1
        self._parts.append(shard)
        self._stored = np.union1d(self._stored, trials["trial"])

    def add(self, faults: np.ndarray, outcomes: np.ndarray) -> None:
        """As `append`, but trials of SHARD_SECONDS share a shard; `close` writes the rest.

        A kill costs what was added since the last shard.
        """
        if not self._waiting:
            self._since = time.monotonic()
        self._waiting.append((faults, outcomes))
        if time.monotonic() - self._since >= SHARD_SECONDS or len(faults) > CHUNK_ROWS:
            self.flush()

    def flush(self) -> None:
        """Write what was added and is not yet in a shard."""
        waiting, self._waiting = self._waiting, []
        if waiting:
            self.append(*(np.concatenate(parts) for parts in zip(*waiting)))

    def close(self) -> Path:
        """Merge the shards into the trace, remove them, and return its path."""
        if self._finished:
            return self.path
        if not self._open:
            raise TraceError(f"the writer of {self.path} was abandoned: resume it")
        self.flush()
        if self._parts != [self.path]:
            self._merge()
        with _writing(self._parts_dir):
            shutil.rmtree(self._parts_dir)
        self._release_lock()
        self._open, self._finished = False, True
        return self.path

    def _merge(self) -> None:
        provenance_json = self._provenance_json
        if self._parts:
            with _reading(self._parts[0]) as file:
                provenance_json = bytes(file["provenance"][0])
        image = _file_image(_merged_columns(self._parts), self._task_json, provenance_json)
        with _writing(self.path):
            if self.path.exists() and not (self._overwrite or self.path in self._parts):
                raise TraceError(f"{self.path} has appeared meanwhile; the shards are kept")
            _write_atomically(self.path, image, self._parts_dir / "merged.tmp")

    def abandon(self) -> None:
        """Stop without merging; the shards stay for a later resume."""
        if self._open:
            with suppress(TraceError):  # a full disk has been reported already
                self.flush()
        self._open = False
        if not _shards(self._parts_dir):
            shutil.rmtree(self._parts_dir, ignore_errors=True)
        self._release_lock()

    def _take_lock(self) -> None:
        if fcntl is None:
            return
        self._lock = open(self._parts_dir / "lock", "wb")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._release_lock()
            raise TraceError(f"another process is writing {self.path}") from None

    def _release_lock(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> TraceWriter:
        return self

    def __exit__(self, kind, error, traceback) -> None:
        try:
            if kind is None:
                self.close()
        finally:
            if self._open:
                self.abandon()


def merge_traces(paths: list[Path], out: Path, traces: list[Trace]) -> None:
    """Write traces of one task with disjoint trials as one, atomically.

    traces  the same files as read and checked. Where their provenance differs, that of the
            result lists all of them.
    """
    stated = [canonical_json(trace.provenance, "provenance") for trace in traces]
    if len(set(stated)) == 1:
        provenance = stated[0]
    else:
        each = [json.loads(text) for text in sorted(set(stated))]
        provenance = canonical_json({"merged": each}, "provenance")
    image = _file_image(_merged_columns(paths), canonical_json(traces[0].task), provenance)
    with _writing(out):
        _write_atomically(out, image, out.with_name(f".{out.name}.tmp"))


def _parts_dir(path: Path) -> Path:
    return path.with_name(path.name + ".parts")


def _shards(parts_dir: Path) -> list[Path]:
    found = (p for p in parts_dir.glob("*.h5") if p.stem.isdigit())
    return sorted(found, key=lambda p: int(p.stem))


def _foreign(parts_dir: Path) -> str | None:
    """The name of something in the folder that a writer did not put there, or None."""
    known = {"lock", *(shard.name for shard in _shards(parts_dir))}
    names = sorted(p.name for p in parts_dir.glob("*") if p.suffix != ".tmp")
    return next((name for name in names if name not in known), None)


def _stored(path: Path, task: dict, finished: bool = True) -> tuple[list[Path], np.ndarray]:
    """Files that hold trials of this task, and the sorted trials they hold.

    A shard whose trials are all in the finished trace is left over from a close
    that was killed while it removed the shards, and does not count.
    """
    given = json.loads(canonical_json(task))
    parts, stored = [], np.empty(0, np.int64)
    candidates = [path] if finished and path.exists() else []
    for part in candidates + _shards(_parts_dir(path)):
        trace = read_trace(part)
        difference = first_difference(trace.task, given)
        if difference:
            raise TraceError(f"{part} belongs to another task: {difference}")
        numbers = trace.trials["trial"]
        known = np.isin(numbers, stored)
        if known.any():
            if parts[0] == path and known.all():
                continue
            raise TraceError(f"trial {numbers[known][0]} is stored twice, again in {part}")
        parts.append(part)
        stored = np.union1d(stored, numbers)
    return parts, stored


# Reading


@contextmanager
def _reading(path: Path):
    """Open an HDF5 file; whatever it makes h5py raise becomes one TraceError."""
    try:
        with h5py.File(path, "r", locking=False) as file:
            yield file
    except TraceError:
        raise
    except FileNotFoundError:
        raise TraceError(f"{path}: no such file") from None
    except MemoryError as error:
        raise TraceError(f"{path} needs more memory than there is") from error
    except _DAMAGE as error:
        text = str(error).strip().splitlines()
        reason = text[0] if text else type(error).__name__
        raise TraceError(f"{path} is damaged or not a trace: {reason}") from error


def _attribute(file: h5py.File, name: str) -> str:
    """A root attribute that is a short fixed-length string."""
    if name not in file.attrs:
        raise TraceError(f"root attribute {name!r} is missing")
    attribute = file.attrs.get_id(name)
    kind = attribute.get_type()
    if (
        not isinstance(kind, h5py.h5t.TypeStringID)
        or kind.is_variable_str()
        or kind.get_size() > 256
        or attribute.shape != ()
    ):
        raise TraceError(
            f"root attribute {name!r} must be a fixed-length string of up to 256 bytes"
        )
    return bytes(file.attrs[name]).decode("ascii")


def _child(group: h5py.Group, name: str, kind: type):
    """A member that is really inside this file: hard links only."""
    where = f"{group.name.rstrip('/')}/{name}"
    if not isinstance(group.get(name, getlink=True), h5py.HardLink):
        raise TraceError(f"{where} must not be a soft or external link")
    if group.get(name, getclass=True) is not kind:
        raise TraceError(f"{where} must be a {kind.__name__.lower()}")
    return group[name]


def _check_names(group: h5py.Group, expected) -> None:
    if len(group) > len(expected) or set(group) != set(expected):
        shown = ", ".join(sorted(group)[:8]) if len(group) < 1000 else f"{len(group)} names"
        raise TraceError(
            f"{group.name} must hold exactly {', '.join(sorted(expected))}; it holds {shown}"
        )


def _check_dataset(dataset: h5py.Dataset) -> None:
    """One-dimensional, chunked, our filters, nothing outside the file."""
    plist = dataset.id.get_create_plist()
    if dataset.ndim != 1:
        raise TraceError(f"{dataset.name} must have one dimension, got {dataset.ndim}")
    if plist.get_external_count() or plist.get_layout() == h5py.h5d.VIRTUAL:
        raise TraceError(f"{dataset.name} must not keep its data in other files")
    if plist.get_layout() != h5py.h5d.CHUNKED:
        raise TraceError(f"{dataset.name} must be chunked")
    filters = [plist.get_filter(i)[0] for i in range(plist.get_nfilters())]
    if filters != _FILTERS:
        raise TraceError(f"{dataset.name} must use shuffle, gzip and fletcher32, got {filters}")
    if dataset.chunks[0] > MAX_CHUNK_ROWS:
        raise TraceError(f"{dataset.name} has chunks of {dataset.chunks[0]} rows: too large")


def _checked_columns(file: h5py.File, group_name: str, max_bytes: int) -> dict[str, h5py.Dataset]:
    """The datasets of one group, none of them read yet."""
    dtype = GROUPS[group_name]
    group = _child(file, group_name, h5py.Group)
    _check_names(group, dtype.names)
    columns = {}
    for name in dtype.names:
        dataset = _child(group, name, h5py.Dataset)
        _check_dataset(dataset)
        if dataset.dtype != dtype[name]:
            raise TraceError(f"{dataset.name} must be {dtype[name].str}, got {dataset.dtype}")
        columns[name] = dataset
    lengths = {name: dataset.shape[0] for name, dataset in columns.items()}
    if len(set(lengths.values())) != 1:
        raise TraceError(f"columns of /{group_name} must be equally long, got {lengths}")
    rows = lengths[dtype.names[0]]
    if rows * dtype.itemsize > max_bytes:
        raise TraceError(
            f"/{group_name} declares {rows} rows, {rows * dtype.itemsize} bytes: "
            f"more than the limit of {max_bytes}"
        )
    return columns


def _checked_text(file: h5py.File, name: str) -> bytes:
    dataset = _child(file, name, h5py.Dataset)
    _check_dataset(dataset)
    if dataset.dtype.kind != "S" or dataset.shape != (1,) or dataset.chunks != (1,):
        raise TraceError(f"/{name} must be one fixed-length string, got {dataset.dtype}")
    if dataset.dtype.itemsize > MAX_JSON_BYTES:
        raise TraceError(f"/{name} declares {dataset.dtype.itemsize} bytes: too large")
    return bytes(dataset[0])


def _json_object(name: str, data: bytes) -> dict:
    def refuse(constant):
        raise TraceError(f"/{name} holds {constant}, which is not JSON")

    value = json.loads(data.decode("ascii"), parse_constant=refuse)
    if not isinstance(value, dict):
        raise TraceError(f"/{name} must be a JSON object")
    return value


def read_trace(path: str | os.PathLike, *, max_bytes: int = MAX_BYTES) -> Trace:
    """Read a trace and check everything it says about itself.

    max_bytes  the most memory the tables may take, checked before anything is read

    Raises TraceError (one line: what must hold, what was found, which file) for
    anything that is not a complete, intact trace, and TraceTooNewError for one
    written by a later version of the format.
    """
    path = Path(path)
    if path.is_dir():
        raise TraceError(f"{path} is a folder, not a trace")
    if path.exists() and not path.is_file():  # opening a pipe would wait for ever
        raise TraceError(f"{path} must be a regular file, got a device or pipe")
    with _reading(path) as file:
        try:
            return _read_open_trace(file, max_bytes)
        except TraceError as error:
            raise type(error)(f"{path}: {error}") from None


def _read_open_trace(file: h5py.File, max_bytes: int) -> Trace:
    encoding = _attribute(file, "encoding-type")
    if encoding != ENCODING_TYPE:
        raise TraceError(f"encoding-type must be {ENCODING_TYPE!r}, got {encoding!r}")
    version = _attribute(file, "encoding-version")
    if not version.isdigit() or int(version) < 1:
        raise TraceError(f"encoding-version must be a whole number from 1 on, got {version!r}")
    if int(version) > ENCODING_VERSION:
        raise TraceTooNewError(
            f"written in version {version} of the trace format; "
            f"this fsim reads up to version {ENCODING_VERSION}"
        )
    _check_names(file, [*GROUPS, "task", "provenance"])
    columns, left = {}, max_bytes
    for group in GROUPS:
        columns[group] = _checked_columns(file, group, left)
        left -= columns[group]["trial"].shape[0] * GROUPS[group].itemsize
    digest = ContentDigest()
    tables = {}
    for group, dtype in GROUPS.items():
        table = np.empty(columns[group]["trial"].shape[0], dtype)
        for name, dataset in columns[group].items():
            values = dataset[...]
            digest.column(group, name, values)
            table[name] = values
        tables[group] = table
    texts = {}
    for name in ("task", "provenance"):
        texts[name] = _checked_text(file, name)
        digest.text(name, texts[name])
    check_tables(**tables)
    if digest.hexdigest() != _attribute(file, "content-digest"):
        raise TraceError("the content does not match its digest: the file was damaged or altered")
    return Trace(
        **tables,
        task=_json_object("task", texts["task"]),
        provenance=_json_object("provenance", texts["provenance"]),
    )
