"""What a trace holds, apart from HDF5: tables, digests, canonical JSON, checks.

The format is specified in docs/trace-format.md; trace.py reads and writes it.
"""

from __future__ import annotations

import hashlib
import json

import numpy as np

from fsim.errors import TraceError
from fsim.types import FAULT

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

MAX_JSON_BYTES = 64 << 20


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
    if not len(tensors):
        return np.zeros(0, "<u8")
    rows = np.ascontiguousarray(tensors, "<i8").reshape(len(tensors), -1)
    digests = b"".join(hashlib.blake2b(row.data, digest_size=8).digest() for row in rows)
    return np.frombuffer(digests, "<u8").copy()


def rows_digests(faults: np.ndarray, n_faults: np.ndarray) -> np.ndarray:
    """BLAKE2b-64 of the bytes of each trial's rows; `faults` holds the trials in order."""
    ends = np.cumsum(n_faults, dtype=np.int64) * FAULT.itemsize
    data = memoryview(np.ascontiguousarray(faults).view(np.uint8))
    begin, digests = 0, []
    for end in ends.tolist():
        digests.append(hashlib.blake2b(data[begin:end], digest_size=8).digest())
        begin = end
    return np.frombuffer(b"".join(digests), "<u8").copy()


def first_difference(stored, given, where="task") -> str | None:
    """The first field in which two JSON values differ, with both values."""
    if isinstance(stored, dict) and isinstance(given, dict):
        for key in sorted(stored.keys() | given.keys()):
            if key not in stored or key not in given:
                side = "only now" if key in given else "only in the stored trace"
                return f"{where}.{key} is {side}"
            found = first_difference(stored[key], given[key], f"{where}.{key}")
            if found:
                return found
        return None
    if isinstance(stored, list) and isinstance(given, list) and len(stored) == len(given):
        for i, (a, b) in enumerate(zip(stored, given)):
            found = first_difference(a, b, f"{where}[{i}]")
            if found:
                return found
        return None
    if type(stored) is type(given) and stored == given:
        return None
    return f"{where} was {json.dumps(stored)[:80]}, now {json.dumps(given)[:80]}"


class ContentDigest:
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


def checked_batch(faults, outcomes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
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
    begin, end = (np.searchsorted(faults["trial"], numbers, side) for side in ("left", "right"))
    trials["n_faults"] = end - begin
    trials["rows_digest"] = rows_digests(faults, trials["n_faults"])
    return faults, outcomes, trials


def check_tables(faults: np.ndarray, outcomes: np.ndarray, trials: np.ndarray) -> None:
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
    wrong = rows_digests(faults, trials["n_faults"]) != trials["rows_digest"]
    if wrong.any():
        raise TraceError(
            f"fault rows of trial {numbers[wrong][0]} do not match their digest "
            f"({int(wrong.sum())} of {len(numbers)} trials)"
        )
