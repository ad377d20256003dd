"""Compiled cycle-level simulation of the `pipelined` family.

The pass is the phase: its last result leaves the last PE at its last edge, and by
then every enable has left the array. So the state at a pass boundary is known
without simulating what went before, and the simulation runs from the boundary
before the first fault to the first one after the last fault where the state is
that of a fault-free run again.
"""

from __future__ import annotations

import numpy as np

from fsim.jit import kernel
from fsim.types import FOREVER

from ..span import (
    E_COL,
    E_FIRST,
    E_ROW,
    active_columns,
    active_pes,
    ceil_to,
    every_pe,
    faults_by_pe,
    golden,
    last_cycle,
    pad,
    wrap_array,
)
from ..systolic.tile import add_columns, delay, dot, force, force_net, multiply_add, span_of, wrap

# Slots of the state vector. The first 11 (OS) and 14 (WS) are fault sites and recorded,
# the others are the delayed controls that no fault reaches.
OS_SLOTS = ("s1_x", "s1_w", "x_old", "w_old", "s2_p", "s3_p", "mac_out", "v1", "v3", "en_out")
OS_REGISTERS = (*OS_SLOTS, "v2", "c1", "c2", "c3", "clr_out")
WS_SLOTS = (*OS_SLOTS, "w_reg", "s1_psum", "s2_psum", "s3_psum")
WS_REGISTERS = (*WS_SLOTS, "v2")
S1_X, S1_W, X_OLD, W_OLD, S2_P, S3_P, MAC_OUT, V1, V3, EN_OUT = range(10)
V2, C1, C2, C3, CLR_OUT = range(10, 15)  # output stationary
W_REG, S1_PSUM, S2_PSUM, S3_PSUM, WS_V2 = range(10, 15)  # weight stationary


@kernel
def _output_stationary(a, bt, shape, widths, pes, events, pe_start, span, state, out, waves, port):
    """Passes of the output-stationary machine from `span[0]` on.

    a         (mp, k) int64, mp a multiple of rows
    bt        (np, k) int64, B transposed, np a multiple of cols
    shape     (rows, cols), int64
    widths    (product_bits, acc_bits), int64
    pes       (p, 4) int64: the PEs to simulate, see `active_pes`
    events    (f, 9) int64, pe_start (rows*cols + 1,) int64: see `faults_by_pe`
    span      (first pass, last cycle in which a fault acts), int64
    state     (rows, cols, 15) int64 in the order OS_REGISTERS, S before the first
              pass; changed
    out       (mp, np) int64, overwritten where PEs are simulated
    waves     (10, cycles, rows, cols) int64 or of size 0: S[t], not recorded then
    port      (cycles, rows*cols) int64, as `waves`: mac_out
    """
    rows, cols = shape[0], shape[1]
    product_bits, acc_bits = widths[0], widths[1]
    k_size = a.shape[1]
    n_tiles = bt.shape[0] // cols
    passes = n_tiles * (a.shape[0] // rows)
    length = k_size + rows + cols + 2
    record = waves.size > 0
    # What a PE captures at each edge of the pass; a PE replaces it by what its
    # right or lower neighbour captures: its own old value.
    xs = np.zeros(length, np.int64)
    ens = np.zeros(length, np.int64)
    clrs = np.zeros(length, np.int64)
    ws = np.zeros((cols, length), np.int64)
    regs = np.zeros(10, np.int64)
    steady = True  # whether ens and clrs are those of a fault-free run

    for p in range(span[0], passes):
        base = p * length
        m0, n0 = (p // n_tiles) * rows, (p % n_tiles) * cols
        for q in range(pes.shape[0]):
            i, j = pes[q, 0], pes[q, 1]
            # The edge's delay lines have i + 1 and j + 1 registers.
            if not pes[q, 2]:
                for c in range(length):
                    k = c - 1 - i - j
                    valid = 0 <= k < k_size
                    xs[c] = a[m0 + i, k] if valid else 0
                    ens[c] = 1 if valid else 0
                    clrs[c] = 1 if k == 0 else 0
                steady = True
            if not pes[q, 3]:
                for c in range(length):
                    k = c - 1 - i - j
                    ws[j, c] = bt[n0 + j, k] if 0 <= k < k_size else 0
            s = state[i, j]
            s1_x, s1_w, x_old, w_old = s[S1_X], s[S1_W], s[X_OLD], s[W_OLD]
            s2_p, s3_p, mac_out = s[S2_P], s[S3_P], s[MAC_OUT]
            v1, v2, v3, en_out = s[V1], s[V2], s[V3], s[EN_OUT]
            c1, c2, c3, clr_out = s[C1], s[C2], s[C3], s[CLR_OUT]
            lo, hi = pe_start[i * cols + j], pe_start[i * cols + j + 1]
            first, last = span_of(events, lo, hi)
            clean = not record and steady and (last < base or first >= base + length)
            clean = clean and v1 == 0 and v2 == 0 and v3 == 0 and en_out == 0 and clr_out == 0
            if clean:  # a dot product; at the pass's end the pipeline is empty again
                w_stream = ws[j]
                begin = 1 + i + j
                end = begin + k_size
                mac_out = wrap(dot(xs[begin:end], w_stream[begin:end], product_bits), acc_bits)
                s1_x = x_old = delay(xs, length, x_old)
                s1_w = w_old = delay(w_stream, length, w_old)
                delay(ens, length, en_out)
                delay(clrs, length, clr_out)
                s2_p = s3_p = 0
                c1 = c2 = c3 = 0
            for c in range(0 if clean else length):
                t = base + c
                hit = first <= t <= last
                if v3 != 0:
                    mac_out = wrap(s3_p if c3 != 0 else mac_out + s3_p, acc_bits)
                s3_p = s2_p if v2 != 0 else 0
                v3, c3 = v2, c2
                s2_p = wrap(s1_x * s1_w, product_bits)
                if hit:
                    s2_p = force_net(s2_p, events, lo, hi, t)
                if v1 == 0:
                    s2_p = 0
                v2, c2 = v1, c1
                x_in, en_in, clr_in, w_in = xs[c], ens[c], clrs[c], ws[j, c]
                xs[c], ens[c], clrs[c], ws[j, c] = x_old, en_out, clr_out, w_old
                s1_x = x_old = x_in
                s1_w = w_old = w_in
                v1 = en_out = en_in
                c1 = clr_out = en_in & clr_in
                if hit:
                    regs[S1_X], regs[S1_W], regs[X_OLD], regs[W_OLD] = s1_x, s1_w, x_old, w_old
                    regs[S2_P], regs[S3_P], regs[MAC_OUT] = s2_p, s3_p, mac_out
                    regs[V1], regs[V3], regs[EN_OUT] = v1, v3, en_out
                    force(regs, events, lo, hi, t)
                    s1_x, s1_w, x_old, w_old = regs[S1_X], regs[S1_W], regs[X_OLD], regs[W_OLD]
                    s2_p, s3_p, mac_out = regs[S2_P], regs[S3_P], regs[MAC_OUT]
                    v1, v3, en_out = regs[V1], regs[V3], regs[EN_OUT]
                if record:
                    wave = waves[:, t, i, j]
                    wave[S1_X], wave[S1_W], wave[X_OLD], wave[W_OLD] = s1_x, s1_w, x_old, w_old
                    wave[S2_P], wave[S3_P], wave[MAC_OUT] = s2_p, s3_p, mac_out
                    wave[V1], wave[V3], wave[EN_OUT] = v1, v3, en_out
                    port[t, i * cols + j] = mac_out
            s[S1_X], s[S1_W], s[X_OLD], s[W_OLD] = s1_x, s1_w, x_old, w_old
            s[S2_P], s[S3_P], s[MAC_OUT] = s2_p, s3_p, mac_out
            s[V1], s[V2], s[V3], s[EN_OUT] = v1, v2, v3, en_out
            s[C1], s[C2], s[C3], s[CLR_OUT] = c1, c2, c3, clr_out
            if not clean:
                steady = True
                for c in range(length):
                    k = c - 2 - i - j  # as captured by the right neighbour
                    if (ens[c] != 0) != (0 <= k < k_size) or (clrs[c] != 0) != (k == 0):
                        steady = False
            out[m0 + i, n0 + j] = mac_out
        # Fault-free, only mac_out is not zero now, and it is dead: the first product
        # of the next pass replaces it.
        if base + length - 1 >= span[1]:
            clean = True
            for q in range(pes.shape[0]):
                s = state[pes[q, 0], pes[q, 1]]
                for r in range(s.shape[0]):
                    if r != MAC_OUT and s[r] != 0:
                        clean = False
            if clean:
                return p + 1
    return passes


@kernel
def _weight_stationary(
    at, b, d, shape, widths, columns, events, pe_start, span, state, acc, out, waves, port
):
    """Passes of the weight-stationary machine from `span[0]` on.

    at        (kp, m) int64, A transposed, kp a multiple of rows
    b         (kp, np) int64, np a multiple of cols
    d         (m, np) int64
    columns   (c,) int64, ascending: the columns to simulate
    state     (rows, cols, 15) int64 in the order WS_REGISTERS
    acc       (m, cols) int64, the sums before the first pass, fed back through the
              array from pass to pass; changed
    out       (m, np) int64, results of every column group finished here
    waves     (14, cycles, rows, cols) int64 or of size 0; port (cycles, cols): mac_out
              of the bottom row

    Other parameters as in `_output_stationary`. Returns the first pass not simulated;
    if it is inside a column group, `acc` holds that group's sums so far.
    """
    rows, cols = shape[0], shape[1]
    product_bits, acc_bits = widths[0], widths[1]
    m = at.shape[1]
    k_tiles = at.shape[0] // rows
    passes = k_tiles * (b.shape[1] // cols)
    length = 5 * rows + m + cols - 1
    record = waves.size > 0
    xs = np.zeros((rows, length), np.int64)
    ens = np.zeros((rows, length), np.int64)
    ws = np.zeros(length, np.int64)
    psums = np.zeros(length + 1, np.int64)
    regs = np.zeros(14, np.int64)
    steady = np.ones(rows, np.bool_)  # whether ens[i] is that of a fault-free run

    for p in range(span[0], passes):
        base = p * length
        n0, k0 = (p // k_tiles) * cols, (p % k_tiles) * rows
        if k0 == 0:
            for j in columns:
                for row in range(m):
                    acc[row, j] = d[row, n0 + j]
        left = -2
        for j in columns:
            if j - 1 != left:  # the left neighbour is not simulated: its stream is A's
                for i in range(rows):
                    for c in range(length):
                        row = c - 1 - 4 * i - j - rows  # 4 i + 1 registers of delay
                        valid = 0 <= row < m
                        xs[i, c] = at[k0 + i, row] if valid else 0
                        ens[i, c] = 1 if valid else 0
                    steady[i] = True
            left = j
            for c in range(length):
                ws[c] = b[k0 + rows - 1 - c, n0 + j] if c < rows else 0
                row = c - 1 - j - rows  # j + 1 registers of delay
                psums[c] = acc[row, j] if 0 <= row < m else 0
            for i in range(rows):
                s = state[i, j]
                s1_x, s1_w, x_old, w_old = s[S1_X], s[S1_W], s[X_OLD], s[W_OLD]
                s2_p, s3_p, mac_out, w_reg = s[S2_P], s[S3_P], s[MAC_OUT], s[W_REG]
                s1_psum, s2_psum, s3_psum = s[S1_PSUM], s[S2_PSUM], s[S3_PSUM]
                v1, v2, v3, en_out = s[V1], s[WS_V2], s[V3], s[EN_OUT]
                lo, hi = pe_start[i * cols + j], pe_start[i * cols + j + 1]
                first, last = span_of(events, lo, hi)
                clean = not record and steady[i] and (last < base or first >= base + length)
                clean = clean and v1 == 0 and v2 == 0 and v3 == 0 and en_out == 0
                if clean:
                    # Token t is captured at edge begin + t, its sum at three edges later;
                    # before and after mac_out rests.
                    begin = rows + 1 + 4 * i + j
                    x_stream = xs[i]
                    w_reg = ws[rows - 1]
                    end = begin + m
                    multiply_add(
                        psums[begin:end], x_stream[begin:end], w_reg, product_bits, acc_bits
                    )
                    for c in range(end - 1, begin - 1, -1):
                        psums[c + 4] = psums[c]
                    psums[: begin + 4] = mac_out
                    mac_out = psums[begin + m + 3]
                    psums[begin + m + 4 :] = mac_out
                    s1_x = x_old = delay(x_stream, length, x_old)
                    delay(ens[i], length, en_out)
                    delay(ws, rows, w_old)
                    s1_w = w_old = w_reg
                    s2_p = s3_p = s1_psum = s2_psum = s3_psum = 0
                for c in range(0 if clean else length):
                    t = base + c
                    hit = first <= t <= last
                    psum_in = psums[c]
                    psums[c] = mac_out
                    if v3 != 0:
                        mac_out = wrap(s3_psum + s3_p, acc_bits)
                    s3_p = s2_p if v2 != 0 else 0
                    s3_psum = s2_psum if v2 != 0 else 0
                    v3 = v2
                    s2_p = wrap(s1_x * s1_w, product_bits)
                    if hit:
                        s2_p = force_net(s2_p, events, lo, hi, t)
                    if v1 == 0:
                        s2_p = 0
                    s2_psum = s1_psum if v1 != 0 else 0
                    v2 = v1
                    x_in, en_in, w_in = xs[i, c], ens[i, c], ws[c]
                    xs[i, c], ens[i, c], ws[c] = x_old, en_out, w_old
                    s1_x = x_old = x_in
                    s1_w = w_reg
                    s1_psum = psum_in if en_in != 0 else 0
                    v1 = en_out = en_in
                    if c < rows:  # loading, in all PEs at once
                        w_reg = w_old = w_in
                    else:
                        w_old = s1_w  # w_reg before this edge
                    if hit:
                        regs[S1_X], regs[S1_W], regs[X_OLD], regs[W_OLD] = s1_x, s1_w, x_old, w_old
                        regs[S2_P], regs[S3_P], regs[MAC_OUT] = s2_p, s3_p, mac_out
                        regs[V1], regs[V3], regs[EN_OUT], regs[W_REG] = v1, v3, en_out, w_reg
                        regs[S1_PSUM], regs[S2_PSUM], regs[S3_PSUM] = s1_psum, s2_psum, s3_psum
                        force(regs, events, lo, hi, t)
                        s1_x, s1_w, x_old, w_old = regs[S1_X], regs[S1_W], regs[X_OLD], regs[W_OLD]
                        s2_p, s3_p, mac_out = regs[S2_P], regs[S3_P], regs[MAC_OUT]
                        v1, v3, en_out, w_reg = regs[V1], regs[V3], regs[EN_OUT], regs[W_REG]
                        s1_psum, s2_psum, s3_psum = regs[S1_PSUM], regs[S2_PSUM], regs[S3_PSUM]
                    if record:
                        wave = waves[:, t, i, j]
                        wave[S1_X], wave[S1_W], wave[X_OLD], wave[W_OLD] = s1_x, s1_w, x_old, w_old
                        wave[S2_P], wave[S3_P], wave[MAC_OUT] = s2_p, s3_p, mac_out
                        wave[V1], wave[V3], wave[EN_OUT], wave[W_REG] = v1, v3, en_out, w_reg
                        wave[S1_PSUM], wave[S2_PSUM], wave[S3_PSUM] = s1_psum, s2_psum, s3_psum
                s[S1_X], s[S1_W], s[X_OLD], s[W_OLD] = s1_x, s1_w, x_old, w_old
                s[S2_P], s[S3_P], s[MAC_OUT], s[W_REG] = s2_p, s3_p, mac_out, w_reg
                s[S1_PSUM], s[S2_PSUM], s[S3_PSUM] = s1_psum, s2_psum, s3_psum
                s[V1], s[WS_V2], s[V3], s[EN_OUT] = v1, v2, v3, en_out
                psums[length] = mac_out
                if not clean:
                    steady[i] = True
                    for c in range(length):
                        row = c - 2 - 4 * i - j - rows  # as captured by the right neighbour
                        if (ens[i, c] != 0) != (0 <= row < m):
                            steady[i] = False
            # psums[c] is now mac_out of the bottom row before edge c.
            for row in range(m):
                acc[row, j] = psums[5 * rows + row + j + 1]
            if record:
                for c in range(length):
                    port[base + c, j] = psums[c + 1]
        if k0 + rows == at.shape[0]:
            for j in columns:
                for row in range(m):
                    out[row, n0 + j] = acc[row, j]
        # Fault-free, only the weights and mac_out are not zero now. mac_out is dead:
        # without an enable nobody reads it, and the enable comes with a new sum.
        if base + length - 1 >= span[1]:
            clean = True
            for j in columns:
                for i in range(rows):
                    for r in range(state.shape[2]):
                        if r == W_REG or r == W_OLD or r == S1_W:
                            want = b[k0 + i, n0 + j]
                        else:
                            want = 0
                        if r != MAC_OUT and state[i, j, r] != want:
                            clean = False
            if clean:
                return p + 1
    return passes


def _reset_faults(state, events) -> None:
    """S[-1]: the reset state, forced by the level faults that act from reset on."""
    for e in np.flatnonzero(events[:, E_FIRST] == -1):
        force(state[events[e, E_ROW], events[e, E_COL]], events, e, e + 1, -1)


def run(accel, a, b, d, table, waveform=False, clean=None):
    """One GEMM on the array, cycle by cycle where faults can have an effect.

    a         (m, k), b (k, n), int64 codes of operand_bits; d (m, n) int64 or None
              (OS: added outside the array)
    table     (f, 10) int64 faults, see `fsim.types.fault_table`
    waveform  simulate everything and return every register
    clean     (m, n) int64 fault-free result if the caller has it already; for a large
              GEMM that is most of the work

    Returns out (m, n) int64 and None, or register name -> (cycles, rows, cols)
    int64, S[t] after the faults of cycle t, with "out": mac_out as (cycles,
    rows*cols) (OS) or of the bottom row as (cycles, cols) (WS).

    Raises FaultError for a fault outside the array or of a memory.
    """
    if accel.dataflow == "os":
        return _run_os(accel, a, b, d, table, waveform, clean)
    return _run_ws(accel, a, b, d, table, waveform, clean)


def _run_os(accel, a, b, d, table, waveform, clean):
    """`run` for OS."""
    rows, cols = accel.rows, accel.cols
    (m, k), n = a.shape, b.shape[1]
    mp, np_ = ceil_to(m, rows), ceil_to(n, cols)
    n_tiles, length = np_ // cols, k + rows + cols + 2
    cycles = n_tiles * (mp // rows) * length
    slots = {name: slot for slot, name in enumerate(OS_SLOTS)}
    events, pe_start = faults_by_pe(accel, table, slots, cycles)
    if not waveform and not len(events):
        return golden(accel, a, b, d) if clean is None else clean.copy(), None

    state = np.zeros((rows, cols, len(OS_REGISTERS)), np.int64)
    if waveform:
        start, last = 0, FOREVER
        pes = every_pe(accel)
        out = np.zeros((mp, np_), np.int64)
    else:
        start, last = max(int(events[:, E_FIRST].min()), 0) // length, last_cycle(events)
        pes = active_pes(accel, events, (X_OLD, EN_OUT), (W_OLD,))
        if clean is None:
            clean = golden(accel, a, b, None)
        elif d is not None:
            clean = wrap_array(clean - d, accel.acc_bits)
        out = pad(clean, mp, np_)
    if start:
        # Not dead here: a fault that swallows the next pass's first enable, which
        # carries its clear, leaves the old sum in place.
        m0, n0 = ((start - 1) // n_tiles) * rows, ((start - 1) % n_tiles) * cols
        state[:, :, MAC_OUT] = out[m0 : m0 + rows, n0 : n0 + cols]
    else:
        _reset_faults(state, events)

    recorded = cycles if waveform else 0
    waves = np.zeros((len(OS_SLOTS), recorded, rows, cols), np.int64)
    port = np.zeros((recorded, rows * cols), np.int64)
    _output_stationary(
        pad(a, mp, k),
        pad(b.T, np_, k),
        np.array([rows, cols]),
        np.array([accel.product_bits, accel.acc_bits]),
        pes,
        events,
        pe_start,
        np.array([start, last]),
        state,
        out,
        waves,
        port,
    )
    out = np.ascontiguousarray(out[:m, :n])
    if d is not None:
        out = wrap_array(out + d, accel.acc_bits)
    return out, {**dict(zip(OS_SLOTS, waves)), "out": port} if waveform else None


def _run_ws(accel, a, b, d, table, waveform, clean):
    """`run` for WS."""
    rows, cols = accel.rows, accel.cols
    (m, k), n = a.shape, b.shape[1]
    kp, np_ = ceil_to(k, rows), ceil_to(n, cols)
    k_tiles, length = kp // rows, 5 * rows + m + cols - 1
    cycles = k_tiles * (np_ // cols) * length
    slots = {name: slot for slot, name in enumerate(WS_SLOTS)}
    events, pe_start = faults_by_pe(accel, table, slots, cycles)
    if not waveform and not len(events):
        return golden(accel, a, b, d) if clean is None else clean.copy(), None

    at, b_pad = pad(a.T, kp, m), pad(b, kp, np_)
    bits = (accel.product_bits, accel.acc_bits)
    d_pad = pad(np.zeros((m, n), np.int64) if d is None else d, m, np_)
    state = np.zeros((rows, cols, len(WS_REGISTERS)), np.int64)
    acc = np.zeros((m, cols), np.int64)
    if waveform:
        start, last = 0, FOREVER
        columns = np.arange(cols, dtype=np.int64)
        out = np.zeros((m, np_), np.int64)
    else:
        start, last = max(int(events[:, E_FIRST].min()), 0) // length, last_cycle(events)
        columns = active_columns(accel, events, (X_OLD, EN_OUT))
        out = pad(golden(accel, a, b, d) if clean is None else clean, m, np_)
    if start:
        _state_after_pass(accel, at, b_pad, d_pad, start - 1, columns, state)
        n0, k0 = (start // k_tiles) * cols, (start % k_tiles) * rows
        if k0:
            acc[:] = d_pad[:, n0 : n0 + cols]
            add_columns(at, b_pad, 0, k0, n0, columns, *bits, acc)
    else:
        _reset_faults(state, events)

    recorded = cycles if waveform else 0
    waves = np.zeros((len(WS_SLOTS), recorded, rows, cols), np.int64)
    port = np.zeros((recorded, cols), np.int64)
    stop = _weight_stationary(
        at,
        b_pad,
        d_pad,
        np.array([rows, cols]),
        np.array([accel.product_bits, accel.acc_bits]),
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
    if stop % k_tiles:
        # The remaining passes add fault-free products to the sums fed back.
        n0, k0 = (stop // k_tiles) * cols, (stop % k_tiles) * rows
        add_columns(at, b_pad, k0, kp, n0, columns, *bits, acc)
        out[:, n0 + columns] = acc[:, columns]
    out = np.ascontiguousarray(out[:, :n])
    return out, {**dict(zip(WS_SLOTS, waves)), "out": port} if waveform else None


def _state_after_pass(accel, at, b, d, index, columns, state) -> None:
    """Fault-free S after pass `index` of the WS machine, in `columns`.

    at (kp, m), b (kp, np), d (m, np) int64, padded. The pipeline is empty; what stays
    is the weights and in mac_out the sum of the last row of A up to this PE.
    """
    rows, cols = accel.rows, accel.cols
    k_tiles = at.shape[0] // rows
    n0, k0 = (index // k_tiles) * cols, (index % k_tiles) * rows
    for slot in (W_REG, W_OLD, S1_W):
        state[:, :, slot] = b[k0 : k0 + rows, n0 : n0 + cols]
    token = np.ascontiguousarray(at[:, -1:])
    sums = d[-1:, n0 : n0 + cols].copy()
    done = 0
    for i in range(rows):
        k = k0 + i + 1
        add_columns(token, b, done, k, n0, columns, accel.product_bits, accel.acc_bits, sums)
        state[i, :, MAC_OUT] = sums[0]
        done = k
