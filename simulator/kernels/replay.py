"""Replay: recompute the outputs a fault touches by walking the accumulation plan.

`mark` finds candidates (a superset of the touched outputs, from the plan's
affine formulas); `replay` walks each of them slot by slot in machine order and
applies every fault at the register and cycle where the value passes. A walk
costs O(k); slots that no fault can reach are summed in a plain loop.

Column numbers of the integer tables are those of `fsim.types` (T_*) and
`fsim.accel_models.plan` (P_*, S_*).
"""

from __future__ import annotations

import numpy as np

from fsim.accel_models.plan import (
    ACC_IN,
    ACC_OUT,
    DRAIN,
    FIRST,
    LATER,
    MOVING,
    P_ACC_BITS,
    P_BASE0,
    P_CHAIN,
    P_COLS,
    P_FOLDS,
    P_INIT_D,
    P_K,
    P_M,
    P_N,
    P_N_TILES,
    P_OUTPUT_STATIONARY,
    P_PHASE_CYCLES,
    P_PRODUCT_BITS,
    P_ROWS,
    P_SATURATE,
    P_SLOTS,
    PRELOAD,
    PRODUCT,
    S_COL_HOPS,
    S_E,
    S_E_J,
    S_E_P,
    S_E_U,
    S_EVEN,
    S_HI,
    S_HI_J,
    S_HI_Q,
    S_HOLDS,
    S_LAST_E,
    S_LAST_HOLDS,
    S_LO,
    S_LO_J,
    S_LO_Q,
    S_PHASES,
    S_ROW_HOPS,
    S_STAGE,
    S_T,
    S_T_J,
    S_T_L,
    S_T_P,
    S_T_U,
    WEIGHT,
)
from fsim.jit import kernel
from fsim.types import (
    T_AND,
    T_COL,
    T_COMPONENT,
    T_FIRST,
    T_LAST,
    T_OR,
    T_ROW,
    T_WORD,
    T_XOR,
)

# Columns of the scratch table of candidate (fault, segment) pairs of one fold.
C_FAULT, C_SEGMENT, C_HOP, C_U_LO, C_U_HI, C_TIME, C_UNTIL = range(7)


@kernel
def wrap(value, bits):
    """`value` reduced to `bits` bits of two's complement; 1 bit is unsigned."""
    if bits == 1:
        return value & 1
    shift = 64 - bits
    return (value << shift) >> shift


@kernel
def add(x, y, bits, saturate):
    """x + y as an adder of `bits` bits does it."""
    total = x + y
    if saturate:
        top = (np.int64(1) << (bits - 1)) - 1
        return min(max(total, -top - 1), top)
    return wrap(total, bits)


@kernel
def apply_mask(value, table, fault, bits, times):
    """`value` after the fault's mask was applied `times` times (times >= 1).

    Bit by bit the mask is a constant, the identity or an inversion, so an even
    number of times undoes the inversions and keeps the constants.
    """
    and_, or_, xor = table[fault, T_AND], table[fault, T_OR], table[fault, T_XOR]
    value = ((value & and_) | or_) ^ xor
    if times % 2 == 0:
        value ^= xor & and_ & ~or_
    return wrap(value, bits)


@kernel
def takes_part(seg, component, phase):
    """Whether segment row `seg` is of this component in this phase."""
    if (seg[S_PHASES] == FIRST and phase > 0) or (seg[S_PHASES] == LATER and phase == 0):
        return False
    return component == seg[S_EVEN + phase % 2]


@kernel
def overlap(first, last, start, end):
    """Number of cycles common to [first, last] and [start, end]."""
    return max(np.int64(0), min(last, end) - max(first, start) + 1)


@kernel
def interval(plan, segments, s, base, u, p, j, l):
    """(first, last) cycle at which the walk's value stands in hop l of segment s."""
    seg = segments[s]
    time = base + seg[S_T] + seg[S_T_U] * u + seg[S_T_P] * p + seg[S_T_J] * j + seg[S_T_L] * l
    until = time
    if seg[S_HOLDS]:
        until = base + seg[S_E] + seg[S_E_U] * u + seg[S_E_P] * p + seg[S_E_J] * j
    elif seg[S_LAST_HOLDS] and u == plan[P_SLOTS] - 1:
        until = base + seg[S_LAST_E]
    return time, until


@kernel
def candidates(plan, segments, table, p, j, found):
    """Fill `found` with the (fault, segment) pairs that may act on a walk in any fold.

    Columns C_*; u ranges without regard to time. Returns how many.
    """
    output_stationary, slots = plan[P_OUTPUT_STATIONARY], plan[P_SLOTS]
    count = 0
    for s in range(segments.shape[0]):
        seg = segments[s]
        for f in range(table.shape[0]):
            component = table[f, T_COMPONENT]
            if component != seg[S_EVEN] and component != seg[S_EVEN + 1]:
                continue
            row, col = table[f, T_ROW], table[f, T_COL]
            u_lo, u_hi = np.int64(0), slots - 1
            l = np.int64(0)
            if seg[S_COL_HOPS]:
                l = col
            elif col != j:
                continue
            if seg[S_ROW_HOPS]:
                l = row
            elif output_stationary:
                if row != p:
                    continue
            else:
                u_lo = u_hi = row
            lo = seg[S_LO] + seg[S_LO_J] * j
            hi = seg[S_HI] + seg[S_HI_J] * j
            if output_stationary:
                if l < lo + seg[S_LO_Q] * p or l > hi + seg[S_HI_Q] * p:
                    continue
            else:
                if seg[S_LO_Q]:
                    u_hi = min(u_hi, l - lo)
                elif l < lo:
                    continue
                if seg[S_HI_Q]:
                    u_lo = max(u_lo, l - hi)
                elif l > hi:
                    continue
            if seg[S_STAGE] == PRELOAD or seg[S_STAGE] == DRAIN:
                u_lo = u_hi = np.int64(0)
            if u_lo > u_hi:
                continue
            found[count, C_FAULT] = f
            found[count, C_SEGMENT] = s
            found[count, C_HOP] = l
            found[count, C_U_LO] = u_lo
            found[count, C_U_HI] = u_hi
            count += 1
    return count


@kernel
def collect(plan, segments, table, phase, p, j, found, known, pairs):
    """Fill `pairs` with those of the first `known` candidates that may act on one fold.

    Returns (count, lowest slot, highest slot, stages as bits); u ranges may be too
    wide, never too narrow: `act` checks the cycle of every slot.
    """
    slots = plan[P_SLOTS]
    base = plan[P_BASE0] + phase * plan[P_PHASE_CYCLES]
    count = 0
    stages = np.int64(0)
    lowest, highest = slots, np.int64(-1)
    for i in range(known):
        f, s, l = found[i, C_FAULT], found[i, C_SEGMENT], found[i, C_HOP]
        u_lo, u_hi = found[i, C_U_LO], found[i, C_U_HI]
        seg = segments[s]
        if not takes_part(seg, table[f, T_COMPONENT], phase):
            continue
        first, last = table[f, T_FIRST], table[f, T_LAST]
        stage = seg[S_STAGE]
        if u_lo < u_hi and not seg[S_HOLDS]:
            # time = fixed + step * u must meet [first, last]
            fixed = base + seg[S_T] + seg[S_T_P] * p + seg[S_T_J] * j + seg[S_T_L] * l
            step = seg[S_T_U]
            if step > 0:
                by_time_lo = -((fixed - first) // step)
                by_time_hi = (last - fixed) // step
            elif step < 0:
                by_time_lo = -((last - fixed) // -step)
                by_time_hi = (fixed - first) // -step
            elif fixed < first or fixed > last:
                by_time_lo, by_time_hi = np.int64(1), np.int64(0)
            else:
                by_time_lo, by_time_hi = u_lo, u_hi
            if seg[S_LAST_HOLDS] and u_hi == slots - 1:
                time, until = interval(plan, segments, s, base, u_hi, p, j, l)
                if overlap(first, last, time, until) > 0:
                    by_time_lo = min(by_time_lo, u_hi)
                    by_time_hi = u_hi
            u_lo, u_hi = max(u_lo, by_time_lo), min(u_hi, by_time_hi)
            if u_lo > u_hi:
                continue
        if u_lo == u_hi:
            time, until = interval(plan, segments, s, base, u_lo, p, j, l)
            if overlap(first, last, time, until) == 0:
                continue
        pairs[count, C_FAULT] = f
        pairs[count, C_SEGMENT] = s
        pairs[count, C_HOP] = l
        pairs[count, C_U_LO] = u_lo
        pairs[count, C_U_HI] = u_hi
        count += 1
        stages |= np.int64(1) << stage
        if stage != PRELOAD and stage != DRAIN:
            lowest, highest = min(lowest, u_lo), max(highest, u_hi)
    return count, lowest, highest, stages


@kernel
def act(value, stage, here, u, p, j, bits, order):
    """`value` after every fault that meets it at `stage` of slot u, in time order.

    here   (plan, segments, table, pairs, count, phase) of the fold
    bits   width of each component
    order  scratch, at least `count` long
    """
    plan, segments, table, pairs, count, phase = here
    base = plan[P_BASE0] + phase * plan[P_PHASE_CYCLES]
    active = 0
    for i in range(count):
        s = pairs[i, C_SEGMENT]
        if segments[s, S_STAGE] != stage or u < pairs[i, C_U_LO] or u > pairs[i, C_U_HI]:
            continue
        f = pairs[i, C_FAULT]
        time, until = interval(plan, segments, s, base, u, p, j, pairs[i, C_HOP])
        if overlap(table[f, T_FIRST], table[f, T_LAST], time, until) == 0:
            continue
        pairs[i, C_TIME] = time
        pairs[i, C_UNTIL] = until
        # Insertion by time; pairs come in register and row order, which ties keep.
        at = active
        while at > 0 and pairs[order[at - 1], C_TIME] > time:
            order[at] = order[at - 1]
            at -= 1
        order[at] = i
        active += 1
    i = 0
    while i < active:
        pair = order[i]
        s, l = pairs[pair, C_SEGMENT], pairs[pair, C_HOP]
        time, until = pairs[pair, C_TIME], pairs[pair, C_UNTIL]
        width = bits[table[pairs[pair, C_FAULT], T_COMPONENT]]
        end = i + 1
        while end < active:
            other = order[end]
            if pairs[other, C_SEGMENT] != s or pairs[other, C_HOP] != l:
                break
            end += 1
        if end == i + 1:
            f = pairs[pair, C_FAULT]
            times = overlap(table[f, T_FIRST], table[f, T_LAST], time, until)
            value = apply_mask(value, table, f, width, times)
        else:
            # Several faults on one register while it holds the value: cycle by cycle.
            for t in range(time, until + 1):
                for g in range(i, end):
                    f = pairs[order[g], C_FAULT]
                    if table[f, T_FIRST] <= t <= table[f, T_LAST]:
                        value = apply_mask(value, table, f, width, 1)
        i = end
    return value


@kernel
def plain_slots(a_row, b_col, begin, end, acc, product_bits, acc_bits, saturate):
    """`acc` after slots [begin, end), which no fault meets; slots beyond k add nothing."""
    end = min(end, len(a_row))
    if saturate:
        for i in range(begin, end):
            acc = add(acc, wrap(a_row[i] * b_col[i], product_bits), acc_bits, saturate)
        return acc
    # Adders that wrap: once at the end is the same, and 64 bits wrap by themselves.
    total = np.int64(0)
    if begin < end:
        x, y = a_row[begin:end], b_col[begin:end]
        if product_bits == 1:
            for i in range(len(x)):
                total += (x[i] * y[i]) & 1
        else:
            shift = 64 - product_bits
            for i in range(len(x)):
                total += ((x[i] * y[i]) << shift) >> shift
    return wrap(acc + total, acc_bits)


@kernel
def stored_sum(value, table, word, fold, bits):
    """The sum of `fold` as it is read back from memory word `word`."""
    for f in range(table.shape[0]):
        if table[f, T_WORD] == word and table[f, T_FIRST] == fold:
            value = apply_mask(value, table, f, bits, 1)
    return value


@kernel
def walk(a_row, b_col, start, word, plan, segments, table, bits, phase0, p, j, scratch):
    """One output, recomputed in machine order with all faults.

    a_row, b_col  (k,) int64 operands of the output
    start         its bias D
    word          its address in the memory of partial sums; rows of the table
                  with that T_WORD act on the sum that fold T_FIRST stores there
    phase0        phase of its first fold; further folds follow one by one
    p, j          coordinates in the fold (see accel_models.plan)
    scratch       (found, pairs, order) work arrays
    """
    found, pairs, order = scratch
    k, slots, folds = plan[P_K], plan[P_SLOTS], plan[P_FOLDS]
    product_bits, acc_bits = plan[P_PRODUCT_BITS], plan[P_ACC_BITS]
    saturate, chain, init_d = plan[P_SATURATE], plan[P_CHAIN], plan[P_INIT_D]
    total = np.int64(0) if init_d else start
    acc = start
    known = candidates(plan, segments, table, p, j, found)
    stores = False
    for f in range(table.shape[0]):
        stores |= table[f, T_WORD] == word
    fold = -1
    while fold + 1 < folds:
        fold += 1
        phase = phase0 + fold
        count, lowest, highest, stages = collect(
            plan, segments, table, phase, p, j, found, known, pairs
        )
        if not count and not saturate and not stores:
            # Folds that no fault meets are one sum, whatever is added to what.
            begin = fold
            while fold + 1 < folds and not count:
                count, lowest, highest, stages = collect(
                    plan, segments, table, phase0 + fold + 1, p, j, found, known, pairs
                )
                fold += 1 if not count else 0
            end = (fold + 1) * slots
            if chain or (begin == 0 and init_d):
                acc = plain_slots(
                    a_row, b_col, begin * slots, end, acc, product_bits, acc_bits, saturate
                )
                if not chain:
                    total = add(total, acc, acc_bits, saturate)
            else:
                total = plain_slots(
                    a_row, b_col, begin * slots, end, total, product_bits, acc_bits, saturate
                )
            continue
        if not (fold == 0 and init_d) and not (fold > 0 and chain):
            acc = np.int64(0)
        here = (plan, segments, table, pairs, count, phase)
        if stages >> PRELOAD & 1:
            acc = act(acc, PRELOAD, here, 0, p, j, bits, order)
        k0 = fold * slots
        acc = plain_slots(a_row, b_col, k0, k0 + lowest, acc, product_bits, acc_bits, saturate)
        for u in range(lowest, highest + 1):
            x = np.int64(0)
            w = np.int64(0)
            if k0 + u < k:
                x = a_row[k0 + u]
                w = b_col[k0 + u]
            if stages >> MOVING & 1:
                x = act(x, MOVING, here, u, p, j, bits, order)
            if stages >> WEIGHT & 1:
                w = act(w, WEIGHT, here, u, p, j, bits, order)
            product = wrap(x * w, product_bits)
            if stages >> PRODUCT & 1:
                product = act(product, PRODUCT, here, u, p, j, bits, order)
            if stages >> ACC_IN & 1:
                acc = act(acc, ACC_IN, here, u, p, j, bits, order)
            acc = add(acc, product, acc_bits, saturate)
            if stages >> ACC_OUT & 1:
                acc = act(acc, ACC_OUT, here, u, p, j, bits, order)
        rest = k0 + max(lowest, highest + 1)
        acc = plain_slots(a_row, b_col, rest, k0 + slots, acc, product_bits, acc_bits, saturate)
        if stages >> DRAIN & 1:
            acc = act(acc, DRAIN, here, 0, p, j, bits, order)
        if not chain:
            total = add(total, acc, acc_bits, saturate)
        if stores and chain:
            acc = stored_sum(acc, table, word, fold, acc_bits)
        elif stores:
            total = stored_sum(total, table, word, fold, acc_bits)
    return acc if chain else total


@kernel
def mark(plan, segments, table, touched):
    """Set touched[m, n] for every output that some fault may reach (a superset)."""
    m_size, n_size = plan[P_M], plan[P_N]
    rows, cols, slots, folds = plan[P_ROWS], plan[P_COLS], plan[P_SLOTS], plan[P_FOLDS]
    output_stationary = plan[P_OUTPUT_STATIONARY]
    phase_cycles, base0, n_tiles = plan[P_PHASE_CYCLES], plan[P_BASE0], plan[P_N_TILES]
    p_size = rows if output_stationary else m_size
    phases = n_tiles * (-(-m_size // rows) if output_stationary else folds)
    hops = max(rows, cols)
    for f in range(table.shape[0]):
        row, col = table[f, T_ROW], table[f, T_COL]
        first, last = table[f, T_FIRST], table[f, T_LAST]
        if table[f, T_WORD] >= 0:
            touched[table[f, T_WORD] // n_size, table[f, T_WORD] % n_size] = 1
            continue
        for s in range(segments.shape[0]):
            seg = segments[s]
            component = table[f, T_COMPONENT]
            if component != seg[S_EVEN] and component != seg[S_EVEN + 1]:
                continue
            earliest = seg[S_T]
            latest = seg[S_T]
            for c, size in (
                (seg[S_T_U], slots),
                (seg[S_T_P], p_size),
                (seg[S_T_J], cols),
                (seg[S_T_L], hops),
            ):
                earliest += min(np.int64(0), c * (size - 1))
                latest += max(np.int64(0), c * (size - 1))
            if seg[S_HOLDS]:
                held = seg[S_E] + seg[S_E_U] * (slots - 1) + seg[S_E_P] * (p_size - 1)
                latest = max(latest, held + seg[S_E_J] * (cols - 1))
            if seg[S_LAST_HOLDS]:
                latest = max(latest, seg[S_LAST_E])
            phase_lo = max(np.int64(0), -((base0 + latest - first) // phase_cycles))
            phase_hi = min(phases - 1, (last - base0 - earliest) // phase_cycles)
            for phase in range(phase_lo, phase_hi + 1):
                if not takes_part(seg, component, phase):
                    continue
                base = base0 + phase * phase_cycles
                if output_stationary:
                    m0 = phase // n_tiles * rows
                    n0 = phase % n_tiles * cols
                else:
                    m0 = np.int64(0)
                    n0 = phase // folds * cols
                j_lo, j_hi = col, col
                if seg[S_COL_HOPS]:
                    j_lo, j_hi = np.int64(0), cols - 1
                for j in range(j_lo, min(j_hi, n_size - n0 - 1) + 1):
                    l = np.int64(0)
                    u_lo, u_hi = np.int64(0), slots - 1
                    p_lo, p_hi = np.int64(0), p_size - 1
                    if seg[S_COL_HOPS]:
                        l = col
                        if l > seg[S_HI] + seg[S_HI_J] * j:
                            continue
                    if seg[S_ROW_HOPS]:
                        l = row
                        if output_stationary:
                            if seg[S_LO_Q]:
                                p_hi = min(p_hi, l - seg[S_LO])
                            if seg[S_HI_Q]:
                                p_lo = max(p_lo, l - seg[S_HI])
                    elif output_stationary:
                        p_lo = p_hi = row
                    else:
                        u_lo = u_hi = row
                    if seg[S_HOLDS]:
                        # Read for the last time at E + p: rows streamed after the flip.
                        reach = base + seg[S_E] + seg[S_E_U] * u_hi + seg[S_E_J] * j
                        p_lo = max(p_lo, first - reach)
                    elif seg[S_T_P] == 1 and not output_stationary:
                        fixed = base + seg[S_T] + seg[S_T_J] * j + seg[S_T_L] * l
                        p_lo = max(p_lo, first - fixed - seg[S_T_U] * u_hi)
                        p_hi = min(p_hi, last - fixed - seg[S_T_U] * u_lo)
                    for p in range(p_lo, min(p_hi, m_size - m0 - 1) + 1):
                        touched[m0 + p, n0 + j] = 1


@kernel
def replay(a, b_t, d, plan, segments, table, bits, touched, out):
    """Recompute every marked output with all faults, in place.

    a        (m, k) int64 codes
    b_t      (n, k) int64 codes: the second operand, transposed
    d        (m, n) int64 bias
    plan     (16,) int64, segments (s, 24) int64, table (f, 10) int64
    bits     (components,) int64 widths
    touched  (m, n) uint8 from `mark`
    out      (m, n) int64, overwritten where touched
    Returns the number of outputs walked.
    """
    rows, cols, folds = plan[P_ROWS], plan[P_COLS], plan[P_FOLDS]
    n_tiles = plan[P_N_TILES]
    most = max(1, segments.shape[0] * table.shape[0])
    scratch = (
        np.empty((most, 5), np.int64),
        np.empty((most, 7), np.int64),
        np.empty(most, np.int64),
    )
    walked = 0
    for m in range(plan[P_M]):
        for n in range(plan[P_N]):
            if not touched[m, n]:
                continue
            if plan[P_OUTPUT_STATIONARY]:
                phase0 = m // rows * n_tiles + n // cols
                p = m % rows
            else:
                phase0 = n // cols * folds
                p = m
            out[m, n] = walk(
                a[m],
                b_t[n],
                d[m, n],
                m * plan[P_N] + n,
                plan,
                segments,
                table,
                bits,
                phase0,
                p,
                n % cols,
                scratch,
            )
            walked += 1
    return walked
