"""Counter-based random numbers, and the draws that must be fast.

Philox4x32-10 of J. K. Salmon, M. A. Moraes, R. O. Dror, D. E. Shaw, "Parallel
random numbers: as easy as 1, 2, 3", SC 2011. A draw is a pure function of

    counter = (index, stream, trial low, trial high)     four 32-bit words
    key     = (seed low, seed high)                      two 32-bit words

so any trial can be drawn alone, in any order and on any thread. Within one
(stream, trial) the index counts the calls from 0.

Everything is held in uint64 and masked to 32 bits; the products of two 32-bit
words then never overflow, compiled or interpreted.
"""

from __future__ import annotations

import numpy as np

from fsim.jit import kernel

RNG_VERSION = 1
"""Raised whenever the same seed would give other draws; stored with every trace."""

BLOCK = 65536
"""Sites per block of `sample_bits`."""

_MASK = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)
_1 = np.uint64(1)
_0 = np.uint64(0)
# Multipliers and Weyl increments of the paper, section 4.3 and its released code.
_M0 = np.uint64(0xD2511F53)
_M1 = np.uint64(0xCD9E8D57)
_W0 = np.uint64(0x9E3779B9)
_W1 = np.uint64(0xBB67AE85)

_SMALL = 16  # up to this many hits in a block an insertion sort beats a bitmap


@kernel
def philox4x32(c0, c1, c2, c3, k0, k1):
    """Four 32-bit words of Philox4x32-10, as uint64; all arguments uint64 below 2^32."""
    for _ in range(10):
        p0 = _M0 * c0
        p1 = _M1 * c2
        c0, c1, c2, c3 = (p1 >> _32) ^ c1 ^ k0, p1 & _MASK, (p0 >> _32) ^ c3 ^ k1, p0 & _MASK
        k0 = (k0 + _W0) & _MASK
        k1 = (k1 + _W1) & _MASK
    return c0, c1, c2, c3


@kernel
def _words(index, stream, trial, seed):
    """The `index`-th call of (stream, trial) as two uint64: words 0-1 and words 2-3."""
    w0, w1, w2, w3 = philox4x32(
        index & _MASK, stream, trial & _MASK, trial >> _32, seed & _MASK, seed >> _32
    )
    return w0 | (w1 << _32), w2 | (w3 << _32)


@kernel
def count_at(thresholds, high, low):
    """How many rows of `thresholds` are <= the 128-bit number high * 2^64 + low.

    thresholds (t, 2) uint64, 128-bit numbers as (high, low), non-decreasing.
    """
    begin = 0
    end = thresholds.shape[0]
    if end > 64:
        while begin < end:
            middle = (begin + end) >> 1
            t_high = thresholds[middle, 0]
            if t_high < high or (t_high == high and thresholds[middle, 1] <= low):
                begin = middle + 1
            else:
                end = middle
        return begin
    # A short table belongs to a small mean: the answer is near the start.
    while begin < end and (
        thresholds[begin, 0] < high
        or (thresholds[begin, 0] == high and thresholds[begin, 1] <= low)
    ):
        begin += 1
    return begin


@kernel
def sample_bits(n_bits, complement, first, full, first_rest, rest, seed, stream, trials):
    """Independent Bernoulli draws of `n_bits` sites for each of many trials.

    n_bits            sites; blocks of BLOCK, the last one may be shorter
    complement        the tables count misses instead of hits (p > 0.5)
    first, full       binomial table of a whole block: the count is
                      first + count_at(full, u) for a 128-bit uniform u
    first_rest, rest  the same for the last, shorter block
    seed, stream      uint64
    trials            (t,) int64, >= 0

    Returns (which, where), both int64: index into `trials` and site, sorted.

    A block takes one call for u, then as many calls as it needs for positions:
    each gives eight 16-bit pieces, low piece first, masked to the least power of
    two that holds the block; a piece beyond the block or already taken is
    skipped, so every set of `count` distinct sites is equally likely.
    """
    n_full = n_bits // BLOCK
    n_rest = n_bits - n_full * BLOCK
    n_blocks = n_full + (1 if n_rest > 0 else 0)
    which = np.empty(1024, np.int64)
    where = np.empty(1024, np.int64)
    taken = np.zeros(BLOCK // 64, np.uint64)
    used = 0
    for t in range(trials.shape[0]):
        trial = np.uint64(trials[t])
        index = _0
        for block in range(n_blocks):
            high, low = _words(index, stream, trial, seed)
            index += _1
            if block < n_full:
                size = BLOCK
                count = first + count_at(full, high, low)
            else:
                size = n_rest
                count = first_rest + count_at(rest, high, low)
            hits = size - count if complement else count
            if hits == 0:
                continue
            if used + hits > where.shape[0]:
                capacity = max(2 * where.shape[0], used + hits)
                grown = np.empty(capacity, np.int64)
                grown[:used] = where[:used]
                where = grown
                grown = np.empty(capacity, np.int64)
                grown[:used] = which[:used]
                which = grown
            origin = block * BLOCK
            small = count <= _SMALL and not complement
            mask = 1
            while mask < size:
                mask *= 2
            mask -= 1
            found = 0
            piece = 8
            while found < count:
                if piece == 8:
                    high, low = _words(index, stream, trial, seed)
                    index += _1
                    piece = 0
                elif piece == 4:
                    high = low
                site = np.int64(high & np.uint64(0xFFFF)) & mask
                high >>= np.uint64(16)
                piece += 1
                if site >= size:
                    continue
                if small:
                    slot = used + found
                    while slot > used and where[slot - 1] > origin + site:
                        slot -= 1
                    if slot > used and where[slot - 1] == origin + site:
                        continue
                    for i in range(used + found, slot, -1):
                        where[i] = where[i - 1]
                    where[slot] = origin + site
                else:
                    bit = _1 << np.uint64(site & 63)
                    if taken[site >> 6] & bit:
                        continue
                    taken[site >> 6] |= bit
                found += 1
            if not small:
                slot = used
                for word in range((size + 63) >> 6):
                    held = taken[word]
                    taken[word] = _0
                    if complement:
                        held = ~held
                        if size - 64 * word < 64:
                            held &= (_1 << np.uint64(size - 64 * word)) - _1
                    site = origin + 64 * word
                    while held:
                        if not held & np.uint64(0xFF):
                            held >>= np.uint64(8)
                            site += 8
                            continue
                        for bit_of_byte in range(8):
                            if (held >> np.uint64(bit_of_byte)) & _1:
                                where[slot] = site + bit_of_byte
                                slot += 1
                        held >>= np.uint64(8)
                        site += 8
            which[used : used + hits] = t
            used += hits
    return which[:used].copy(), where[:used].copy()


@kernel
def sample_sites(n_sites, seed, stream, trials, out):
    """Uniform sites in [0, n_sites), with replacement.

    trials (t,) int64; out (t, count) int64, overwritten: row i belongs to trials[i].

    A call gives two 64-bit numbers; each is masked to the least power of two
    that holds n_sites and skipped if it lies beyond, so there is no bias.
    """
    last = np.uint64(n_sites - 1)
    mask = last
    for shift in (1, 2, 4, 8, 16, 32):
        mask |= mask >> np.uint64(shift)
    for t in range(trials.shape[0]):
        trial = np.uint64(trials[t])
        index = _0
        found = 0
        while found < out.shape[1]:
            a, b = _words(index, stream, trial, seed)
            index += _1
            if a & mask <= last:
                out[t, found] = np.int64(a & mask)
                found += 1
            if found < out.shape[1] and b & mask <= last:
                out[t, found] = np.int64(b & mask)
                found += 1


@kernel
def sample_uniform(seed, stream, trials, out):
    """Multiples of 2^-53, uniform in [0, 1). trials (t,) int64; out (t, count) float64."""
    for t in range(trials.shape[0]):
        trial = np.uint64(trials[t])
        for i in range(out.shape[1]):
            a, b = _words(np.uint64(i >> 1), stream, trial, seed)
            u = b if i & 1 else a
            out[t, i] = np.float64(u >> np.uint64(11)) * 2.0**-53


@kernel
def sample_counts(n_full, first, full, first_rest, rest, seed, stream, trials, out):
    """Binomial counts as sums over `n_full` equal chunks and one further chunk.

    Tables as in `sample_bits`; trials (t,) int64; out (t,) int64, overwritten.
    """
    for t in range(trials.shape[0]):
        trial = np.uint64(trials[t])
        total = 0
        for chunk in range(n_full):
            high, low = _words(np.uint64(chunk), stream, trial, seed)
            total += first + count_at(full, high, low)
        high, low = _words(np.uint64(n_full), stream, trial, seed)
        out[t] = total + first_rest + count_at(rest, high, low)
