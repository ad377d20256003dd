"""Intervals of a proportion that fit the rule by which a campaign stopped.

A rule that looks at the failures changes what an interval must be: Clopper-Pearson after
"until k failures" or "until it is narrow enough" no longer covers what it says.

| rule | stops when | interval |
|---|---|---|
| fixed | n trials are done | Clopper-Pearson |
| failures | the k-th failure happens | inverse binomial, exact |
| width | the Wilson interval is no wider than asked | Wilson |
| threshold | a confidence sequence excludes the bound | that sequence, at any time |

Sources: Haldane, Biometrika 33 (1945) 222 (inverse sampling, estimate (k - 1) / (n - 1));
Robbins, Annals of Mathematical Statistics 41 (1970) 1397 (mixture confidence sequences);
Ville, Etude critique de la notion de collectif (1939) (the inequality behind them).
"""

from __future__ import annotations

import math

from scipy import optimize, special

from fsim.errors import ConfigError

from .statistics import Interval, _checked_confidence, _checked_counts, clopper_pearson, wilson

RULES = ("fixed", "failures", "width", "threshold")


def inverse_binomial(k: int, n: int, *, confidence: float = 0.95) -> Interval:
    """Interval when trials go on until the k-th failure, which trial n is.

    The estimate (k - 1) / (n - 1) has no bias (Haldane 1945); for k = 1 it does not exist
    and is k / n here. Limits: p such that P(N <= n) and P(N >= n) are half of
    1 - confidence, beta quantiles of (k, n - k + 1) and (k, n - k).
    """
    k, n = _checked_counts(k, n)
    confidence = _checked_confidence(confidence)
    if k < 1:
        raise ConfigError(f"inverse sampling must have seen a failure, got {k} in {n} trials")
    tail = (1.0 - confidence) / 2.0
    low = float(special.betaincinv(k, n - k + 1.0, tail))
    high = 1.0 if n == k else float(special.betaincinv(k, float(n - k), 1.0 - tail))
    estimate = (k - 1) / (n - 1) if k > 1 else k / n
    return Interval(low, high, estimate, f"inverse binomial, {k} failures", confidence)


def confidence_sequence(
    k: int, n: int, *, confidence: float = 0.95, prior: tuple[float, float] = (0.5, 0.5)
) -> Interval:
    """An interval that holds at every n at once, whenever and why ever one looks or stops.

    It holds the p whose likelihood is at least (1 - confidence) times that of a mixture
    over all p with Beta(prior): their ratio is a martingale under the true p and exceeds
    1 / (1 - confidence) with probability at most 1 - confidence (Ville 1939, Robbins 1970).

    prior  both above 0; chosen before the first trial. Weight near 0 (0.5, 10) makes the
           sequence narrow where failures are rare
    """
    k, n = _checked_counts(k, n)
    confidence = _checked_confidence(confidence)
    a, b = prior
    if not (0 < a < math.inf and 0 < b < math.inf):
        raise ConfigError(f"prior must be two positive numbers, got {prior!r}")
    if n == 0:
        return Interval(0.0, 1.0, math.nan, "confidence sequence", confidence)
    mixture = special.betaln(k + a, n - k + b) - special.betaln(a, b)
    least = mixture + math.log1p(-confidence)
    rate = k / n

    def above(p: float) -> float:
        return special.xlogy(k, p) + special.xlog1py(n - k, -p) - least

    low = 0.0 if k == 0 or above(0.0) >= 0 else _root(above, 0.0, rate)
    high = 1.0 if k == n or above(1.0) >= 0 else _root(above, rate, 1.0)
    return Interval(low, high, rate, "confidence sequence, beta-binomial mixture", confidence)


def _root(function, low: float, high: float) -> float:
    """Where `function`, concave with its top at one end, is 0."""
    tiny = 1e-300
    low, high = max(low, tiny), min(high, 1.0 - 2**-53)
    if function(low) * function(high) > 0:
        return low if abs(function(low)) < abs(function(high)) else high
    return float(optimize.brentq(function, low, high, xtol=1e-300, rtol=1e-12))


def interval_after(rule: str, k: int, n: int, *, confidence: float = 0.95) -> Interval:
    """The interval of k failures in n trials after a campaign that stopped by `rule`.

    rule  of RULES; "failures" only if trial n was the k-th failure
    """
    made = {
        "fixed": clopper_pearson, "failures": inverse_binomial, "width": wilson,
        "threshold": confidence_sequence,
    }  # fmt: skip
    if rule not in made:
        raise ConfigError(f"rule must be one of {', '.join(RULES)}, got {rule!r}")
    return made[rule](k, n, confidence=confidence)
