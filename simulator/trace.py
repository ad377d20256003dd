"""Fault traces in HDF5: written so that a kill costs one shard, read with suspicion.

The format is specified in docs/trace-format.md. A trace under way is a folder
`<path>.parts` of shards, each a complete trace of some trials; `close` merges
them into one file whose bytes depend on the content alone.

Files are built in memory and written with plain system calls: HDF5 never meets
a full disk, and no reader ever sees half a file.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from fsim.errors import TraceError, TraceTooNewError
from fsim.types import FAULT

try:
    import fcntl
except ImportError:  # no advisory locks on this platform
    fcntl = None

ENCODING_TYPE = "fsim-trace"
ENCODING_VERSION = 1

OUTCOME = np.dtype(
    [
        ("trial", "<i8"),  # index of the trial
        ("image", "<i4"),  # index of the image in the run
        ("label", "<i4"),  # true class; -1 if unknown
        ("golden", "<i4"),  # top-1 class without faults
        ("faulty", "<i4"),  # top-1 class with the trial's faults; -1 if there is none
        ("outcome", "u1"),  # code of statistics.Outcome
        ("digest", "<u8"),  # tensor_digest of the faulty last integer tensor
    ]
)
"""One row a (trial, image)."""

TRIALS = np.dtype([("trial", "<i8"), ("n_faults", "<i4"), ("rows_digest", "<u8")])
"""One row a trial, trials without any fault included."""

GROUPS = {"faults": FAULT, "outcomes": OUTCOME, "trials": TRIALS}
OUTCOME_CODES = 6

CHUNK_ROWS = 65536
MAX_CHUNK_ROWS = 1 << 20  # readers refuse more: one chunk must fit in memory
MAX_JSON_BYTES = 64 << 20
MAX_BYTES = 8 << 30
_MERGE_BYTES = 512 << 20  # uncompressed columns held at a time while merging
_FILTERS = [h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_FLETCHER32]

# What h5py and json raise on files that are not what they claim to be.
_DAMAGE = (OSError, RuntimeError, LookupError, ValueError, TypeError, ArithmeticError, MemoryError)


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
        begin, end = np.searchsorted(self.faults["trial"], [trial, trial + 1])
        return self.faults[begin:end]


def canonical_json(value: dict, what: str = "task") -> bytes:
    """ASCII JSON with sorted keys and no spaces. TraceError if `value` has no such form."""

    def check(node, where):
        if isinstance(node, dict):
            for key, item in node.items():
                if not isinstance(key, str):
                    raise TraceError(f"keys of {where} must be strings, got {key!r}")
                check(item, f"{where}.{key}")
        elif isinstance(node, (list, tuple)):
            for i, item in enumerate(node):
                check(item, f"{where}[{i}]")
        elif isinstance(node, float) and not np.isfinite(node):
            raise TraceError(f"{where} must be finite, got {node!r}")
        elif node is not None and type(node) not in (str, int, float, bool):
            raise TraceError(
                f"{where} must be a string, number, boolean, list, dict or None, "
                f"got {type(node).__name__}"
            )

    if not isinstance(value, dict):
        raise TraceError(f"{what} must be a dict, got {type(value).__name__}")
    check(value, what)
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")
    if len(text) > MAX_JSON_BYTES:
        raise TraceError(f"{what} must take at most {MAX_JSON_BYTES} bytes as JSON")
    return text


def hash_task(task: dict) -> str:
    """SHA-256 of the canonical JSON of `task`, hexadecimal."""
    return hashlib.sha256(canonical_json(task)).hexdigest()


def tensor_digest(tensors: np.ndarray) -> np.ndarray:
    """64-bit digests of integer tensors, (images,) uint64.

    tensors (images, ...) integers. BLAKE2b with 8 bytes over the values as
    little-endian int64 in C order; the digest is read as little-endian too.
    """
    rows = np.ascontiguousarray(tensors, "<i8").reshape(len(tensors), -1)
    digests = b"".join(hashlib.blake2b(row.data, digest_size=8).digest() for row in rows)
    return np.frombuffer(digests, "<u8").copy()


def _rows_digests(faults: np.ndarray, n_faults: np.ndarray) -> np.ndarray:
    """BLAKE2b-64 of the bytes of each trial's rows; `faults` holds the trials in order."""
    ends = np.cumsum(n_faults, dtype=np.int64) * FAULT.itemsize
    data = memoryview(np.ascontiguousarray(faults).view(np.uint8))
    begin, digests = 0, []
    for end in ends.tolist():
        digests.append(hashlib.blake2b(data[begin:end], digest_size=8).digest())
        begin = end
    return np.frombuffer(b"".join(digests), "<u8").copy()


def _first_difference(stored, given, where="task") -> str | None:
    """The first field in which two JSON values differ, with both values."""
    if isinstance(stored, dict) and isinstance(given, dict):
        for key in sorted(stored.keys() | given.keys()):
            if key not in stored or key not in given:
                side = "only now" if key in given else "only in the stored trace"
                return f"{where}.{key} is {side}"
            found = _first_difference(stored[key], given[key], f"{where}.{key}")
            if found:
                return found
        return None
    if isinstance(stored, list) and isinstance(given, list) and len(stored) == len(given):
        for i, (a, b) in enumerate(zip(stored, given)):
            found = _first_difference(a, b, f"{where}[{i}]")
            if found:
                return found
        return None
    if type(stored) is type(given) and stored == given:
        return None
    return f"{where} was {json.dumps(stored)[:80]}, now {json.dumps(given)[:80]}"


# Writing


class _ContentDigest:
    """BLAKE2b-256 over every value of a trace, each with its name, type and length."""

    def __init__(self):
        self._hash = hashlib.blake2b(digest_size=32)

    def column(self, group: str, name: str, values: np.ndarray) -> None:
        self._hash.update(f"{group}/{name} {values.dtype.str} {len(values)}\n".encode())
        self._hash.update(np.ascontiguousarray(values).data)

    def text(self, name: str, data: bytes) -> None:
        self._hash.update(f"{name} {len(data)}\n".encode())
        self._hash.update(data)

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def _file_image(columns, task_json: bytes, provenance_json: bytes) -> bytes:
    """The bytes of a trace. columns yields (group, name, values) in the order of GROUPS."""
    options = dict(compression="gzip", compression_opts=1, shuffle=True, fletcher32=True)
    digest = _ContentDigest()
    with h5py.File(
        "fsim-trace", "w", driver="core", backing_store=False, libver=("earliest", "v110")
    ) as file:
        for group, name, values in columns:
            file.create_dataset(
                f"{group}/{name}",
                data=values,
                chunks=(CHUNK_ROWS,),
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
        self._closed = False
        if self.path.exists() and not (resume or overwrite):
            raise TraceError(f"{self.path} exists already: resume it, overwrite it or name another")
        if _shards(self._parts_dir) and not (resume or overwrite):
            raise TraceError(f"{self._parts_dir} holds an unfinished trace: resume or overwrite it")
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
            self._release_lock()
            raise

    @staticmethod
    def resume(path: str | os.PathLike, task: dict) -> np.ndarray:
        """Trials that `path` and its shards hold already, sorted int64.

        TraceError, naming the first field that differs, if they belong to another task.
        """
        return _stored(Path(path), task)[1]

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
        if self._closed:
            raise TraceError(f"{self.path} is closed: no trial can be added")
        faults, outcomes, trials = _checked_batch(faults, outcomes)
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
        shards = _shards(self._parts_dir)
        number = int(shards[-1].stem) + 1 if shards else 1
        shard = self._parts_dir / f"{number:06d}.h5"
        with _writing(shard):
            _write_atomically(shard, image, shard.with_suffix(".tmp"))
        self._parts.append(shard)
        self._stored = np.union1d(self._stored, trials["trial"])

    def close(self) -> Path:
        """Merge the shards into the trace, remove them, and return its path."""
        if self._closed:
            return self.path
        if self._parts != [self.path]:
            self._merge()
        with _writing(self._parts_dir):
            shutil.rmtree(self._parts_dir)
        self._release_lock()
        self._closed = True
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
        if kind is None:
            self.close()
        else:
            self._closed = True
            self._release_lock()


def _checked_batch(faults, outcomes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sorted copies of both tables and the TRIALS rows they make."""
    for name, table, dtype in (("faults", faults, FAULT), ("outcomes", outcomes, OUTCOME)):
        if not isinstance(table, np.ndarray) or table.dtype != dtype or table.ndim != 1:
            raise TraceError(f"{name} must be a 1-D array of {name.upper()[:-1]} rows")
    faults = faults[np.argsort(faults["trial"], kind="stable")]
    outcomes = outcomes[np.lexsort([outcomes["image"], outcomes["trial"]])]
    same = (np.diff(outcomes["trial"]) == 0) & (np.diff(outcomes["image"]) == 0)
    if same.any():
        row = outcomes[1:][same][0]
        raise TraceError(f"trial {row['trial']} has two outcomes for image {row['image']}")
    if len(outcomes) and (outcomes["trial"][0] < 0 or outcomes["outcome"].max() >= OUTCOME_CODES):
        raise TraceError(f"outcomes must have trials >= 0 and codes below {OUTCOME_CODES}")
    numbers = np.unique(outcomes["trial"])
    orphan = ~np.isin(faults["trial"], numbers)
    if orphan.any():
        raise TraceError(f"trial {faults['trial'][orphan][0]} has fault rows but no outcome")
    trials = np.zeros(len(numbers), TRIALS)
    trials["trial"] = numbers
    trials["n_faults"] = np.diff(
        np.searchsorted(faults["trial"], np.append(numbers, np.iinfo("i8").max))
    )
    trials["rows_digest"] = _rows_digests(faults, trials["n_faults"])
    return faults, outcomes, trials


def _parts_dir(path: Path) -> Path:
    return path.with_name(path.name + ".parts")


def _shards(parts_dir: Path) -> list[Path]:
    found = (p for p in parts_dir.glob("*.h5") if p.stem.isdigit())
    return sorted(found, key=lambda p: int(p.stem))


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
        difference = _first_difference(trace.task, given)
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


def _check_tables(faults: np.ndarray, outcomes: np.ndarray, trials: np.ndarray) -> None:
    numbers = trials["trial"]
    if len(numbers) and (numbers[0] < 0 or (np.diff(numbers) <= 0).any()):
        raise TraceError("/trials/trial must be ascending and not negative")
    if (trials["n_faults"] < 0).any() or trials["n_faults"].sum(dtype=np.int64) != len(faults):
        raise TraceError("/trials/n_faults must add up to the rows of /faults")
    if not np.array_equal(np.repeat(numbers, trials["n_faults"]), faults["trial"]):
        raise TraceError("/faults must be sorted by trial and agree with /trials/n_faults")
    step_trial, step_image = np.diff(outcomes["trial"]), np.diff(outcomes["image"])
    if not ((step_trial > 0) | ((step_trial == 0) & (step_image > 0))).all():
        raise TraceError("/outcomes must be sorted by trial and image, without repetition")
    if not np.array_equal(np.unique(outcomes["trial"]), numbers):
        raise TraceError("/outcomes must hold every trial of /trials and no other")
    if len(outcomes) and outcomes["outcome"].max() >= OUTCOME_CODES:
        raise TraceError(f"/outcomes/outcome must be below {OUTCOME_CODES}")
    wrong = _rows_digests(faults, trials["n_faults"]) != trials["rows_digest"]
    if wrong.any():
        raise TraceError(
            f"fault rows of trial {numbers[wrong][0]} do not match their digest "
            f"({int(wrong.sum())} of {len(numbers)} trials)"
        )


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
    digest = _ContentDigest()
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
    _check_tables(**tables)
    if digest.hexdigest() != _attribute(file, "content-digest"):
        raise TraceError("the content does not match its digest: the file was damaged or altered")
    return Trace(
        **tables,
        task=_json_object("task", texts["task"]),
        provenance=_json_object("provenance", texts["provenance"]),
    )
