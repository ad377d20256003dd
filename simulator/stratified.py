"""Rates from strata that were sampled unequally: the interval, and where to sample next.

Stratum h holds a share W_h of the sites; n_h of its sites were tried and x_h failed. The rate
sum W_h x_h / n_h is unbiased however the trials are spread, but its variance is estimated
as zero where no failure was seen, and strata with heavy weight and few trials skew it.

The limits invert a test, as Clopper and Pearson do. A candidate rate needs a rate for each
stratum: the constrained maximum-likelihood rates (Lloyd, Australian & New Zealand Journal of
Statistics 50 (2008) 329, estimated p-values), each stratum drawn towards the common rate by two
trials. The law of the estimate at the candidate is a binomial, shifted and scaled so that
mean, variance and skewness fit. One stratum gives Clopper-Pearson. Without any failure the
upper limit needs no approximation and holds for sure.

Sources: Cochran, "Sampling Techniques" (3rd ed., Wiley 1977), chapters 5 and 5A (stratified
mean, finite-population factor); Neyman, Journal of the Royal Statistical Society 97 (1934)
558 (allocation); Johnson, Kemp and Kotz, "Univariate Discrete Distributions" (3rd ed., Wiley
2005), section 6.3 (moments of the hypergeometric law).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import optimize, special

from fsim.errors import ConfigError

from .statistics import Interval, _checked_confidence

PRIOR_TRIALS = 2.0
"""Trials at the common rate that each stratum is given where a candidate rate is spread."""


def stratified_interval(
    failures: np.ndarray, trials: np.ndarray, sizes: np.ndarray, *, confidence: float = 0.95
) -> Interval:
    """Interval of the share of failing sites over all strata.

    failures, trials, sizes  (strata,) integers, 0 <= failures <= trials <= sizes: sites that
                             failed, sites tried without repetition, sites there are

    A stratum with trials = sizes is known and adds no variance (dead sites: no failure in
    sizes of sizes). One with trials = 0 counts whole as not failing in the low limit and
    whole as failing in the high one; the estimate leaves it out, and is NaN if such strata
    hold more than half of the sites.

    Measured at a nominal 95 %: at least 95 % for every population of two or three strata that
    was enumerated; 94.7 to 100 % (700 campaigns each, standard error 0.8 %) for 18 populations of
    3, 40 and 300 strata of very unequal sizes with failures everywhere, in few, light or heavy
    strata, each after proportional and after Neyman allocation.
    """
    x, n, sizes = _checked_strata(failures, trials, sizes)
    return _interval(x.astype(np.float64), n, sizes, _checked_confidence(confidence))


def weighted_interval(
    failures: np.ndarray, trials: np.ndarray, weights: np.ndarray, *, confidence: float = 0.95
) -> Interval:
    """Interval of sum weights * rate over strata that trials do not use up.

    failures, trials  (strata,) integers, 0 <= failures <= trials
    weights           (strata,) float, at least 0, sum at most 1 (to 1e-9); what is missing to 1,
                      and strata without trials, count as in `stratified_interval`
    """
    weights = np.asarray(weights, np.float64)
    if weights.ndim != 1 or not (weights >= 0).all() or weights.sum() > 1 + 1e-9:
        raise ConfigError(
            "weights must be a list of numbers of at least 0 whose sum is at most 1, "
            f"got shape {weights.shape} with sum {weights.sum()!r}"
        )
    x, n, _ = _checked_strata(failures, trials, np.full(weights.shape, 2**62))
    confidence = _checked_confidence(confidence)
    sampled = (n > 0) & (weights > 1e-30)  # less is far below any rounding
    strata = _Strata.unlimited(x[sampled].astype(np.float64), n[sampled], weights[sampled])
    unknown = max(0.0, 1.0 - float(weights[sampled].sum()))
    return _assembled(strata, 0.0, unknown, confidence, "stratified")


def neyman_allocation(
    failures: np.ndarray, trials: np.ndarray, sizes: np.ndarray, budget: int
) -> np.ndarray:
    """Where to spend `budget` further trials: (strata,) int64, given those so far (the pilot).

    In proportion to W_h sqrt(p (1 - p)) (Neyman 1934) with p = (x_h + a) / (n_h + 2 a), never
    more than a stratum has left; sums to the budget, or to all that is left if that is
    less. Fractions are rounded along the running sum, not by largest remainders: with few
    trials a stratum those would hand the odd trial to strata that happened to fail.

    a is the larger of 1 and a tenth of the strata that are still open. The pilot is part of
    the estimate too: a stratum that happens to show few failures is given few trials, and its
    estimate stays low. For rare failures that bias is at most 0.1 sqrt(strata / a) standard
    errors, which a keeps below 0.3. Measured with strata of one rate 0.02, two trials after each
    trial of the pilot: 60 strata, pilot of 100 each, -0.24 standard errors and 94.9 % coverage
    in 2000 campaigns (with a = 1: -0.70 and 90.1 %); 300 strata, pilot of 50 each, -0.08 and
    96.7 % in 600 (a = 1: -1.52 and 66.2 %).
    """
    x, n, sizes = _checked_strata(failures, trials, sizes)
    if int(budget) != budget or budget < 0:
        raise ConfigError(f"budget must be a number of trials of at least 0, got {budget!r}")
    return _allocated(x, n, sizes, int(budget))


def needed_budget(
    failures: np.ndarray,
    trials: np.ndarray,
    sizes: np.ndarray,
    halfwidth: float,
    *,
    confidence: float = 0.95,
) -> int:
    """Further trials, spread by `neyman_allocation`, for an interval of that half-width.

    An estimate: strata are taken to go on failing at the rates seen so far, each drawn to
    the common one by two trials. A campaign spends it, looks, and asks again.
    """
    x, n, sizes = _checked_strata(failures, trials, sizes)
    confidence = _checked_confidence(confidence)
    if not 0.0 < halfwidth < math.inf:
        raise ConfigError(f"half-width must be a positive number, got {halfwidth!r}")
    weights = _shares(sizes)
    tried = n > 0
    common = float((weights[tried] * x[tried] / n[tried]).sum() / max(weights[tried].sum(), 1e-300))
    rate = (x + PRIOR_TRIALS * common) / (n + PRIOR_TRIALS)

    def narrow(budget: int) -> bool:
        more = _allocated(x, n, sizes, budget)
        found = _interval(x + more * rate, n + more, sizes, confidence)
        return found.high - found.low <= 2 * halfwidth

    left = sum(int(size) - int(count) for size, count in zip(sizes, n))
    if narrow(0):
        return 0
    low, high = 0, 1
    while high < left and not narrow(high):
        low, high = high, 2 * high
    high = min(high, left)
    # A thousandth of the answer is far below what the rates are known to.
    while high - low > max(1, high // 1000):
        middle = (low + high) // 2
        low, high = (low, middle) if narrow(middle) else (middle, high)
    return high


@dataclass(frozen=True)
class _Strata:
    """Strata of which each was tried in part. All arrays (strata,) float64.

    x, n      failures and trials
    weight    share of the sites of these strata; sums to 1
    mass      what the weights were divided by
    spread    variance of x_h / n_h without replacement, over that with: (N - n) / (N - 1)
    skew      the same for the third central moment: spread (N - 2 n) / (N - 2)
    evidence  trials with replacement whose zero failures are as unlikely as those of n here:
              -N log(1 - n / N); (1 - n/N)^K bounds P(no failure | K failing) from above
    stretch   (N + 1) / N: in terms of q = K / (N + 1), (1 - q)^evidence bounds it too
    """

    x: np.ndarray
    n: np.ndarray
    weight: np.ndarray
    mass: float
    spread: np.ndarray
    skew: np.ndarray
    evidence: np.ndarray
    stretch: np.ndarray

    @staticmethod
    def unlimited(x, n, weight) -> _Strata:
        n, one, mass = n.astype(np.float64), np.ones(len(n)), float(weight.sum())
        return _Strata(x, n, weight / (mass or 1.0), mass, one, one, n, one)

    @staticmethod
    def finite(x, n, sizes, weight) -> _Strata:
        tried, all_ = n.astype(np.float64), sizes.astype(np.float64)
        left = (sizes - n).astype(np.float64)
        spread = left / np.maximum(all_ - 1, 1)
        skew = spread * (left - tried) / np.maximum(all_ - 2, 1)
        evidence = -all_ * np.log1p(-tried / all_)
        mass = float(weight.sum())
        weight = weight / (mass or 1.0)
        return _Strata(x, tried, weight, mass, spread, skew, evidence, (all_ + 1) / all_)

    @property
    def estimate(self) -> float:
        return float((self.weight * self.x / self.n).sum())

    def mirrored(self) -> _Strata:
        """The same strata with not failing as the event."""
        return _Strata(
            self.n - self.x, self.n, self.weight, self.mass, self.spread, self.skew,
            self.evidence, self.stretch,
        )  # fmt: skip


def _interval(x, n, sizes, confidence: float) -> Interval:
    """`stratified_interval` of checked counts; x may be fractional (expected failures)."""
    weight = _shares(sizes)
    known, unknown = (n == sizes) & (n > 0), n == 0
    open_ = ~known & ~unknown
    strata = _Strata.finite(x[open_], n[open_], sizes[open_], weight[open_])
    certain = float((weight[known] * x[known] / n[known]).sum())
    blind = float(weight[unknown & (sizes > 0)].sum())
    found = _assembled(strata, certain, blind, confidence, "stratified without replacement")
    # Failures seen have failed, and sites that did not fail will not.
    total = sum(int(size) for size in sizes)
    least, most = float(x.sum()) / total, 1.0 - float((n - x).sum()) / total
    low, high = max(found.low, least), min(found.high, most)
    if not open_.any() and blind == 0:
        return Interval(least, least, least, "every site tried", confidence)
    return Interval(min(low, high), high, found.estimate, found.method, confidence)


def _assembled(strata, certain, blind, confidence, method) -> Interval:
    """Interval of certain + mass * rate(strata) + blind * anything."""
    tail = (1.0 - confidence) / 2.0
    low = high = estimate = 0.0
    if strata.mass > 0:
        estimate = strata.estimate
        high = _upper(strata, tail)
        low = 1.0 - _upper(strata.mirrored(), tail)
        if not strata.x.any():
            low = 0.0
        low, high = min(low, estimate), max(high, estimate)
    seen = 1.0 - blind
    return Interval(
        max(0.0, certain + strata.mass * low),
        min(1.0, certain + strata.mass * high + blind),
        math.nan if blind > 0.5 else min(1.0, (certain + strata.mass * estimate) / seen),
        method,
        confidence,
    )


def _upper(strata: _Strata, tail: float) -> float:
    """The rate at which an estimate as low as this one has probability `tail`."""
    if not strata.x.any():
        return _zero_failure_upper(strata, tail)
    if (strata.x == strata.n).all():
        return 1.0
    rate = strata.estimate
    seen = strata.x * strata.evidence / strata.n + PRIOR_TRIALS * rate
    size = strata.evidence + PRIOR_TRIALS

    def excess(pull: float) -> float:
        return _at_most(rate, strata, _pulled(seen, size, pull * strata.weight)) - tail

    # Bracket by doubling. A rate that differs from 1 by rounding alone has no bracket above.
    high = float((size / strata.weight).min())
    low = 0.0
    while excess(low) <= 0 and low > -1e120:
        low = -high if low == 0 else 2 * low
    while excess(high) > 0:
        low, high = high, 2 * high
        if high > 1e120:
            return 1.0
    pull = optimize.brentq(excess, low, high, xtol=1e-300, rtol=1e-10)
    return float((strata.weight * _pulled(seen, size, pull * strata.weight)).sum())


def _pulled(seen, size, pull) -> np.ndarray:
    """Rates that maximise seen log p + (size - seen) log(1 - p) + pull p, stratum by stratum.

    The root in [0, 1] of pull p^2 + (size - pull) p - seen = 0, without cancellation.
    """
    gap = size - pull
    root = np.sqrt(np.maximum(gap * gap + 4 * pull * seen, 0.0))
    small = 2 * seen / np.where(gap > 0, gap + root, 1.0)
    large = (root - gap) / np.where(pull > 0, 2 * pull, 1.0)
    return np.clip(np.where(gap > 0, small, large), 0.0, 1.0)


def _at_most(limit: float, strata: _Strata, p: np.ndarray) -> float:
    """P(estimate <= limit) at stratum rates p, by a binomial of the same three moments.

    estimate = start + step * Bin(count, share). The step is the lattice of the strata,
    averaged by their variance, unless the skewness asks for a coarser one. p (1 - p) of rates
    that were fitted to n trials and 2 more is too small by the variance of the fit; `loss` makes
    up for it (exactly so at a common rate; a single stratum's rate is given by the limit).
    """
    more = strata.n + PRIOR_TRIALS
    loss = (1 - strata.weight) * strata.n / (more * more - strata.n)
    noise = strata.weight * p * (1 - p) * (1 + loss)
    grain = strata.weight / strata.n
    variance = float((noise * grain * strata.spread).sum())
    third = float((noise * grain * grain * (1 - 2 * p) * strata.skew).sum())
    mean = float((strata.weight * p).sum())
    if variance <= 1e-250:  # all rates 0 or 1
        return float(mean <= limit)
    step = max(variance / float((noise * strata.spread).sum()), abs(third) / variance)
    share = min(max((1.0 - third / (variance * step)) / 2.0, 1e-8), 1.0 - 1e-8)
    count = variance / (step * step * share * (1.0 - share))
    hits = (limit - mean) / step + count * share
    if hits >= count:
        return 1.0
    if hits <= -1.0:
        return 0.0
    return float(special.betainc(count - hits, hits + 1.0, 1.0 - share))


def _zero_failure_upper(strata: _Strata, tail: float) -> float:
    """The greatest rate at which no failure anywhere still has probability `tail`.

    Maximises sum W_h p_h under product (1 - p_h)^n_h >= tail: with u = -log(1 - p) the best
    spread is u_h = max(0, log(W_h / (level n_h))), level such that sum n_h u_h = -log(tail).
    A bound for sure, whatever the strata's rates are.
    """
    gain = strata.weight * strata.stretch
    ratio = np.sort(gain / strata.evidence)[::-1]
    order = np.argsort(-gain / strata.evidence, kind="stable")
    n = strata.evidence[order]
    # With the k best strata in use, log(level) = (sum n log(ratio) + log(tail)) / sum n.
    used, logs = np.cumsum(n), np.cumsum(n * np.log(ratio))
    level = (logs + math.log(tail)) / used
    k = int(np.flatnonzero(level < np.log(ratio))[-1])
    u = np.maximum(0.0, np.log(gain / strata.evidence) - level[k])
    return min(1.0, float((gain * -np.expm1(-u)).sum()))


def _allocated(x, n, sizes, budget: int) -> np.ndarray:
    left = sizes - n
    budget = min(budget, sum(int(count) for count in left))
    given = np.zeros(len(n), np.int64)
    open_ = left > 0
    add = max(1.0, np.count_nonzero(open_) / 10.0)
    p = (x + add) / (n + 2 * add)
    wish = np.where(open_, _shares(sizes) * np.sqrt(p * (1 - p)), 0.0)
    # Strata that would get more than they have left are filled, and the rest shared anew.
    while budget > 0:
        share = wish / wish.sum() * float(budget)
        full = (wish > 0) & (share >= left)
        if not full.any():
            break
        given[full] = left[full]
        budget -= sum(int(count) for count in left[full])
        wish = np.where(full, 0.0, wish)
        if not (wish > 0).any():
            break
    if budget > 0:
        # Rounded along the running sum: which stratum gains the odd trial must not hang on
        # its own pilot, as it would by largest remainders.
        ends = np.rint(np.cumsum(share)).astype(np.int64)
        ends[-1] = budget
        whole = np.clip(np.diff(ends, prepend=0), 0, left * (wish > 0))
        given += whole
        short = budget - int(whole.sum())  # not 0 only by rounding of the running sum
        for h in np.flatnonzero(given < left):
            more = min(short, int(left[h] - given[h]))
            given[h] += more
            short -= more
    return given


def _shares(sizes: np.ndarray) -> np.ndarray:
    """Share of the sites in each stratum; the total may exceed int64."""
    total = sum(int(size) for size in sizes)
    return sizes.astype(np.float64) / float(total)


def _checked_strata(failures, trials, sizes):
    """The three as int64 arrays of one shape (strata,)."""
    arrays = []
    for name, values in (("failures", failures), ("trials", trials), ("sizes", sizes)):
        values = np.asarray(values)
        if values.ndim != 1 or values.size == 0 or values.dtype.kind not in "iu":
            raise ConfigError(
                f"{name} must be a non-empty list of integers, one a stratum, "
                f"got {values.dtype} of shape {values.shape}"
            )
        if int(values.max()) > 2**62:
            raise ConfigError(f"{name} must not exceed 2**62, got {int(values.max())}")
        arrays.append(values.astype(np.int64))
    x, n, sizes = arrays
    if not x.shape == n.shape == sizes.shape:
        raise ConfigError(
            "failures, trials and sizes must have one entry a stratum, "
            f"got {x.size}, {n.size} and {sizes.size}"
        )
    wrong = np.flatnonzero((x < 0) | (x > n) | (n > sizes))
    if wrong.size:
        h = int(wrong[0])
        raise ConfigError(
            "every stratum must have 0 <= failures <= trials <= sizes, "
            f"got {x[h]}, {n[h]}, {sizes[h]} in stratum {h}"
        )
    if not sizes.any():
        raise ConfigError("strata must hold at least one site, got sizes of 0 only")
    return x, n, sizes
