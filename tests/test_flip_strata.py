"""One campaign for every rate: weights, exact coverage, a machine that can be enumerated."""

from __future__ import annotations

import itertools
import math
from decimal import Decimal, localcontext

import numpy as np
import pytest

from fsim.errors import ConfigError
from fsim.simulator.flip_strata import (
    covered_mass,
    flip_masses,
    mean_interval,
    rate_interval,
)
from fsim.simulator.statistics import clopper_pearson
from fsim.simulator.stratified import weighted_interval
from tests.rates import assert_at_least, seed_for


def binomial(n, p):
    return np.array([math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)])


@pytest.mark.parametrize(
    "bits, ber, flips",
    [
        (10**9, 1e-12, [1, 2, 3, 10]), (10**9, 1e-9, [1, 5, 20]), (10**9, 1e-7, [60, 100, 130]),
        (10**6, 1e-3, [900, 1000, 1100]), (2**40, 1e-12, [1, 2]), (10**4, 0.5, [4900, 5000]),
        (7, 0.25, [1, 3, 7]), (1, 1e-12, [1]),
    ],
)  # fmt: skip
def test_masses_equal_decimal_arithmetic(bits, ber, flips):
    masses, gaps = flip_masses(ber, bits, np.array(flips))
    with localcontext() as context:
        context.prec = 60
        p = Decimal(ber)
        exact = [
            Decimal(math.comb(bits, j)) * p**j * ((1 - p).ln() * (bits - j)).exp() for j in flips
        ]
        none = ((1 - p).ln() * bits).exp()
    assert masses == pytest.approx([float(mass) for mass in exact], rel=1e-11)
    assert masses.sum() + gaps.sum() + float(none) == pytest.approx(1, abs=1e-12)


def test_gaps_are_the_masses_that_lie_between():
    bits, ber = 60, 0.1
    law = binomial(bits, ber)
    _, gaps = flip_masses(ber, bits, np.array([2, 3, 9]))
    expected = [law[1], 0, law[4:9].sum(), law[10:].sum()]
    assert gaps == pytest.approx(expected, rel=1e-11)
    assert covered_mass(ber, bits, [9, 3, 2]) == pytest.approx(law[[0, 2, 3, 9]].sum())
    # A tail that 1 - cdf would round away: P(J > 1) = C(1000, 2) 1e-24.
    _, gaps = flip_masses(1e-12, 1000, np.array([1]))
    assert gaps[1] == pytest.approx(499500e-24, rel=1e-8)
    # Gaps too long to be summed: three parts of one law.
    _, gaps = flip_masses(1e-3, 10**9, np.array([990_000, 1_010_000]))
    assert gaps.sum() == pytest.approx(1, abs=1e-9) and gaps[0] == pytest.approx(gaps[2], rel=0.2)


BITS = 12
CRITICAL = (0, 3, 4)


def fails(flipped):
    """A machine with 12 bits: one bit is fatal, two others only together or among many."""
    hit = [bit in flipped for bit in CRITICAL]
    return hit[0] or (hit[1] and hit[2]) or len(flipped) > 8


def failing_shares():
    """P(failure | j) for j = 0 ... 12 over every set of j bits."""
    return np.array([
        np.mean([fails(set(s)) for s in itertools.combinations(range(BITS), j)])
        for j in range(BITS + 1)
    ])  # fmt: skip


def rate_by_patterns(ber):
    """P(failure | ber) over all 4096 patterns: no strata, no binomial law."""
    total = 0.0
    for pattern in range(2**BITS):
        flipped = {bit for bit in range(BITS) if pattern >> bit & 1}
        total += fails(flipped) * ber ** len(flipped) * (1 - ber) ** (BITS - len(flipped))
    return total


@pytest.mark.parametrize("ber", [1e-6, 1e-3, 0.05, 0.3, 0.9])
def test_every_pattern_tried_gives_the_rate_of_the_machine(ber):
    shares = failing_shares()
    flips = np.arange(1, BITS + 1)
    trials = np.array([math.comb(BITS, j) for j in range(1, BITS + 1)]) * 10**7
    failures = np.rint(shares[1:] * trials).astype(np.int64)
    for monotone in (False, True):
        found = rate_interval(ber, BITS, flips, failures, trials, monotone=monotone)
        assert found.estimate == pytest.approx(rate_by_patterns(ber), rel=1e-9)
        assert found.low <= rate_by_patterns(ber) <= found.high < 1.01 * found.estimate
    assert covered_mass(ber, BITS, flips) == pytest.approx(1)


def wald(weights, failures, trials):
    p = failures / trials
    half = 1.96 * math.sqrt((weights**2 * p * (1 - p) / trials).sum())
    return (weights * p).sum() - half, (weights * p).sum() + half


def test_one_campaign_covers_at_every_rate_and_wald_does_not():
    """Strata of 1 to 4 flips, some untouched; 1 to 4 is most of the mass or little of it."""
    rng = np.random.default_rng(seed_for("flip strata"))
    shares, flips, trials = failing_shares(), np.array([1, 2, 4]), np.array([30, 30, 30])
    rates = (1e-4, 0.03, 0.3)
    truth = {ber: rate_by_patterns(ber) for ber in rates}
    count = 1500
    drawn = rng.binomial(trials, shares[flips], (count, 3))
    tables, times = np.unique(drawn, axis=0, return_counts=True)
    covered, bounded, textbook = (dict.fromkeys(rates, 0) for _ in range(3))
    for failures, times_drawn in zip(tables, times):
        for ber in rates:
            found = rate_interval(ber, BITS, flips, failures, trials)
            covered[ber] += times_drawn * (found.low <= truth[ber] <= found.high)
            found = rate_interval(ber, BITS, flips, failures, trials, monotone=True)
            bounded[ber] += times_drawn * (found.low <= truth[ber] <= found.high)
            low, high = wald(flip_masses(ber, BITS, flips)[0], failures, trials)
            textbook[ber] += times_drawn * (low <= truth[ber] <= high)
    for ber in rates:
        assert_at_least(covered[ber], count, 0.95, mutant=0.88, named="Wald's interval")
        assert_at_least(bounded[ber], count, 0.95, mutant=0.88, named="Wald's interval")
    assert max(textbook.values()) < 0.95 * count and min(textbook.values()) < 0.5 * count


@pytest.mark.parametrize("monotone", [False, True])
@pytest.mark.parametrize("ber", [0.01, 0.2, 0.5])
def test_exact_coverage_over_all_outcomes(ber, monotone):
    """Six bits, three of six numbers measured: a sum over every table of outcomes."""
    flips, trials = np.array([1, 2, 4]), (8, 6, 7)
    weights = binomial(6, ber)
    tables = [np.array(x) for x in np.ndindex(*(n + 1 for n in trials))]
    held = [rate_interval(ber, 6, flips, x, np.array(trials), monotone=monotone) for x in tables]
    low, high = np.array([(i.low, i.high) for i in held]).T
    levels = [
        (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.9), (0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6),
        (0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5), (0, 0, 0, 1, 1, 1, 1), (0, 0.03, 0.3, 0.3, 0.9, 1, 1),
        (0, 0, 0.4, 0.4, 0.4, 1, 1), (0, 0.97, 1, 1, 1, 1, 1),
    ]  # fmt: skip
    if not monotone:
        levels += [(0, 0.5, 0.1, 0.9, 0.2, 0, 1), (0, 0.9, 0.5, 0, 0.1, 0, 0)]
    for level in levels:
        laws = [binomial(n, level[j]) for n, j in zip(trials, flips)]
        mass = np.array([math.prod(law[k] for law, k in zip(laws, x)) for x in tables])
        truth = float(weights @ level)
        assert mass[(low <= truth + 1e-12) & (truth - 1e-12 <= high)].sum() >= 0.95


def test_monotone_is_narrower_and_needs_its_assumption():
    flips = np.array([1, 2, 4, 8, 16, 32])
    trials, bits = np.full(6, 2000), 10**8
    failures = np.rint(trials * (1 - 0.98**flips)).astype(int)
    plain = rate_interval(1e-7, bits, flips, failures, trials)
    bounded = rate_interval(1e-7, bits, flips, failures, trials, monotone=True)
    assert plain.high - plain.low > 0.7 and math.isnan(plain.estimate)
    truth = 1 - (1 - 0.02e-7) ** bits
    assert bounded.low < truth < bounded.high and bounded.high - bounded.low < 0.2
    assert bounded.estimate == pytest.approx(truth, rel=0.1)
    # Rates that fall with j: the assumption is wrong and so is the interval.
    shares = np.array([0, 0.9, 0.9, 0.0, 0.0, 0.9, 0.9])
    truth = float(binomial(6, 0.5) @ shares)
    missed = rate_interval(0.5, 6, [1, 4], [90_000, 0], [10**5, 10**5], monotone=True)
    assert not missed.low <= truth <= missed.high
    assert missed.high < truth < rate_interval(0.5, 6, [1, 4], [90_000, 0], [10**5] * 2).high


def test_unmeasured_numbers_widen_by_their_mass():
    bits, ber, n = 40, 0.02, 10**9
    law = binomial(bits, ber)
    found = rate_interval(ber, bits, [1, 2], [n // 10, n // 5], [n, n])
    seen = law[1] * 0.1 + law[2] * 0.2
    rest = 1 - law[:3].sum()
    assert found.low == pytest.approx(seen, rel=1e-3)
    assert found.high == pytest.approx(seen + rest, rel=1e-3)
    assert found.estimate == pytest.approx((1 - law[0]) * seen / (law[1] + law[2]), rel=1e-6)
    # A stratum without trials is no stratum; order does not matter.
    again = rate_interval(ber, bits, [7, 2, 1], [0, n // 5, n // 10], [0, n, n])
    assert again == found
    # Beyond half of P(J > 0) unmeasured there is no estimate.
    assert math.isnan(rate_interval(ber, bits, [3], [1], [9]).estimate)
    none = rate_interval(ber, bits, [5], [0], [0], monotone=True)
    assert (none.low, none.high) == pytest.approx((0, 1 - law[0])) and math.isnan(none.estimate)


def test_ends_of_the_range_of_rates():
    for monotone in (False, True):
        zero = rate_interval(0.0, 10**9, [1, 2], [3, 3], [9, 9], monotone=monotone)
        assert zero.low == zero.high == zero.estimate == 0
        one = rate_interval(1.0, 5, [1, 5], [0, 3], [9, 9], monotone=monotone)
        exact = clopper_pearson(3, 9)
        assert (one.low, one.high) == pytest.approx((exact.low, exact.high), rel=1e-6)
    # At a rate so small that one flip is all there is: bits * ber * P(failure | 1).
    tiny = rate_interval(1e-15, 1000, [1, 2], [20, 5], [100, 10])
    exact = clopper_pearson(20, 100)
    expected = (1e-12 * exact.low, 1e-12 * exact.high)
    assert (tiny.low, tiny.high) == pytest.approx(expected, rel=1e-3, abs=0)
    assert tiny.estimate == pytest.approx(0.2e-12, rel=1e-6, abs=0)


def test_equals_the_stratified_interval_of_the_binomial_weights():
    ber, bits, flips, x, n = (
        0.1,
        20,
        np.array([1, 2, 3]),
        np.array([1, 4, 9]),
        np.array([40, 40, 40]),
    )
    law = binomial(bits, ber)
    found = rate_interval(ber, bits, flips, x, n)
    inner = weighted_interval(x, n, law[flips] / law[flips].sum())
    assert found.low == pytest.approx(law[flips].sum() * inner.low, rel=1e-9)
    rest = 1 - law[:4].sum()
    assert found.high == pytest.approx(law[flips].sum() * inner.high + rest, rel=1e-9)


def test_means_of_zeros_and_ones_are_rates():
    flips, n = [1, 2, 3], [50, 60, 70]
    x = [3, 0, 70]
    values = [(np.arange(m) < k) * 1.0 for m, k in zip(n, x)]
    found = mean_interval(0.02, 60, flips, values, clean=0.0)
    rate = rate_interval(0.02, 60, flips, x, n)
    assert (found.low, found.high) == pytest.approx((rate.low, rate.high), rel=1e-6)
    assert found.estimate == pytest.approx(rate.estimate)
    other = mean_interval(0.02, 60, flips, [1 - v for v in values], clean=1.0)
    assert (other.low, other.high) == pytest.approx((1 - rate.high, 1 - rate.low), rel=1e-6)


def test_equal_values_are_not_taken_for_certainty():
    found = mean_interval(1.0, 1, [1], [np.full(200, 0.9)], clean=0.95)
    none = clopper_pearson(0, 200).high
    assert found.estimate == pytest.approx(0.9)
    # As wide as if one of 200 might have lost everything.
    assert 0.9 * none * 0.7 < 0.9 - found.low < 0.9 * none * 1.3
    # Far narrower than the rate of an event that happened in 90 % of the trials.
    assert found.high - found.low < 0.6 * (
        clopper_pearson(180, 200).high - clopper_pearson(180, 200).low
    )


def test_accuracy_with_rare_collapses_is_covered_and_wald_does_not_cover():
    rng = np.random.default_rng(seed_for("collapses"))
    ber, bits, flips, trials, clean = 0.01, 100, np.array([1, 2, 3, 4]), 60, 0.92
    collapse, count = 0.015 * flips, 1500
    weights, gaps = flip_masses(ber, bits, flips)
    assert gaps.sum() < 0.004
    mean = (1 - collapse) * (clean - 0.002 * flips) + collapse * 0.1
    # The few images with more flips are taken to collapse all.
    truth = clean * (1 - ber) ** bits + weights @ mean + gaps.sum() * 0.1
    covered = textbook = 0
    for _ in range(count):
        values = []
        for j, share in zip(flips, collapse):
            bad = rng.random(trials) < share
            good = np.clip(clean - 0.002 * j + 0.005 * rng.standard_normal(trials), 0, 1)
            values.append(np.where(bad, 0.1, good))
        found = mean_interval(ber, bits, flips, values, clean=clean)
        covered += found.low <= truth <= found.high
        centre = clean * (1 - ber) ** bits + sum(w * v.mean() for w, v in zip(weights, values))
        half = 1.96 * math.sqrt(sum(w**2 * v.var(ddof=1) / trials for w, v in zip(weights, values)))
        centre += gaps.sum() * 0.1  # Wald is even told what the unmeasured mass adds
        textbook += centre - half <= truth <= centre + half
    assert_at_least(covered, count, 0.945, mutant=0.87, named="Wald's interval")
    assert textbook < 0.92 * count


@pytest.mark.parametrize(
    "call",
    [
        lambda: rate_interval(1.1, 10, [1], [0], [1]),
        lambda: rate_interval(math.nan, 10, [1], [0], [1]),
        lambda: rate_interval(0.1, 0, [1], [0], [1]),
        lambda: rate_interval(0.1, 10.5, [1], [0], [1]),
        lambda: rate_interval(0.1, 10, [11], [0], [1]),
        lambda: rate_interval(0.1, 10, [0], [0], [1]),
        lambda: rate_interval(0.1, 10, [1, 1], [0, 0], [1, 1]),
        lambda: rate_interval(0.1, 10, [1, 2], [0], [1]),
        lambda: rate_interval(0.1, 10, [1], [2], [1]),
        lambda: rate_interval(0.1, 10, [1.5], [0], [1]),
        lambda: rate_interval(0.1, 10, [1], [0], [1], confidence=2),
        lambda: flip_masses(0.1, 10, np.array([2, 1])),
        lambda: covered_mass(0.1, 10, [3, 3]),
        lambda: mean_interval(0.1, 10, [1], [[1.2]], clean=1.0),
        lambda: mean_interval(0.1, 10, [1], [[math.nan]], clean=1.0),
        lambda: mean_interval(0.1, 10, [1], [[0.5]], clean=-0.1),
        lambda: mean_interval(0.1, 10, [1, 2], [[0.5]], clean=1.0),
    ],
)
def test_impossible_arguments_are_refused(call):
    with pytest.raises(ConfigError, match="must"):
        call()
