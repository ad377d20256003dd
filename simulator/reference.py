"""The contract of a cycle-level model. Read this first, then a machine's `cycle.py`.

The reference of a machine is its specification: plain Python, register by
register and cycle by cycle, checked against the machine's RTL (`fsim verify`).
Everything faster, `accel_models/*/tile.py` and the replay kernels, must give the
same numbers wherever it applies, and shares no code with it.

    accel.cycle.run(accel, a, b, d, table, waveform=False) -> (out, waves)

simulates one GEMM, out = d + a b, from reset to the last cycle of the machine's
schedule, tiles and padding included.

* Cycle t = 0, 1, ...: inputs X[t] are stable, clock edge t happens, S[t] is what
  the registers hold after it. S[-1] is the reset state. An edge sees S[t-1] and
  X[t] only.
* Faults are data, a table with the columns T_* of `fsim.types`. After edge t,
  row by row of the table: a STATE row with first == t, and a LEVEL row with
  first <= t <= last, replace the value v of their register by

      wrap(((v & and) | or) ^ xor, bits)

  A LEVEL row with first == -1 acts on S[-1] too. A STATE fault stays until the
  register is next written; a LEVEL fault forces what the register shows in each
  of its cycles, so a held or shifted value keeps it.
* On a net (LEVEL only) what edge t captures is replaced, for first <= t <= last.
* Registers are two's complement of their width; 1-bit registers are unsigned.
* `waves` maps each register to S[t], int64 (cycles, rows, cols), faults of the
  cycle included, and "out" to the output port, int64 (cycles, port width): one
  column a PE column, or one a PE in row-major order.
"""

from __future__ import annotations

import numpy as np

from fsim.errors import MappingError

NO_FAULTS = np.zeros((0, 10), np.int64)
NO_FAULTS.setflags(write=False)


def run(accel, a, b, d=None, table=NO_FAULTS, waveform=False):
    """`accel.cycle.run` on checked operands.

    a, b      (m, k) and (k, n) integers within accel.operand_bits
    d         (m, n) integers within accel.acc_bits, or None for zeros
    table     int64 fault table, see `fsim.types.fault_table`

    MappingError where shapes do not fit each other or a value does not fit its
    width; FaultError where a fault lies outside the array.
    """
    a = _operand(a, "a", accel.operand_bits)
    b = _operand(b, "b", accel.operand_bits)
    if a.shape[1] != b.shape[0]:
        raise MappingError(f"a (m, k) and b (k, n) must agree in k, got {a.shape} and {b.shape}")
    if d is not None:
        d = _operand(d, "d", accel.acc_bits)
        if d.shape != (len(a), b.shape[1]):
            raise MappingError(f"d must have shape {(len(a), b.shape[1])}, got {d.shape}")
    return accel.cycle.run(accel, a, b, d, table, waveform)


def first_difference(expected: np.ndarray, got: np.ndarray):
    """(index, expected, got) of the first differing element in C order, or None.

    For waveforms, whose first axis is the cycle, that is the earliest cycle.
    Arrays of different shapes are the caller's mistake: ValueError.
    """
    if expected.shape != got.shape:
        raise ValueError(f"shapes must be equal, got {expected.shape} and {got.shape}")
    different = np.argwhere(expected != got)
    if not len(different):
        return None
    index = tuple(int(i) for i in different[0])
    return index, int(expected[index]), int(got[index])


def _operand(values, name: str, bits: int) -> np.ndarray:
    values = np.asarray(values)
    if values.ndim != 2 or values.size == 0 or values.dtype.kind not in "iu":
        raise MappingError(
            f"{name} must be a non-empty matrix of integers, got {values.dtype} {values.shape}"
        )
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    if values.min() < low or values.max() > high:
        raise MappingError(
            f"{name} must lie in [{low}, {high}] ({bits} bits), "
            f"got [{values.min()}, {values.max()}]"
        )
    return values.astype(np.int64)
