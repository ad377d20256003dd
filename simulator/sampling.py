"""Random draws of faults: which bits flip, which sites are hit, how many upsets.

Every draw is a pure function of its arguments and (seed, stream, trial): it
depends neither on threads nor on what was drawn before, and gives the same
numbers on every platform. Nothing here uses a logarithm, an exponential or a
floating-point sum; binomial tables come from integer arithmetic on the exact
value of the float64 probability, and hold 128-bit thresholds. The law of every
draw therefore differs from the exact one by less than 2^-120 in total variation
per table look-up.

Different purposes must use different `stream` numbers (below 2^28). The five
functions cannot collide with each other: the upper four bits of the stream word
say which of them draws.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from fsim.errors import ConfigError
from fsim.simulator.kernels import philox
from fsim.simulator.kernels.permute import permute
from fsim.simulator.kernels.philox import BLOCK, RNG_VERSION

__all__ = [
    "RNG_VERSION",
    "binomial_table",
    "draw_bits",
    "draw_bits_many",
    "draw_count",
    "draw_count_many",
    "draw_sites",
    "draw_sites_many",
    "draw_uniform",
    "draw_uniform_many",
    "entries_of_order",
]

MAX_STREAM = 1 << 28
MAX_SITES = 1 << 62
_BITS, _SITES, _UNIFORM, _COUNT, _ORDER = range(5)  # upper four bits of the stream word

_CHUNK_MEAN = 1024  # mean of one table look-up of `draw_count`
_MAX_HITS = 1 << 32  # keeps the 32-bit call index of a (stream, trial) from wrapping

_FRACTION = 256  # fraction bits of the fixed-point probabilities
_TAIL = 160  # a table ends where the probability falls below 2^-_TAIL
_MANTISSA = 384  # bits kept by `_power`


def _power(base: int, exponent: int) -> tuple[int, int]:
    """(m, e) with m * 2^e just below base^exponent, m of at most _MANTISSA bits.

    Truncation at every step keeps the relative error below exponent * 2^-382.
    """

    def cut(m, e):
        excess = max(m.bit_length() - _MANTISSA, 0)
        return m >> excess, e + excess

    result, square = (1, 0), cut(base, 0)
    while exponent:
        if exponent & 1:
            result = cut(result[0] * square[0], result[1] + square[1])
        exponent >>= 1
        if exponent:
            square = cut(square[0] * square[0], 2 * square[1])
    return result


@lru_cache(maxsize=256)
def binomial_table(n: int, p: float) -> tuple[int, np.ndarray]:
    """Table for inverting Binomial(n, p), 0 < p <= 0.5, n * p at most about 2^15.

    Returns (first, thresholds): for a uniform 128-bit integer u the count is
    first + the number of thresholds <= u. thresholds is (t, 2) uint64, the high
    and the low half of floor(2^128 * P(first <= X <= first + i)).

    The probability of the mode is C(n, m) p^m q^(n-m); its neighbours follow from
    f(k+1) = f(k) (n-k) p / ((k+1) q) in fixed point with 256 fraction bits. Every
    step rounds down, so the sum stays below one; what is lost goes to the last
    count of the table.
    """
    p_num, p_den = p.as_integer_ratio()  # exact: the denominator is a power of two
    q_num = p_den - p_num
    mode = (n + 1) * p_num // p_den  # at most n, as p <= 0.5
    (mp, ep), (mq, eq) = _power(p_num, mode), _power(q_num, n - mode)
    value = math.comb(n, mode) * mp * mq
    shift = ep + eq - (p_den.bit_length() - 1) * n + _FRACTION
    at_mode = value << shift if shift >= 0 else value >> -shift

    least = 1 << (_FRACTION - _TAIL)
    below, f, k = [], at_mode, mode
    while k > 0:
        f = f * k * q_num // ((n - k + 1) * p_num)
        if f < least:
            break
        below.append(f)
        k -= 1
    first = mode - len(below)
    masses = below[::-1] + [at_mode]
    f, k = at_mode, mode
    while k < n:
        f = f * (n - k) * p_num // ((k + 1) * q_num)
        if f < least:
            break
        masses.append(f)
        k += 1

    thresholds = np.empty((len(masses) - 1, 2), np.uint64)
    total = 0
    for i, mass in enumerate(masses[:-1]):
        total += mass
        threshold = total >> (_FRACTION - 128)
        thresholds[i] = threshold >> 64, threshold & (2**64 - 1)
    thresholds.setflags(write=False)
    return first, thresholds


_NO_TABLE = (0, np.empty((0, 2), np.uint64))


def _checked_p(p: float, what: str) -> float:
    try:
        value = float(p)
    except (TypeError, ValueError):
        raise ConfigError(f"{what} must be a number in [0, 1], got {p!r}") from None
    if not 0.0 <= value <= 1.0:  # also refuses NaN
        raise ConfigError(f"{what} must lie in [0, 1], got {value!r}")
    return value


def _checked_int(value: int, low: int, high: int, what: str) -> int:
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool):
        raise ConfigError(f"{what} must be an integer, got {value!r}")
    if not low <= value < high:
        raise ConfigError(f"{what} must lie in [{low}, {high}), got {value}")
    return int(value)


def _key(seed: int, stream: int, purpose: int) -> tuple[np.uint64, np.uint64]:
    seed = _checked_int(seed, 0, 1 << 64, "seed")
    stream = _checked_int(stream, 0, MAX_STREAM, "random stream")
    return np.uint64(seed), np.uint64(stream | purpose << 28)


def _trials(trials) -> np.ndarray:
    array = np.ascontiguousarray(trials)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise ConfigError(
            f"trials must be a 1-D integer array, got {array.dtype} of shape {array.shape}"
        )
    if array.size and (array.min() < 0 or array.max() >= 1 << 63):
        raise ConfigError(f"trial numbers must lie in [0, 2^63), got {array.min()}")
    return array.astype(np.int64)


def _one(trial: int) -> np.ndarray:
    return np.array([_checked_int(trial, 0, 1 << 63, "trial")], np.int64)


def draw_bits_many(
    n_bits: int, p: float, *, seed: int, stream: int, trials: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The bits that flip in each of many trials.

    Each of `n_bits` bits flips independently with probability exactly `p`.
    trials is (t,) int64; returns (trial_index, position), int64 arrays of equal
    length: an index into `trials` and a bit in [0, n_bits), sorted by both. The
    rows of trials[i] are those of `draw_bits(..., trial=trials[i])`.

    Costs about one Philox call per 2^16 bits and one per hit or fewer.
    Raises ConfigError if p lies outside [0, 1] or n_bits outside [0, 2^46).
    """
    n_bits = _checked_int(n_bits, 0, 1 << 46, "number of bits")
    p = _checked_p(p, "bit error rate")
    key = _key(seed, stream, _BITS)
    trials = _trials(trials)
    if p == 0.0 or n_bits == 0 or trials.size == 0:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    if n_bits * p > _MAX_HITS:
        raise ConfigError(
            f"a trial may flip at most 2^32 bits on average, got {n_bits} bits at rate {p!r}"
        )
    complement = p > 0.5
    rare = 1.0 - p if complement else p  # exact: 1 - p rounds nowhere for p in [0.5, 1]
    if rare == 0.0:
        return (
            np.repeat(np.arange(trials.size, dtype=np.int64), n_bits),
            np.tile(np.arange(n_bits, dtype=np.int64), trials.size),
        )
    n_full, n_rest = divmod(n_bits, BLOCK)
    first, full = binomial_table(BLOCK, rare) if n_full else _NO_TABLE
    first_rest, rest = binomial_table(n_rest, rare) if n_rest else _NO_TABLE
    return philox.sample_bits(n_bits, complement, first, full, first_rest, rest, *key, trials)


def draw_bits(n_bits: int, p: float, *, seed: int, stream: int, trial: int) -> np.ndarray:
    """Positions in [0, n_bits) of the bits that flip in one trial, (f,) int64, ascending.

    Each bit flips independently with probability exactly `p`; see `draw_bits_many`.
    """
    return draw_bits_many(n_bits, p, seed=seed, stream=stream, trials=_one(trial))[1]


def draw_sites_many(
    n_sites: int, count: int, *, seed: int, stream: int, trials: np.ndarray
) -> np.ndarray:
    """`count` sites for each trial, uniform in [0, n_sites), with replacement.

    Returns (t, count) int64. A larger `count` only appends to each row.
    Raises ConfigError if n_sites lies outside [1, 2^62].
    """
    n_sites = _checked_int(n_sites, 1, MAX_SITES + 1, "number of fault sites")
    count = _checked_int(count, 0, 1 << 31, "number of draws")
    key = _key(seed, stream, _SITES)
    trials = _trials(trials)
    out = np.empty((trials.size, count), np.int64)
    philox.sample_sites(n_sites, *key, trials, out)
    return out


def draw_sites(n_sites: int, count: int, *, seed: int, stream: int, trial: int) -> np.ndarray:
    """`count` sites of one trial, uniform in [0, n_sites), with replacement; (count,) int64."""
    return draw_sites_many(n_sites, count, seed=seed, stream=stream, trials=_one(trial))[0]


def draw_uniform_many(count: int, *, seed: int, stream: int, trials: np.ndarray) -> np.ndarray:
    """`count` uniform numbers for each trial, (t, count) float64, multiples of 2^-53 in [0, 1)."""
    count = _checked_int(count, 0, 1 << 31, "number of draws")
    key = _key(seed, stream, _UNIFORM)
    trials = _trials(trials)
    out = np.empty((trials.size, count), np.float64)
    philox.sample_uniform(*key, trials, out)
    return out


def draw_uniform(count: int, *, seed: int, stream: int, trial: int) -> np.ndarray:
    """`count` uniform numbers of one trial, (count,) float64, multiples of 2^-53 in [0, 1)."""
    return draw_uniform_many(count, seed=seed, stream=stream, trials=_one(trial))[0]


def draw_count_many(n: int, p: float, *, seed: int, stream: int, trials: np.ndarray) -> np.ndarray:
    """Binomial(n, p) counts, one for each trial, (t,) int64; n below 2^63.

    For the number of upsets among n = bits x cycles sites. A binomial over n is
    the sum of independent binomials over parts of n: n is split into chunks with
    a mean of at most 1024, which share one table, and a shorter last one.
    Raises ConfigError if p lies outside [0, 1], or if the mean number of hits or
    of misses, whichever is smaller, exceeds 2^40.
    """
    n = _checked_int(n, 0, 1 << 63, "number of sites")
    p = _checked_p(p, "upset probability")
    key = _key(seed, stream, _COUNT)
    trials = _trials(trials)
    rare = 1.0 - p if p > 0.5 else p
    out = np.zeros(trials.size, np.int64)
    if n and rare > 0.0:
        if n * rare > 1 << 40:
            raise ConfigError(f"upsets per trial must average at most 2^40, got {n * p:.3g}")
        num, den = rare.as_integer_ratio()
        chunk = _CHUNK_MEAN * den // num
        n_full, n_rest = divmod(n, chunk)
        first, full = binomial_table(chunk, rare) if n_full else _NO_TABLE
        first_rest, rest = binomial_table(n_rest, rare) if n_rest else _NO_TABLE
        philox.sample_counts(n_full, first, full, first_rest, rest, *key, trials, out)
    return n - out if p > 0.5 else out


def draw_count(n: int, p: float, *, seed: int, stream: int, trial: int) -> int:
    """One Binomial(n, p) count; see `draw_count_many`."""
    return int(draw_count_many(n, p, seed=seed, stream=stream, trials=_one(trial))[0])


_SHUFFLED = 4096  # orders up to this size are drawn whole: small Feistel networks are poor


def entries_of_order(size: int, index: np.ndarray, *, seed: int, stream: int) -> np.ndarray:
    """Entries `index` of a random order of [0, size), (i,) int64; distinct for distinct ones.

    The first n entries are a simple random sample without replacement, for every n at
    once; all of them are every site. Raises ConfigError if an index lies outside
    [0, size) or size outside [1, 2^62].
    """
    size = _checked_int(size, 1, MAX_SITES + 1, "number of fault sites")
    index = np.ascontiguousarray(index, np.int64)
    if index.size and (index.min() < 0 or index.max() >= size):
        raise ConfigError(
            f"entries of an order of {size} must lie in [0, {size}), got {index.min()} to "
            f"{index.max()}"
        )
    if size <= _SHUFFLED:
        return _shuffled(size, seed, stream)[index]
    out = np.empty(index.size, np.int64)
    permute(size, *_key(seed, stream, _ORDER), index, out)
    return out


@lru_cache(maxsize=256)
def _shuffled(size: int, seed: int, stream: int) -> np.ndarray:
    seed, stream = _key(seed, stream, _ORDER)
    values = np.empty((1, size), np.float64)
    philox.sample_uniform(seed, stream, np.zeros(1, np.int64), values)
    return np.argsort(values[0], kind="stable")
