"""One campaign for every bit error rate: strata of exactly j flipped bits.

Each of `bits` bits flips independently with probability `ber`, so the number of flips of an
image is J ~ Binomial(bits, ber), and given J = j the flipped bits are a uniformly random set of
j. P(failure | j) does not depend on `ber`. A campaign that has measured it for some j therefore
answers every rate:

    P(failure | ber) = sum over j of P(J = j | ber) P(failure | j)

with no failure at j = 0. The rate must be common to all bits: memories with rates of their
own need strata of their own.

Sources: Cochran, "Sampling Techniques" (3rd ed., Wiley 1977), chapter 5 (strata of known weight);
limits as in `stratified`; Korn and Graubard, Survey Methodology 24 (1998) 193 (effective number
of observations).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy import special, stats

from fsim.errors import ConfigError

from .statistics import Interval, _checked_confidence
from .stratified import _assembled, _checked_strata, _Strata

_SUMMED = 4096
"""Gaps between strata up to this length are summed term by term."""


def flip_masses(ber: float, bits: int, flips: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """P(J = j) of the strata, and of what lies between them.

    ber    probability that a bit flips, in [0, 1]
    bits   exposed bits, 1 to 2**40
    flips  (strata,) distinct integers from 1 to bits, ascending

    Returns (strata,) float64 masses and (strata + 1,) float64 masses of 0 < J < flips[0], of each
    gap, and of J > flips[-1]. Every entry keeps its relative accuracy (about 1e-10) however
    small it is; P(J = 0) = (1 - ber)^bits is in neither.
    """
    flips = _checked_flips(ber, bits, flips)
    edges = [0, *flips.tolist(), bits + 1]
    gaps = np.array([_between(a, b, bits, ber) for a, b in zip(edges, edges[1:])])
    return stats.binom.pmf(flips, bits, ber), gaps


def covered_mass(ber: float, bits: int, flips: np.ndarray) -> float:
    """P(J = 0 or J in flips): the share of images about which the campaign says something.

    flips  (strata,) distinct integers from 1 to bits, in any order; otherwise as `flip_masses`
    """
    return max(0.0, 1.0 - float(flip_masses(ber, bits, np.sort(flips))[1].sum()))


def rate_interval(
    ber: float,
    bits: int,
    flips: np.ndarray,
    failures: np.ndarray,
    trials: np.ndarray,
    *,
    confidence: float = 0.95,
    monotone: bool = False,
) -> Interval:
    """Interval of P(failure | ber).

    ber, bits         as `flip_masses`
    flips             (strata,) distinct integers from 1 to bits, in any order
    failures, trials  (strata,) integers, 0 <= failures <= trials; trials independent, each
                      with exactly flips[i] distinct bits flipped
    monotone          assume that P(failure | j) does not fall as j grows

    Numbers of flips that were not measured count as never failing in the low limit and as
    always failing in the high one; if `monotone`, as the next measured number below (none:
    never) and above (none: always).

    Estimate: strata that were not measured fail as often as those that were, on average; if
    `monotone`, as often as their two neighbours on average. NaN if more than half of P(J > 0)
    lies at numbers that nothing measured bounds: unmeasured ones, and if `monotone` those above
    the last.
    """
    confidence = _checked_confidence(confidence)
    x, n, _ = _checked_strata(failures, trials, np.full(np.shape(trials), 2**62))
    flips, order = _checked_order(flips, n.size)
    x, n = x[order].astype(np.float64), n[order]
    tried = n > 0
    x, n, flips = x[tried], n[tried], flips[tried]
    mass, gaps = flip_masses(ber, bits, flips)
    if not monotone:
        return _mixture(ber, bits, x, n, mass, gaps, 0.0, confidence, "flip strata")
    if n.size == 0:
        return _mixture(ber, bits, x, n, mass, gaps, 0.0, confidence, "flip strata, monotone")
    low = _assembled(_strata(x, n, mass + gaps[1:]), 0.0, 0.0, confidence, "").low
    top = float(gaps[-1])
    high = _assembled(_strata(x, n, mass + gaps[:-1]), 0.0, top, confidence, "").high
    inner = gaps[1:-1] / 2
    spread = mass + np.append(inner, top) + np.append(gaps[0] / 2, inner)
    estimate = min(1.0, float((spread * x / n).sum()))
    low, high = min(low, estimate), max(high, estimate)
    if top > 0.5 * _any_flip(ber, bits):
        estimate = math.nan
    return Interval(low, high, estimate, "flip strata, monotone", confidence)


def mean_interval(
    ber: float,
    bits: int,
    flips: np.ndarray,
    values: Sequence[np.ndarray],
    *,
    clean: float,
    confidence: float = 0.95,
) -> Interval:
    """Interval of the mean of a figure in [0, 1] per trial, such as accuracy, at `ber`.

    flips   (strata,) distinct integers from 1 to bits, in any order
    values  for each stratum a list of one number in [0, 1] per independent trial
    clean   the figure without a flip, known exactly

    The mean of n values counts as that of an effective number of 0/1 trials, n m (1 - m) / v
    (Korn and Graubard 1998), m and v being mean and variance of the values and of a further
    zeros and ones; a = (log(2 / (1 - confidence)) / z)^2, 3.5 at 95 %. For 0/1 values that
    is n, and the interval that of `rate_interval`. Values that are all alike keep about the
    width of "none of n was otherwise". Unmeasured numbers of flips: as in `rate_interval`.
    """
    confidence = _checked_confidence(confidence)
    if not 0.0 <= clean <= 1.0:
        raise ConfigError(f"clean must lie in [0, 1], got {clean!r}")
    flips, order = _checked_order(flips, len(values))
    values = [np.asarray(values[i], np.float64) for i in order]
    for j, of in zip(flips.tolist(), values):
        if of.ndim != 1 or not ((of >= 0) & (of <= 1)).all():
            raise ConfigError(f"values must be lists of numbers in [0, 1], got others at {j} flips")
    tried = np.array([of.size > 0 for of in values], bool)
    values, flips = [of for of in values if of.size], flips[tried]
    n = np.array([of.size for of in values], np.float64)
    total = np.array([of.sum() for of in values])
    squares = np.array([(of * of).sum() for of in values])
    z = float(special.ndtri(0.5 + confidence / 2.0))
    add = (math.log(2.0 / (1.0 - confidence)) / z) ** 2
    mean = (total + add) / (n + 2 * add)
    variance = (squares + add) / (n + 2 * add) - mean * mean
    size = n * mean * (1 - mean) / variance
    mass, gaps = flip_masses(ber, bits, flips)
    certain = clean * math.exp(bits * math.log1p(-ber)) if ber < 1 else 0.0
    method = "mean over flip strata"
    return _mixture(ber, bits, total / n * size, size, mass, gaps, certain, confidence, method)


def _mixture(ber, bits, x, n, mass, gaps, certain, confidence, method) -> Interval:
    """certain + sum of mass * rate, with the gaps anywhere between 0 and their mass."""
    unknown = float(gaps.sum())
    found = _assembled(_strata(x, n, mass), certain, unknown, confidence, method)
    hit, measured = _any_flip(ber, bits), float(mass.sum())
    estimate = certain
    if unknown > 0.5 * hit:
        estimate = math.nan
    elif measured > 0:
        estimate += hit * float((mass * x / n).sum()) / measured
        estimate = min(max(estimate, found.low), found.high)
    return replace(found, estimate=estimate)


def _strata(x, n, mass) -> _Strata:
    """Strata that trials do not use up, less those whose mass is far below any rounding."""
    some = mass > 1e-30 * mass.max(initial=0.0)
    return _Strata.unlimited(x[some], n[some], mass[some])


def _any_flip(ber: float, bits: int) -> float:
    """P(J > 0)."""
    return -math.expm1(bits * math.log1p(-ber)) if ber < 1 else 1.0


def _between(a: int, b: int, bits: int, ber: float) -> float:
    """P(a < J < b), from the side that does not cancel."""
    law = stats.binom
    if b - a == 1:
        return 0.0
    if b - a - 1 <= _SUMMED:
        return float(law.pmf(np.arange(a + 1, b), bits, ber).sum())
    if a + 1 > ber * bits:
        return float(law.sf(a, bits, ber) - law.sf(b - 1, bits, ber))
    if b - 1 < ber * bits:
        return float(law.cdf(b - 1, bits, ber) - law.cdf(a, bits, ber))
    return float(1.0 - law.cdf(a, bits, ber) - law.sf(b - 1, bits, ber))


def _checked_order(flips, strata: int) -> tuple[np.ndarray, np.ndarray]:
    flips = np.asarray(flips)
    if flips.shape != (strata,):
        raise ConfigError(
            f"flips must have one entry a stratum, got shape {flips.shape} for {strata} strata"
        )
    order = np.argsort(flips, kind="stable")
    return flips[order], order


def _checked_flips(ber, bits, flips) -> np.ndarray:
    if not 0.0 <= ber <= 1.0:
        raise ConfigError(f"bit error rate must lie in [0, 1], got {ber!r}")
    if int(bits) != bits or not 1 <= bits <= 2**40:
        raise ConfigError(f"bits must be an integer from 1 to 2**40, got {bits!r}")
    flips = np.asarray(flips)
    if flips.size == 0:
        return np.zeros(0, np.int64)
    if flips.ndim != 1 or flips.dtype.kind not in "iu" or flips.min() < 1 or flips.max() > bits:
        raise ConfigError(f"flips must be a list of integers from 1 to {bits}, got {flips!r}")
    flips = flips.astype(np.int64)
    if not (np.diff(flips) > 0).all():
        raise ConfigError(f"flips must be distinct and ascending, got {flips.tolist()[:20]}")
    return flips
