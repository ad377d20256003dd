"""One matrix product on a simulated array, with explicit faults.

`gemm` is the smallest complete use of the simulator and the one to compare
with RTL. Four ways to compute the same bits:

reference  registers and cycles in plain Python; slow, the specification
tile       the same cycles compiled, only the span that faults can influence
replay     recompute the touched outputs from the accumulation plan
(clean)    without faults: plain integer arithmetic where nothing can overflow
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fsim.accel_models.accel import Accel
from fsim.accel_models.families import has_tile
from fsim.accel_models.load import load_accel
from fsim.errors import ConfigError, FaultError, MappingError
from fsim.fault_models.explicit import rows_of
from fsim.types import FAULT, Fault, fault_table

from .replay import walk_outputs

BACKENDS = ("auto", "reference", "tile", "replay")


@dataclass(frozen=True)
class GemmResult:
    """What the array delivered.

    out       (m, n) int64, the product plus D at the accumulator's width
    cycles    length of the schedule
    masked    the result equals the fault-free one
    waveform  None, or register name -> (cycles, rows, cols) int64, the content
              after each clock edge, and "out", the array's output port
    backend   the one that computed `out`
    changed   number of outputs that differ from the fault-free result
    """

    out: np.ndarray
    cycles: int
    masked: bool
    waveform: dict[str, np.ndarray] | None
    backend: str
    changed: int


def gemm(
    a,
    b,
    d=None,
    *,
    accel: str | Accel,
    dataflow: str | None = None,
    rows: int | None = None,
    cols: int | None = None,
    truncate: int = 0,
    faults: Sequence[Fault] | np.ndarray = (),
    backend: str = "auto",
    waveform: bool = False,
) -> GemmResult:
    """a @ b + d on the simulated array, bit for bit, with faults.

    a         (m, k) integer codes that fit the operand width; of an unsigned
              dtype for a machine that takes unsigned activations
    b         (k, n) integer codes
    d         (m, n) integer bias preloaded in the accumulators, or None
    accel     name of a preset, path of a description, or an Accel
    dataflow, rows, cols  override the description's
    truncate  output truncation in bits, for machines that have such a stage
    faults    `Fault` values, or FAULT rows (see fsim.types)
    backend   "auto": replay where every component has it, else tile
    waveform  also return every register by cycle (reference and tile only)

    Raises ConfigError for operands or options, FaultError for a fault outside
    the machine, the schedule or the domain of the backend asked for.

    >>> import numpy as np
    >>> from fsim import Fault, gemm
    >>> result = gemm(np.eye(2, dtype=int), [[1, 2], [3, 4]], accel="systolic", rows=2, cols=2,
    ...               faults=[Fault("psum", row=1, col=0, bit=5, cycle=4)])
    >>> result.out
    array([[ 1,  2],
           [35,  4]])
    """
    accel = configure(accel, dataflow=dataflow, rows=rows, cols=cols)
    accel = with_truncation(accel, truncate)
    if backend not in BACKENDS:
        raise ConfigError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    unsigned = accel.unsigned_acts and np.asarray(a).dtype.kind == "u"
    a, b, d = check_operands(accel, a, b, d, unsigned=unsigned)
    (m, k), n = a.shape, b.shape[1]
    cycles = accel.schedule.cycles(accel, m, k, n)
    if isinstance(faults, np.ndarray) and faults.dtype == FAULT:
        check_rows(faults, accel)
        fault_rows = faults
    else:
        fault_rows = rows_of(faults, accel, cycles, unsigned_ifmap=unsigned)
    used = choose_backend(accel, fault_rows, backend, waveform)

    # An unsigned 8-bit word is a signed 9-bit one whose top bit no fault reaches.
    machine = replace(accel, operand_bits=accel.operand_bits + 1) if unsigned else accel
    golden = clean(machine, a, b, d)
    table = fault_table(fault_rows)
    waves = None
    if used == "clean":
        out = golden
    elif used == "replay":
        out = golden.copy()
        walk_outputs(machine, a, b, d, table, out, everything=not overflow_free(machine, a, b, d))
    else:
        if used == "reference":
            out, waves = machine.cycle.run(machine, a, b, d, table, waveform)
        else:
            out, waves = machine.tile.run(machine, a, b, d, table, waveform, clean=golden)
    changed = int(np.count_nonzero(out != golden))
    return GemmResult(out, cycles, changed == 0, waves, used, changed)


def configure(accel: str | Accel, *, dataflow=None, rows=None, cols=None) -> Accel:
    """The Accel meant by a name, path or value, with the given overrides."""
    overrides = {
        name: value for name, value in (("rows", rows), ("cols", cols)) if value is not None
    }
    if not isinstance(accel, Accel):
        return load_accel(accel, dataflow=dataflow, overrides=overrides or None)
    for name, value in overrides.items():
        if not isinstance(value, int | np.integer) or not 1 <= value <= 1024:
            raise ConfigError(f"{name} must be an integer in 1..1024, got {value!r}")
    if dataflow is not None and dataflow not in accel.dataflows:
        raise ConfigError(
            f"dataflow of {accel.name} must be one of {', '.join(accel.dataflows)}, "
            f"got {dataflow!r}"
        )
    return replace(accel, **overrides, **({"dataflow": dataflow} if dataflow else {}))


def with_truncation(accel: Accel, truncate: int) -> Accel:
    """The machine with its output stage set to drop `truncate` bits."""
    if truncate and not accel.kind.truncates:
        raise MappingError(
            f"truncate must be 0 on {accel.name}: it has no output truncation, got {truncate}"
        )
    if isinstance(truncate, bool) or not isinstance(truncate, int | np.integer):
        raise ConfigError(f"truncate must be an integer, got {truncate!r}")
    if not 0 <= truncate < 32:
        raise ConfigError(f"truncate must be in 0..31, got {truncate}")
    return replace(accel, truncate=int(truncate)) if truncate else accel


def check_operands(
    accel: Accel, a, b, d, *, unsigned: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Operands as C-contiguous int64 of matching shapes and in range, or ConfigError."""
    arrays = []
    for name, value in (("a", a), ("b", b), ("d", d)):
        if value is None:
            arrays.append(None)
            continue
        array = np.asarray(value)
        if array.dtype.kind not in "iu":
            raise ConfigError(f"{name} must hold integer codes, got dtype {array.dtype}")
        if array.ndim != 2 or 0 in array.shape:
            raise ConfigError(f"{name} must be a non-empty matrix, got shape {array.shape}")
        arrays.append(array)
    a, b, d = arrays
    if a is None or b is None:
        raise ConfigError("a and b must be given")
    if a.shape[1] != b.shape[0]:
        raise ConfigError(f"a (m,k) and b (k,n) must share k, got {a.shape} and {b.shape}")
    shape = (a.shape[0], b.shape[1])
    if d is None:
        d = np.zeros(shape, np.int64)
    if d.shape != shape:
        raise ConfigError(f"d must be (m,n) = {shape}, got {d.shape}")
    for name, array, bits, positive in (
        ("a", a, accel.operand_bits, unsigned),
        ("b", b, accel.operand_bits, False),
        ("d", d, accel.acc_bits, False),
    ):
        low = 0 if positive else -(1 << (bits - 1))
        high = low + (1 << bits) - 1
        if int(array.min()) < low or int(array.max()) > high:
            raise ConfigError(
                f"codes of {name} must lie in {low}..{high} ({bits} bits on {accel.name}), "
                f"got {array.min()}..{array.max()}"
            )
    return tuple(np.ascontiguousarray(array, np.int64) for array in (a, b, d))


def check_rows(rows: np.ndarray, accel: Accel) -> None:
    """FAULT rows given as data must name components of the machine."""
    if len(rows) and not (
        0 <= rows["component"].min() and rows["component"].max() < len(accel.components)
    ):
        raise FaultError(
            f"component numbers must be in 0..{len(accel.components) - 1} on {accel.name}"
        )


def choose_backend(accel: Accel, rows: np.ndarray, backend: str, waveform: bool) -> str:
    """The backend that serves these rows, or FaultError if the one asked for does not."""
    components = [accel.components[i] for i in np.unique(rows["component"])]
    if waveform and backend == "replay":
        raise FaultError("backend must be reference or tile for a waveform, got replay")
    if backend == "auto":
        if waveform:
            return "tile" if has_tile(accel.family) else "reference"
        if not len(rows):
            return "clean"
        replayable = all("replay" in component.backends for component in components)
        if replayable:
            return "replay"
        return "tile" if has_tile(accel.family) else "reference"
    if backend == "tile" and not has_tile(accel.family):
        raise FaultError(
            f"backend must be reference or replay on {accel.name}, whose family has no compiled "
            "cycle-level simulation, got tile"
        )
    for component in components:
        if backend not in component.backends:
            raise FaultError(
                f"backend {backend} does not serve {component.role} component "
                f"{component.name!r} of {accel.name} ({accel.dataflow}); "
                f"it has: {', '.join(component.backends)}"
            )
    return backend


def _bound(a: np.ndarray, b: np.ndarray) -> int:
    """No partial sum of a @ b, in any order, exceeds this in magnitude."""
    return a.shape[1] * int(np.abs(a).max()) * int(np.abs(b).max())


def overflow_free(accel: Accel, a: np.ndarray, b: np.ndarray, d: np.ndarray) -> bool:
    """Whether plain integer arithmetic, wrapped at the end, is the machine's.

    Wrapping adders commute with that final wrap; saturating ones must not
    saturate, and a product must fit its net.
    """
    largest = int(np.abs(a).max()) * int(np.abs(b).max())
    if largest >= 1 << (accel.product_bits - 1):
        return False
    limit = accel.plain_limit()
    return limit is None or _bound(a, b) + int(np.abs(d).max()) <= limit


def clean(accel: Accel, a: np.ndarray, b: np.ndarray, d: np.ndarray) -> np.ndarray:
    """The fault-free result, (m, n) int64."""
    if not overflow_free(accel, a, b, d):
        out = np.zeros_like(d)
        none = np.zeros((0, 10), np.int64)
        walk_outputs(accel, a, b, d, none, out, everything=True)
        return out
    if _bound(a, b) < 1 << 53:
        product = (a.astype(np.float64) @ b.astype(np.float64)).astype(np.int64)
    else:
        product = a @ b
    shift = 64 - accel.acc_bits
    return ((product + d) << shift) >> shift
