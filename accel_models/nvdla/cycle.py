"""NVDLA's CMAC and CACC, register by register and cycle by cycle: the specification.

Row n of the machine is a MAC cell, which computes one of `rows` kernels (atomic-K);
column k is one of `cols` channels (atomic-C). S[t] is the state after clock edge t.

The cells are in two halves, kernels 0 to K/2 - 1 and K/2 to K - 1. Of each half there
is one copy of the registers that operands enter by, `wt_pre` and `dat_pre`; a fault's
row names any cell of the half. Weights then go to the cell's shadow `wt_sd` while it
still computes with the active ones, `wt_actv`; activations to a copy for each cell,
`dat_actv`. The products of a cell are added in one step, and the sum goes through
`sum1`, `sum2` and `sum3` to the accumulator: `calc_sum`, which adds what the assembly
buffer `abuf` holds for the pixel and saturates to acc_bits on its way out, `pout` back
to the assembly buffer or, after the last channels, `fout`, rounded and saturated.

Zeros are gated. With the operands come masks, made before they enter the machine: a
bit of `*_nz` says that the byte is in range and not 0. A masked byte is not latched,
and its product is 0 whatever is in the registers.

Semantics: NVDLA nv_small (NV_NVDLA_CMAC_CORE_active and _mac, NV_NVDLA_CACC_CALC_int8)
without the retiming stages between them. What the vectors of its RTL do not show: the
address and the first and last flags of a stripe are taken as 0 in cycles without
data. Only faults of control registers can make the accumulator look at them then.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from fsim.accel_models.registers import (
    Waveform,
    grid,
    held,
    padded,
    read_faults,
    register_names,
)
from fsim.types import wrap

# Cycles from a pixel at the input to its results, counted in clock edges.
_TO_CALC, _TO_FOUT, _TO_ABUF = 5, 6, 7

_IDLE = SimpleNamespace(wt=None, sel=-1, dat=None, st=0, end=0, addr=0, first=0, last=0)
"""Inputs of a cycle without weights and without data."""


def run(accel, a, b, d, table, waveform=False):
    """Multiply on the machine, with faults.

    a, b      (m, k) and (k, n) int64 codes: pixels by channels, channels by kernels
    d         (m, n) int64 added to what the machine delivers, at acc_bits, or None
    table     (f, 10) int64 fault table, see `fsim.types.fault_table`
    waveform  keep every register of every cycle

    Returns out, int64 (m, n), and None or the waves: register -> int64
    (cycles, rows, cols of that register), and "out" -> int64 (cycles, 2 rows + 3): by
    cell sum3, then pv3 as a mask of cells, by cell fout, then fv and sat as masks.
    """
    faults = read_faults(accel, table)
    names = register_names(accel)
    waves = Waveform(waveform, names)
    S = _reset(accel)
    faults.after_edge(S, -1)
    inputs = list(_inputs(accel, a.tolist(), b.tolist()))
    reads = {}
    for t, (_, result) in enumerate(inputs):
        if result is not None:
            reads[t + _TO_FOUT] = result
    out = [[0] * b.shape[1] for _ in range(len(a))]
    for t, (x, _) in enumerate(inputs):
        calc = inputs[t - _TO_CALC][0] if t >= _TO_CALC else _IDLE
        store = inputs[t - _TO_ABUF][0] if t >= _TO_ABUF else _IDLE
        S = _edge(accel, S, x, calc, store, faults, t)
        faults.after_edge(S, t)
        waves.record(S, _port(S))
        if t in reads:
            m, n0 = reads[t]
            for n in range(min(accel.rows, b.shape[1] - n0)):
                out[m][n0 + n] = S.fout[n][0]
    out = np.array(out, np.int64)
    if d is not None:
        for m, row in enumerate(d.tolist()):
            out[m] = [wrap(int(x) + y, accel.acc_bits) for x, y in zip(out[m], row)]
    return out, waves.arrays()


def _inputs(accel, a, b):
    """What enters in each cycle, and (pixel, first kernel) of a result it leads to or None.

    Kernels outermost, then stripes of pixels, then channels. A pass is a cycle a kernel
    in which its weights enter, one without, a cycle a pixel, and eight for the pipeline.
    """
    rows, cols, stripe = accel.rows, accel.cols, int(accel.parameters["stripe"])
    m_size, k_size, n_size = len(a), len(b), len(b[0])
    for n0 in range(0, n_size, rows):
        for m0 in range(0, m_size, stripe):
            for k0 in range(0, k_size, cols):
                for n in range(n0, min(n0 + rows, n_size)):
                    wt = [padded(b, k0 + k, n) for k in range(cols)]
                    yield SimpleNamespace(**(vars(_IDLE) | {"wt": wt, "sel": n - n0})), None
                yield _IDLE, None
                end = min(m0 + stripe, m_size) - 1
                last = k0 + cols >= k_size
                for m in range(m0, end + 1):
                    x = SimpleNamespace(
                        wt=None,
                        sel=-1,
                        dat=[padded(a, m, k0 + k) for k in range(cols)],
                        st=int(m == m0),
                        end=int(m == end),
                        addr=m - m0,
                        first=int(k0 == 0),
                        last=int(last),
                    )
                    yield x, (m, n0) if last else None
                for _ in range(8):
                    yield _IDLE, None


def _reset(accel) -> SimpleNamespace:
    """S[-1]: every register, one grid each, all 0."""
    rows, cols = accel.rows, accel.cols
    halves = -(-rows // _half(accel))
    of_half, of_cell = (
        ("wt_pre", "wt_pre_nz", "dat_pre"),
        ("wt_sd", "sd_nz", "wt_actv", "a_nz", "dat_actv"),
    )
    single = ("wt_pre_sel", "sd_v", "av", "sum1", "sum2", "sum3", "pv1", "pv2", "pv3")
    single += ("calc_sum", "sel", "cv", "pout", "ppv", "fout", "fv", "sat")
    return SimpleNamespace(
        **{name: grid(halves, cols) for name in of_half},
        **{name: grid(rows, cols) for name in of_cell},
        **{name: grid(rows, 1) for name in single},
        **{name: grid(1, cols) for name in ("dat_pre_nz", "d_nz")},
        **{
            name: grid(1, 1)
            for name in ("dat_pre_pvld", "dat_pre_st", "dat_pre_end", "dat_actv_pvld")
        },
        dat_actv_end=grid(1, 1),
        abuf=grid(rows, int(accel.parameters["stripe"])),
    )


def _half(accel) -> int:
    """Cells of a half."""
    return -(-accel.rows // 2)


def _edge(accel, S, x, calc, store, faults, t):
    """S[t] before its faults, from S[t - 1] and the inputs of cycle t.

    calc, store  the inputs of the cycles whose pixels reach the accumulator, and whose
                 sums reach the assembly buffer, at this edge
    """
    rows, cols = accel.rows, accel.cols
    new = held(S)
    _weights(accel, S, new, x)
    st, pvld = S.dat_pre_st[0][0], S.dat_pre_pvld[0][0]
    for k in range(cols):
        if x.dat is not None:
            new.dat_pre_nz[0][k] = int(x.dat[k] != 0)
            for half in new.dat_pre:
                half[k] = x.dat[k] if x.dat[k] else half[k]
        if pvld:
            new.d_nz[0][k] = S.dat_pre_nz[0][k]
    new.dat_pre_pvld[0][0] = int(x.dat is not None)
    new.dat_pre_st[0][0], new.dat_pre_end[0][0] = x.st, x.end
    new.dat_actv_end[0][0] = S.dat_pre_end[0][0]
    new.dat_actv_pvld[0][0] = pvld
    for n in range(rows):
        h = n // _half(accel)
        if S.wt_pre_sel[n][0]:
            new.sd_v[n][0] = 1
        elif st:
            new.sd_v[n][0] = 0
        active = S.sd_v[n][0] if st else 0 if S.dat_actv_end[0][0] else S.av[n][0]
        new.av[n][0] = active
        for k in range(cols):
            if S.wt_pre_sel[n][0]:
                new.sd_nz[n][k] = S.wt_pre_nz[h][k]
                if S.wt_pre_nz[h][k]:
                    new.wt_sd[n][k] = S.wt_pre[h][k]
            if st and active:
                new.a_nz[n][k] = S.sd_nz[n][k]
                new.wt_actv[n][k] = S.wt_sd[n][k] if S.sd_nz[n][k] else 0
            if pvld and S.dat_pre_nz[0][k]:
                new.dat_actv[n][k] = S.dat_pre[h][k]
        _multiply(accel, S, new, n, faults, t)
        _accumulate(accel, S, new, n, calc, store)
    return new


def _weights(accel, S, new, x):
    """The weights of one kernel enter the register of its half."""
    for n in range(accel.rows):
        new.wt_pre_sel[n][0] = int(n == x.sel)
    if x.wt is not None:
        h = x.sel // _half(accel)
        for k, weight in enumerate(x.wt):
            new.wt_pre_nz[h][k] = int(weight != 0)
            if weight:
                new.wt_pre[h][k] = weight


def _multiply(accel, S, new, n, faults, t):
    """The products of cell n and their sum, in three stages."""
    valid = S.av[n][0] & S.dat_actv_pvld[0][0]
    total = 0
    for k in range(accel.cols):
        on = valid & S.a_nz[n][k] & S.d_nz[0][k]
        product = wrap(S.wt_actv[n][k] * S.dat_actv[n][k], accel.product_bits) if on else 0
        total += faults.on_net("mul", n, k, t, product)
    if valid:
        # One bit a doubling of the summands on top of a product of two operands.
        new.sum1[n][0] = wrap(total, 2 * accel.operand_bits + (accel.cols - 1).bit_length())
    if S.pv1[n][0]:
        new.sum2[n][0] = S.sum1[n][0]
    if S.pv2[n][0]:
        new.sum3[n][0] = S.sum2[n][0]
    new.pv1[n][0], new.pv2[n][0], new.pv3[n][0] = valid, S.pv1[n][0], S.pv2[n][0]


def _accumulate(accel, S, new, n, calc, store):
    """The accumulator of cell n."""
    if S.pv3[n][0]:
        before = 0 if calc.first else S.abuf[n][calc.addr]
        new.calc_sum[n][0] = wrap(S.sum3[n][0] + before, accel.acc_bits + 1)
        new.sel[n][0] = calc.last
    new.cv[n][0] = S.pv3[n][0]
    top = (1 << (accel.acc_bits - 1)) - 1
    x = max(-top - 1, min(top, S.calc_sum[n][0]))
    partial, final = S.cv[n][0] & (1 - S.sel[n][0]), S.cv[n][0] & S.sel[n][0]
    if partial:
        new.pout[n][0] = x
    if final:
        new.fout[n][0], saturated = _final(accel, x)
    new.ppv[n][0], new.fv[n][0] = partial, final
    new.sat[n][0] = saturated if final else 0
    if S.ppv[n][0]:
        new.abuf[n][store.addr] = S.pout[n][0]


def _final(accel, x):
    """What is delivered of a sum: `truncate` bits dropped, rounded, saturated; and whether it was.

    Rounds half away from zero on 16 bits below the point, as CLIP_TRUNCATE does: with
    more than 16 bits dropped the lowest are lost before the tie is decided.
    """
    y = (x << 16) >> accel.truncate
    q, guide, stick = y >> 16, y >> 15 & 1, y & 0x7FFF
    up = guide & int(x >= 0 or stick != 0)
    top = (1 << (min(accel.acc_bits, int(accel.parameters["delivered_bits"])) - 1)) - 1
    if x < 0 and q < -top - 1:
        return -top - 1, 1
    if x >= 0 and q + up > top:
        return top, 1
    return q + up, 0


def _port(S) -> list[int]:
    """[sum3 by cell, mask of pv3, fout by cell, mask of fv, mask of sat]."""

    def mask(bits):
        return sum(row[0] << n for n, row in enumerate(bits))

    sums, final = [row[0] for row in S.sum3], [row[0] for row in S.fout]
    return [*sums, mask(S.pv3), *final, mask(S.fv), mask(S.sat)]
