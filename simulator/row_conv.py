"""One row of a convolution on one row-stationary PE, with explicit faults.

`row_conv` is to a row-stationary machine what `gemm` is to a systolic one: the smallest
complete use, and the one to compare with RTL. Two ways to compute the same bits:

reference  registers and edges in plain Python; slow, the specification
replay     the same edges compiled
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fsim.accel_models.accel import Accel
from fsim.accel_models.load import load_accel
from fsim.errors import ConfigError, FaultError, MappingError
from fsim.fault_models.explicit import find_component, mask_of, masks
from fsim.types import FAULT, FOREVER, LEVEL, STATE, Fault, fault_table

BACKENDS = ("auto", "reference", "replay")


@dataclass(frozen=True)
class RowConvResult:
    """What the PE delivered.

    out      (outputs, p) int64 sums at the machine's width, the incoming ones added
    cycles   from the first product on, as RTL counts them: loading is not in
    masked   the result equals the fault-free one
    backend  the one that computed `out`
    changed  number of sums that differ from the fault-free result
    """

    out: np.ndarray
    cycles: int
    masked: bool
    backend: str
    changed: int


def row_conv(
    ifmap,
    filters,
    psum_in,
    *,
    s: int,
    q: int,
    p: int,
    stride: int,
    outputs: int,
    accel: str | Accel = "eyeriss-like",
    truncate: int = 0,
    faults: Sequence[Fault] = (),
    backend: str = "auto",
) -> RowConvResult:
    """One-dimensional convolution on one PE, bit for bit, with faults.

    out[f, j] = sum over i < s q of ifmap[f stride q + i] filters[i p + j], plus
    psum_in[f p + j]; each product loses its `truncate` low bits and all but the next 16
    (the product's width), every sum wraps at 16 (the sum's).

    ifmap     ((outputs - 1) stride q + s q,) integers, channel innermost
    filters   (s q p,) integers, filter innermost
    psum_in   (outputs p,) or (outputs, p) integers, or None for zeros
    s, q, p   filter columns, channels, filters: s q, p q s and p at most the words of the
              ifmap, filter and psum scratchpad
    stride, outputs  step of the window along the row, sums of each filter
    truncate  low bits dropped from a product, 0 to 16
    faults    `Fault` values; `word` is the scratchpad's word and `cycle` an output:
        ifmap_spad, filter_spad  flip as output `cycle` starts, before its first read
                  and before its new pixels are written
        psum_spad flip after the last product of output `cycle` is added, before the sum
                  leaves
        product   flip of the product i p + j = `word` of output `cycle`
        stuck     permanent without `cycle`, else from the start of output `cycle` to the
                  end of output `last`; a stuck product is stuck for every word
    backend   "reference", "replay", or "auto" for replay

    Raises ConfigError for operands or options, MappingError for sizes that no PE of the
    machine holds, FaultError for a fault outside the PE or the row.

    >>> from fsim import Fault, row_conv
    >>> row_conv([1, 2, 3, 4], [10, 1], None, s=2, q=1, p=1, stride=1, outputs=3).out.ravel()
    array([12, 23, 34])
    >>> row_conv([1, 2, 3, 4], [10, 1], None, s=2, q=1, p=1, stride=1, outputs=3,
    ...          faults=[Fault("filter_spad", word=1, bit=1, cycle=2)]).out.ravel()
    array([12, 23, 42])
    """
    machine = accel if isinstance(accel, Accel) else load_accel(accel)
    if backend not in BACKENDS:
        raise ConfigError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    schedule = machine.schedule
    if not hasattr(schedule, "RowPass"):
        raise MappingError(
            f"row_conv needs a row-stationary machine, got {machine.name} (family {machine.family})"
        )
    schedule.check_widths(machine)
    sizes = {"s": s, "q": q, "p": p, "stride": stride, "outputs": outputs}
    for name, value in sizes.items():
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
            raise ConfigError(f"{name} must be an integer >= 1, got {value!r}")
    if isinstance(truncate, bool) or not isinstance(truncate, int | np.integer):
        raise ConfigError(f"truncate must be an integer, got {truncate!r}")
    if not 0 <= truncate <= machine.operand_bits:
        raise ConfigError(f"truncate must be in 0..{machine.operand_bits}, got {truncate}")
    row = schedule.RowPass(*(int(value) for value in sizes.values()))
    schedule.check_pass(machine, row)
    ifmap = _words("ifmap", ifmap, row.row, machine.operand_bits, "(outputs - 1) stride q + s q")
    filters = _words("filters", filters, row.filters, machine.operand_bits, "s q p")
    if psum_in is None:
        psum_in = np.zeros(row.outputs * row.p, np.int64)
    psum_in = np.asarray(psum_in)
    if psum_in.shape == (row.outputs, row.p):
        psum_in = psum_in.reshape(-1)
    wanted = row.outputs * row.p
    psum_in = _words("psum_in", psum_in, wanted, machine.acc_bits, "outputs p")
    table = fault_table(_rows(faults, machine, row))
    return _run(machine, row, ifmap, filters, psum_in, table, int(truncate), backend)


def _run(machine, row, ifmap, filters, psum_in, table, truncate, backend) -> RowConvResult:
    # Compiled code is imported where it runs: the reference is usable without.
    tile = machine.tile
    incoming = psum_in.reshape(row.outputs, row.p)
    vector = tile.vector(machine, row, truncate)
    sums = np.zeros(incoming.shape, np.int64)
    tile.row_sums(vector, ifmap, filters, sums)
    golden = _wrapped(sums + incoming, machine.acc_bits)
    if backend == "reference":
        strikes = machine.cycle.pe_strikes(machine, table)
        out = machine.cycle.run_pe(
            machine, row, ifmap.tolist(), filters.tolist(), incoming.tolist(), strikes, truncate
        )
        out = np.array(out, np.int64)
    else:
        struck = np.zeros(incoming.shape, np.int64)
        words = np.array([c.words for c in machine.components[:3]], np.int64)
        bits = np.array([c.bits for c in machine.components], np.int64)
        tile.struck_sums(vector, words, bits, ifmap, filters, table, struck)
        out = _wrapped(struck + incoming, machine.acc_bits)
    changed = int(np.count_nonzero(out != golden))
    used = "reference" if backend == "reference" else "replay"
    return RowConvResult(out, row.compute, changed == 0, used, changed)


def _wrapped(sums: np.ndarray, bits: int) -> np.ndarray:
    return (sums << (64 - bits)) >> (64 - bits)


def _words(name: str, values, length: int, bits: int, what: str) -> np.ndarray:
    """(length,) int64 codes of a width, or ConfigError."""
    array = np.asarray(values)
    if array.dtype.kind not in "iu":
        raise ConfigError(f"{name} must hold integers, got dtype {array.dtype}")
    if array.shape != (length,):
        raise ConfigError(f"{name} must have {what} = {length} entries, got shape {array.shape}")
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    if int(array.min()) < low or int(array.max()) > high:
        raise ConfigError(
            f"{name} must lie in {low}..{high} ({bits} bits), got {array.min()}..{array.max()}"
        )
    return np.ascontiguousarray(array, np.int64)


def _rows(faults: Sequence[Fault], machine: Accel, row) -> np.ndarray:
    """FAULT rows in cycles of the pass, from faults that name outputs."""
    rows = np.zeros(len(faults), FAULT)
    for number, fault in enumerate(faults):
        where = f"fault {number} on {fault.component!r}"
        index, component = find_component(machine, fault.component)
        if component.kind == "memory" or index > 3:
            names = ", ".join(one.name for one in machine.components[:4])
            raise FaultError(f"{where}: component of a single PE must be one of {names}")
        if fault.row or fault.col:
            raise FaultError(
                f"{where}: a single PE has row=0 and col=0, got row={fault.row}, col={fault.col}"
            )
        for name, value in (("cycle", fault.cycle), ("last", fault.last)):
            if value is not None and not 0 <= value < row.outputs:
                raise FaultError(
                    f"{where}: {name} is an output and must be in 0..{row.outputs - 1}, got {value}"
                )
        product = component.name == "product"
        words = row.filters if product else component.words
        word = 0 if fault.word is None else fault.word
        if not 0 <= word < words:
            raise FaultError(f"{where}: word must be in 0..{words - 1}, got {word}")
        mask = mask_of(fault, component, where)
        effect, first, last = _window(fault, component.name, row, word, where)
        one = rows[number]
        one["event"], one["image"], one["layer"] = number, -1, -1
        one["component"], one["word"] = index, -1 if product else word
        one["effect"], one["first"], one["last"] = effect, first, last
        one["and_mask"], one["or_mask"], one["xor_mask"] = masks(
            fault.kind, mask, component.bits, True
        )
    return rows


def _window(fault: Fault, name: str, row, word: int, where: str) -> tuple[int, int, int]:
    """(effect, first, last) in cycles of the pass."""
    if fault.kind != "flip":
        if fault.cycle is None:
            if fault.last is not None:
                raise FaultError(f"{where}: last= needs cycle=, got last={fault.last}")
            return LEVEL, -1, FOREVER
        if fault.last is None:
            return LEVEL, row.strike(fault.cycle), FOREVER
        if fault.last < fault.cycle:
            raise FaultError(
                f"{where}: last must be >= cycle, got cycle={fault.cycle}, last={fault.last}"
            )
        end = row.start(fault.last) + row.filters + row.p - 1
        return LEVEL, row.strike(fault.cycle), end
    if fault.cycle is None:
        raise FaultError(f"{where}: a flip needs cycle=, the output it strikes at")
    if fault.last is not None:
        raise FaultError(f"{where}: a flip happens once and takes no last=, got {fault.last}")
    if name == "product":
        cycle = row.start(fault.cycle) + word
    elif name == "psum_spad":
        cycle = row.start(fault.cycle) + row.filters - 1
    else:
        cycle = row.strike(fault.cycle)
    return STATE, cycle, cycle
