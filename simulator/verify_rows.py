"""Vectors of one row-stationary PE against `row_conv`, backend by backend.

A file holds rows of a convolution with their fault-free sums and, for each of many single
faults, the sums the RTL gave. Keys: `meta` (JSON: design, kinds, sites, cases with S, q, p,
U, F and cycles), `ifm{c}`, `fil{c}`, `ips{c}`, `C{c}` for case c, and for fault v f_case,
f_kind, f_site, f_idx, f_bit, f_fstart, f_off, f_masked, with its sums from `f_off` on in
`f_out`.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fsim.accel_models.accel import Accel
from fsim.accel_models.load import load_accel
from fsim.errors import ConfigError, FsimError
from fsim.simulator.npz import read_npz
from fsim.simulator.row_conv import row_conv
from fsim.simulator.vectors import MAX_VECTORS
from fsim.simulator.verify import Mismatch, Tally, VectorReport, sample
from fsim.types import Fault

DESIGN = "eyeriss_pe"
PRESET = "eyeriss-like"
BACKENDS = ("replay", "reference")

_KINDS = {"flip": "flip", "sa0": "stuck0", "sa1": "stuck1"}
_FIELDS = ("case", "kind", "site", "idx", "bit", "fstart", "off")


def builtin_rows() -> Path:
    """The file that comes with fsim."""
    return Path(__file__).resolve().parent / "rtl_vectors" / "eyeriss_pe.npz"


@dataclass(frozen=True)
class RowFile:
    """A file whose keys and shapes are checked.

    sizes   per case the arguments s, q, p, stride, outputs of `row_conv`
    cycles  per case
    cases   per case (ifmap, filters, psum_in) and sums (outputs, p)
    faults  Fault, case, sums and whether they are the fault-free ones
    """

    path: Path
    sizes: list[dict]
    cycles: list[int]
    cases: list[tuple[tuple, np.ndarray]]
    faults: list[tuple[Fault, int, np.ndarray, bool]]


def is_row_file(path: str | Path) -> bool:
    """Whether a vector file says it is of a row-stationary PE; ConfigError if unreadable."""
    try:
        meta = json.loads(str(read_npz(Path(path)).get("meta", "")))
    except (ValueError, RecursionError):
        return False
    return isinstance(meta, dict) and str(meta.get("design", "")).startswith(DESIGN)


def read_rows(path: str | Path) -> RowFile:
    """Read and check a file; ConfigError names file and key."""
    path = Path(path)
    arrays = read_npz(path)
    key = "meta"
    try:
        meta = json.loads(str(arrays["meta"]))
        sizes, cycles, cases = [], [], []
        for c, case in enumerate(meta["cases"]):
            size = dict(zip(("s", "q", "p", "stride", "outputs"), (case[x] for x in "SqpUF")))
            for key in (f"ifm{c}", f"fil{c}", f"ips{c}", f"C{c}"):
                if arrays[key].dtype.kind not in "iu":
                    raise ConfigError(f"{key} must hold integers ({path}: {key})")
            operands = tuple(arrays[f"{name}{c}"] for name in ("ifm", "fil", "ips"))
            sums = arrays[f"C{c}"].astype(np.int64).reshape(size["outputs"], size["p"])
            sizes.append(size)
            cycles.append(int(case["cycles"]))
            cases.append((operands, sums))
        fields = {}
        for field in _FIELDS:
            key = f"f_{field}"
            fields[field] = arrays[key].astype(np.int64)
            if fields[field].shape != (int(meta["n_vectors"]),):
                raise ConfigError(f"{key} must have n_vectors entries ({path}: {key})")
            if field != "fstart" and (fields[field] < 0).any():
                raise ConfigError(f"{key} must not be negative ({path}: {key})")
        if len(fields["case"]) > MAX_VECTORS:
            raise ConfigError(f"n_vectors must be at most {MAX_VECTORS} ({path}: meta)")
        key, faults = "f_out", []
        for v in range(len(fields["case"])):
            f = {field: int(values[v]) for field, values in fields.items()}
            sums = cases[f["case"]][1]
            out = arrays["f_out"][f["off"] :][: sums.size].astype(np.int64).reshape(sums.shape)
            kind = meta["kinds"][f["kind"]]
            fault = Fault(
                meta["sites"][f["site"]], word=f["idx"], bit=f["bit"], kind=_KINDS[kind],
                cycle=f["fstart"] if kind == "flip" else None,
            )  # fmt: skip
            faults.append((fault, f["case"], out, bool(arrays["f_masked"][v])))
    except FsimError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ConfigError(
            f"vectors of a row-stationary PE must have the keys that docs/vectors.md names, got "
            f"{type(error).__name__}: {error} ({path}: {key})"
        ) from None
    return RowFile(path, sizes, cycles, cases, faults)


def verify_rows(
    path: str | Path | None = None,
    backend: str = "replay",
    *,
    accel: str | Accel = PRESET,
    every: int = 1,
) -> VectorReport:
    """Compare a backend of `row_conv` with a file of vectors (None: the one of fsim).

    backend  "replay" or "reference"; every: check one in `every` vectors, at least one
    """
    start = time.perf_counter()
    machine = accel if isinstance(accel, Accel) else load_accel(accel)
    file = read_rows(path or builtin_rows())
    counts: dict[str, list[int]] = {}
    first: dict[str, Mismatch] = {}

    def compare(check: str, case: int, vector: int | None, what: str, want, got) -> None:
        want, got = np.atleast_2d(want), np.atleast_2d(got)
        wrong = np.argwhere(want != got)
        counts.setdefault(check, [0, 0])[bool(len(wrong))] += 1
        if len(wrong) and check not in first:
            row, col = (int(x) for x in wrong[0])
            first[check] = Mismatch(
                check, case, vector, what, None, "C", row, col, int(want[row, col]),
                int(got[row, col]),
            )  # fmt: skip

    for c, (operands, sums) in enumerate(file.cases):
        got = row_conv(*operands, **file.sizes[c], accel=machine, backend=backend)
        compare("fault-free result", c, None, "no fault", sums, got.out)
        compare("cycles", c, None, "no fault", file.cycles[c], got.cycles)
    drawn = sample(len(file.faults), every) if file.faults else []
    for v in drawn:
        fault, c, sums, masked = file.faults[v]
        got = row_conv(
            *file.cases[c][0], **file.sizes[c], accel=machine, faults=[fault], backend=backend
        )
        what = f"{fault.kind} of bit {fault.bit} of {fault.component}[{fault.word}]"
        compare(f"{fault.kind} result", c, v, what, sums, got.out)
        compare("masked flag", c, v, what, masked, got.masked)
    return VectorReport(
        path=file.path,
        design=DESIGN,
        machine=f"{machine.name}, one PE",
        backend=backend,
        vectors=len(drawn),
        total=len(file.faults),
        tallies=tuple(Tally(check, *count, 0) for check, count in counts.items()),
        mismatches=tuple(first.values()),
        seconds=time.perf_counter() - start,
    )
