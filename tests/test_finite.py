"""Sampling without replacement, against rational arithmetic and by enumeration."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from fsim.errors import ConfigError
from fsim.simulator import finite
from fsim.simulator.finite import at_most, hypergeometric
from fsim.simulator.statistics import clopper_pearson


def exact_law(failing, n, population):
    """Rational probabilities of 0 ... n failures."""
    total = math.comb(population, n)
    return [
        Fraction(math.comb(failing, x) * math.comb(population - failing, n - x), total)
        for x in range(n + 1)
    ]


@pytest.mark.parametrize("population, n", [(1, 1), (7, 3), (40, 11), (90, 45), (90, 80)])
def test_tails_equal_rational_arithmetic(population, n):
    for failing in range(population + 1):
        law = exact_law(failing, n, population)
        below = Fraction(0)
        for k, mass in enumerate(law):
            below += mass
            found = at_most(k, failing, n, population)
            if below < Fraction(1, 2):
                assert found == pytest.approx(float(below), rel=1e-12)
            else:
                assert 1 - found == pytest.approx(float(1 - below), rel=1e-12, abs=3e-15)


def test_a_large_table_equals_rational_arithmetic():
    """Integers of 6,000 digits: the last tail digits still agree."""
    population, n, failing = 20_000, 5_000, 400
    total = math.comb(population, n)
    for k in (60, 80, 99, 120):
        below = sum(
            math.comb(failing, x) * math.comb(population - failing, n - x) for x in range(k + 1)
        )
        expected = float(Fraction(below, total))
        assert at_most(k, failing, n, population) == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize(
    "k, failing, n, population",
    [(10**8 - 20_000, 10**15, 10**9, 10**16), (4 * 10**7 - 10_000, 10**9, 4 * 10**8, 10**10)],
)
def test_sum_and_integral_agree(k, failing, n, population, monkeypatch):
    monkeypatch.setattr(finite, "_SMOOTH", math.inf)
    summed = at_most(k, failing, n, population)
    monkeypatch.setattr(finite, "_SMOOTH", 1.0)
    assert at_most(k, failing, n, population) == pytest.approx(summed, rel=1e-12)
    assert 0.001 < summed < 0.1


@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
@pytest.mark.parametrize("population, n", [(1, 1), (12, 5), (60, 20), (60, 55), (60, 60)])
def test_limits_are_those_of_rational_arithmetic(population, n, confidence):
    tail = Fraction(repr((1 - confidence) / 2))
    laws = [exact_law(failing, n, population) for failing in range(population + 1)]
    for k in range(n + 1):
        kept = [
            failing
            for failing, law in enumerate(laws)
            if law[k] and sum(law[: k + 1]) > tail and sum(law[k:]) > tail
        ]
        found = hypergeometric(k, n, population, confidence=confidence)
        assert (found.low, found.high) == (kept[0] / population, kept[-1] / population)
        assert kept == list(range(kept[0], kept[-1] + 1))
        assert found.estimate == k / n


def coverage(population, n, limits):
    """{failing: exact coverage} of limits(k) over every number of failing sites."""
    held = [limits(k) for k in range(n + 1)]
    return {
        failing: float(sum(
            mass for (low, high), mass in zip(held, exact_law(failing, n, population))
            if low <= failing / population <= high
        ))
        for failing in range(population + 1)
    }  # fmt: skip


@pytest.mark.parametrize("population, n, wrong", [(50, 10, 0.3), (200, 60, 0.4), (200, 190, 0.85)])
def test_it_covers_every_population_and_walds_interval_does_not(population, n, wrong):
    def exact(k):
        found = hypergeometric(k, n, population)
        return found.low, found.high

    def wald(k):
        p = k / n
        variance = p * (1 - p) / n * (population - n) / (population - 1)
        return p - 1.96 * math.sqrt(variance), p + 1.96 * math.sqrt(variance)

    assert min(coverage(population, n, exact).values()) >= 0.95
    assert min(coverage(population, n, wald).values()) < wrong


def test_every_site_tried_leaves_no_width():
    for population in (1, 17, 2**62):
        for k in (0, 1, population // 3, population):
            found = hypergeometric(k, population, population)
            assert found.low == found.high == found.estimate == k / population
    # One site left out can only fail or not.
    found = hypergeometric(5, 99, 100)
    assert (found.low, found.high) == (0.05, 0.06)


@pytest.mark.parametrize("k, n", [(0, 1000), (3, 10**6), (40, 10**4), (1000, 1000)])
def test_a_vast_population_gives_clopper_pearson(k, n):
    found, exact = hypergeometric(k, n, 2**62), clopper_pearson(k, n)
    assert found.low == pytest.approx(exact.low, rel=1e-9)
    assert found.high == pytest.approx(exact.high, rel=1e-9)


def test_half_of_a_vast_population_has_the_normal_width():
    # Standard error sqrt(1/4 / n * (1 - n/N)) with n = 2^61 of N = 2^62; z = 1.959964.
    found = hypergeometric(2**60, 2**61, 2**62)
    half = 1.959964 * math.sqrt(0.125 / 2**61)
    assert found.high - 0.5 == pytest.approx(half, rel=1e-6)
    assert 0.5 - found.low == pytest.approx(half, rel=1e-6)


def test_counts_beyond_the_integers_of_a_float():
    """k of n = 0.73 N sites at 2^55: K failing sites were each tried with probability n / N."""
    k, n, population = 3389313, 40168330615081296, 54981310826028432
    found, share = hypergeometric(k, n, population), n / population
    # k ~ Bin(K, n/N): K = k / share, standard error sqrt(K (1 - share) / share), 1.959964 of it.
    half = 1.959964 * math.sqrt(k / share * (1 - share) / share)
    assert found.high * population - k / share == pytest.approx(half, rel=0.002)
    assert k / share - found.low * population == pytest.approx(half, rel=0.002)


def test_it_lies_inside_clopper_pearson_and_narrows_with_the_share_tried():
    widths = []
    for population in (10_000, 2_000, 1_200, 1_010):
        found, infinite = hypergeometric(20, 1000, population), clopper_pearson(20, 1000)
        assert infinite.low <= found.low <= 0.02 <= found.high <= infinite.high
        widths.append(found.high - found.low)
    assert np.all(np.diff(widths) < 0)


def test_nothing_tried_gives_the_whole_range():
    found = hypergeometric(0, 0, 10)
    assert (found.low, found.high) == (0.0, 1.0) and math.isnan(found.estimate)


@pytest.mark.parametrize(
    "call",
    [
        lambda: hypergeometric(3, 2, 10),
        lambda: hypergeometric(1, 11, 10),
        lambda: hypergeometric(0, 0, 0),
        lambda: hypergeometric(1, 2, 2**63),
        lambda: hypergeometric(1, 2, 10.5),
        lambda: hypergeometric(1, 2, 10, confidence=1.5),
    ],
)
def test_impossible_arguments_are_refused(call):
    with pytest.raises(ConfigError, match="must"):
        call()
