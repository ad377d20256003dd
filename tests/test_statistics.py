"""Intervals against published tables and closed forms; outcomes case by case."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from scipy import integrate, stats

from fsim.errors import ConfigError
from fsim.simulator.statistics import (
    OUTCOME_NAMES,
    Outcome,
    classify,
    clopper_pearson,
    cluster_interval,
    sample_size,
    summarise,
    top1,
    wilson,
    zero_failure_bound,
)
from tests import rates
from tests.rates import assert_at_least, assert_rate, assert_uniform, seed_for

# R. G. Newcombe, Statistics in Medicine 17 (1998) 857, table I: 95 % limits for
# r of n by method 3 (score, Wilson) and method 5 (exact, Clopper-Pearson).
NEWCOMBE = [
    (81, 263, (0.2553, 0.3662), (0.2527, 0.3676)),
    (15, 148, (0.0624, 0.1605), (0.0578, 0.1617)),
    (0, 20, (0.0000, 0.1611), (0.0000, 0.1684)),
    (1, 29, (0.0061, 0.1718), (0.0009, 0.1776)),
]


@pytest.mark.parametrize("k, n, score, exact", NEWCOMBE)
def test_intervals_equal_newcombes_table(k, n, score, exact):
    for interval, (low, high) in ((wilson(k, n), score), (clopper_pearson(k, n), exact)):
        assert round(interval.low, 4) == low
        assert round(interval.high, 4) == high
        assert interval.estimate == k / n
        assert interval.confidence == 0.95


@pytest.mark.parametrize("n", [1, 2, 10, 1000])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_clopper_pearson_without_or_with_only_failures_has_its_closed_form(n, confidence):
    limit = 1 - ((1 - confidence) / 2) ** (1 / n)
    none = clopper_pearson(0, n, confidence=confidence)
    assert none.low == 0.0 and none.high == pytest.approx(limit, rel=1e-10)
    every = clopper_pearson(n, n, confidence=confidence)
    assert every.high == 1.0 and every.low == pytest.approx(1 - limit, rel=1e-10)
    assert zero_failure_bound(n, confidence=confidence) == pytest.approx(
        1 - (1 - confidence) ** (1 / n), rel=1e-10
    )


@pytest.mark.parametrize("k, n", [(1, 7), (3, 50), (40, 41)])
def test_clopper_pearson_limits_solve_the_binomial_tail_equations(k, n):
    interval = clopper_pearson(k, n)

    def at_most(j, p):
        return sum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(j + 1))

    assert at_most(k, interval.high) == pytest.approx(0.025, rel=1e-8)
    assert 1 - at_most(k - 1, interval.low) == pytest.approx(0.025, rel=1e-8)


def test_wilson_limits_solve_the_score_equation():
    interval = wilson(7, 90, z=2.58)
    for limit in (interval.low, interval.high):
        assert abs(7 / 90 - limit) == pytest.approx(2.58 * math.sqrt(limit * (1 - limit) / 90))
    # Two-sided normal tail beyond 2.58, from tables: 0.00988.
    assert interval.confidence == pytest.approx(1 - 0.00988, abs=5e-6)
    assert wilson(0, 9).low == 0.0 and wilson(9, 9).high == 1.0


def test_nothing_observed_gives_the_whole_range():
    for interval in (clopper_pearson(0, 0), wilson(0, 0), cluster_interval(np.ones((0, 3), bool))):
        assert (interval.low, interval.high) == (0.0, 1.0)
        assert math.isnan(interval.estimate)
    assert zero_failure_bound(0) == 1.0


# Published sample sizes at e = 1 %, t = 2.58, p = 0.5 (tables of the exhaustive
# fault injection study by Gavarini et al., 2022; the last row by the formula).
PUBLISHED_SIZES = {
    27_648: 10_389,
    40_960: 11_834,
    147_456: 14_954,
    294_912: 15_752,
    589_824: 16_184,
    1_179_648: 16_410,
    2_359_296: 16_524,
    864: 821,
    4_608: 3_609,
    17_174_144: 16_625,
}


@pytest.mark.parametrize("population, expected", PUBLISHED_SIZES.items())
def test_sample_sizes_equal_the_published_table(population, expected):
    assert sample_size(population, 0.01, t=2.58, rounding="nearest") == expected
    exact = population / (1 + Fraction(1, 10**4) * (population - 1) / (Fraction("2.58") ** 2 / 4))
    assert sample_size(population, 0.01, t=2.58) == math.ceil(exact)


def test_sample_size_without_a_finite_population():
    # 2.576^2 / 4 / 1e-4 = 16589.44 (IterativeFI's README case).
    assert sample_size(None, 0.01, t=2.576) == 16_590
    assert sample_size(None, 0.01, t=2.576, rounding="nearest") == 16_589
    # A whole number stays: 2^2 / 4 / 0.1^2 = 100 exactly, though 0.1 is no float64.
    assert sample_size(None, 0.1, t=2.0) == 100
    assert sample_size(1, 0.3) == 1
    # 1.95996^2 / 4 / 0.05^2 = 384.15
    assert sample_size(None, 0.05) == 385
    assert sample_size(10**9, 0.05, p=0.1) == math.ceil(1.959964**2 * 0.09 / 0.0025)


def failures(hits, images):
    """A (trials, images) table with hits[i] failing images in trial i."""
    return np.arange(images) < np.array(hits)[:, None]


def test_one_image_per_trial_gives_clopper_pearson():
    assert cluster_interval(failures([1, 0, 0, 1, 0], 1)) == clopper_pearson(2, 5)


def test_student_interval_of_trials_by_hand():
    # Rates 0.4 0.5 0.5 0.6: variance 0.02 / 3, standard error 0.0408248,
    # t for 3 degrees of freedom 3.182446.
    interval = cluster_interval(failures([4, 5, 5, 6], 10), method="t")
    assert interval.estimate == 0.5
    assert interval.low == pytest.approx(0.5 - 3.182446 * 0.04082483, abs=1e-7)
    assert interval.high == pytest.approx(0.5 + 3.182446 * 0.04082483, abs=1e-7)


def test_trials_alike_are_not_taken_for_more_than_all_their_images():
    # The effective size of the same table would be 60.6 > 40 observations.
    interval = cluster_interval(failures([4, 5, 5, 6], 10))
    exact = clopper_pearson(20, 40)
    assert (interval.low, interval.high) == pytest.approx((exact.low, exact.high), rel=1e-12)


def test_korn_graubard_limits_solve_the_beta_tail_equations():
    # Five trials fail on all ten images, five on none: variance of the mean
    # 1/36, 9 effective observations, times (t99 / t9)^2 = (1.984217 / 2.262157)^2.
    interval = cluster_interval(failures([10] * 5 + [0] * 5, 10))
    n = 9 * (1.984217 / 2.262157) ** 2
    k = n / 2

    def tail(a, b, begin, end):
        norm = math.gamma(a) * math.gamma(b) / math.gamma(a + b)
        return integrate.quad(lambda x: x ** (a - 1) * (1 - x) ** (b - 1), begin, end)[0] / norm

    assert tail(k, n - k + 1, 0, interval.low) == pytest.approx(0.025, rel=1e-5)
    assert tail(k + 1, n - k, interval.high, 1) == pytest.approx(0.025, rel=1e-5)
    # Pooling the images as if independent would claim 50 of 100.
    pooled = clopper_pearson(50, 100)
    assert interval.low < pooled.low - 0.2 and interval.high > pooled.high + 0.2


@pytest.mark.parametrize("method", ["korn-graubard", "t"])
def test_trials_without_any_failure_give_an_upper_bound_through_trials(method):
    interval = cluster_interval(failures([0] * 40, 100), method=method)
    assert (interval.low, interval.estimate) == (0.0, 0.0)
    assert interval.high == pytest.approx(1 - 0.025 ** (1 / 40))
    every = cluster_interval(failures([100] * 40, 100), method=method)
    assert (every.high, every.estimate) == (1.0, 1.0)
    assert every.low == pytest.approx(0.025 ** (1 / 40))
    u = 1 - 0.025 ** (1 / 40)
    alike = cluster_interval(failures([30] * 40, 100), method=method)
    assert alike.low == pytest.approx(0.3 * (1 - u)) and alike.high == pytest.approx(0.3 + 0.7 * u)
    single = cluster_interval(failures([3], 10), method=method)
    assert single.low == pytest.approx(0.3 * 0.025) and single.high == pytest.approx(0.9825)


def test_cluster_interval_covers_rare_failures_where_students_does_not():
    # 200 trials of 20 images; 5 % of the trials fail at all, each on a random
    # number of images. Student's interval covers 92 %, pooled images far less.
    rng = np.random.default_rng(seed_for("coverage"))
    campaigns, trials, images = 9_000, 200, 20
    truth = 0.05 * (images + 1) / 2 / images
    hits = rng.integers(1, images + 1, (campaigns, trials)) * (
        rng.random((campaigns, trials)) < 0.05
    )
    covered = students = 0
    for row in hits:
        table = failures(row, images)
        interval = cluster_interval(table)
        covered += interval.low <= truth <= interval.high
        student = cluster_interval(table, method="t")
        students += student.low <= truth <= student.high
    assert_at_least(covered, campaigns, 0.945, mutant=0.91, named="Student's interval over trials")
    assert students < covered


def test_outcomes_case_by_case():
    golden = np.array([[5, 9, 1]] * 5)
    faulty = np.array(
        [
            [5, 9, 1],  # identical
            [5, 8, 1],  # differs, same class
            [9, 8, 1],  # class 1 -> 0
            [9, 9, 1],  # a tie goes to the lowest index: class 1 -> 0
            [5, 9, 9],  # a tie that keeps class 1
        ]
    )
    expected = ["masked", "sdc_benign", "sdc_critical", "sdc_critical", "sdc_benign"]
    assert [OUTCOME_NAMES[code] for code in classify(golden, faulty)] == expected
    assert_array_equal(
        classify(golden, faulty), classify(golden, faulty, top1(golden), top1(faulty))
    )
    stacked = classify(golden, np.stack([faulty, golden]))
    assert_array_equal(stacked, [classify(golden, faulty), [Outcome.MASKED] * 5])
    assert stacked.dtype == np.uint8


def test_detection_and_correction_take_their_order():
    golden = np.array([[3, 1]] * 4)
    faulty = np.array([[3, 1], [3, 1], [1, 3], [1, 3]])
    yes, no = np.array([False, True, True, True]), np.array([False, False, False, True])
    assert_array_equal(
        classify(golden, faulty, corrected=yes),
        [Outcome.MASKED, Outcome.CORRECTED, Outcome.SDC_CRITICAL, Outcome.SDC_CRITICAL],
    )
    assert_array_equal(
        classify(golden, faulty, corrected=True, detected=yes, hung=no),
        [Outcome.CORRECTED, Outcome.DUE, Outcome.DUE, Outcome.HANG],
    )


def test_outcomes_of_spatial_tensors_and_given_classes():
    golden = np.zeros((2, 3, 4, 4), np.int32)
    faulty = golden.copy()
    faulty[1, 2, 3, 3] = 1
    same = np.array([4, 4])
    assert_array_equal(classify(golden, faulty, same, same), [Outcome.MASKED, Outcome.SDC_BENIGN])
    changed = np.array([4, 5])
    assert_array_equal(
        classify(golden, faulty, same, changed), [Outcome.MASKED, Outcome.SDC_CRITICAL]
    )
    # An identical tensor is masked, whatever classes are handed in with it.
    assert_array_equal(
        classify(golden, faulty, same, changed[::-1]), [Outcome.MASKED, Outcome.SDC_BENIGN]
    )


def test_outcome_codes_are_those_of_the_trace_format():
    assert OUTCOME_NAMES == ("masked", "corrected", "sdc_benign", "sdc_critical", "due", "hang")
    assert [int(o) for o in Outcome] == [0, 1, 2, 3, 4, 5]


def test_summary_counts_and_shares():
    outcomes = np.array([[0, 0, 3], [0, 2, 3], [5, 4, 1], [0, 0, 0]])
    summary = summarise(outcomes)
    assert (summary.trials, summary.images) == (4, 3)
    assert list(summary.counts.values()) == [6, 1, 1, 2, 1, 1]
    assert tuple(summary.counts) == tuple(summary.shares) == OUTCOME_NAMES
    for code, name in enumerate(OUTCOME_NAMES):
        assert summary.shares[name] == cluster_interval(outcomes == code)
    flat = summarise(np.array([0, 0, 3, 2]))
    assert flat.shares["sdc_critical"] == clopper_pearson(1, 4)


@pytest.mark.parametrize(
    "call",
    [
        lambda: clopper_pearson(3, 2),
        lambda: clopper_pearson(-1, 2),
        lambda: wilson(0.5, 2),
        lambda: clopper_pearson(1, 2, confidence=1.0),
        lambda: wilson(1, 2, z=0.0),
        lambda: sample_size(10, 0.0),
        lambda: sample_size(10, 0.1, t=-1.0),
        lambda: sample_size(0, 0.1),
        lambda: sample_size(10, 0.1, p=1.0),
        lambda: sample_size(10, 0.1, rounding="floor"),
        lambda: cluster_interval(np.zeros(3, bool)),
        lambda: cluster_interval(np.zeros((3, 2))),
        lambda: cluster_interval(np.zeros((3, 2), bool), method="wald"),
        lambda: classify(np.zeros((2, 3)), np.zeros((2, 3))),
        lambda: classify(np.zeros((2, 3), int), np.zeros((3, 3), int)),
        lambda: classify(np.zeros((2, 3), int), np.zeros((2, 3), int), np.zeros(3, int)),
        lambda: summarise(np.array([[6]])),
        lambda: summarise(np.zeros((2, 2))),
    ],
)
def test_impossible_arguments_are_refused(call):
    with pytest.raises(ConfigError, match="must|got"):
        call()


def test_rate_checks_fail_on_wrong_rates_weak_samples_and_a_spent_budget(monkeypatch):
    monkeypatch.setattr(rates, "_spent", [])
    rng = np.random.default_rng(1)
    n = 40_000
    assert_rate(int(rng.binomial(n, 0.3)), n, 0.3)
    with pytest.raises(AssertionError, match="outside"):
        assert_rate(int(0.33 * n), n, 0.3)
    with pytest.raises(AssertionError, match="take more"):
        assert_rate(30, 100, 0.3)
    with pytest.raises(AssertionError, match="at least"):
        assert_at_least(int(0.25 * n), n, 0.3, mutant=0.2, named="x")
    counts = rng.multinomial(n, np.full(10, 0.1))
    assert_uniform(counts)
    with pytest.raises(AssertionError, match="exceeds"):
        assert_uniform(counts * np.where(np.arange(10) % 2, 0.9, 1.1))
    with pytest.raises(AssertionError, match="take more"):
        assert_uniform(np.full(10, 100))
    assert rates.spent() == pytest.approx(7e-9)
    with pytest.raises(AssertionError, match="budget"):
        assert_rate(int(rng.binomial(n, 0.3)), n, 0.3, alpha=1e-6)


def test_the_acceptance_region_of_a_rate_check_is_as_wide_as_alpha_allows(monkeypatch):
    monkeypatch.setattr(rates, "_spent", [])
    for n, p, alpha in [(200, 0.3, 1e-3), (10**6, 1e-5, 1e-9), (50, 0.9, 1e-6)]:
        low, high = rates._region(n, p, alpha)
        assert stats.binom.cdf(low - 1, n, p) <= alpha / 2 < stats.binom.cdf(low, n, p)
        assert stats.binom.sf(high, n, p) <= alpha / 2 < stats.binom.sf(high - 1, n, p)


def test_images_that_share_no_fault_are_units_of_their_own():
    outcomes = np.zeros((3, 100), np.uint8)
    nothing = summarise(outcomes, unit="image").shares["sdc_critical"]
    assert (nothing.low, nothing.high) == (0, clopper_pearson(0, 300).high)
    assert summarise(outcomes).shares["sdc_critical"].high > 0.5  # three trials tell little
    outcomes[0, :2] = Outcome.SDC_CRITICAL
    two = summarise(outcomes, unit="image").shares["sdc_critical"]
    assert (two.low, two.high) == (clopper_pearson(2, 300).low, clopper_pearson(2, 300).high)
    exact = summarise(outcomes, unit="none").shares["sdc_critical"]
    assert exact.low == exact.high == exact.estimate == 2 / 300
    with pytest.raises(ConfigError, match="unit must be one of"):
        summarise(outcomes, unit="pixel")
