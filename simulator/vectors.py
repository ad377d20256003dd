"""Fault vectors: what a machine's RTL answered to single faults.

A file holds GEMM cases with their fault-free answers and, for each of many single
faults, the faulty result, and for some the output port cycle by cycle.
docs/vectors.md is the format. Files may come from anywhere: they are read with
`npz.read_npz`, and every key, shape, type and range is checked here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fsim.errors import ConfigError
from fsim.simulator.npz import read_npz
from fsim.types import FAULT, FOREVER, LEVEL, STATE, fault_table

KINDS = ("flip", "sa0", "sa1")
"""Fault kinds of the format: bit inverted once; stuck at 0; stuck at 1."""

FAMILIES = {"gemmini": "gemmini", "st": "pipelined", "systolic": "systolic", "nvdla": "nvdla"}
"""First word of a `design` -> machine family. Other designs name no family."""

DATAFLOWS = {"os": "os", "ws": "ws", "is": "is", "dc": "dc", "nvdla": "dc"}
"""`dataflow` in lower case -> the machine's: NVDLA names its direct convolution after itself."""

MAX_PES = 1024
MAX_DIM = 4096
MAX_CYCLES = 10_000_000
MAX_VECTORS = 200_000


@dataclass(frozen=True)
class Case:
    """One GEMM and its fault-free answers.

    a, b    int64 (m, k) and (k, n)
    d       int64 (m, n), or None where the machine was given none
    out     int64 (m, n)
    cycles  length of the run
    trace   int64 (cycles, port width), the output port after every edge, or None
    truncate  bits that the output stage drops
    """

    a: np.ndarray
    b: np.ndarray
    d: np.ndarray | None
    out: np.ndarray
    cycles: int
    trace: np.ndarray | None
    truncate: int = 0


@dataclass(frozen=True)
class Vector:
    """One fault and what the machine answered.

    case   index of the GEMM
    kind   one of KINDS
    site   name of the register or net
    cycle  edge after which the bit flips; stuck: first cycle, -1 from reset on
    out    int64 (m, n)
    masked whether `out` equals the fault-free result
    trace  as in Case
    """

    case: int
    kind: str
    site: str
    row: int
    col: int
    bit: int
    cycle: int
    out: np.ndarray
    masked: bool
    trace: np.ndarray | None

    def __str__(self):
        when = "from reset on" if self.cycle < 0 else f"cycle {self.cycle}"
        return f"{self.kind} of bit {self.bit} of {self.site}({self.row},{self.col}), {when}"


@dataclass(frozen=True)
class VectorFile:
    """A checked vector file.

    family      machine family by the first word of `design`, or None
    dataflow    "os", "ws", "is" or "dc"
    site_bits   site -> width of the register or net
    """

    path: Path
    design: str
    family: str | None
    dataflow: str
    rows: int
    cols: int
    site_bits: dict[str, int]
    cases: tuple[Case, ...]
    vectors: tuple[Vector, ...]


def read_vectors(path: str | Path) -> VectorFile:
    """Read and check a vector file; ConfigError names file and key."""
    path = Path(path)
    arrays = read_npz(path)
    meta = _meta(arrays, path)
    sites = _texts(meta, "sites", path)
    widths = _list(meta, "site_bits", path)
    kinds = _texts(meta, "kinds", path)
    if len(widths) != len(sites) or len(set(sites)) != len(sites):
        raise ConfigError(
            f"meta must give one width a site and each site once, got {len(sites)} sites "
            f"and {len(widths)} site_bits ({path}: meta)"
        )
    for kind in kinds:
        if kind not in KINDS:
            raise ConfigError(f"kinds must be of {', '.join(KINDS)}, got {kind!r} ({path}: meta)")
    bits = [_integer(width, "site_bits", 1, 64, path) for width in widths]
    rows = _integer(meta.get("rows"), "rows", 1, MAX_PES, path)
    cols = _integer(meta.get("cols"), "cols", 1, MAX_PES, path)
    dataflow = DATAFLOWS.get(_text(meta, "dataflow", path).lower())
    if dataflow is None:
        wanted = ", ".join(name.upper() for name in DATAFLOWS)
        raise ConfigError(
            f"dataflow must be one of {wanted}, got {meta['dataflow']!r} ({path}: meta)"
        )
    design = _text(meta, "design", path)
    ports = (2 * rows + 3,) if dataflow == "dc" else (cols, rows * cols)
    cases = tuple(
        _case(arrays, c, shape, ports, path) for c, shape in enumerate(_list(meta, "cases", path))
    )
    if not cases:
        raise ConfigError(f"meta must list at least one case, got none ({path}: meta)")
    return VectorFile(
        path=path,
        design=design,
        family=FAMILIES.get(design.split("_")[0]),
        dataflow=dataflow,
        rows=rows,
        cols=cols,
        site_bits=dict(zip(sites, bits)),
        cases=cases,
        vectors=_vectors(arrays, meta, cases, kinds, sites, bits, rows, cols, ports, path),
    )


def vector_table(accel, vector: Vector) -> np.ndarray:
    """The fault of a vector as an int64 (1, 10) fault table of `accel`.

    A flip of a register is a STATE fault. A flip of a net, which stores nothing,
    inverts the bit in that one cycle. Stuck-at faults last to the end.
    """
    component = accel.component_index(vector.site)
    mask = 1 << vector.bit
    row = np.zeros(1, FAULT)
    row["image"] = row["layer"] = row["word"] = -1
    row["component"], row["row"], row["col"] = component, vector.row, vector.col
    row["and_mask"] = -1
    row["first"] = row["last"] = vector.cycle
    if vector.kind == "flip":
        net = accel.components[component].kind == "net"
        row["effect"] = LEVEL if net else STATE
        # Bit 63 is the sign of the int64 column.
        row["xor_mask"] = mask if vector.bit < 63 else -mask
    else:
        row["effect"], row["last"] = LEVEL, FOREVER
        row["and_mask" if vector.kind == "sa0" else "or_mask"] = (
            ~mask if vector.kind == "sa0" else mask if vector.bit < 63 else -mask
        )
    return fault_table(row)


# meta ---------------------------------------------------------------------------


def _meta(arrays: dict[str, np.ndarray], path: Path) -> dict:
    text = arrays.get("meta")
    if text is None or text.dtype.kind != "U" or text.shape != ():
        raise ConfigError(f"a vector file must have one JSON text under `meta` ({path}: meta)")
    try:
        meta = json.loads(str(text))
    except (ValueError, RecursionError) as error:
        reason = str(error) or "nested too deeply"
        raise ConfigError(f"meta must be JSON: {reason} ({path}: meta)") from None
    if not isinstance(meta, dict):
        raise ConfigError(f"meta must be a JSON object, got {type(meta).__name__} ({path}: meta)")
    return meta


def _list(meta: dict, key: str, path: Path) -> list:
    if not isinstance(meta.get(key), list):
        raise ConfigError(f"{key} must be a list, got {meta.get(key)!r:.60} ({path}: meta)")
    return meta[key]


def _text(meta: dict, key: str, path: Path) -> str:
    if not isinstance(meta.get(key), str):
        raise ConfigError(f"{key} must be text, got {meta.get(key)!r:.60} ({path}: meta)")
    return meta[key]


def _texts(meta: dict, key: str, path: Path) -> list[str]:
    texts = _list(meta, key, path)
    if not texts or not all(isinstance(text, str) for text in texts):
        raise ConfigError(f"{key} must be a list of names, got {texts!r:.60} ({path}: meta)")
    return texts


def _integer(value, key: str, low: int, high: int, path: Path) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ConfigError(
            f"{key} must be an integer of {low} to {high}, got {value!r:.60} ({path}: meta)"
        )
    return value


# arrays -------------------------------------------------------------------------


def _array(arrays, key: str, shape: tuple, path: Path, boolean: bool = False) -> np.ndarray:
    """An integer (or boolean) array as int64; -1 in `shape` stands for any length."""
    array = arrays.get(key)
    if array is None:
        raise ConfigError(f"a vector file must have the key {key!r} ({path}: {key})")
    if array.dtype.kind not in ("b" if boolean else "iu"):
        wanted = "booleans" if boolean else "integers"
        raise ConfigError(f"{key} must hold {wanted}, got {array.dtype} ({path}: {key})")
    if array.ndim != len(shape) or any(s not in (-1, n) for s, n in zip(shape, array.shape)):
        wanted = "(" + ", ".join("any" if s < 0 else str(s) for s in shape) + ")"
        raise ConfigError(f"{key} must have shape {wanted}, got {array.shape} ({path}: {key})")
    if array.dtype == np.uint64 and array.size and array.max() > np.iinfo(np.int64).max:
        raise ConfigError(f"{key} must fit 64 bits with sign, got {array.max()} ({path}: {key})")
    return array.astype(np.int64)


def _within(values: np.ndarray, low, high, key: str, path: Path) -> None:
    """Refuse values outside [low, high]; the bounds may be one a value."""
    outside = np.flatnonzero((values < low) | (values > high))
    if len(outside):
        v = outside[0]
        low, high = np.broadcast_to(low, values.shape)[v], np.broadcast_to(high, values.shape)[v]
        raise ConfigError(
            f"{key}[{v}] must be {low} to {high}, got {values[v]} ({path}: {key}, vector {v})"
        )


def _trace(arrays, key: str, cycles: int, ports: tuple[int, ...], path: Path) -> np.ndarray:
    """The output port by cycle; `ports`: the widths it can have."""
    trace = _array(arrays, key, (cycles, -1), path)
    if trace.shape[1] not in ports:
        wanted = " or ".join(map(str, ports))
        raise ConfigError(f"{key} must have {wanted} columns, got {trace.shape[1]} ({path}: {key})")
    return trace


def _case(arrays, c: int, shape, ports: tuple[int, ...], path: Path) -> Case:
    where = f"cases[{c}]"
    if not isinstance(shape, dict):
        raise ConfigError(f"{where} must be an object, got {shape!r:.60} ({path}: meta)")
    m, k, n = (_integer(shape.get(x), f"{where}.{x}", 1, MAX_DIM, path) for x in "MKN")
    cycles = int(_array(arrays, f"T{c}", (), path))
    if not 1 <= cycles <= MAX_CYCLES:
        raise ConfigError(f"T{c} must be 1 to {MAX_CYCLES}, got {cycles} ({path}: T{c})")
    if shape.get("T", cycles) != cycles:
        raise ConfigError(
            f"{where}.T must equal T{c} = {cycles}, got {shape['T']!r:.60} ({path}: meta)"
        )
    golden = f"trace_golden{c}"
    return Case(
        a=_array(arrays, f"A{c}", (m, k), path),
        b=_array(arrays, f"B{c}", (k, n), path),
        d=_array(arrays, f"D{c}", (m, n), path) if f"D{c}" in arrays else None,
        out=_array(arrays, f"C{c}", (m, n), path),
        cycles=cycles,
        trace=_trace(arrays, golden, cycles, ports, path) if golden in arrays else None,
        truncate=_integer(shape.get("trunc", 0), f"{where}.trunc", 0, 31, path),
    )


def _vectors(
    arrays, meta, cases, kinds, sites, bits, rows, cols, ports, path
) -> tuple[Vector, ...]:
    count = _integer(meta.get("n_vectors"), "n_vectors", 0, MAX_VECTORS, path)
    fields = ("case", "kind", "site", "row", "col", "bit", "cycle", "off")
    f = {field: _array(arrays, f"f_{field}", (count,), path) for field in fields}
    masked = _array(arrays, "f_masked", (count,), path, boolean=True)
    results = _array(arrays, "f_out", (-1,), path)
    for field, high in (("case", len(cases)), ("kind", len(kinds)), ("site", len(sites))):
        _within(f[field], 0, high - 1, f"f_{field}", path)
    _within(f["row"], 0, rows - 1, "f_row", path)
    # Of a buffer the column is an address: how many there are is the accelerator's matter.
    _within(f["col"], 0, MAX_PES - 1 if len(ports) == 1 else cols - 1, "f_col", path)
    _within(f["bit"], 0, np.array(bits)[f["site"]] - 1, "f_bit", path)
    flips = np.array([kind == "flip" for kind in kinds])[f["kind"]]
    cycles = np.array([case.cycles for case in cases])[f["case"]]
    _within(f["cycle"], np.where(flips, 0, -1), cycles - 1, "f_cycle", path)
    sizes = np.array([case.out.size for case in cases])[f["case"]]
    _within(f["off"], 0, len(results) - sizes, "f_off", path)

    indices = _array(arrays, "trace_idx", (-1,), path) if "trace_idx" in arrays else []
    if len(indices):
        _within(indices, 0, count - 1, "trace_idx", path)
    traces = {
        int(v): _trace(arrays, f"trace{i}", int(cycles[v]), ports, path)
        for i, v in enumerate(indices)
    }
    return tuple(
        Vector(
            case=int(f["case"][v]),
            kind=kinds[f["kind"][v]],
            site=sites[f["site"][v]],
            row=int(f["row"][v]),
            col=int(f["col"][v]),
            bit=int(f["bit"][v]),
            cycle=int(f["cycle"][v]),
            out=results[f["off"][v] :][: sizes[v]].reshape(cases[f["case"][v]].out.shape),
            masked=bool(masked[v]),
            trace=traces.get(v),
        )
        for v in range(count)
    )
