"""Replay on `nvdla-small-like`: recompute the outputs a fault touches.

While control is as scheduled a value stands in each register at known cycles, so that
one output is a walk over its blocks of channels: the operands of each product through
the registers of entry, shadow, active weights and copies, the product, the sum of the
cell, the accumulator, and the assembly buffer until the next block. Faults act on the
value at the register and in the cycles it stands there; a held value meets them in the
order of time and, within a cycle, of the table. Operands of 0 are gated: what their
registers hold is never used.
"""

from __future__ import annotations

import numpy as np

from fsim.jit import kernel
from fsim.simulator.kernels.replay import apply_mask, overlap, wrap
from fsim.types import T_COL, T_COMPONENT, T_FIRST, T_LAST, T_ROW, T_WORD

from .schedule import DRAIN, delivered_bits, half, stripe

# Components, in the order of schedule.components.
(
    WT_PRE,
    WT_SD,
    WT_ACTV,
    DAT_PRE,
    DAT_ACTV,
    SUM1,
    SUM2,
    SUM3,
    CALC_SUM,
    POUT,
    FOUT,
    ABUF,
    MUL,
) = range(13)

# Columns of the integer vector that describes a product to the kernels.
(
    G_M,
    G_K,
    G_N,
    G_ROWS,
    G_COLS,
    G_STRIPE,
    G_HALF,
    G_FOLDS,
    G_ACC_BITS,
    G_DELIVERED_BITS,
    G_TRUNCATE,
) = range(11)

# A pixel that enters in cycle c is in these registers after edge c + delay; `mul` is
# evaluated for that edge.
_DELAYS = np.zeros(13, np.int64)
_DELAYS[[DAT_ACTV, MUL, SUM1, SUM2, SUM3, CALC_SUM, POUT, FOUT]] = 1, 2, 2, 3, 4, 5, 6, 6
_WRITTEN, _READ = 7, 4  # abuf: written by edge c + 7, read last after edge c + 4 of the next pass

_FAR = np.int64(1) << 60
"""Cycles beyond any schedule; keeps `last - time` of permanent faults in int64."""


def geometry(accel, m: int, k: int, n: int) -> np.ndarray:
    """One product (m,k)(k,n) as the kernels want it, (11,) int64 with the columns G_*."""
    return np.array(
        [
            m,
            k,
            n,
            accel.rows,
            accel.cols,
            stripe(accel),
            half(accel),
            -(-k // accel.cols),
            accel.acc_bits,
            delivered_bits(accel),
            accel.truncate,
        ],
        np.int64,
    )


def widths(accel) -> np.ndarray:
    """Widths of the machine's components, in component order, int64."""
    return np.array([component.bits for component in accel.components], np.int64)


def run(accel, a, b, d, table, out, everything=False) -> np.ndarray:
    """Overwrite the outputs that faults touch; the contract is that of `families`.

    a (m, k), b (k, n), d (m, n) int64; table (f, 10) int64: rows of registers and nets
    that replay serves, and rows with a word >= 0, which act on the sum that block
    T_FIRST leaves in the assembly buffer for output word = m_index * n + n_index.
    Returns (m, n) bool: what was recomputed.
    """
    table = _limited(table)
    numbers = geometry(accel, a.shape[0], a.shape[1], b.shape[1])
    touched = np.zeros(out.shape, np.uint8)
    weight = np.ascontiguousarray(b.T)
    words = table[:, T_WORD]
    stored = table[words >= 0]
    stored = stored[np.argsort(stored[:, T_WORD], kind="stable")]
    if everything:
        touched[:] = 1
    else:
        mark(numbers, weight, table, touched)
    tables = table[words < 0], stored
    _walk_all(np.ascontiguousarray(a), weight, d, numbers, tables, widths(accel), touched, out)
    return touched.astype(bool)


def struck_sums(accel, m, n, codes, acc, bias, weight, window, table, slot, group):
    """Final sums of a layer that single faults change, each in an inference of its own.

    m, n    output positions, and output channels of a group
    codes   (images, h, w, c) what the layer read; acc (images, m * outputs) its sums
    bias    (outputs,) int64; weight (outputs, k) integers in slot order
    window  ((channels of a group, width of the output, strides, rows and columns of padding
            above and left); (k, 3) int64: row, column and channel of each slot in the
            window, channel -1 for none)
    table   (f, 10) int64: row f is a fault as of `run`, of the product of its group
    slot, group  (f,) int64: the inference and the group it strikes
    Returns (fault, index into m * outputs, sum with the bias) of the sums that differ.
    """
    numbers = geometry(accel, m, weight.shape[1], n)
    return _struck(
        codes, acc, bias, weight, *window, numbers, _limited(table), widths(accel), slot, group
    )


def stored_sums(accel, m, n, codes, bias, weight, window, wrong, table, slot):
    """Final sums of a layer whose partial sums were hit in memory.

    m, n, codes, bias, weight, window  as of `struck_sums`
    wrong  (image, output, k, delta) int64 of wrong weights, sorted by (image, output)
    table  (f, 10) int64 faults of stored sums, word = position * outputs + output, and slot
           (f,) int64 their inferences, sorted by (inference, word)
    Returns (index into images * m * outputs, sum with the bias), one of each word hit.
    """
    numbers = geometry(accel, m, weight.shape[1], n)
    return _stored(
        codes, bias, weight, *window, numbers, wrong, _limited(table), widths(accel), slot
    )


def _limited(table: np.ndarray) -> np.ndarray:
    """A copy of a fault table whose last cycles leave room for sums."""
    table = np.array(table, np.int64).reshape(-1, 10)
    np.minimum(table[:, T_LAST], _FAR, out=table[:, T_LAST])
    return table


@kernel
def _tile(numbers, n_tile, m_tile):
    """(first cycle, kernels, pixels, cycles of a pass) of a tile of outputs."""
    rows, stripe_ = numbers[G_ROWS], numbers[G_STRIPE]
    m_size, n_size, folds = numbers[G_M], numbers[G_N], numbers[G_FOLDS]
    stripes = -(-m_size // stripe_)
    kernels = min(rows, n_size - n_tile * rows)
    pixels = min(stripe_, m_size - m_tile * stripe_)
    before = n_tile * (stripes * (rows + 1 + DRAIN) + m_size)
    before += m_tile * (kernels + stripe_ + 1 + DRAIN)
    return folds * before, kernels, pixels, kernels + pixels + 1 + DRAIN


@kernel
def mark(numbers, weight, table, touched):
    """Set touched[m, n] for every output that some fault may reach (a superset).

    weight  (n, k) integers: faults of operands that meet a weight of 0 reach nothing
    """
    rows, stripe_ = numbers[G_ROWS], numbers[G_STRIPE]
    m_size, n_size, folds = numbers[G_M], numbers[G_N], numbers[G_FOLDS]
    stripes, n_tiles = -(-m_size // stripe_), -(-n_size // rows)
    for f in range(table.shape[0]):
        if table[f, T_WORD] >= 0:
            touched[table[f, T_WORD] // n_size, table[f, T_WORD] % n_size] = 1
            continue
        first, last = table[f, T_FIRST], table[f, T_LAST]
        for n_tile in range(n_tiles):
            begin = _tile(numbers, n_tile, 0)[0]
            if begin > last:
                break
            if n_tile + 1 < n_tiles and _tile(numbers, n_tile + 1, 0)[0] <= first:
                continue
            for m_tile in range(stripes):
                begin, kernels, pixels, length = _tile(numbers, n_tile, m_tile)
                if begin > last:
                    break
                if begin + folds * length <= first:
                    continue
                fold = max(np.int64(0), (first - begin) // length)
                while fold < folds and begin + fold * length <= last:
                    now = begin + fold * length
                    _mark_pass(
                        numbers, weight, table[f], touched, n_tile, m_tile, fold, kernels, pixels,
                        max(first - now, np.int64(0)), min(last - now, length - 1),
                    )  # fmt: skip
                    fold += 1


@kernel
def _mark_pass(numbers, weight, fault, touched, n_tile, m_tile, fold, kernels, pixels, first, last):
    """`mark` for one fault in cycles [first, last] of one pass."""
    component, row, col = fault[T_COMPONENT], fault[T_ROW], fault[T_COL]
    k = fold * numbers[G_COLS] + col
    final = fold == numbers[G_FOLDS] - 1
    entry = kernels + 1  # cycle in which the first pixel enters
    operand = component <= DAT_ACTV
    if (operand and k >= numbers[G_K]) or (component == FOUT and not final):
        return
    if component == POUT and final:
        return
    shared = component == WT_PRE or component == DAT_PRE
    for cell in range(kernels):
        if shared:
            if cell // numbers[G_HALF] != row // numbers[G_HALF]:
                continue
        elif cell != row:
            continue
        n = n_tile * numbers[G_ROWS] + cell
        if operand and weight[n, k] == 0:
            continue
        begin, end = np.int64(0), pixels - 1
        if component == WT_PRE:
            if not first <= cell <= last:
                continue
        elif component == WT_SD:
            if overlap(first, last, cell + 1, entry) == 0:
                continue
        elif component == WT_ACTV:
            begin = max(begin, first - entry - 1)
            if last < entry + 1:
                continue
        elif component == ABUF:
            if col >= pixels:
                continue
            stays = not final and last >= entry + col + _WRITTEN
            if not stays and not (fold > 0 and first <= entry + col + _READ):
                continue
            begin = end = col
        else:
            at = entry + _DELAYS[component]
            begin, end = max(begin, first - at), min(end, last - at)
        for pixel in range(begin, end + 1):
            touched[m_tile * numbers[G_STRIPE] + pixel, n] = 1


@kernel
def _relevant(numbers, table, cell, pixel, begin, end, mine):
    """Write into `mine` the rows of the table that can act on one output; how many.

    cell, pixel  of the output in its tile, whose passes are cycles [begin, end)
    """
    count = 0
    for f in range(table.shape[0]):
        if table[f, T_FIRST] >= end or table[f, T_LAST] < begin:
            continue
        component, row = table[f, T_COMPONENT], table[f, T_ROW]
        if component == WT_PRE or component == DAT_PRE:
            if cell // numbers[G_HALF] != row // numbers[G_HALF]:
                continue
        elif cell != row:
            continue
        if component == ABUF and table[f, T_COL] != pixel:
            continue
        mine[count] = f
        count += 1
    return count


@kernel
def _through(value, component, col, begin, end, here):
    """What is left of a value that stands in a register in cycles [begin, end].

    col   column of the register, -1 where the cell has one only
    here  (table, bits, mine, count): faults of the output's cell
    """
    table, bits, mine, count = here
    found = 0
    one = np.int64(0)
    for i in range(count):
        f = mine[i]
        if table[f, T_COMPONENT] != component or (col >= 0 and table[f, T_COL] != col):
            continue
        if overlap(table[f, T_FIRST], table[f, T_LAST], begin, end) > 0:
            found += 1
            one = f
    if found == 0:
        return value
    if found == 1:
        times = overlap(table[one, T_FIRST], table[one, T_LAST], begin, end)
        return apply_mask(value, table, one, bits[component], times)
    for t in range(begin, end + 1):
        for i in range(count):
            f = mine[i]
            if table[f, T_COMPONENT] != component or (col >= 0 and table[f, T_COL] != col):
                continue
            if table[f, T_FIRST] <= t <= table[f, T_LAST]:
                value = apply_mask(value, table, f, bits[component], 1)
    return value


@kernel
def _cell_sum(numbers, a_row, b_col, fold, kernels, cell, pixel, now, here):
    """Sum of products that one cell hands over for one pixel in the pass from cycle `now`."""
    bits = here[1]
    cols = numbers[G_COLS]
    enters = now + kernels + 1 + pixel
    active = now + kernels + 2  # the first cycle of active weights
    total = np.int64(0)
    for col in range(cols):
        k = fold * cols + col
        product = np.int64(0)
        if k < numbers[G_K] and a_row[k] != 0 and b_col[k] != 0:
            w = _through(np.int64(b_col[k]), WT_PRE, col, now + cell, now + cell, here)
            w = _through(w, WT_SD, col, now + cell + 1, active - 1, here)
            w = _through(w, WT_ACTV, col, active, active + pixel, here)
            x = _through(np.int64(a_row[k]), DAT_PRE, col, enters, enters, here)
            x = _through(x, DAT_ACTV, col, enters + 1, enters + 1, here)
            product = wrap(w * x, bits[MUL])
        total += _through(product, MUL, col, enters + 2, enters + 2, here)
    total = wrap(total, bits[SUM1])
    for stage in range(SUM1, SUM3 + 1):
        at = enters + _DELAYS[stage]
        total = _through(total, stage, np.int64(-1), at, at, here)
    return total


@kernel
def delivered(x, truncate, bits):
    """A sum with `truncate` bits dropped, rounded half away from zero, saturated to `bits`.

    Rounding looks at 16 bits below the point (CLIP_TRUNCATE of NVDLA).
    """
    y = (x << 16) >> truncate
    q = y >> 16
    if (y >> 15) & 1 and (x >= 0 or y & 0x7FFF):
        q += 1
    top = (np.int64(1) << (bits - 1)) - 1
    return min(max(q, -top - 1), top)


@kernel
def walk(a_row, b_col, m, n, numbers, tables, bits, mine):
    """Output (m, n) with all faults, without a bias.

    a_row, b_col  (k,) integer operands of the output
    tables        (f, 10) int64, see `run`: faults of registers and nets, and those of
                  stored sums, in the order of their words
    bits          (components,) int64 widths
    mine          (f,) int64 scratch
    """
    table, stored = tables
    cell, pixel = n % numbers[G_ROWS], m % numbers[G_STRIPE]
    cols, folds, acc_bits = numbers[G_COLS], numbers[G_FOLDS], numbers[G_ACC_BITS]
    begin, kernels, _, length = _tile(numbers, n // numbers[G_ROWS], m // numbers[G_STRIPE])
    end = begin + folds * length
    count = _relevant(numbers, table, cell, pixel, begin, end, mine)
    here = (table, bits, mine, count)
    word = m * numbers[G_N] + n
    kept = np.searchsorted(stored[:, T_WORD], word)
    top = (np.int64(1) << (acc_bits - 1)) - 1
    acc = np.int64(0)
    for fold in range(folds):
        now = begin + fold * length
        met = False
        for i in range(count):
            f = mine[i]
            met |= overlap(table[f, T_FIRST], table[f, T_LAST], now, now + length - 1) > 0
        enters = now + kernels + 1 + pixel
        if met:
            if fold > 0:
                acc = _through(acc, ABUF, pixel, now, enters + _READ, here)
            acc += _cell_sum(numbers, a_row, b_col, fold, kernels, cell, pixel, now, here)
            acc = wrap(acc, acc_bits + 1)
            acc = _through(acc, CALC_SUM, np.int64(-1), enters + 5, enters + 5, here)
        else:
            for k in range(fold * cols, min((fold + 1) * cols, numbers[G_K])):
                acc += np.int64(a_row[k]) * np.int64(b_col[k])
        acc = min(max(acc, -top - 1), top)
        if fold == folds - 1:
            break
        if met:
            acc = _through(acc, POUT, np.int64(-1), enters + 6, enters + 6, here)
            acc = _through(acc, ABUF, pixel, enters + _WRITTEN, now + length - 1, here)
        f = kept
        while f < len(stored) and stored[f, T_WORD] == word:
            if stored[f, T_FIRST] == fold:
                acc = apply_mask(acc, stored, f, acc_bits, 1)
            f += 1
    acc = delivered(acc, numbers[G_TRUNCATE], numbers[G_DELIVERED_BITS])
    at = begin + (folds - 1) * length + kernels + 1 + pixel + 6
    return _through(acc, FOUT, np.int64(-1), at, at, here)


@kernel
def _walk_all(a, weight, d, numbers, tables, bits, touched, out):
    """Overwrite every marked output with its bias, at acc_bits.

    a (m, k), weight (n, k), d (m, n), out (m, n) int64; touched (m, n) uint8
    """
    mine = np.empty(max(1, tables[0].shape[0]), np.int64)
    for m in range(out.shape[0]):
        for n in range(out.shape[1]):
            if touched[m, n]:
                value = walk(a[m], weight[n], m, n, numbers, tables, bits, mine)
                out[m, n] = wrap(value + d[m, n], numbers[G_ACC_BITS])


@kernel
def _operands(codes, geometry, slots, group, position, out):
    """The window of one output position in slot order; 0 outside the map and for no channel."""
    channels, out_w, sy, sx, top, left = geometry
    y0, x0 = position // out_w * sy - top, position % out_w * sx - left
    h, w, _ = codes.shape
    for k in range(len(out)):
        y, x, c = y0 + slots[k, 0], x0 + slots[k, 1], slots[k, 2]
        out[k] = 0
        if c >= 0 and 0 <= y < h and 0 <= x < w:
            out[k] = codes[y, x, group * channels + c]


@kernel
def _longer(values):
    """The same values at the beginning of an array twice as long."""
    grown = np.empty(2 * len(values), np.int64)
    grown[: len(values)] = values
    return grown


@kernel
def _struck(
    codes, acc, bias, weight, geometry, slots, numbers, table, bits, slot, group
):  # fmt: skip
    """See `struck_sums`."""
    m_size, n_size, outputs = numbers[G_M], numbers[G_N], len(bias)
    touched = np.zeros((m_size, n_size), np.uint8)
    a_row = np.empty(len(slots), np.int64)
    mine = np.empty(1, np.int64)
    fault, where, value = (
        np.empty(1024, np.int64), np.empty(1024, np.int64), np.empty(1024, np.int64)
    )  # fmt: skip
    count = 0
    for f in range(len(table)):
        one = table[f : f + 1]
        tables = (one[:0], one) if one[0, T_WORD] >= 0 else (one, one[:0])
        image, begin = slot[f], group[f] * n_size
        mark(numbers, weight[begin : begin + n_size], one, touched)
        for m in range(m_size):
            loaded = False
            for n in range(n_size):
                if not touched[m, n]:
                    continue
                touched[m, n] = 0
                if not loaded:
                    _operands(codes[image], geometry, slots, group[f], m, a_row)
                    loaded = True
                found = walk(a_row, weight[begin + n], m, n, numbers, tables, bits, mine)
                found = wrap(found + bias[begin + n], numbers[G_ACC_BITS])
                index = m * outputs + begin + n
                if found == acc[image, index] + bias[begin + n]:
                    continue
                if count == len(fault):
                    fault, where, value = _longer(fault), _longer(where), _longer(value)
                fault[count], where[count], value[count] = f, index, found
                count += 1
    return fault[:count].copy(), where[:count].copy(), value[:count].copy()


@kernel
def _stored(codes, bias, weight, geometry, slots, numbers, wrong, table, bits, slot):
    """See `stored_sums`."""
    w_image, w_output, w_k, w_delta = wrong
    m_size, n_size, outputs = numbers[G_M], numbers[G_N], len(bias)
    a_row, b_col = np.empty(len(slots), np.int64), np.empty(len(slots), np.int64)
    mine = np.empty(1, np.int64)
    where, value = np.empty(len(table), np.int64), np.empty(len(table), np.int64)
    count, begin, e = 0, 0, 0
    while begin < len(table):
        image, word = slot[begin], table[begin, T_WORD]
        end = begin
        while end < len(table) and slot[end] == image and table[end, T_WORD] == word:
            end += 1
        m, o = word // outputs, word % outputs
        group, n = o // n_size, o % n_size
        hits = table[begin:end].copy()
        hits[:, T_WORD] = m * n_size + n
        _operands(codes[image], geometry, slots, group, m, a_row)
        for k in range(len(b_col)):
            b_col[k] = weight[o, k]
        # Words of one image are not in the order of outputs: look from its first one on.
        while e < len(w_image) and w_image[e] < image:
            e += 1
        i = e
        while i < len(w_image) and w_image[i] == image and w_output[i] <= o:
            if w_output[i] == o:
                b_col[w_k[i]] += w_delta[i]
            i += 1
        found = walk(a_row, b_col, m, n, numbers, (hits[:0], hits), bits, mine)
        where[count] = image * m_size * outputs + word
        value[count] = wrap(found + bias[o], numbers[G_ACC_BITS])
        count += 1
        begin = end
    return where[:count], value[:count]
