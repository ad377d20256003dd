"""Intervals after stopping rules: exact coverage by enumeration, no sampling."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from fsim.errors import ConfigError
from fsim.simulator.statistics import clopper_pearson, wilson
from fsim.simulator.stopping import (
    confidence_sequence,
    interval_after,
    inverse_binomial,
)

RATES = (0.003, 0.02, 0.1, 0.35, 0.7)


def wald(k, n):
    p = k / n
    half = 1.96 * math.sqrt(p * (1 - p) / n)
    return p - half, p + half


@pytest.mark.parametrize("k", [1, 2, 5, 20])
@pytest.mark.parametrize("p", RATES)
def test_until_k_failures_covers(k, p):
    """The distribution of n is negative binomial: coverage is a sum over it."""
    n = k + np.arange(int(stats.nbinom.ppf(1 - 1e-9, k, p)) + 1)
    mass = stats.nbinom.pmf(n - k, k, p)
    held = [inverse_binomial(k, int(m)) for m in n]
    inside = np.array([i.low <= p <= i.high for i in held])
    assert mass[inside].sum() > 0.95 - 1e-6
    # Haldane's estimate has no bias; k / n does.
    if k > 1:
        assert (mass * [i.estimate for i in held]).sum() == pytest.approx(p, rel=1e-5)
        assert (mass * k / n).sum() > p * 1.01 or p > 0.5


@pytest.mark.parametrize("p", [0.00205, 0.01])
def test_wald_does_not_cover_where_clopper_pearson_does(p):
    n = 664
    k = np.arange(n + 1)
    mass = stats.binom.pmf(k, n, p)

    def covered(limits):
        return mass[[low <= p <= high for low, high in limits]].sum()

    exact = [clopper_pearson(int(i), n) for i in k]
    assert covered((i.low, i.high) for i in exact) >= 0.95
    assert covered(wald(int(i), n) for i in k) < 0.90


def stopped(p, stop, most):
    """{(k, n): probability} of where a campaign stops: stop(k, n) after each trial."""
    alive, ended = {0: 1.0}, {}
    for n in range(1, most + 1):
        after = {}
        for k, mass in alive.items():
            for more, share in ((0, 1 - p), (1, p)):
                after[k + more] = after.get(k + more, 0.0) + mass * share
        alive = {}
        for k, mass in after.items():
            if n == most or stop(k, n):
                ended[k, n] = mass
            else:
                alive[k] = mass
    return ended


@pytest.mark.parametrize("p", [0.01, 0.05, 0.2, 0.5])
def test_a_confidence_sequence_holds_at_every_trial_at_once(p):
    """The walk ends the first time the interval misses p: that may happen in 5 % of all."""
    held = {}

    def misses(k, n):
        if (k, n) not in held:
            found = confidence_sequence(k, n)
            held[k, n] = not found.low <= p <= found.high
        return held[k, n]

    ends = stopped(p, misses, 400)
    missed = sum(mass for (k, n), mass in ends.items() if misses(k, n))
    assert 0.001 < missed < 0.05

    def misses_fixed(k, n):
        found = clopper_pearson(k, n)
        return not found.low <= p <= found.high

    ends = stopped(p, misses_fixed, 400)
    assert sum(mass for (k, n), mass in ends.items() if misses_fixed(k, n)) > 0.05


def test_a_confidence_sequence_is_the_set_of_likely_rates():
    k, n, confidence = 3, 40, 0.9
    found = confidence_sequence(k, n, confidence=confidence, prior=(1, 1))
    grid = np.linspace(0, 1, 400_001)
    mixture = math.gamma(k + 1) * math.gamma(n - k + 1) / math.gamma(n + 2)
    inside = grid[grid**k * (1 - grid) ** (n - k) >= (1 - confidence) * mixture]
    assert found.low == pytest.approx(inside[0], abs=1e-5)
    assert found.high == pytest.approx(inside[-1], abs=1e-5)


def test_ends():
    assert confidence_sequence(0, 50).low == 0.0
    assert 0.05 < confidence_sequence(0, 50).high < 0.3
    assert confidence_sequence(50, 50).high == 1.0
    empty = confidence_sequence(0, 0)
    assert (empty.low, empty.high) == (0.0, 1.0) and math.isnan(empty.estimate)
    assert inverse_binomial(4, 4).high == 1.0
    low = confidence_sequence(1, 10**9)
    assert 0 < low.low < 1e-9 < low.high < 1e-7


def test_each_rule_has_its_interval():
    assert interval_after("fixed", 3, 100) == clopper_pearson(3, 100)
    assert interval_after("failures", 3, 100) == inverse_binomial(3, 100)
    assert interval_after("width", 3, 100) == wilson(3, 100)
    assert interval_after("threshold", 3, 100) == confidence_sequence(3, 100)
    for call in (
        lambda: interval_after("luck", 3, 100),
        lambda: inverse_binomial(0, 10),
        lambda: confidence_sequence(1, 10, prior=(0, 1)),
        lambda: inverse_binomial(11, 10),
    ):
        with pytest.raises(ConfigError, match="must"):
            call()
