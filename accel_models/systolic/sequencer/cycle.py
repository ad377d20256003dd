"""The systolic array with its sequencer as registers: the specification of faults in control.

With the parameter `sequencer` the machine counts with two registers of 16 bits, without sign:
`fold`, the number of the fold, and `step`, the clock edge within it. Everything that control
does follows from what they hold before an edge: which operands the edge feeders fetch, whether
resident operands load, which sum starts anew, where a sum is written. With L edges a fold,

    step = L - 1:   step' = 0, fold' = fold + 1        else  step' = step + 1

The product is finished when `fold` is the number of folds, which is compared for equality. A
counter that has jumped goes on from where it is: it fetches operands from other addresses (0
beyond the matrices), leaves sums out or writes them twice, and ends the product early or late.
One that no longer comes to the end is a hang: no result within twice the schedule's cycles.

One pair of counters drives the whole array; the skew of the edges is wired. Without faults this
is the machine of `systolic/cycle.py`, edge by edge.
"""

from __future__ import annotations

import numpy as np

from fsim.accel_models.registers import Waveform, padded, read_faults, register_names, state
from fsim.errors import FaultError, HangError, MappingError
from fsim.types import T_COL, T_COMPONENT, T_ROW, wrap

from ..schedule import COUNTER_BITS, COUNTERS, fold_shape

_MASK = (1 << COUNTER_BITS) - 1


def check(accel, table, m: int, k: int, n: int) -> tuple[int, int]:
    """(folds, edges of a fold) of a product whose counters hold them.

    MappingError where they do not; FaultError for a counter in another PE than (0, 0).
    """
    if accel.dataflow == "is":
        m, n = n, m
    folds, length = fold_shape(accel, m, k, n)
    if folds > _MASK or length > _MASK:
        raise MappingError(
            f"a product must have at most {_MASK} folds of {_MASK} cycles for the counters of "
            f"{accel.name}, got {folds} of {length}"
        )
    names = [component.name for component in accel.components]
    for number, row in enumerate(np.asarray(table).tolist()):
        index = row[T_COMPONENT]
        if 0 <= index < len(names) and names[index] in COUNTERS and (row[T_ROW] or row[T_COL]):
            raise FaultError(
                f"a counter is at row=0, col=0, got row={row[T_ROW]}, col={row[T_COL]} "
                f"(row {number} of the fault table)"
            )
    return folds, length


def hang(accel, cycles: int) -> HangError:
    """What a product without an end raises."""
    return HangError(
        f"the sequencer of {accel.name} must finish within {2 * cycles} cycles, twice its schedule"
    )


def run(accel, a, b, d, table, waveform, edges):
    """As `systolic.cycle.run`, with the counters. HangError if there is no result.

    edges  (stationary, output stationary): the clock edges of the array, of `systolic/cycle.py`
    """
    folds, length = check(accel, table, len(a), len(b), b.shape[1])
    faults = read_faults(accel, table)
    waves = Waveform(waveform, register_names(accel))
    flow = (a, b, d)
    if accel.dataflow == "is":
        flow = (b.T, a.T, d.T)
    flow = tuple(matrix.tolist() for matrix in flow)
    names = ("ifmap", "filter") if accel.dataflow != "is" else ("filter", "ifmap")
    array = _Output(accel, edges[1], flow, folds, length) if accel.dataflow == "os" else (
        _Stationary(accel, edges[0], flow, folds, names)
    )  # fmt: skip
    S = array.reset()
    S.step, S.fold = [[0]], [[0]]
    faults.after_edge(S, -1)
    t = 0
    while S.fold[0][0] & _MASK != folds:
        if t == 2 * folds * length:
            raise hang(accel, folds * length)
        fold, step = S.fold[0][0] & _MASK, S.step[0][0] & _MASK
        S = array.edge(S, fold, step, faults, t)
        last = step == length - 1
        S.step = [[wrap(0 if last else step + 1, COUNTER_BITS)]]
        S.fold = [[wrap(fold + 1 if last else fold, COUNTER_BITS)]]
        faults.after_edge(S, t)
        waves.record(S, array.port(S))
        array.collect(S, fold, step)
        t += 1
    out = np.array(array.out, np.int64)
    return out.T if accel.dataflow == "is" else out, waves.arrays()


class _Stationary:
    """Weight and input stationary: what the counters make of the array's edges."""

    def __init__(self, accel, edge, flow, folds, names):
        self.accel, self._edge, self.folds, self.names = accel, edge, folds, names
        self.a, self.b, d = flow
        self.out = [row[:] for row in d]

    def _origin(self, fold):
        """(n0, k0) of a fold; beyond the matrices if there is no such fold."""
        rows, cols = self.accel.rows, self.accel.cols
        k_folds = -(-len(self.b) // rows)
        n0, k0 = fold // k_folds * cols, fold % k_folds * rows
        return (n0, k0) if fold < self.folds else (len(self.b[0]), len(self.b))

    def reset(self):
        return state(("ifmap", "filter", "psum"), self.accel.rows, self.accel.cols)

    def edge(self, S, fold, step, faults, t):
        rows, cols = self.accel.rows, self.accel.cols
        n0, k0 = self._origin(fold)
        word = None
        if step < rows:
            word = [padded(self.b, k0 + rows - 1 - step, n0 + j) for j in range(cols)]
        edge = [padded(self.a, step + 1 - rows - i, k0 + i) for i in range(rows)]
        return self._edge(self.accel, *self.names, S, edge, word, faults, t)

    def port(self, S):
        return S.psum[-1]

    def collect(self, S, fold, step):
        n0, _ = self._origin(fold)
        for j in range(min(self.accel.cols, len(self.b[0]) - n0)):
            row = step - (2 * self.accel.rows - 1 + j)
            if 0 <= row < len(self.out):
                total = self.out[row][n0 + j] + S.psum[-1][j]
                self.out[row][n0 + j] = _kept(self.accel, total)


class _Output:
    """Output stationary: what the counters make of the array's edges."""

    def __init__(self, accel, edge, flow, folds, length):
        self.accel, self._edge, self.folds, self.length = accel, edge, folds, length
        self.a, self.b, self.d = flow
        self.out = [[0] * len(self.b[0]) for _ in self.a]

    def _origin(self, fold):
        n_folds = -(-len(self.b[0]) // self.accel.cols)
        if fold >= self.folds:
            return len(self.a), len(self.b[0])
        return fold // n_folds * self.accel.rows, fold % n_folds * self.accel.cols

    def _fed(self, fold, step):
        if step == self.length - 1:
            fold, step = fold + 1, -1
        m0, n0 = self._origin(fold)
        left = [padded(self.a, m0 + i, step + 1 - i) for i in range(self.accel.rows)]
        return left, [padded(self.b, step + 1 - j, n0 + j) for j in range(self.accel.cols)]

    def reset(self):
        S = state(("ifmap", "filter", "psum"), self.accel.rows, self.accel.cols)
        left, top = self._fed(0, -1)
        for i in range(self.accel.rows):
            S.ifmap[i][0] = left[i]
        S.filter[0][:] = top
        return S

    def edge(self, S, fold, step, faults, t):
        m0, n0 = self._origin(fold)
        bias = [
            [padded(self.d, m0 + i, n0 + j) for j in range(self.accel.cols)]
            for i in range(self.accel.rows)
        ]
        left, top = self._fed(fold, step)
        return self._edge(self.accel, S, left, top, bias, len(self.b), step, faults, t)

    def port(self, S):
        return [value for row in S.psum for value in row]

    def collect(self, S, fold, step):
        if step != self.length - 1:
            return
        m0, n0 = self._origin(fold)
        for i in range(min(self.accel.rows, len(self.a) - m0)):
            for j in range(min(self.accel.cols, len(self.b[0]) - n0)):
                self.out[m0 + i][n0 + j] = S.psum[i][j]


def _kept(accel, value: int) -> int:
    """A sum as the accumulators outside the array keep it."""
    if accel.overflow == "saturate":
        top = (1 << (accel.acc_bits - 1)) - 1
        return max(-top - 1, min(top, value))
    return wrap(value, accel.acc_bits)
