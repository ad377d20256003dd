"""Checks that users run on their own machine: `fsim verify`.

`verify_vectors` compares a backend with fault vectors of RTL; `kernel_checks`
(crosscheck.py) compares the fast backends with the cycle-level reference on random
GEMMs. Both take anything that runs like `accel.cycle.run`, so one code judges all
backends.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fsim.accel_models.accel import Accel
from fsim.accel_models.families import has_tile
from fsim.accel_models.load import load_accel
from fsim.errors import ConfigError
from fsim.simulator.crosscheck import PRESETS, KernelCheck, kernel_checks
from fsim.simulator.reference import NO_FAULTS, first_difference
from fsim.simulator.runners import RUNNERS, Runner, run_tile
from fsim.simulator.vectors import FAMILIES, VectorFile, read_vectors, vector_table

__all__ = [
    "RUNNERS",
    "KernelCheck",
    "Mismatch",
    "Tally",
    "VectorReport",
    "accel_for",
    "builtin_vectors",
    "kernel_checks",
    "sample",
    "verify_vectors",
]

PORTS = {"gemmini": "oreg", "pipelined": "mac_out", "systolic": "psum"}
"""Family -> the register that its output port shows; several registers: see `_port`.
Of a plug-in's family it is called as in the waves: "out"."""


@dataclass(frozen=True)
class Tally:
    """How often one kind of check passed and failed.

    skipped  checks the backend does not take part in: components it does not
             claim, waveforms if it has no registers
    """

    check: str
    passed: int
    failed: int
    skipped: int


@dataclass(frozen=True)
class Mismatch:
    """The first difference of one kind of check.

    check     name of the tally
    case      index of the GEMM, `vector` of the fault (None: without faults)
    fault     the fault in words
    cycle     clock cycle after whose edge the port differs; None for results
    register  register or port, "C" for the result, "T" for the cycle count
    row, col  PE of the register; element of the result
    """

    check: str
    case: int
    vector: int | None
    fault: str
    cycle: int | None
    register: str
    row: int | None
    col: int | None
    expected: int
    got: int

    def __str__(self):
        where = self.register if self.row is None else f"{self.register}({self.row},{self.col})"
        when = "" if self.cycle is None else f"cycle {self.cycle}, "
        which = "" if self.vector is None else f"vector {self.vector}, "
        return (
            f"{which}case {self.case}, {self.fault}: {when}{where}: "
            f"expected {self.expected}, got {self.got}"
        )


@dataclass(frozen=True)
class VectorReport:
    """What `verify_vectors` found.

    machine     family, dataflow and size that ran
    vectors     faults that were checked, of `total` in the file
    tallies     one a kind of check; a vector is two or three checks (result, masked
                flag, waveform), and so is each product without faults
    mismatches  the first of each kind of check that failed
    """

    path: Path
    design: str
    machine: str
    backend: str
    vectors: int
    total: int
    tallies: tuple[Tally, ...]
    mismatches: tuple[Mismatch, ...]
    seconds: float

    @property
    def passed(self) -> int:
        return sum(tally.passed for tally in self.tallies)

    @property
    def failed(self) -> int:
        return sum(tally.failed for tally in self.tallies)

    @property
    def skipped(self) -> int:
        return sum(tally.skipped for tally in self.tallies)

    @property
    def first(self) -> Mismatch | None:
        """The mismatch that says most: one with a cycle, if there is one."""
        with_cycle = [mismatch for mismatch in self.mismatches if mismatch.cycle is not None]
        return next(iter(with_cycle or self.mismatches), None)


def builtin_vectors() -> list[Path]:
    """The files of matrix products that come with fsim, sorted by name."""
    files = sorted((Path(__file__).resolve().parent / "rtl_vectors").glob("*.npz"))
    return [path for path in files if path.stem.split("_")[0] in FAMILIES]


def accel_for(vectors: VectorFile, accel: Accel | None = None) -> Accel:
    """The machine a vector file belongs to, in its dataflow and size.

    accel  the user's machine, resized to the file's array; None takes the
           family's preset. ConfigError where it is another family, has not the
           dataflow, lacks a site, or a site has another width.
    """
    where = f"({vectors.path}: meta)"
    if accel is None:
        if vectors.family is None:
            raise ConfigError(
                f"design must begin with {', '.join(f'{name}_' for name in FAMILIES)} where no "
                f"accelerator is named, got {vectors.design!r} {where}"
            )
        accel = load_accel(PRESETS[vectors.family])
    if vectors.family not in (None, accel.family):
        raise ConfigError(
            f"the vectors are of a {vectors.family} machine, "
            f"got accelerator {accel.name!r} of family {accel.family} {where}"
        )
    if vectors.dataflow not in accel.dataflows:
        raise ConfigError(
            f"dataflow must be one of {accel.name}'s ({', '.join(accel.dataflows)}), "
            f"got {vectors.dataflow} {where}"
        )
    accel = dataclasses.replace(
        accel, dataflow=vectors.dataflow, rows=vectors.rows, cols=vectors.cols
    )
    widths = {c.name: c.bits for c in accel.components if c.kind != "memory"}
    for site, bits in vectors.site_bits.items():
        if site not in widths:
            raise ConfigError(
                f"a site must be a register or net of {accel.name} ({', '.join(widths)}), "
                f"got {site!r} {where}"
            )
        if widths[site] != bits:
            raise ConfigError(f"{site} has {widths[site]} bits on {accel.name}, got {bits} {where}")
    for v, vector in enumerate(vectors.vectors):
        height, width, words = accel.grid(accel.components[accel.component_index(vector.site)])
        if words > 1:
            raise ConfigError(
                f"a site must be single registers or a net, got the file of registers "
                f"{vector.site!r} {where}"
            )
        if vector.row >= height or vector.col >= width:
            raise ConfigError(
                f"{vector.site} is {height} x {width} on {accel.name}, got row {vector.row}, "
                f"col {vector.col} ({vectors.path}: f_row, f_col, vector {v})"
            )
    for c, case in enumerate(vectors.cases):
        if case.truncate and not accel.kind.truncates:
            raise ConfigError(
                f"cases[{c}].trunc must be 0 on {accel.name}, which has no output truncation, "
                f"got {case.truncate} {where}"
            )
        for name, codes, bits in (
            (f"A{c}", case.a, accel.operand_bits),
            (f"B{c}", case.b, accel.operand_bits),
            (f"D{c}", case.d, accel.acc_bits),
        ):
            limit = 1 << (bits - 1)
            if codes is not None and not (-limit <= codes.min() and codes.max() < limit):
                raise ConfigError(
                    f"{name} must lie in [{-limit}, {limit - 1}], got [{codes.min()}, "
                    f"{codes.max()}] ({vectors.path}: {name})"
                )
    return accel


class _Book:
    """Counts checks and keeps the first mismatch of each kind."""

    def __init__(self):
        self.counts: dict[str, list[int]] = {}
        self.first: dict[str, Mismatch] = {}

    def skip(self, check: str) -> None:
        self.counts.setdefault(check, [0, 0, 0])[2] += 1

    def compare(self, check, expected, got, locate, **where) -> None:
        """Count one comparison of whole arrays; `locate(index)` names an element."""
        expected, got = np.asarray(expected, np.int64), np.asarray(got, np.int64)
        count = self.counts.setdefault(check, [0, 0, 0])
        difference = first_difference(expected, got)
        count[0 if difference is None else 1] += 1
        if difference is not None and check not in self.first:
            index, wanted, had = difference
            cycle, register, row, col = locate(index)
            self.first[check] = Mismatch(
                check=check,
                cycle=cycle,
                register=register,
                row=row,
                col=col,
                expected=wanted,
                got=had,
                **where,
            )


def verify_vectors(
    path: str | Path,
    accel: Accel | None = None,
    backend: str = "reference",
    *,
    runner: Runner | None = None,
    every: int = 1,
) -> VectorReport:
    """Compare a backend with a file of fault vectors.

    accel    the machine; it is resized to the file's array and set to its
             dataflow. None: the preset of the family that `design` names
    backend  "reference", "tile" or "replay"
    runner   what to run instead of the backend's own code
    every    check one in `every` vectors, drawn with a fixed seed because files
             are sorted by site and kind (fault-free cases: always all)

    Raises ConfigError for a file that is not valid or is of another machine, and for a
    machine that lacks the backend.
    """
    start = time.perf_counter()
    if runner is None:
        if backend not in RUNNERS:
            raise ConfigError(f"backend must be one of {', '.join(RUNNERS)}, got {backend!r}")
        runner = RUNNERS[backend]
    if every < 1:
        raise ConfigError(f"every must be >= 1, got {every}")
    vectors = read_vectors(path)
    accel = accel_for(vectors, accel)
    if backend == "tile" and runner is run_tile and not has_tile(accel.family):
        raise ConfigError(
            f"backend must be one that {accel.name} has: family {accel.family!r} has no tile.py, "
            "got 'tile'"
        )
    book = _Book()
    golden = [_check_case(accel, runner, case, c, book) for c, case in enumerate(vectors.cases)]
    claims = {c.name for c in accel.components if backend in c.backends}
    drawn = sample(len(vectors.vectors), every)
    for v in drawn:
        vector = vectors.vectors[v]
        _check_vector(accel, runner, vectors.cases[vector.case], vector, v, golden, claims, book)
    return VectorReport(
        path=vectors.path,
        design=vectors.design,
        machine=f"{accel.name} {accel.dataflow} {accel.rows}x{accel.cols}",
        backend=backend,
        vectors=len(drawn),
        total=len(vectors.vectors),
        tallies=tuple(Tally(check, *counts) for check, counts in book.counts.items()),
        mismatches=tuple(book.first.values()),
        seconds=time.perf_counter() - start,
    )


def sample(count: int, every: int) -> list[int]:
    """One in `every` of `count` indices, at least one, ascending; always the same ones."""
    drawn = np.random.default_rng(0).permutation(count)[: -(-count // every)]
    return sorted(int(v) for v in drawn)


def _element(index):
    return None, "C", *index


def _cycle_count(index):
    return None, "T", None, None


def _port(accel: Accel, width: int):
    """Index into a trace -> (cycle, register, row, col)."""
    if accel.family == "nvdla":
        cells = range(accel.rows)
        columns = [("sum3", n, 0) for n in cells] + [("pv3", None, None)]
        columns += [("fout", n, 0) for n in cells] + [("fv", None, None), ("sat", None, None)]
        return lambda index: (index[0], *columns[index[1]])
    register = PORTS.get(accel.family, "out")
    if width == accel.cols:
        return lambda index: (index[0], register, accel.rows - 1, index[1])
    if width != accel.rows * accel.cols:  # a port of a shape of its own
        return lambda index: (index[0], f"{register}[{index[1]}]", None, None)
    return lambda index: (index[0], register, *divmod(index[1], accel.cols))


def _compare_trace(accel, check, trace, waves, book, **where) -> None:
    if trace is None:
        return
    if waves is None:
        book.skip(check)
        return
    if trace.shape[1:] != waves["out"].shape[1:]:
        raise ConfigError(
            f"a waveform must have {waves['out'].shape[1:]} values a cycle, as many as the "
            f"port of {accel.name}, got {trace.shape[1:]} (case {where['case']}, {where['fault']})"
        )
    if len(trace) != len(waves["out"]):
        # A run of another length: nothing to compare cycle by cycle.
        book.compare(check, len(trace), len(waves["out"]), _cycle_count, **where)
        return
    book.compare(check, trace, waves["out"], _port(accel, trace.shape[1]), **where)


def _check_case(accel, runner, case, c, book) -> np.ndarray:
    """Result, cycles and waveform without faults; returns the backend's own result."""
    where = {"case": c, "vector": None, "fault": "no fault"}
    accel = dataclasses.replace(accel, truncate=case.truncate)
    out, waves = runner(accel, case.a, case.b, case.d, NO_FAULTS, case.trace is not None)
    book.compare("fault-free result", case.out, out, _element, **where)
    cycles = accel.schedule.cycles(accel, *case.a.shape, case.b.shape[1])
    book.compare("cycles", case.cycles, cycles, _cycle_count, **where)
    _compare_trace(accel, "fault-free waveform", case.trace, waves, book, **where)
    return out


def _check_vector(accel, runner, case, vector, v, golden, claims, book) -> None:
    checks = [f"{vector.kind} result", "masked flag"]
    if vector.trace is not None:
        checks.append(f"{vector.kind} waveform")
    if vector.site not in claims:
        for check in checks:
            book.skip(check)
        return
    where = {"case": vector.case, "vector": v, "fault": str(vector)}
    accel = dataclasses.replace(accel, truncate=case.truncate)
    table = vector_table(accel, vector)
    out, waves = runner(accel, case.a, case.b, case.d, table, vector.trace is not None)
    book.compare(checks[0], vector.out, out, _element, **where)
    masked = np.array_equal(out, golden[vector.case])
    book.compare(
        "masked flag", vector.masked, masked, lambda _: (None, "masked", None, None), **where
    )
    _compare_trace(accel, checks[-1], vector.trace, waves, book, **where)
