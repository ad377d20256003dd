"""Sampling without replacement: the exact interval of a share of a finite population.

Fault sites that are drawn without repetition make the number of failures hypergeometric,
not binomial. The interval inverts its two tails and shrinks to the exact share when every
site was tried.

Sources: Wright, "Exact Confidence Bounds when Sampling from Small Finite Universes"
(Springer 1991), test inversion over the integer number of failures; Loader, "Fast and
Accurate Computation of Binomial Probabilities" (2000), the deviance form of the density
that loses no digits at large counts.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import special

from fsim.errors import ConfigError

from .statistics import Interval, _checked_confidence, _checked_counts

_BLOCK = 1 << 12
_SMOOTH = 1000.0
"""Standard deviation (in failures) from which a tail is an integral and not a sum."""

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(20)


def hypergeometric(k: int, n: int, population: int, *, confidence: float = 0.95) -> Interval:
    """Exact interval for the share of failing sites: k of n sites failed, no site tried twice.

    population  N, the number of sites, at most 2**62; the interval is that of K / N with the
                K failing sites among them

    Holds every K between k and N - (n - k) whose two tails P(X >= k) and P(X <= k) both
    exceed half of 1 - confidence, so coverage is never below nominal. Tails are right to
    about 1e-12 of their value. n = N gives k / N without width.
    """
    k, n = _checked_counts(k, n)
    confidence = _checked_confidence(confidence)
    if int(population) != population or not max(n, 1) <= population <= 2**62:
        raise ConfigError(
            f"population must be an integer from the {n} sites tried to 2**62, got {population!r}"
        )
    population = int(population)
    tail = (1.0 - confidence) / 2.0
    most = _most_failing(k, n, population, tail)
    least = population - _most_failing(n - k, n, population, tail)
    estimate = k / n if n else math.nan
    return Interval(least / population, most / population, estimate, "hypergeometric", confidence)


def _most_failing(k: int, n: int, population: int, tail: float) -> int:
    """The largest K that at most k failures in n sites do not reject: P(X <= k) > tail."""
    low, high = k, population - (n - k)  # P(X <= k) is 1 at low, and falls as K grows
    if at_most(k, high, n, population) > tail:
        return high
    while high - low > 1:
        middle = (low + high) // 2
        if at_most(k, middle, n, population) > tail:
            low = middle
        else:
            high = middle
    return low


def at_most(k: int, failing: int, n: int, population: int) -> float:
    """P(X <= k) for X failures in n of `population` sites of which `failing` fail.

    Summed from k away from the mean where that tail is the shorter one; beyond a standard
    deviation of 1000 failures the sum is an Euler-Maclaurin integral (error below 1e-11).
    """
    least, most = max(0, n - (population - failing)), min(n, failing)
    if k >= most:
        return 1.0
    if k < least:
        return 0.0
    if k * population <= n * failing:
        return _lower_tail(k, failing, n, population)
    # P(X <= k) = 1 - P(Y <= n - k - 1) with Y = n - X, the sites that do not fail.
    return 1.0 - _lower_tail(n - k - 1, population - failing, n, population)


def _lower_tail(k: int, failing: int, n: int, population: int) -> float:
    """P(X <= k) for a possible k that is not above the mean."""
    least = max(0, n - (population - failing))
    share = n / population
    deviation = math.sqrt(failing * share * (1 - failing / population) * (1 - share))
    if deviation > _SMOOTH:
        return _integral(k, least, failing, n, population, deviation)
    total = term = 1.0
    for top in range(k, least, -_BLOCK):
        # pmf(x - 1) / pmf(x) at x = top - step; integers are subtracted before they are floats.
        step = np.arange(min(_BLOCK, top - least), dtype=np.float64)
        down = (float(top) - step) * (float(population - failing - n + top) - step)
        up = (float(failing - top + 1) + step) * (float(n - top + 1) + step)
        terms = term * np.cumprod(down / up)
        total += float(terms.sum())
        term = float(terms[-1])
        if term < 1e-18 * total:
            break
    return min(1.0, total * math.exp(float(_log_pmf(k, 0.0, failing, n, population))))


def _integral(k, least, failing, n, population, deviation) -> float:
    """Sum of pmf(x) over x <= k: integral to k, plus pmf(k) / 2, plus pmf'(k) / 12."""
    reach = min(float(k - least), 12.0 * deviation)
    edges = np.linspace(-reach, 0.0, 25)
    half = (edges[1:] - edges[:-1])[:, None] / 2
    at = edges[:-1, None] + half * (1 + _NODES)
    area = float((np.exp(_log_pmf(k, at, failing, n, population)) * half * _WEIGHTS).sum())
    near = np.exp(_log_pmf(k, np.array([-1.0, 0.0, 1.0]), failing, n, population))
    return area + float(near[1]) / 2 + float(near[2] - near[0]) / 24


def _log_pmf(k: int, step, failing: int, n: int, population: int) -> np.ndarray:
    """log P(X = k + step); step may be fractional.

    The 2 x 2 table of (fails, tried) has four cells, which all miss their expectation by
    the same amount. The density is a product of Poisson densities, cells over margins.
    """
    missed = (k * population - failing * n) / population + step  # exact until the division
    cells = (
        (k, failing, n, 1.0), (n - k, population - failing, n, -1.0),
        (failing - k, failing, population - n, -1.0),
        (population - failing - n + k, population - failing, population - n, 1.0),
    )  # fmt: skip
    log = np.zeros_like(np.asarray(step, np.float64))
    for count, row, column, sign in cells:
        expected = row * column / population
        log = log + _log_poisson(float(count) + sign * step, expected, sign * missed)
    for margin in (failing, population - failing, n, population - n):
        log = log - _log_poisson(float(margin), float(margin), 0.0)
    return log + _log_poisson(float(population), float(population), 0.0)


def _log_poisson(x, mean: float, difference) -> np.ndarray:
    """log of the Poisson density at x = mean + difference, without cancellation."""
    x = np.maximum(np.asarray(x, np.float64), 0.0)
    if mean == 0.0:
        return np.zeros_like(x)
    relative = np.asarray(difference, np.float64) / mean
    deviance = mean * _excess(np.maximum(relative, -1.0))
    safe = np.where(x > 0, x, 1.0)
    stirling = np.where(
        safe > 16, _stirling_series(safe), special.gammaln(safe + 1) - _stirling(safe)
    )
    positive = -stirling - deviance - 0.5 * np.log(2 * math.pi * safe)
    return np.where(x > 0, positive, -mean)


def _stirling(x):
    """Stirling's approximation of log(x!)."""
    return (x + 0.5) * np.log(x) - x + 0.5 * math.log(2 * math.pi)


def _stirling_series(x):
    """log(x!) less Stirling's approximation, for x above 16 to 1e-16."""
    y = 1.0 / (x * x)
    return (1 / 12 - y * (1 / 360 - y * (1 / 1260 - y * (1 / 1680 - y / 1188)))) / x


def _excess(e):
    """(1 + e) log(1 + e) - e, by its series e^2/2 - e^3/6 + e^4/12 - ... near zero."""
    small = np.abs(e) < 0.1
    s = np.where(small, e, 0.0)
    series = np.zeros_like(s)
    for j in range(20, 1, -1):
        series = series * -s + 1.0 / (j * (j - 1))
    direct = special.xlog1py(1 + e, np.where(small, 0.0, e)) - e
    return np.where(small, series * s * s, direct)
