"""Compiled cycle-level simulation of the `gemmini` family.

Tiles overlap on the double-buffered mesh and its edges are skewed, so that at no
clock edge all PEs are in the same phase. Simulation is therefore in *steps*: step s
of PE (i, j) is clock edge s + i + j. Every register depends on its own PE, the
left and the upper one at the edge before, that is on its own PE one step before
and on its neighbours in the *same* step; token g reaches every PE in step g, and
phases have clean boundaries. There the state is known without simulating what
went before (`_golden_pe_os`, `_golden_pe_ws`): the simulation runs from the
boundary before the first fault to the first one after the last fault where the
state is that of a fault-free run again.

For rows != cols, chains, drain and preload have `rows` tokens.
"""

from __future__ import annotations

import numpy as np

from fsim.jit import kernel
from fsim.types import FOREVER

from ..span import (
    E_COL,
    E_FIRST,
    E_LAST,
    E_ROW,
    E_SLOT,
    NET,
    active_columns,
    ceil_to,
    faults_by_pe,
    golden,
    pad,
)
from ..systolic.tile import delay, dot, force, force_net, multiply_add, span_of, wrap

REGISTERS = ("a", "b", "d", "c1", "c2", "valid", "prop")
A, B, D, C1, C2, VALID, PROP = range(7)


@kernel
def _start_of(phase, rows, length):
    """Step in which the first token of `phase` enters."""
    return 0 if phase == 0 else rows + (phase - 1) * length


@kernel
def _pe(ws, streams, a_stream, steps, first_step, i, j, s, events, lo, hi, widths, cycles, waves):
    """`steps` steps of PE (i, j), from `first_step` on.

    ws        whether weight stationary
    streams   (4, >= steps) int64: b, d, valid, prop captured in each step; replaced
              by what the PE below captures in the same step
    a_stream  (>= steps,) int64: `a` likewise, for the PE to the right
    s         (7,) int64 registers in the order REGISTERS; changed
    events    (f, 9) int64, those of this PE are events[lo:hi]
    cycles    length of the schedule; cycles from there on are not recorded
    waves     (7, cycles, rows, cols) int64 or of size 0
    """
    product_bits, acc_bits = widths[0], widths[1]
    record = waves.size > 0
    a, b, d, c1, c2, valid, prop = s[A], s[B], s[D], s[C1], s[C2], s[VALID], s[PROP]
    first, last = span_of(events, lo, hi)
    for n in range(steps):
        t = first_step + n + i + j
        hit = first <= t <= last
        if ws:
            if valid != 0:
                if prop != 0:
                    c1 = d
                else:
                    c2 = d
        else:
            product = wrap(a * b, product_bits)
            if hit:
                product = force_net(product, events, lo, hi, t)
            if valid != 0:
                if prop != 0:
                    c2 = wrap(product + c2, acc_bits)
                    c1 = d
                else:
                    c1 = wrap(product + c1, acc_bits)
                    c2 = d
        a = a_stream[n]
        valid = streams[2, n]
        if valid != 0:
            b, d, prop = streams[0, n], streams[1, n], streams[3, n]
        if hit:
            s[A], s[B], s[D], s[C1], s[C2], s[VALID], s[PROP] = a, b, d, c1, c2, valid, prop
            force(s, events, lo, hi, t)
            a, b, d, c1, c2, valid, prop = s[A], s[B], s[D], s[C1], s[C2], s[VALID], s[PROP]
        if record and 0 <= t < cycles:
            wave = waves[:, t, i, j]
            wave[A], wave[B], wave[D], wave[C1], wave[C2] = a, b, d, c1, c2
            wave[VALID], wave[PROP] = valid, prop
        a_stream[n] = a
        if ws:
            product = wrap(a * (c2 if prop != 0 else c1), product_bits)
            if first <= t + 1 <= last:  # the lower PE captures it at its next edge
                product = force_net(product, events, lo, hi, t + 1)
            streams[0, n] = wrap(product + b, acc_bits)
        else:
            streams[0, n] = b
        streams[1, n] = c1 if prop != 0 else c2
        streams[2, n] = valid
        streams[3, n] = prop
    s[A], s[B], s[D], s[C1], s[C2], s[VALID], s[PROP] = a, b, d, c1, c2, valid, prop


@kernel
def _clean_pe(ws, streams, a_stream, steps, flips, s, widths):
    """As `_pe`, for a PE without faults whose tokens are all valid and of one phase.

    steps     at least 1
    flips     whether the last token is the first of the next phase. It is only
              captured, not processed, but its prop already selects the output

    The registers process, one step late, what they captured: the chain of c and d is
    a delay, and the rest one vector operation.
    """
    product_bits, acc_bits = widths[0], widths[1]
    prop = s[PROP]
    active = s[C2] if prop != 0 else s[C1]  # sums up (OS), or is the weight (WS)
    b_last = streams[0, steps - 1]
    d_last = delay(streams[1], steps, s[D])
    chained = streams[1, steps - 1]
    if ws:
        same = steps - 1 if flips else steps
        multiply_add(streams[0, :same], a_stream[:same], active, product_bits, acc_bits)
        if flips:  # the weight just loaded meets the first token
            product = wrap(a_stream[steps - 1] * chained, product_bits)
            streams[0, steps - 1] = wrap(b_last + product, acc_bits)
    else:
        total = active + wrap(s[A] * s[B], product_bits)
        total += dot(a_stream[: steps - 1], streams[0, : steps - 1], product_bits)
        active = wrap(total, acc_bits)
    if flips:
        streams[1, steps - 1] = active
    s[A], s[B], s[D] = a_stream[steps - 1], b_last, d_last
    s[C1] = chained if prop != 0 else active
    s[C2] = active if prop != 0 else chained
    s[PROP] = streams[3, steps - 1]


@kernel
def _control(streams, steps, flips, phase, tokens):
    """valid and prop at the top: `steps` tokens of `phase`, the last of the next if `flips`.

    Only the first `tokens` exist, and none in phase -1, the time before the first one.
    """
    for n in range(steps):
        p = phase + 1 if flips and n == steps - 1 else phase
        exists = p >= 0 and n < tokens
        streams[2, n] = 1 if exists else 0
        streams[3, n] = (p & 1) ^ 1 if exists else 0


@kernel
def _is_steady(streams, steps, flips, phase):
    """Whether valid and prop are those of `_control` for a phase whose tokens all exist."""
    prop = (phase & 1) ^ 1
    for n in range(steps):
        if streams[2, n] != 1 or streams[3, n] != (prop ^ 1 if flips and n == steps - 1 else prop):
            return False
    return True


@kernel
def _golden_column_os(a, bt, d, gold, phase, j, rows, cols, length, want):
    """Fault-free registers of column `j` after the first step of `phase`, into want (rows, 7).

    Then the registers at the input hold the phase's first token, and c1 and c2 have
    seen all tokens of the phases before: one holds the bias of this phase's tile, the
    other the results of the tile before. a, bt, d, gold as in `_output_stationary`.
    """
    n_tiles = bt.shape[0] // cols
    tiles = n_tiles * (a.shape[0] // rows)
    prop = (phase & 1) ^ 1
    want[:, :] = 0
    now, before = phase - 1, phase - 2
    for i in range(rows):
        want[i, VALID], want[i, PROP] = 1, prop
        summing, draining = 0, 0
        if 0 <= now < tiles:
            row, col = (now // n_tiles) * rows + i, (now % n_tiles) * cols + j
            want[i, A], want[i, B] = a[row, 0], bt[col, 0]
            summing = d[row, col]
        if before >= 0:
            draining = gold[(before // n_tiles) * rows + i, (before % n_tiles) * cols + j]
        want[i, C1] = draining if prop else summing
        want[i, C2] = summing if prop else draining
        if i + 1 < rows:
            want[i + 1, D] = draining
    # The bias of the next tile enters with the last `rows` tokens of a phase.
    if phase < tiles and (phase == 0 or length == rows):
        want[0, D] = d[(phase // n_tiles) * rows + rows - 1, (phase % n_tiles) * cols + j]


@kernel
def _golden_column_ws(at, b, dt, phase, j, rows, cols, length, widths, want):
    """As `_golden_column_os`: one of c1 and c2 holds this tile's weights, the other
    those of the tile before. at, b, dt as in `_weight_stationary`."""
    k_tiles = at.shape[0] // rows
    tiles = k_tiles * (b.shape[1] // cols)
    prop = (phase & 1) ^ 1
    want[:, :] = 0
    now, before = phase - 1, phase - 2
    psum = 0
    if now >= 0 and now % k_tiles == 0:
        psum = dt[(now // k_tiles) * cols + j, 0]
    for i in range(rows):
        want[i, VALID], want[i, PROP] = 1, prop
        active, waiting = 0, 0
        if now >= 0:
            active = b[(now % k_tiles) * rows + i, (now // k_tiles) * cols + j]
            want[i, A] = at[(now % k_tiles) * rows + i, 0]
        if before >= 0:
            waiting = b[(before % k_tiles) * rows + i, (before // k_tiles) * cols + j]
        want[i, C1] = waiting if prop else active
        want[i, C2] = active if prop else waiting
        want[i, B] = psum
        psum = wrap(psum + wrap(want[i, A] * active, widths[0]), widths[1])
        if i + 1 < rows:
            want[i + 1, D] = waiting
    if phase < tiles and (phase == 0 or length == rows):
        want[0, D] = b[(phase % k_tiles) * rows + rows - 1, (phase // k_tiles) * cols + j]


@kernel
def _fill_os(a, bt, d, shape, j, fill_a, n, count, phase, index, a_streams, streams):
    """What enters column `j`: `count` tokens of `phase` from `index` on, at streams[:, n:].

    a_streams likewise if `fill_a`, which is so where the left neighbour is not simulated.
    """
    rows, cols = shape[0], shape[1]
    k_size = a.shape[1]
    n_tiles = bt.shape[0] // cols
    tiles = n_tiles * (a.shape[0] // rows)
    streams[:2, n : n + count] = 0
    if fill_a:
        a_streams[:, n : n + count] = 0
    if 1 <= phase <= tiles:
        m0, col = ((phase - 1) // n_tiles) * rows, ((phase - 1) % n_tiles) * cols + j
        for q in range(min(count, k_size - index)):
            streams[0, n + q] = bt[col, index + q]
        if fill_a:
            for i in range(rows):
                for q in range(min(count, k_size - index)):
                    a_streams[i, n + q] = a[m0 + i, index + q]
    if 0 <= phase < tiles:  # the last `rows` tokens carry the next tile's bias
        m0, col = (phase // n_tiles) * rows, (phase % n_tiles) * cols + j
        size = rows if phase == 0 else max(k_size, rows)
        for q in range(max(size - rows - index, 0), count):
            streams[1, n + q] = d[m0 + size - 1 - index - q, col]


@kernel
def _fill_ws(at, b, dt, shape, j, fill_a, n, count, phase, index, a_streams, streams):
    """As `_fill_os` for weight stationary operands."""
    rows, cols = shape[0], shape[1]
    m = at.shape[1]
    k_tiles = at.shape[0] // rows
    tiles = k_tiles * (b.shape[1] // cols)
    streams[:2, n : n + count] = 0
    if fill_a:
        a_streams[:, n : n + count] = 0
    if 1 <= phase <= tiles:
        k0, col = ((phase - 1) % k_tiles) * rows, ((phase - 1) // k_tiles) * cols + j
        if k0 == 0:
            for q in range(min(count, m - index)):
                streams[0, n + q] = dt[col, index + q]
        if fill_a:
            for i in range(rows):
                for q in range(min(count, m - index)):
                    a_streams[i, n + q] = at[k0 + i, index + q]
    if 0 <= phase < tiles:
        k0, col = (phase % k_tiles) * rows, (phase // k_tiles) * cols + j
        size = rows if phase == 0 else max(m, rows)
        for q in range(max(size - rows - index, 0), count):
            streams[1, n + q] = b[k0 + size - 1 - index - q, col]


@kernel
def _collect_ws(at, b, dt, shape, widths, j, whole, n, count, phase, index, streams, scratch, out):
    """Add the sums that leave column `j`, the tokens of `_fill_ws`, to the accumulators.

    whole    0: `out` is fault-free; add only what the sums differ from fault-free ones
    scratch  (>= count,) int64
    """
    rows, cols = shape[0], shape[1]
    count = min(count, at.shape[1] - index)
    if phase < 1 or count <= 0:
        return
    k_tiles = at.shape[0] // rows
    k0, col = ((phase - 1) % k_tiles) * rows, ((phase - 1) // k_tiles) * cols + j
    expected = scratch[:count]
    expected[:] = 0
    if not whole:
        if k0 == 0:
            for q in range(count):
                expected[q] = dt[col, index + q]
        for i in range(rows):
            tokens = at[k0 + i, index : index + count]
            multiply_add(expected, tokens, b[k0 + i, col], widths[0], widths[1])
    for q in range(count):
        change = streams[0, n + q] - expected[q]
        out[index + q, col] = wrap(out[index + q, col] + change, widths[1])


@kernel
def _output_stationary(
    a, bt, d, gold, shape, widths, columns, events, pe_start, span, out, waves, port
):
    """The output-stationary mesh.

    a         (mp, k) int64, mp a multiple of rows
    bt        (np, k) int64, B transposed, np a multiple of cols
    d, gold   (mp, np) int64, bias and fault-free result
    shape     (rows, cols), int64
    widths    (product_bits, acc_bits), int64
    columns   (c,) int64, ascending: the columns to simulate
    events    (f, 9) int64, pe_start (rows*cols + 1,) int64: see `faults_by_pe`
    span      int64: phase to start in (-1: reset), first step if so, last step in
              which a fault acts, number of steps
    out       (mp, np) int64, overwritten where simulated
    waves     (7, cycles, rows, cols) int64 or of size 0: S[t], not recorded then
    port      (cycles, cols) int64, as `waves`: oreg

    Returns the first phase not simulated.
    """
    rows, cols = shape[0], shape[1]
    k_size = a.shape[1]
    n_tiles = bt.shape[0] // cols
    tiles = n_tiles * (a.shape[0] // rows)
    length = max(k_size, rows)
    cycles = port.shape[0]
    record = waves.size > 0
    state = np.zeros((rows, cols, 7), np.int64)
    want = np.zeros((rows, 7), np.int64)
    if span[0] >= 0:
        for j in columns:
            _golden_column_os(a, bt, d, gold, span[0], j, rows, cols, length, want)
            for i in range(rows):
                for r in range(7):
                    state[i, j, r] = want[i, r]
    most = max(length, -span[1] + 1, span[3] - _start_of(tiles + 1, rows, length))
    a_streams = np.zeros((rows, most), np.int64)
    streams = np.zeros((4, most), np.int64)

    for phase in range(span[0], tiles + 2):
        # Steps after the first of this phase up to and with the first of the next.
        begin = span[1] if phase < 0 else _start_of(phase, rows, length) + 1
        end = span[3] if phase > tiles else _start_of(phase + 1, rows, length) + 1
        steps, flips = end - begin, phase <= tiles
        main = steps - 1 if flips else steps
        vector = not record and phase >= 0 and steps > 0
        left = -2
        for j in columns:
            _control(streams, steps, flips, phase, steps if flips else rows - 1)
            fill_a = j - 1 != left
            _fill_os(a, bt, d, shape, j, fill_a, 0, main, phase, 1, a_streams, streams)
            if flips:
                _fill_os(a, bt, d, shape, j, fill_a, main, 1, phase + 1, 0, a_streams, streams)
            left = j
            steady = vector
            for i in range(rows):
                lo, hi = pe_start[i * cols + j], pe_start[i * cols + j + 1]
                first, last = span_of(events, lo, hi)
                # The product of step n counts for edge n + 1 on its way down (WS).
                quiet = last < begin + i + j or first > end + i + j
                s = state[i, j]
                if quiet and steady and s[VALID] == 1 and s[PROP] == (phase & 1) ^ 1:
                    _clean_pe(False, streams, a_streams[i], steps, flips, s, widths)
                    continue
                _pe(
                    False,
                    streams,
                    a_streams[i],
                    steps,
                    begin,
                    i,
                    j,
                    s,
                    events,
                    lo,
                    hi,
                    widths,
                    cycles,
                    waves,
                )
                steady = vector and _is_steady(streams, steps, flips, phase)
            # out_c of the bottom row: results leave bottom row first.
            if phase >= 2:
                tile = phase - 2
                row, col = (tile // n_tiles) * rows + rows - 1, (tile % n_tiles) * cols + j
                for n in range(min(main, rows - 1)):
                    out[row - 1 - n, col] = streams[1, n]
            if flips and phase >= 1:
                tile = phase - 1
                row, col = (tile // n_tiles) * rows + rows - 1, (tile % n_tiles) * cols + j
                out[row, col] = streams[1, main]
            if record:
                for n in range(steps):
                    t = begin + n + rows + j
                    if 0 <= t < cycles:
                        port[t, j] = streams[1, n]
        if phase <= tiles and end - 1 >= span[2]:
            clean = True
            for j in columns:
                _golden_column_os(a, bt, d, gold, phase + 1, j, rows, cols, length, want)
                for i in range(rows):
                    for r in range(7):
                        if state[i, j, r] != want[i, r]:
                            clean = False
            if clean:
                return phase + 1
    return tiles + 2


@kernel
def _weight_stationary(at, b, dt, shape, widths, columns, events, pe_start, span, out, waves, port):
    """The weight-stationary mesh.

    at        (kp, m) int64, A transposed, kp a multiple of rows
    b         (kp, np) int64, np a multiple of cols
    dt        (np, m) int64, D transposed
    span      as there, and whether to add up all sums from 0 (see `out`)
    out       (m, np) int64, the accumulator memory outside the mesh, which adds up the
              k-tiles. It starts at the fault-free result and takes what simulated sums
              differ from fault-free ones; or, if all are simulated, at 0
    port      (cycles, cols) int64, as `waves`: oreg

    Other parameters as in `_output_stationary`.
    """
    rows, cols = shape[0], shape[1]
    m = at.shape[1]
    k_tiles = at.shape[0] // rows
    tiles = k_tiles * (b.shape[1] // cols)
    length = max(m, rows)
    cycles = port.shape[0]
    record = waves.size > 0
    state = np.zeros((rows, cols, 7), np.int64)
    want = np.zeros((rows, 7), np.int64)
    if span[0] >= 0:
        for j in columns:
            _golden_column_ws(at, b, dt, span[0], j, rows, cols, length, widths, want)
            for i in range(rows):
                for r in range(7):
                    state[i, j, r] = want[i, r]
    most = max(length, -span[1] + 1, span[3] - _start_of(tiles, rows, length))
    a_streams = np.zeros((rows, most), np.int64)
    streams = np.zeros((4, most), np.int64)
    scratch = np.zeros(most, np.int64)

    for phase in range(span[0], tiles + 1):
        begin = span[1] if phase < 0 else _start_of(phase, rows, length) + 1
        end = span[3] if phase == tiles else _start_of(phase + 1, rows, length) + 1
        steps, flips = end - begin, phase < tiles
        main = steps - 1 if flips else steps
        vector = not record and phase >= 0 and steps > 0
        left = -2
        for j in columns:
            _control(streams, steps, flips, phase, steps if flips else length - 1)
            fill_a = j - 1 != left
            _fill_ws(at, b, dt, shape, j, fill_a, 0, main, phase, 1, a_streams, streams)
            if flips:
                _fill_ws(at, b, dt, shape, j, fill_a, main, 1, phase + 1, 0, a_streams, streams)
            left = j
            steady = vector
            for i in range(rows):
                lo, hi = pe_start[i * cols + j], pe_start[i * cols + j + 1]
                first, last = span_of(events, lo, hi)
                # The product of step n counts for edge n + 1 on its way down (WS).
                quiet = last < begin + i + j or first > end + i + j
                s = state[i, j]
                if quiet and steady and s[VALID] == 1 and s[PROP] == (phase & 1) ^ 1:
                    _clean_pe(True, streams, a_streams[i], steps, flips, s, widths)
                    continue
                _pe(
                    True,
                    streams,
                    a_streams[i],
                    steps,
                    begin,
                    i,
                    j,
                    s,
                    events,
                    lo,
                    hi,
                    widths,
                    cycles,
                    waves,
                )
                steady = vector and _is_steady(streams, steps, flips, phase)
            common = (at, b, dt, shape, widths, j, span[4])
            _collect_ws(*common, 0, main, phase, 1, streams, scratch, out)
            if flips:
                _collect_ws(*common, main, 1, phase + 1, 0, streams, scratch, out)
            if record:
                for n in range(steps):
                    t = begin + n + rows + j
                    if 0 <= t < cycles:
                        port[t, j] = streams[0, n]
        if phase < tiles and end - 1 >= span[2]:
            clean = True
            for j in columns:
                _golden_column_ws(at, b, dt, phase + 1, j, rows, cols, length, widths, want)
                for i in range(rows):
                    for r in range(7):
                        if state[i, j, r] != want[i, r]:
                            clean = False
            if clean:
                return phase + 1
    return tiles + 1


def run(accel, a, b, d, table, waveform=False, clean=None):
    """One GEMM on the mesh, cycle by cycle where faults can have an effect.

    a         (m, k), b (k, n), int64 codes of operand_bits; d (m, n) int64 or None
    table     (f, 10) int64 faults, see `fsim.types.fault_table`
    waveform  simulate everything and return every register
    clean     (m, n) int64 fault-free result if the caller has it already; for a large
              GEMM that is most of the work

    Returns out (m, n) int64 and None, or register name -> (cycles, rows, cols)
    int64, S[t] after the faults of cycle t, with "out": (cycles, cols), the output
    registers below the bottom row.

    Raises FaultError for a fault outside the mesh or of a memory.
    """
    rows, cols = accel.rows, accel.cols
    (m, k), n = a.shape, b.shape[1]
    mp, kp, np_ = ceil_to(m, rows), ceil_to(k, rows), ceil_to(n, cols)
    d = np.zeros((m, n), np.int64) if d is None else d
    output_stationary = accel.dataflow == "os"
    if output_stationary:
        tiles, length, tail = (mp // rows) * (np_ // cols), max(k, rows), rows
    else:
        tiles, length, tail = (kp // rows) * (np_ // cols), max(m, rows), 0
    tokens = rows + tiles * length + tail
    cycles = tokens + rows + cols
    slots = {name: slot for slot, name in enumerate(REGISTERS)}
    events, pe_start = faults_by_pe(accel, table, slots, cycles)
    if not waveform and not len(events):
        return golden(accel, a, b, d) if clean is None else clean.copy(), None

    if waveform:
        # Step -(rows + cols - 1) of the last PE is its reset state.
        span = (-1, 1 - rows - cols, FOREVER, cycles, 1)
        columns = np.arange(cols, dtype=np.int64)
        gold = np.zeros((mp if output_stationary else m, np_), np.int64)
    else:
        # A product counts one step earlier: in WS it is on its way down by then.
        steps = events[:, E_FIRST] - events[:, E_ROW] - events[:, E_COL]
        begin = int((steps - (events[:, E_SLOT] == NET)).min())
        ends = np.where(
            events[:, E_LAST] == FOREVER,
            FOREVER,
            events[:, E_LAST] - events[:, E_ROW] - events[:, E_COL],
        )
        # The last phase boundary before `begin`; step 0 is one.
        phase = -1 if begin <= 0 else 0 if begin <= rows else 1 + (begin - 1 - rows) // length
        phase = min(phase, tiles + 1 if output_stationary else tiles)
        last = int(ends.max())
        whole = phase <= 0 and last == FOREVER
        span = (phase, min(begin, 0), last, tokens, int(whole))
        columns = active_columns(accel, events, (A,))
        gold = pad(
            golden(accel, a, b, d) if clean is None else clean, mp if output_stationary else m, np_
        )
    recorded = cycles if waveform else 0
    waves = np.zeros((len(REGISTERS), recorded, rows, cols), np.int64)
    port = np.zeros((recorded, cols), np.int64)
    shape = np.array([rows, cols])
    widths = np.array([accel.product_bits, accel.acc_bits])
    out = gold.copy()
    if span[4] and not output_stationary:
        out.reshape(m, -1, cols)[:, :, columns] = 0
    common = (shape, widths, columns, events, pe_start, np.array(span), out, waves, port)
    if output_stationary:
        _output_stationary(pad(a, mp, k), pad(b.T, np_, k), pad(d, mp, np_), gold, *common)
    else:
        _weight_stationary(pad(a.T, kp, m), pad(b, kp, np_), pad(d.T, np_, m), *common)
    out = np.ascontiguousarray(out[:m, :n])
    return out, {**dict(zip(REGISTERS, waves)), "out": port} if waveform else None
