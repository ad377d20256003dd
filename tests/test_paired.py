"""Paired outcomes: exact coverage over the trinomial law, the exact test, clusters."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from fsim.errors import ConfigError
from fsim.simulator.paired import (
    mcnemar,
    paired_clusters,
    paired_difference,
    paired_outcomes,
)
from fsim.simulator.statistics import clopper_pearson
from tests.rates import assert_at_least, seed_for

RATES = [
    (b, c)
    for b in (0.0, 0.001, 0.01, 0.03, 0.1, 0.2, 0.3, 0.45, 0.6)
    for c in (0.0, 0.001, 0.01, 0.03, 0.1, 0.2, 0.3, 0.4, 0.45)
    if b + c <= 1
]
"""(failing in A alone, in B alone): the whole law of a paired campaign but for n."""


def tables(n):
    return [(b, c) for b in range(n + 1) for c in range(n + 1 - b)]


def law(n, p_b, p_c):
    """Trinomial probability of every (b, c) of `tables(n)`."""

    def power(p, k):
        return p**k if k else 1.0

    rest = max(0.0, 1 - p_b - p_c)
    return np.array([
        math.comb(n, b) * math.comb(n - b, c)
        * power(p_b, b) * power(p_c, c) * power(rest, n - b - c)
        for b, c in tables(n)
    ])  # fmt: skip


def lowest_coverage(limits, n):
    """The least coverage over RATES, exactly."""
    limits = np.array(limits)
    found = []
    for p_b, p_c in RATES:
        mass = law(n, p_b, p_c)
        assert mass.sum() == pytest.approx(1, abs=1e-9)
        difference = p_b - p_c
        inside = (limits[:, 0] <= difference + 1e-12) & (difference - 1e-12 <= limits[:, 1])
        found.append(mass[inside].sum())
    return min(found)


def wald(b, c, n):
    half = 1.96 * math.sqrt((b + c - (b - c) ** 2 / n) / n / n)
    return (b - c) / n - half, (b - c) / n + half


@pytest.mark.parametrize("n", [6, 15, 30])
def test_the_melded_interval_covers_and_walds_does_not(n):
    held = [paired_difference(b, c, n) for b, c in tables(n)]
    assert lowest_coverage([(i.low, i.high) for i in held], n) >= 0.95
    score = [paired_difference(b, c, n, method="tango") for b, c in tables(n)]
    assert 0.91 < lowest_coverage([(i.low, i.high) for i in score], n) < 0.95
    assert lowest_coverage([wald(b, c, n) for b, c in tables(n)], n) < 0.5
    # What the guarantee costs: about an eighth of the width.
    ratio = sum(i.high - i.low for i in held) / sum(i.high - i.low for i in score)
    assert 1.05 < ratio < 1.25


@pytest.mark.parametrize("confidence", [0.9, 0.99])
def test_other_confidences_cover(confidence):
    n = 15
    held = [paired_difference(b, c, n, confidence=confidence) for b, c in tables(n)]
    assert lowest_coverage([(i.low, i.high) for i in held], n) >= confidence


def test_the_interval_excludes_zero_exactly_where_the_exact_test_rejects():
    seen = set()
    for total in range(30):
        for b in range(total + 1):
            found = paired_difference(b, total - b, 40)
            rejected = mcnemar(b, total - b) <= 0.05
            assert (found.low > 0 or found.high < 0) == rejected
            seen.add(rejected)
    assert seen == {True, False}


@pytest.mark.parametrize("b, c", [(0, 0), (0, 5), (1, 9), (7, 3), (6, 6), (0, 1), (20, 41)])
def test_mcnemar_is_the_binomial_tail(b, c):
    total, least = b + c, min(b, c)
    at_most = sum(Fraction(math.comb(total, i), 2**total) for i in range(least + 1))
    at = Fraction(math.comb(total, least), 2**total)
    assert mcnemar(b, c) == pytest.approx(float(min(1, 2 * at_most)), rel=1e-12)
    expected = float(min(1, 2 * at_most - at))
    assert mcnemar(b, c, mid_p=True) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("b, c, n", [(3, 1, 20), (1, 6, 12), (4, 4, 9), (0, 2, 30), (2, 15, 18)])
def test_melded_limits_are_quantiles_of_the_product(b, c, n):
    """P(psi (2 theta - 1) <= high) = 97.5 %: theta on a grid, psi by binomial tail sums."""
    high, m = paired_difference(b, c, n).high, b + c
    theta = (np.arange(200_000) + 0.5) / 200_000
    density = theta**b * (1 - theta) ** (c - 1)
    gain = 2 * theta - 1
    bound = np.clip(high / gain, 0, 1)

    def beta_at_most(first, second):
        """P(Beta(first, second) <= bound) = P(Bin(first + second - 1, bound) >= first)."""
        size = first + second - 1
        terms = (
            math.comb(size, i) * bound**i * (1 - bound) ** (size - i)
            for i in range(first, size + 1)
        )
        return sum(terms)

    # psi takes its upper law where a large one makes the product large, else its lower law.
    inside = np.where(gain > 0, beta_at_most(m + 1, n - m), 1 - beta_at_most(m, n - m + 1))
    assert (inside * density).sum() / density.sum() == pytest.approx(0.975, abs=2e-5)


def test_mcnemar_keeps_its_level_and_mid_p_only_nearly():
    worst = worst_mid = 0.0
    for total in range(1, 120):
        mass = [math.comb(total, b) / 2**total for b in range(total + 1)]
        exact = [mcnemar(b, total - b) <= 0.05 for b in range(total + 1)]
        middle = [mcnemar(b, total - b, mid_p=True) <= 0.05 for b in range(total + 1)]
        worst = max(worst, sum(m for m, r in zip(mass, exact) if r))
        worst_mid = max(worst_mid, sum(m for m, r in zip(mass, middle) if r))
    assert worst <= 0.05 < worst_mid < 0.08


def test_ends_and_symmetry():
    none = paired_difference(0, 0, 20)
    bound = 1 - 0.025 ** (1 / 20)
    assert (none.low, none.high) == pytest.approx((-bound, bound)) and none.estimate == 0
    every = paired_difference(40, 0, 40)
    assert every.high == 1 and 0.75 < every.low < 0.9
    for method in ("melded", "tango"):
        one, other = (paired_difference(*cells, 50, method=method) for cells in ((7, 2), (2, 7)))
        assert (one.low, one.high) == (-other.high, -other.low)
        assert one.low < one.estimate == 0.1 < one.high
    # Far more pairs that agree leave the counts to decide: close to two Poisson rates.
    rare = paired_difference(5, 3, 10**6)
    wide = paired_difference(5, 3, 10**4)
    assert rare.low * 100 == pytest.approx(wide.low, rel=0.01)
    assert math.isnan(paired_difference(0, 0, 0).estimate)


def test_tangos_limits_solve_the_score_equation():
    b, c, n = 12, 3, 60
    for limit in (lambda i: i.low, lambda i: i.high):
        d = limit(paired_difference(b, c, n, method="tango"))
        # Likelihood b log(q + d) + c log q + (n - b - c) log(1 - 2 q - d), its maximum over q.
        q = np.linspace(max(0, -d) + 1e-9, (1 - d) / 2 - 1e-9, 2_000_001)
        log = b * np.log(q + d) + c * np.log(q) + (n - b - c) * np.log(1 - 2 * q - d)
        best = q[log.argmax()]
        score = (b - c - n * d) / math.sqrt(n * (2 * best + d - d * d))
        assert abs(score) == pytest.approx(1.959964, abs=1e-4)


def test_tables_of_outcomes():
    a = np.array([1, 1, 1, 0, 0, 0, 1], bool)
    b = np.array([1, 0, 0, 1, 0, 0, 0], bool)
    assert paired_outcomes(a, b) == paired_difference(3, 1, 7)
    assert paired_clusters(a[:, None], b[:, None]) == paired_difference(3, 1, 7)
    assert paired_outcomes(a, b, method="tango") == paired_difference(3, 1, 7, method="tango")


def test_student_interval_of_trials_by_hand():
    # Differences 0.5 0 0 -0.25 0, mean 0.05; t for 4 degrees of freedom 2.776445.
    a = np.zeros((5, 4), bool)
    b = np.zeros((5, 4), bool)
    a[0, :2], b[3, 0] = True, True
    d = np.array([0.5, 0, 0, -0.25, 0])
    half = 2.776445 * math.sqrt(((d - 0.05) ** 2).sum() / 4 / 5)
    found = paired_clusters(a, b, method="t")
    assert found.estimate == pytest.approx(0.05)
    assert (found.low, found.high) == pytest.approx((0.05 - half, 0.05 + half), abs=1e-6)


def test_equal_trials_are_not_taken_for_certainty():
    same = np.random.default_rng(3).random((40, 10)) < 0.3
    u = clopper_pearson(0, 40).high
    for method in ("korn-graubard", "t"):
        found = paired_clusters(same, same, method=method)
        assert (found.low, found.high) == pytest.approx((-u, u)) and found.estimate == 0
    worse = paired_clusters(np.ones((40, 10), bool), np.zeros((40, 10), bool))
    assert worse.high == 1 and worse.low == pytest.approx(1 - 2 * u)


def test_clusters_cover_rare_differences_where_students_interval_does_not():
    # 100 trials of 20 images; 3 % of the trials make A worse, each on 1 to 20 images.
    rng = np.random.default_rng(seed_for("paired clusters"))
    campaigns, trials, images, worse = 1_600, 100, 8, 0.03
    many = rng.integers(1, images + 1, (campaigns, trials))
    many = many * (rng.random((campaigns, trials)) < worse)
    truth = worse * (images + 1) / 2 / images
    covered = students = pooled = 0
    b = np.zeros((trials, images), bool)
    for count in many:
        a = np.arange(images) < count[:, None]
        found = paired_clusters(a, b)
        covered += found.low <= truth <= found.high
        student = paired_clusters(a, b, method="t")
        students += student.low <= truth <= student.high
        low, high = wald(int(a.sum()), 0, a.size)
        pooled += low <= truth <= high
    assert_at_least(covered, campaigns, 0.945, mutant=0.87, named="Student's interval")
    assert students < covered
    assert pooled < 0.6 * campaigns  # Wald on trials x images


@pytest.mark.parametrize(
    "call",
    [
        lambda: mcnemar(-1, 2),
        lambda: mcnemar(1.5, 2),
        lambda: paired_difference(3, 3, 5),
        lambda: paired_difference(1, 1, 5, method="wald"),
        lambda: paired_difference(1, 1, 5, confidence=0),
        lambda: paired_outcomes(np.zeros(3, bool), np.zeros(4, bool)),
        lambda: paired_outcomes(np.zeros(3), np.zeros(3)),
        lambda: paired_clusters(np.zeros((3, 0), bool), np.zeros((3, 0), bool)),
        lambda: paired_clusters(np.zeros((3, 2), bool), np.zeros((3, 2), bool), method="z"),
    ],
)
def test_impossible_arguments_are_refused(call):
    with pytest.raises(ConfigError, match="must"):
        call()
