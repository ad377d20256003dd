"""Quantiles and yield of chips: coverage as sums over the binomial law, no sampling."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from fsim.errors import ConfigError
from fsim.simulator.chips import (
    chips_for_quantile,
    quantile_interval,
    quantile_ranks,
    yield_interval,
)
from fsim.simulator.statistics import clopper_pearson

SIZES = (1, 5, 20, 59, 72, 100, 1000)


def quantile_coverage(n, p_below, p_at, low, high):
    """P(X_(low) <= x <= X_(high)) for a point x with P(X < x) = p_below, P(X = x) = p_at."""
    missed = 0.0
    if low > 0:  # X_(low) > x: fewer than low values at or below x
        missed += sum(_mass(j, n, p_below + p_at) for j in range(low))
    if high <= n:  # X_(high) < x: at least high values below x
        missed += sum(_mass(j, n, p_below) for j in range(high, n + 1))
    return 1.0 - missed


def _mass(j, n, p):
    if p in (0.0, 1.0):
        return float(j == n * p)
    log = math.lgamma(n + 1) - math.lgamma(j + 1) - math.lgamma(n - j + 1)
    return math.exp(log + j * math.log(p) + (n - j) * math.log1p(-p))


@pytest.mark.parametrize("q", [0.01, 0.05, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("n", SIZES)
def test_the_order_statistics_cover_and_no_narrower_pair_of_tails_does(n, q):
    low, high = quantile_ranks(n, q)
    assert 0 <= low < high <= n + 1
    assert quantile_coverage(n, q, 0.0, low, high) >= 0.95 - 1e-10
    # A tie that straddles the quantile only helps.
    for below in (0.0, q / 2, q):
        assert quantile_coverage(n, below, q - below + 0.03, low, high) >= 0.95 - 1e-10
    if low < n:
        assert quantile_coverage(n, q, 0.0, low + 1, n + 1) < 0.975
    if high > 1:
        assert quantile_coverage(n, q, 0.0, 0, high - 1) < 0.975


def test_walds_ranks_do_not_cover():
    """n q +- 1.96 sqrt(n q (1 - q)), rounded: the rule that is often given."""
    bad = 0
    for n in SIZES:
        for q in (0.01, 0.05, 0.25):
            half = 1.96 * math.sqrt(n * q * (1 - q))
            low, high = max(0, round(n * q - half)), min(n + 1, round(n * q + half))
            bad += quantile_coverage(n, q, 0.0, low, max(high, 1)) < 0.94
    assert bad >= 3


def test_the_limits_are_values_of_the_sample():
    values = np.random.default_rng(5).permutation(np.arange(1.0, 201.0))
    found = quantile_interval(values, 0.05)
    assert (found.low, found.high) == quantile_ranks(200, 0.05)
    assert found.estimate == 10.0 and found.method.endswith("of 200")
    # By the binomial law: P(Bin(200, 0.05) < 4) = 0.0090, < 5 = 0.0264.
    assert found.low == 4.0
    assert quantile_interval(values[:100] * 0 + 7, 0.05).high == 7.0
    assert quantile_interval([3.0, 1.0, 2.0], 0.5).estimate == 2.0


@pytest.mark.parametrize("q, confidence, n", [(0.05, 0.95, 72), (0.05, 0.9, 59), (0.5, 0.95, 6)])
def test_too_few_chips_leave_the_lower_limit_open(q, confidence, n):
    assert chips_for_quantile(q, confidence=confidence) == n
    assert chips_for_quantile(1 - q, confidence=confidence) == n
    values = np.linspace(0.5, 0.9, n)
    assert quantile_interval(values, q, confidence=confidence).low == 0.5
    assert quantile_interval(values[1:], q, confidence=confidence).low == -math.inf
    assert quantile_interval(values, 1 - q, confidence=confidence).high == 0.9
    assert quantile_interval(values[1:], 1 - q, confidence=confidence).high == math.inf


@pytest.mark.parametrize("good", [0.5, 0.9, 0.99, 0.999])
def test_yield_covers_and_walds_does_not_near_one(good):
    n = 80
    k = np.arange(n + 1)
    mass = np.array([_mass(int(i), n, good) for i in k])
    held = [yield_interval((np.arange(n) < i) * 1.0, 0.5) for i in k]
    inside = np.array([i.low <= good <= i.high for i in held])
    assert mass[inside].sum() >= 0.95
    half = 1.96 * np.sqrt(k / n * (1 - k / n) / n)
    wald = (k / n - half <= good) & (good <= k / n + half)
    assert (mass[wald].sum() < 0.91) == (good >= 0.9)


def test_a_chip_at_the_bound_counts_as_good():
    assert yield_interval([0.8, 0.9, 0.7], 0.8) == clopper_pearson(2, 3)


def test_ranks_agree_with_the_tables_of_the_binomial_law():
    for n, q in ((30, 0.5), (500, 0.1)):
        low, high = quantile_ranks(n, q, confidence=0.99)
        assert stats.binom.cdf(low - 1, n, q) <= 0.005 < stats.binom.cdf(low, n, q)
        assert stats.binom.sf(high - 1, n, q) <= 0.005 < stats.binom.sf(high - 2, n, q)


@pytest.mark.parametrize(
    "call",
    [
        lambda: quantile_interval([], 0.5),
        lambda: quantile_interval([[1.0]], 0.5),
        lambda: quantile_interval([1.0, math.nan], 0.5),
        lambda: quantile_interval([1.0], 0.0),
        lambda: quantile_interval([1.0], 0.5, confidence=1),
        lambda: chips_for_quantile(1.0),
        lambda: yield_interval([1.0], math.nan),
        lambda: yield_interval([], 0.5),
    ],
)
def test_impossible_arguments_are_refused(call):
    with pytest.raises(ConfigError, match="must"):
        call()
