"""Compiled cycle-level simulation of the `systolic` family.

The fold is the phase: operands, partial sums and results of one fold have all
left the array when the next begins, so the state at a fold boundary is known
without simulating what went before (see `_weight_stationary` and
`_output_stationary`), and the simulation starts at the boundary before the first
fault and stops at the first one after the last fault where the state is that of
a fault-free run again.

A PE that no fault touches during a phase needs no clock: its phase is a vector
operation on its streams (`multiply_add`, `dot`, `delay`). The kernels below take
that way for such PEs and step through the cycles of the others.

Also home of the helpers that the kernels of all families share.
"""

from __future__ import annotations

import numpy as np

from fsim.jit import kernel
from fsim.types import FOREVER

from ..span import (
    E_AND,
    E_BITS,
    E_COL,
    E_FIRST,
    E_LAST,
    E_OR,
    E_ROW,
    E_SLOT,
    E_XOR,
    NET,
    active_columns,
    active_pes,
    ceil_to,
    every_pe,
    faults_by_pe,
    golden,
    last_cycle,
    never_saturates,
    pad,
)
from .sequencer import tile as sequencer

# Slots of the state vector. WS and OS: ifmap, filter, psum. IS runs the WS machine on
# transposed operands, so that there the moving operand is called filter.
MOVING, STILL, PSUM = range(3)


@kernel
def wrap(value, bits):
    """`value` reduced to `bits` bits of two's complement; 1 bit is unsigned."""
    if bits == 1:
        return value & 1
    shift = 64 - bits
    return (value << shift) >> shift


@kernel
def force(state, events, lo, hi, t):
    """Act with the faults events[lo:hi] of one PE on its registers in cycle t.

    state   (slots,) int64, changed in place
    events  (f, 9) int64, columns E_*
    """
    for e in range(lo, hi):
        slot = events[e, E_SLOT]
        if slot != NET and events[e, E_FIRST] <= t <= events[e, E_LAST]:
            value = ((state[slot] & events[e, E_AND]) | events[e, E_OR]) ^ events[e, E_XOR]
            state[slot] = wrap(value, events[e, E_BITS])


@kernel
def force_net(product, events, lo, hi, t):
    """The product that clock edge t captures, with the faults of one PE on the net."""
    for e in range(lo, hi):
        if events[e, E_SLOT] == NET and events[e, E_FIRST] <= t <= events[e, E_LAST]:
            value = ((product & events[e, E_AND]) | events[e, E_OR]) ^ events[e, E_XOR]
            product = wrap(value, events[e, E_BITS])
    return product


@kernel
def span_of(events, lo, hi):
    """First and last cycle in which any of events[lo:hi] acts; (1, 0) if there is none."""
    first, last = 1, 0
    for e in range(lo, hi):
        if e == lo or events[e, E_FIRST] < first:
            first = events[e, E_FIRST]
        if e == lo or events[e, E_LAST] > last:
            last = events[e, E_LAST]
    return first, last


@kernel
def delay(stream, steps, value):
    """stream[:steps] one step later, in place: `value` enters. Returns what leaves."""
    leaves = stream[steps - 1]
    for n in range(steps - 1, 0, -1):
        stream[n] = stream[n - 1]
    stream[0] = value
    return leaves


@kernel
def multiply_add(sums, xs, w, product_bits, acc_bits):
    """sums[n] += xs[n] * w for all n, at product_bits and acc_bits (2 to 64), in place."""
    # Plain shifts and an upward loop over whole arrays: this compiles to vector code.
    spare_product, spare_acc = 64 - product_bits, 64 - acc_bits
    for n in range(sums.shape[0]):
        product = ((xs[n] * w) << spare_product) >> spare_product
        sums[n] = ((sums[n] + product) << spare_acc) >> spare_acc


@kernel
def dot(xs, ws, product_bits):
    """Sum of the products xs[n] * ws[n] at product_bits, not reduced further."""
    spare = 64 - product_bits
    total = 0
    for n in range(xs.shape[0]):
        total += ((xs[n] * ws[n]) << spare) >> spare
    return total


@kernel
def add_columns(at, b, first, last, n0, columns, product_bits, acc_bits, acc):
    """acc[:, j] += A[:, first:last] x B[first:last, n0 + j] for j in `columns`, wrapping.

    at   (k, m) int64, A transposed; b (k, n) int64; acc (m, >= columns) int64
    """
    # Copies by hand: numba's slice assignment takes seconds to compile.
    m = at.shape[1]
    sums = np.zeros(m, np.int64)
    for j in columns:
        for row in range(m):
            sums[row] = acc[row, j]
        for k in range(first, last):
            multiply_add(sums, at[k], b[k, n0 + j], product_bits, acc_bits)
        for row in range(m):
            acc[row, j] = sums[row]


@kernel
def add(x, y, bits, saturate):
    """x + y at `bits` bits: two's complement wrap, or clamped if `saturate`."""
    total = x + y
    if saturate:
        top = (1 << (bits - 1)) - 1
        return min(max(total, -top - 1), top)
    return wrap(total, bits)


@kernel
def _weight_stationary(
    at, b, d, shape, widths, columns, events, pe_start, span, state, acc, out, waves, port
):
    """Folds of the weight-stationary machine from `span[0]` on.

    at        (kp, m) int64, A transposed, kp a multiple of rows
    b         (kp, np) int64, np a multiple of cols
    d         (m, np) int64
    shape     (rows, cols), int64
    widths    (product_bits, acc_bits, saturate), int64
    columns   (c,) int64, ascending: the columns to simulate
    events    (f, 9) int64, pe_start (rows*cols + 1,) int64: see `faults_by_pe`
    span      (first fold, last cycle in which a fault acts), int64
    state     (rows, cols, 3) int64, S before the first fold; changed
    acc       (m, cols) int64, the accumulator memory before the first fold; changed
    out       (m, np) int64, results of every column group finished here
    waves     (3, cycles, rows, cols) int64 or of size 0: S[t], not recorded then
    port      (cycles, cols) int64, as `waves`: psum of the bottom row

    Returns the first fold not simulated. If it is inside a column group, `acc` holds
    that group's sums so far.
    """
    rows, cols = shape[0], shape[1]
    product_bits, acc_bits, saturate = widths[0], widths[1], widths[2]
    m = at.shape[1]
    k_folds = at.shape[0] // rows
    folds = k_folds * (b.shape[1] // cols)
    length = m + 2 * rows + cols - 2
    record = waves.size > 0
    # What a PE captures at each edge of the fold; a PE replaces it by what its
    # right (moving) or lower (still, psum) neighbour captures: its own old value.
    moving = np.zeros((rows, length), np.int64)
    still = np.zeros(length, np.int64)
    psum = np.zeros(length + 1, np.int64)
    regs = np.zeros(3, np.int64)

    for fold in range(span[0], folds):
        base = fold * length
        n0, k0 = (fold // k_folds) * cols, (fold % k_folds) * rows
        if k0 == 0:
            for j in columns:
                for row in range(m):
                    acc[row, j] = d[row, n0 + j]
        left = -2
        for j in columns:
            if j - 1 != left:  # the left neighbour is not simulated: its stream is A's
                for i in range(rows):
                    for c in range(length):
                        row = c + 1 - rows - i - j
                        moving[i, c] = at[k0 + i, row] if 0 <= row < m else 0
            left = j
            for c in range(rows):
                still[c] = b[k0 + rows - 1 - c, n0 + j]
            psum[:] = 0
            for i in range(rows):
                x, w, p = state[i, j, MOVING], state[i, j, STILL], state[i, j, PSUM]
                lo, hi = pe_start[i * cols + j], pe_start[i * cols + j + 1]
                first, last = span_of(events, lo, hi)
                clean = not record and (last < base or first >= base + length)
                # In a PE without faults the weight rests after loading: what is left of
                # the fold is a vector operation (no step depends on the one before).
                for c in range(rows if clean else length):
                    t = base + c
                    hit = first <= t <= last
                    product = wrap(x * w, product_bits)
                    if hit:
                        product = force_net(product, events, lo, hi, t)
                    x_in, p_in = moving[i, c], psum[c]
                    moving[i, c] = x
                    psum[c] = p
                    if c < rows:
                        w_in = still[c]
                        still[c] = w
                        w = w_in
                    x = x_in
                    p = add(p_in, product, acc_bits, saturate)
                    if hit:
                        regs[MOVING], regs[STILL], regs[PSUM] = x, w, p
                        force(regs, events, lo, hi, t)
                        x, w, p = regs[MOVING], regs[STILL], regs[PSUM]
                    if record:
                        waves[MOVING, t, i, j] = x
                        waves[STILL, t, i, j] = w
                        waves[PSUM, t, i, j] = p
                if clean:
                    # Edge c adds the product of the operand captured at edge c - 1.
                    x = delay(moving[i, rows:], length - rows, x)
                    xs, sums = moving[i, rows:length], psum[rows:length]
                    if saturate:
                        for c in range(length - rows):
                            product = wrap(xs[c] * w, product_bits)
                            sums[c] = add(sums[c], product, acc_bits, saturate)
                    else:
                        multiply_add(sums, xs, w, product_bits, acc_bits)
                    delay(psum[rows:], length + 1 - rows, p)
                    p = psum[length]
                state[i, j, MOVING], state[i, j, STILL], state[i, j, PSUM] = x, w, p
                psum[length] = p
            # psum[c] is now the bottom register before edge c of the fold.
            for row in range(m):
                value = psum[2 * rows + row + j]
                acc[row, j] = add(acc[row, j], value, acc_bits, saturate)
            if record:
                for c in range(length):
                    port[base + c, j] = psum[c + 1]
        if k0 + rows == at.shape[0]:
            for j in columns:
                for row in range(m):
                    out[row, n0 + j] = acc[row, j]
        # Fault-free, the last operand has left every PE by the last edge. psum is
        # written at every edge and never recirculates; all are 0 but the one of
        # the last corner, which the results above have already taken.
        if base + length - 1 >= span[1]:
            clean = True
            for j in columns:
                for i in range(rows):
                    corner = i == rows - 1 and j == cols - 1
                    if (
                        state[i, j, MOVING] != 0
                        or state[i, j, STILL] != b[k0 + i, n0 + j]
                        or (state[i, j, PSUM] != 0 and not corner)
                    ):
                        clean = False
            if clean:
                return fold + 1
    return folds


@kernel
def _output_stationary(
    a, bt, d, shape, widths, pes, events, pe_start, span, state, out, waves, port
):
    """Folds of the output-stationary machine from `span[0]` on.

    a         (mp, k) int64, mp a multiple of rows
    bt        (np, k) int64, B transposed, np a multiple of cols
    d, out    (mp, np) int64; `out` is overwritten where PEs are simulated
    pes       (p, 4) int64: the PEs to simulate, see `active_pes`
    state     (rows, cols, 3) int64, S before the first fold; changed
    waves     (3, cycles, rows, cols) int64 or of size 0; port (cycles, rows*cols)

    Other parameters as in `_weight_stationary`.
    """
    rows, cols = shape[0], shape[1]
    product_bits, acc_bits, saturate = widths[0], widths[1], widths[2]
    k_size = a.shape[1]
    n_folds = bt.shape[0] // cols
    folds = n_folds * (a.shape[0] // rows)
    length = k_size + rows + cols - 2
    record = waves.size > 0
    ifmap = np.zeros(length, np.int64)  # what a PE captures at each edge, as above
    filter_ = np.zeros((cols, length), np.int64)
    regs = np.zeros(3, np.int64)

    for fold in range(span[0], folds):
        base = fold * length
        m0, n0 = (fold // n_folds) * rows, (fold % n_folds) * cols
        # The last edge of a fold already latches the first word of the next one.
        next_a, next_b = 0, 0
        if fold + 1 < folds:
            next_a = a[((fold + 1) // n_folds) * rows, 0]
            next_b = bt[((fold + 1) % n_folds) * cols, 0]
        for q in range(pes.shape[0]):
            i, j = pes[q, 0], pes[q, 1]
            if not pes[q, 2]:
                for c in range(length):
                    k = c + 1 - i - j
                    ifmap[c] = a[m0 + i, k] if 0 <= k < k_size else 0
                if i + j == 0:
                    ifmap[length - 1] = next_a
            if not pes[q, 3]:
                for c in range(length):
                    k = c + 1 - i - j
                    filter_[j, c] = bt[n0 + j, k] if 0 <= k < k_size else 0
                if i + j == 0:
                    filter_[j, length - 1] = next_b
            x, w, p = state[i, j, MOVING], state[i, j, STILL], state[i, j, PSUM]
            lo, hi = pe_start[i * cols + j], pe_start[i * cols + j + 1]
            first, last = span_of(events, lo, hi)
            clean = not record and (last < base or first >= base + length)
            if clean:  # a dot product
                x = delay(ifmap, length, x)
                w = delay(filter_[j], length, w)
                xs, ws = ifmap[i + j : i + j + k_size], filter_[j, i + j : i + j + k_size]
                p = d[m0 + i, n0 + j]
                if saturate:
                    for k in range(k_size):
                        p = add(p, wrap(xs[k] * ws[k], product_bits), acc_bits, saturate)
                else:
                    p = wrap(p + dot(xs, ws, product_bits), acc_bits)
            for c in range(0 if clean else length):
                t = base + c
                hit = first <= t <= last
                product = wrap(x * w, product_bits)
                if hit:
                    product = force_net(product, events, lo, hi, t)
                k = c - i - j
                if k == 0:
                    p = add(d[m0 + i, n0 + j], product, acc_bits, saturate)
                elif 0 < k < k_size:
                    p = add(p, product, acc_bits, saturate)
                x_in, w_in = ifmap[c], filter_[j, c]
                ifmap[c] = x
                filter_[j, c] = w
                x, w = x_in, w_in
                if hit:
                    regs[MOVING], regs[STILL], regs[PSUM] = x, w, p
                    force(regs, events, lo, hi, t)
                    x, w, p = regs[MOVING], regs[STILL], regs[PSUM]
                if record:
                    waves[MOVING, t, i, j] = x
                    waves[STILL, t, i, j] = w
                    waves[PSUM, t, i, j] = p
                    port[t, i * cols + j] = p
            state[i, j, MOVING], state[i, j, STILL], state[i, j, PSUM] = x, w, p
            out[m0 + i, n0 + j] = p
        # Fault-free, all operands have left but the first words of the next fold.
        # psum is dead: the first product of the next fold replaces it.
        if base + length - 1 >= span[1]:
            clean = True
            for q in range(pes.shape[0]):
                i, j = pes[q, 0], pes[q, 1]
                x = next_a if i + j == 0 else 0
                w = next_b if i + j == 0 else 0
                if state[i, j, MOVING] != x or state[i, j, STILL] != w:
                    clean = False
            if clean:
                return fold + 1
    return folds


def _reset_faults(state, events) -> None:
    """S[-1]: the reset state, forced by the level faults that act from reset on."""
    for e in np.flatnonzero(events[:, E_FIRST] == -1):
        force(state[events[e, E_ROW], events[e, E_COL]], events, e, e + 1, -1)


def _waves(accel, slots, waves, port):
    """What `run` hands out of the kernels' recordings."""
    registers = [c.name for c in accel.components if c.kind == "register"]
    return {**{name: waves[slots[name]] for name in registers}, "out": port}


def run(accel, a, b, d, table, waveform=False, clean=None):
    """One GEMM on the array, cycle by cycle where faults can have an effect.

    a         (m, k), b (k, n), int64 codes of operand_bits; d (m, n) int64 or None
    table     (f, 10) int64 faults, see `fsim.types.fault_table`
    waveform  simulate everything and return every register
    clean     (m, n) int64 fault-free result if the caller has it already; for a large
              GEMM that is most of the work

    Returns out (m, n) int64 and None, or register name -> (cycles, rows, cols)
    int64, S[t] after the faults of cycle t, with "out": (cycles, rows*cols) psums
    (OS) or (cycles, cols) psums of the bottom row (WS, IS).

    Raises FaultError for a fault outside the array or of a memory.
    """
    if accel.parameters.get("sequencer"):
        return sequencer.run(accel, a, b, d, table, waveform)
    if accel.dataflow == "os":
        return _run_os(accel, a, b, d, table, waveform, clean)
    if accel.dataflow == "is":
        # C^T = B^T A^T on the same array: the still operand is now the ifmap.
        d = None if d is None else d.T
        clean = None if clean is None else clean.T
        out, waves = _run_ws(accel, b.T, a.T, d, table, waveform, clean, ("filter", "ifmap"))
        return np.ascontiguousarray(out.T), waves
    return _run_ws(accel, a, b, d, table, waveform, clean, ("ifmap", "filter"))


def _run_ws(accel, a, b, d, table, waveform, clean, operands):
    """`run` for WS; `operands` names the moving and the still register."""
    rows, cols = accel.rows, accel.cols
    (m, k), n = a.shape, b.shape[1]
    kp, np_ = ceil_to(k, rows), ceil_to(n, cols)
    k_folds, length = kp // rows, m + 2 * rows + cols - 2
    cycles = k_folds * (np_ // cols) * length
    slots = {operands[0]: MOVING, operands[1]: STILL, "psum": PSUM}
    events, pe_start = faults_by_pe(accel, table, slots, cycles)
    saturate = accel.overflow == "saturate"
    # Where a fault-free sum may saturate, plain integer arithmetic says nothing.
    everything = waveform or (saturate and not never_saturates(accel, a, b, d))
    if not everything and not len(events):
        return golden(accel, a, b, d) if clean is None else clean.copy(), None

    at, b_pad = pad(a.T, kp, m), pad(b, kp, np_)
    d_pad = pad(np.zeros((m, n), np.int64) if d is None else d, m, np_)
    bits = (accel.product_bits, accel.acc_bits)
    state = np.zeros((rows, cols, 3), np.int64)
    acc = np.zeros((m, cols), np.int64)
    if everything:
        start, last = 0, FOREVER
        columns = np.arange(cols, dtype=np.int64)
        out = np.zeros((m, np_), np.int64)
    else:
        start, last = max(int(events[:, E_FIRST].min()), 0) // length, last_cycle(events)
        columns = active_columns(accel, events, (MOVING,))
        out = pad(golden(accel, a, b, d) if clean is None else clean, m, np_)
    if start:
        n0, k0 = (start // k_folds) * cols, (start % k_folds) * rows
        before_n, before_k = ((start - 1) // k_folds) * cols, ((start - 1) % k_folds) * rows
        state[:, :, STILL] = b_pad[before_k : before_k + rows, before_n : before_n + cols]
        if k0:
            acc[:] = d_pad[:, n0 : n0 + cols]
            add_columns(at, b_pad, 0, k0, n0, columns, *bits, acc)
    else:
        _reset_faults(state, events)

    recorded = cycles if waveform else 0
    waves = np.zeros((3, recorded, rows, cols), np.int64)
    port = np.zeros((recorded, cols), np.int64)
    stop = _weight_stationary(
        at,
        b_pad,
        d_pad,
        np.array([rows, cols]),
        np.array([accel.product_bits, accel.acc_bits, int(saturate)]),
        columns,
        events,
        pe_start,
        np.array([start, last]),
        state,
        acc,
        out,
        waves,
        port,
    )
    if stop % k_folds:
        # The rest of the column group adds fault-free sums to the accumulators,
        # fold by fold: with saturation the order matters.
        n0, k0 = (stop // k_folds) * cols, (stop % k_folds) * rows
        if saturate:
            top = (1 << (accel.acc_bits - 1)) - 1
            for first in range(k0, kp, rows):
                fold = np.zeros_like(acc)
                add_columns(at, b_pad, first, first + rows, n0, columns, *bits, fold)
                acc = np.clip(acc + fold, -top - 1, top)
        else:
            add_columns(at, b_pad, k0, kp, n0, columns, *bits, acc)
        out[:, n0 + columns] = acc[:, columns]
    out = np.ascontiguousarray(out[:, :n])
    return out, _waves(accel, slots, waves, port) if waveform else None


def _run_os(accel, a, b, d, table, waveform, clean):
    """`run` for OS."""
    rows, cols = accel.rows, accel.cols
    (m, k), n = a.shape, b.shape[1]
    mp, np_ = ceil_to(m, rows), ceil_to(n, cols)
    n_folds, length = np_ // cols, k + rows + cols - 2
    cycles = n_folds * (mp // rows) * length
    slots = {"ifmap": MOVING, "filter": STILL, "psum": PSUM}
    events, pe_start = faults_by_pe(accel, table, slots, cycles)
    saturate = accel.overflow == "saturate"
    everything = waveform or (saturate and not never_saturates(accel, a, b, d))
    if not everything and not len(events):
        return golden(accel, a, b, d) if clean is None else clean.copy(), None

    a_pad, bt_pad = pad(a, mp, k), pad(b.T, np_, k)
    d_pad = pad(np.zeros((m, n), np.int64) if d is None else d, mp, np_)
    state = np.zeros((rows, cols, 3), np.int64)
    if everything:
        start, last = 0, FOREVER
        pes = every_pe(accel)
        out = np.zeros((mp, np_), np.int64)
    else:
        start, last = max(int(events[:, E_FIRST].min()), 0) // length, last_cycle(events)
        pes = active_pes(accel, events, (MOVING,), (STILL,))
        out = pad(golden(accel, a, b, d) if clean is None else clean, mp, np_)
    state[0, 0, MOVING] = a_pad[(start // n_folds) * rows, 0]
    state[0, 0, STILL] = bt_pad[(start % n_folds) * cols, 0]
    if start:
        m0, n0 = ((start - 1) // n_folds) * rows, ((start - 1) % n_folds) * cols
        state[:, :, PSUM] = out[m0 : m0 + rows, n0 : n0 + cols]
    else:
        _reset_faults(state, events)

    recorded = cycles if waveform else 0
    waves = np.zeros((3, recorded, rows, cols), np.int64)
    port = np.zeros((recorded, rows * cols), np.int64)
    _output_stationary(
        a_pad,
        bt_pad,
        d_pad,
        np.array([rows, cols]),
        np.array([accel.product_bits, accel.acc_bits, int(saturate)]),
        pes,
        events,
        pe_start,
        np.array([start, last]),
        state,
        out,
        waves,
        port,
    )
    return np.ascontiguousarray(out[:m, :n]), (
        _waves(accel, slots, waves, port) if waveform else None
    )


def run_each(accel, a, b, d, table, clean=None):
    """Many faults, each struck alone; see `tile_each.run_each`."""
    from .tile_each import run_each as each  # which is made of this module's kernels

    return each(accel, a, b, d, table, clean)
