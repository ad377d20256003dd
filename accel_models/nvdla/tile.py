"""Compiled cycle-level simulation of the `nvdla` family.

All registers of the machine are one vector of integers, and a clock edge makes the next
one from it. Between passes the pipeline is empty, so what a pass without faults leaves
in the registers is known without its cycles (`_settle`): the simulation starts at the
pass of the first fault and ends at the first pass boundary after the last one where all
registers, bytes that nothing will read included, are those of a run without faults.
"""

from __future__ import annotations

import numpy as np

from fsim.errors import FaultError
from fsim.jit import kernel
from fsim.types import (
    LEVEL,
    STATE,
    T_AND,
    T_COL,
    T_COMPONENT,
    T_EFFECT,
    T_FIRST,
    T_LAST,
    T_OR,
    T_ROW,
    T_XOR,
)

from ..span import wrap_array
from .schedule import DRAIN, delivered_bits, half, stripe

# Registers in the order in which their begin in the state vector is told to kernels.
_NAMES = (
    "wt_pre", "wt_sd", "wt_actv", "dat_pre", "dat_actv", "sum1", "sum2", "sum3", "calc_sum",
    "pout", "fout", "abuf", "wt_pre_nz", "wt_pre_sel", "sd_nz", "sd_v", "a_nz", "av",
    "dat_pre_nz", "dat_pre_pvld", "dat_pre_st", "dat_pre_end", "d_nz", "dat_actv_pvld",
    "dat_actv_end", "pv1", "pv2", "pv3", "cv", "sel", "ppv", "fv", "sat",
)  # fmt: skip
(
    WT_PRE, WT_SD, WT_ACTV, DAT_PRE, DAT_ACTV, SUM1, SUM2, SUM3, CALC_SUM,
    POUT, FOUT, ABUF, WT_PRE_NZ, WT_PRE_SEL, SD_NZ, SD_V, A_NZ, AV,
    DAT_PRE_NZ, DAT_PRE_PVLD, DAT_PRE_ST, DAT_PRE_END, D_NZ, DAT_ACTV_PVLD,
    DAT_ACTV_END, PV1, PV2, PV3, CV, SEL, PPV, FV, SAT,
) = range(33)  # fmt: skip

# Columns of the integer vector of a product and its machine.
(
    N_M,
    N_K,
    N_N,
    N_ROWS,
    N_COLS,
    N_STRIPE,
    N_HALF,
    N_PRODUCT,
    N_SUM,
    N_ACC,
    N_DELIVERED,
    N_TRUNCATE,
) = range(12)

# Columns of a fault as kernels take it. Of the product net the place is row * cols + col.
E_PLACE, E_FIRST, E_LAST, E_AND, E_OR, E_XOR, E_BITS = range(7)


def run(accel, a, b, d, table, waveform=False, clean=None):
    """As `cycle.run`; clean: the (m, n) result without faults, if it is known."""
    (m, k), n = a.shape, b.shape[1]
    cycles = accel.schedule.cycles(accel, m, k, n)
    places, shapes, size = _layout(accel)
    registers, nets = _events(accel, table, places)
    numbers = np.array(
        [
            m,
            k,
            n,
            accel.rows,
            accel.cols,
            stripe(accel),
            half(accel),
            accel.product_bits,
            2 * accel.operand_bits + (accel.cols - 1).bit_length(),
            accel.acc_bits,
            delivered_bits(accel),
            accel.truncate,
        ],
        np.int64,
    )
    waves = np.zeros((cycles if waveform else 0, size), np.int64)
    value = np.zeros((m, n), np.int64)
    written = np.zeros((m, n), np.uint8)
    begin = np.array([places[name] for name in _NAMES], np.int64)
    _simulate(
        np.ascontiguousarray(a, np.int64), np.ascontiguousarray(b.T, np.int64), numbers, begin,
        size, registers, nets, waves, clean is None, value, written,
    )  # fmt: skip
    out = value if d is None else wrap_array(value + d, accel.acc_bits)
    if clean is not None:
        out = np.where(written.astype(bool), out, clean)
    return out, _waves(accel, waves, places, shapes) if waveform else None


def _layout(accel):
    """(register -> begin in the state vector, register -> (rows, cols), length)."""
    places, shapes, size = {}, {}, 0
    for component in accel.components:
        if component.kind == "register":
            rows, cols, _ = accel.grid(component)
            shapes[component.name] = -(-rows // component.shared), cols
            places[component.name] = size
            size += shapes[component.name][0] * cols
    return places, shapes, size


def _events(accel, table, places):
    """(faults of registers, faults of the product net), (f, 7) int64 each, columns E_*.

    FaultError for a fault of a memory or outside the machine, or a STATE fault of a net.
    """
    registers, nets = [], []
    for number, row in enumerate(np.asarray(table, np.int64).reshape(-1, 10).tolist()):
        index, where = row[T_COMPONENT], f"(row {number} of the fault table)"
        if not 0 <= index < len(accel.components):
            raise FaultError(
                f"component must be 0 to {len(accel.components) - 1}, got {index} {where}"
            )
        component = accel.components[index]
        if component.kind == "memory":
            raise FaultError(
                f"backend tile serves registers and nets, got memory {component.name!r} {where}"
            )
        rows, cols, _ = accel.grid(component)
        if not (0 <= row[T_ROW] < rows and 0 <= row[T_COL] < cols):
            raise FaultError(
                f"a fault of {component.name!r} must lie inside its {rows} x {cols}, "
                f"got row={row[T_ROW]}, col={row[T_COL]} {where}"
            )
        level = row[T_EFFECT] == LEVEL
        if component.kind == "net" and row[T_EFFECT] == STATE:
            raise FaultError(
                f"net {component.name!r} stores nothing and takes LEVEL faults only, "
                f"got a STATE fault {where}"
            )
        if not level and row[T_FIRST] < 0:
            continue  # no clock edge lies before cycle 0
        place = row[T_ROW] // component.shared * cols + row[T_COL]
        last = row[T_LAST] if level else row[T_FIRST]
        masks = (row[T_AND], row[T_OR], row[T_XOR], component.bits)
        if component.kind == "net":
            nets.append((place, row[T_FIRST], last, *masks))
        else:
            registers.append((places[component.name] + place, row[T_FIRST], last, *masks))
    return tuple(np.array(found, np.int64).reshape(-1, 7) for found in (registers, nets))


def _waves(accel, states, places, shapes):
    """The waveform by register, and the output port as `cycle.run` has it."""
    waves = {}
    for name, (rows, cols) in shapes.items():
        part = states[:, places[name] : places[name] + rows * cols]
        waves[name] = np.ascontiguousarray(part.reshape(-1, rows, cols))
    cell = np.int64(1) << np.arange(accel.rows)
    columns = []
    for values, *flags in (("sum3", "pv3"), ("fout", "fv", "sat")):
        columns.append(waves[values][:, :, 0])
        columns += [(waves[flag][:, :, 0] * cell).sum(1, keepdims=True) for flag in flags]
    waves["out"] = np.concatenate(columns, axis=1)
    return waves


@kernel
def _wrap(value, bits):
    """`value` reduced to `bits` bits of two's complement; 1 bit is unsigned."""
    if bits == 1:
        return value & 1
    shift = 64 - bits
    return (value << shift) >> shift


@kernel
def _forced(value, event):
    """A value under the masks of one fault."""
    return _wrap(((value & event[E_AND]) | event[E_OR]) ^ event[E_XOR], event[E_BITS])


@kernel
def _after_edge(s, registers, t):
    """Act with the faults of cycle t on the registers, in place."""
    for e in range(registers.shape[0]):
        if registers[e, E_FIRST] <= t <= registers[e, E_LAST]:
            place = registers[e, E_PLACE]
            s[place] = _forced(s[place], registers[e])


@kernel
def _on_net(product, nets, place, t):
    """The product that clock edge t adds up."""
    for e in range(nets.shape[0]):
        if nets[e, E_PLACE] == place and nets[e, E_FIRST] <= t <= nets[e, E_LAST]:
            product = _forced(product, nets[e])
    return product


@kernel
def _saturated(value, bits):
    """`value` held at the ends of `bits` bits."""
    top = (np.int64(1) << (bits - 1)) - 1
    return min(max(value, -top - 1), top)


@kernel
def _final(x, numbers):
    """(delivered value, whether it is another than the rounded one) of a sum."""
    y = (x << 16) >> numbers[N_TRUNCATE]
    q, guide, stick = y >> 16, (y >> 15) & 1, y & 0x7FFF
    if guide and x < 0 and not stick:
        guide = np.int64(0)
    held = _saturated(q + guide, numbers[N_DELIVERED])
    # The flag looks at q alone where the sum is negative.
    return held, held != q + guide or (x < 0 and q != _saturated(q, numbers[N_DELIVERED]))


@kernel
def _operand(codes, k):
    """codes[k], 0 beyond the last channel."""
    return codes[k] if k < codes.shape[0] else np.int64(0)


@kernel
def _settle(s, at, numbers, a, weight, n0, m0, fold, kernels, pixels, fill, value):
    """A pass without faults: what it leaves in the registers s.

    at      begins of the registers in s
    fill    write the delivered sums into value (m, n)
    """
    rows, cols, stripe_ = numbers[N_ROWS], numbers[N_COLS], numbers[N_STRIPE]
    folds = -(-numbers[N_K] // cols)
    final = fold == folds - 1
    halves = -(-rows // numbers[N_HALF])
    for col in range(cols):
        k = fold * cols + col
        for cell in range(kernels):
            w, own = _operand(weight[n0 + cell], k), cell * cols + col
            entry = cell // numbers[N_HALF] * cols + col
            on = np.int64(w != 0)
            s[at[WT_PRE_NZ] + entry] = s[at[SD_NZ] + own] = s[at[A_NZ] + own] = on
            s[at[WT_ACTV] + own] = w
            if on:
                s[at[WT_PRE] + entry] = s[at[WT_SD] + own] = w
        for pixel in range(pixels - 1, -1, -1):
            x = _operand(a[m0 + pixel], k)
            if x:
                for h in range(halves):
                    s[at[DAT_PRE] + h * cols + col] = x
                for cell in range(rows):
                    s[at[DAT_ACTV] + cell * cols + col] = x
                break
        on = np.int64(_operand(a[m0 + pixels - 1], k) != 0)
        s[at[DAT_PRE_NZ] + col] = s[at[D_NZ] + col] = on
    for cell in range(kernels):
        s[at[SEL] + cell] = np.int64(final)
        b = weight[n0 + cell]
        for pixel in range(pixels):
            total = np.int64(0)
            x = a[m0 + pixel]
            for k in range(fold * cols, min((fold + 1) * cols, numbers[N_K])):
                total += _wrap(x[k] * b[k], numbers[N_PRODUCT])
            total = _wrap(total, numbers[N_SUM])
            s[at[SUM1] + cell] = s[at[SUM2] + cell] = s[at[SUM3] + cell] = total
            word = at[ABUF] + cell * stripe_ + pixel
            if fold:
                total += s[word]
            s[at[CALC_SUM] + cell] = total
            total = _saturated(total, numbers[N_ACC])
            if final:
                s[at[FOUT] + cell] = _final(total, numbers)[0]
                if fill:
                    value[m0 + pixel, n0 + cell] = s[at[FOUT] + cell]
            else:
                s[at[POUT] + cell] = s[word] = total


@kernel
def _weights_enter(s, old, at, numbers, codes, fold, sel):
    """The weights of the kernel of cell `sel`, if there is one, go to its half."""
    rows, cols = numbers[N_ROWS], numbers[N_COLS]
    for cell in range(rows):
        s[at[WT_PRE_SEL] + cell] = np.int64(cell == sel)
    if sel >= 0:
        begin = sel // numbers[N_HALF] * cols
        for col in range(cols):
            w = _operand(codes, fold * cols + col)
            s[at[WT_PRE_NZ] + begin + col] = np.int64(w != 0)
            if w:
                s[at[WT_PRE] + begin + col] = w


@kernel
def _data_enter(s, old, at, numbers, codes, fold, live, first, end):
    """The channels of a pixel, if there is one (live), and the flags beside them."""
    cols = numbers[N_COLS]
    halves = -(-numbers[N_ROWS] // numbers[N_HALF])
    if live:
        for col in range(cols):
            x = _operand(codes, fold * cols + col)
            s[at[DAT_PRE_NZ] + col] = np.int64(x != 0)
            if x:
                for h in range(halves):
                    s[at[DAT_PRE] + h * cols + col] = x
    s[at[DAT_PRE_PVLD]], s[at[DAT_PRE_ST]] = np.int64(live), np.int64(first)
    s[at[DAT_PRE_END]] = np.int64(end)
    s[at[DAT_ACTV_END]], s[at[DAT_ACTV_PVLD]] = old[at[DAT_PRE_END]], old[at[DAT_PRE_PVLD]]
    if old[at[DAT_PRE_PVLD]]:
        for col in range(cols):
            s[at[D_NZ] + col] = old[at[DAT_PRE_NZ] + col]


@kernel
def _cell(s, old, at, numbers, nets, cell, t):
    """Operand registers and multipliers of one cell."""
    cols = numbers[N_COLS]
    entry, own = cell // numbers[N_HALF] * cols, cell * cols
    first, loads = old[at[DAT_PRE_ST]], old[at[WT_PRE_SEL] + cell]
    if loads:
        s[at[SD_V] + cell] = 1
    elif first:
        s[at[SD_V] + cell] = 0
    active = old[at[AV] + cell]
    if first:
        active = old[at[SD_V] + cell]
    elif old[at[DAT_ACTV_END]]:
        active = np.int64(0)
    s[at[AV] + cell] = active
    valid = old[at[AV] + cell] & old[at[DAT_ACTV_PVLD]]
    total = np.int64(0)
    for col in range(cols):
        if loads:
            on = old[at[WT_PRE_NZ] + entry + col]
            s[at[SD_NZ] + own + col] = on
            if on:
                s[at[WT_SD] + own + col] = old[at[WT_PRE] + entry + col]
        if first and active:
            on = old[at[SD_NZ] + own + col]
            s[at[A_NZ] + own + col] = on
            s[at[WT_ACTV] + own + col] = old[at[WT_SD] + own + col] if on else np.int64(0)
        if old[at[DAT_PRE_PVLD]] and old[at[DAT_PRE_NZ] + col]:
            s[at[DAT_ACTV] + own + col] = old[at[DAT_PRE] + entry + col]
        if valid:
            product = np.int64(0)
            if old[at[A_NZ] + own + col] and old[at[D_NZ] + col]:
                product = old[at[WT_ACTV] + own + col] * old[at[DAT_ACTV] + own + col]
                product = _wrap(product, numbers[N_PRODUCT])
            total += _on_net(product, nets, own + col, t)
    if valid:
        s[at[SUM1] + cell] = _wrap(total, numbers[N_SUM])
    if old[at[PV1] + cell]:
        s[at[SUM2] + cell] = old[at[SUM1] + cell]
    if old[at[PV2] + cell]:
        s[at[SUM3] + cell] = old[at[SUM2] + cell]
    s[at[PV1] + cell], s[at[PV2] + cell] = valid, old[at[PV1] + cell]
    s[at[PV3] + cell] = old[at[PV2] + cell]


@kernel
def _accumulator(s, old, at, numbers, cell, first, last, read, write):
    """The accumulator of one cell; first, last, read: of the pixel whose sum it takes.

    read, write  addresses in the assembly buffer
    """
    buffer = at[ABUF] + cell * numbers[N_STRIPE]
    if old[at[PV3] + cell]:
        total = old[at[SUM3] + cell]
        if not first:
            total += old[buffer + read]
        s[at[CALC_SUM] + cell] = _wrap(total, numbers[N_ACC] + 1)
        s[at[SEL] + cell] = np.int64(last)
    s[at[CV] + cell] = old[at[PV3] + cell]
    x = _saturated(old[at[CALC_SUM] + cell], numbers[N_ACC])
    partial, final, clipped = np.int64(0), np.int64(0), np.int64(0)
    if old[at[CV] + cell] and old[at[SEL] + cell]:
        final = np.int64(1)
        s[at[FOUT] + cell], flag = _final(x, numbers)
        clipped = np.int64(flag)
    elif old[at[CV] + cell]:
        partial = np.int64(1)
        s[at[POUT] + cell] = x
    s[at[PPV] + cell], s[at[FV] + cell], s[at[SAT] + cell] = partial, final, clipped
    if old[at[PPV] + cell]:
        s[buffer + write] = old[at[POUT] + cell]


@kernel
def _simulate(a, weight, numbers, at, size, registers, nets, waves, fill, value, written):
    """Run the schedule under faults.

    a (m, k), weight (n, k) int64
    waves    (cycles, size) int64: every register by cycle, or (0, size): not wanted
    fill     value is wanted everywhere, else only where written
    value, written  (m, n): what is delivered, and where it was read during the simulation
    """
    rows, cols, stripe_ = numbers[N_ROWS], numbers[N_COLS], numbers[N_STRIPE]
    m_size, k_size, n_size = numbers[N_M], numbers[N_K], numbers[N_N]
    folds = -(-k_size // cols)
    begin, end = np.int64(1) << 62, np.int64(-2)
    for events in (registers, nets):
        for e in range(events.shape[0]):
            begin, end = min(begin, events[e, E_FIRST]), max(end, events[e, E_LAST])
    whole = waves.shape[0] > 0
    golden = np.zeros(size, np.int64)
    s = np.zeros(size, np.int64)
    old = np.zeros(size, np.int64)
    started, stopped = False, False
    start = np.int64(0)  # first cycle of the pass
    for n0 in range(0, n_size, rows):
        kernels = min(rows, n_size - n0)
        for m0 in range(0, m_size, stripe_):
            pixels = min(stripe_, m_size - m0)
            length = kernels + pixels + 1 + DRAIN
            for fold in range(folds):
                runs = not stopped and (started or whole or begin < start + length)
                if runs and not started:
                    started = True
                    s[:] = golden
                    if start == 0:
                        _after_edge(s, registers, -1)
                if runs:
                    final = fold == folds - 1
                    for c in range(length):
                        t = start + c
                        old[:] = s
                        sel = c if c < kernels else -1
                        _weights_enter(s, old, at, numbers, weight[n0 + max(sel, 0)], fold, sel)
                        pixel = c - kernels - 1
                        live = 0 <= pixel < pixels
                        _data_enter(
                            s, old, at, numbers, a[m0 + (pixel if live else 0)], fold, live,
                            pixel == 0, pixel == pixels - 1,
                        )  # fmt: skip
                        summed = 0 <= pixel - 5 < pixels
                        read = pixel - 5 if summed else 0
                        write = pixel - 7 if 0 <= pixel - 7 < pixels else 0
                        for cell in range(rows):
                            _cell(s, old, at, numbers, nets, cell, t)
                            _accumulator(
                                s, old, at, numbers, cell, summed and fold == 0,
                                summed and final, read, write,
                            )  # fmt: skip
                        _after_edge(s, registers, t)
                        if whole:
                            waves[t] = s
                        if final and 0 <= pixel - 6 < pixels:
                            for cell in range(kernels):
                                value[m0 + pixel - 6, n0 + cell] = s[at[FOUT] + cell]
                                written[m0 + pixel - 6, n0 + cell] = 1
                start += length
                _settle(
                    golden, at, numbers, a, weight, n0, m0, fold, kernels, pixels,
                    fill and not runs, value,
                )  # fmt: skip
                if started and not stopped and not whole and start > end:
                    stopped = np.array_equal(s, golden)
                if stopped and not fill:
                    return
