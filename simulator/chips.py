"""What a sample of chips says about all chips: quantiles of accuracy, and yield.

Each chip has one figure (its accuracy over the images); the chips are independent draws.
Nothing is assumed about how accuracy is distributed.

Sources: Thompson, Annals of Mathematical Statistics 7 (1936) 122, and David and Nagaraja,
"Order Statistics" (Wiley 2003), section 7.1 (intervals of quantiles); Clopper and Pearson,
Biometrika 26 (1934) 404.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import stats

from fsim.errors import ConfigError

from .statistics import Interval, _checked_confidence, clopper_pearson


def quantile_interval(values: np.ndarray, q: float, *, confidence: float = 0.95) -> Interval:
    """Interval of the q-quantile of a chip's figure, in the unit of the values.

    values  (chips,) finite numbers, at least one; in any order, ties allowed
    q       in (0, 1); 0.05 is the accuracy that 95 % of all chips reach

    The limits are two of the values: the number of chips at or below the quantile is at
    least Bin(chips, q), whatever the distribution, so coverage is never below nominal.
    With too few chips for a limit it is -inf or inf: see `chips_for_quantile`. The estimate
    is the smallest value that a share of at least q does not exceed.
    """
    values = _checked_values(values)
    confidence = _checked_confidence(confidence)
    _checked_level(q)
    low, high = quantile_ranks(values.size, q, confidence=confidence)
    ordered = np.sort(values)
    # The ceiling of a product such as 0.05 * 100 must not be raised by rounding.
    rank = min(max(1, math.ceil(q * values.size * (1.0 - 2**-50))), values.size)
    return Interval(
        -math.inf if low == 0 else float(ordered[low - 1]),
        math.inf if high > values.size else float(ordered[high - 1]),
        float(ordered[rank - 1]),
        f"order statistics {low} and {high} of {values.size}",
        confidence,
    )


def quantile_ranks(n: int, q: float, *, confidence: float = 0.95) -> tuple[int, int]:
    """Ranks (1 is the smallest of n values) of the limits of `quantile_interval`.

    (low, high): the greatest low with P(Bin(n, q) < low) and the least high with
    P(Bin(n, q) >= high) at most half of 1 - confidence. 0 and n + 1 mean no limit.
    """
    tail = (1.0 - confidence) / 2.0
    low = int(stats.binom.ppf(tail, n, q))
    while low > 0 and stats.binom.cdf(low - 1, n, q) > tail:
        low -= 1
    while low < n and stats.binom.cdf(low, n, q) <= tail:
        low += 1
    high = int(stats.binom.isf(tail, n, q)) + 1
    while high <= n and stats.binom.sf(high - 1, n, q) > tail:
        high += 1
    while high > 1 and stats.binom.sf(high - 2, n, q) <= tail:
        high -= 1
    return low, high


def chips_for_quantile(q: float, *, confidence: float = 0.95) -> int:
    """Chips from which `quantile_interval` has the limit on the side of the thinner tail.

    Below the median that is the lower one: the least n with (1 - q)^n at most half of
    1 - confidence; 72 chips for the 5th percentile at 95 %.
    """
    _checked_level(q)
    thin = min(q, 1.0 - q)
    tail = (1.0 - _checked_confidence(confidence)) / 2.0
    return math.ceil(math.log(tail) / math.log1p(-thin))


def yield_interval(values: np.ndarray, bound: float, *, confidence: float = 0.95) -> Interval:
    """Interval of the share of all chips whose figure is at least `bound`: Clopper-Pearson.

    values  (chips,) finite numbers, at least one
    """
    values = _checked_values(values)
    if math.isnan(bound):
        raise ConfigError("bound of a yield must be a number, got nan")
    return clopper_pearson(int((values >= bound).sum()), values.size, confidence=confidence)


def _checked_values(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or values.size == 0 or not np.isfinite(values).all():
        raise ConfigError(
            f"values must be a non-empty list of finite numbers, got shape {values.shape}"
            + (" with NaN or infinity" if values.ndim == 1 and values.size else "")
        )
    return values


def _checked_level(q: float) -> None:
    if not 0.0 < q < 1.0:
        raise ConfigError(f"q must lie strictly between 0 and 1, got {q!r}")
