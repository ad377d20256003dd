"""Sums of rate x probability: coverage of their intervals by simulation, and exact cases."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from fsim.errors import ConfigError
from fsim.fit.terms import Counts, Term, bounds, total
from tests.rates import assert_at_least, seed_for

CAMPAIGNS = 1500
POPULATIONS = {
    "one rare component carries the rate": ([300.0, 5.0, 5.0], [0.05, 0.3, 0.65], [3e-3, 0.1, 0.2]),
    "registers of an array": ([20.0, 5.0, 5.0], [0.667, 0.167, 0.166], [1e-3, 2e-3, 5e-3]),
    "a memory beside registers": ([300.0, 20.0, 5.0, 5.0], [0.7, 0.2, 0.05, 0.05],
                                  [4e-3, 0.08, 0.3, 0.01]),
    "common failures": ([1.0, 2.0, 3.0], [0.2, 0.3, 0.5], [0.6, 0.3, 0.1]),
}  # fmt: skip
"""Name -> (rates, shares of the trials, P(failure)) of components."""


def counted(failures, trials, **more) -> Counts:
    return Counts(np.array([failures], np.int64), np.array([trials], np.int64), **more)


def campaign(rng, shares, p, trials):
    """One sample of a population of components: (trials, failures) of each."""
    n = rng.multinomial(trials, shares)
    return n, rng.binomial(n, p)


def wald_covers(rates, n, x, truth) -> bool:
    """The textbook interval of the sum, with no width where nothing failed."""
    p = x / np.maximum(n, 1)
    half = 1.959964 * math.sqrt((rates**2 * p * (1 - p) / np.maximum(n, 1)).sum())
    return abs((rates * p).sum() - truth) <= half


@pytest.mark.parametrize("name", POPULATIONS)
def test_the_interval_of_a_total_covers(name):
    rates, shares, p = (np.array(column) for column in POPULATIONS[name])
    truth = float((rates * p).sum())
    rng = np.random.default_rng(seed_for(f"fit total {name}"))
    covered = wald = 0
    for _ in range(CAMPAIGNS):
        n, x = campaign(rng, shares, p, 500)
        found = total([Term(r, counted(k, m)) for r, k, m in zip(rates, x, n)])
        assert 0 <= found.low <= found.high <= rates.sum()
        covered += found.low <= truth <= found.high
        wald += wald_covers(rates, n, x, truth)
    assert_at_least(covered, CAMPAIGNS, 0.95, mutant=0.88, named="an interval too narrow")
    # The simulation sees an interval that does not cover: the textbook one, where failures
    # are rare.
    if name != "common failures":
        assert wald < 0.9 * CAMPAIGNS


def test_a_campaign_that_looked_is_covered_too():
    """Stopped at the sixth failure: a confidence sequence for each component, Bonferroni."""
    rates, shares, p = np.array([100.0, 10.0]), np.array([0.2, 0.8]), np.array([0.05, 0.02])
    truth = float((rates * p).sum())
    rng = np.random.default_rng(seed_for("fit looked"))
    covered = 0
    for _ in range(CAMPAIGNS):
        component = rng.choice(2, 4000, p=shares)
        failed = rng.random(4000) < p[component]
        end = np.flatnonzero(np.cumsum(failed) == 6)[0] + 1
        n = np.bincount(component[:end], minlength=2)
        x = np.bincount(component[:end], failed[:end], minlength=2).astype(int)
        terms = [Term(r, counted(k, m, looked=True)) for r, k, m in zip(rates, x, n)]
        found = total(terms)
        assert "Bonferroni" in found.method
        covered += found.low <= truth <= found.high
    assert_at_least(covered, CAMPAIGNS, 0.95, mutant=0.88, named="an interval too narrow")


def test_one_term_has_the_interval_of_its_probability():
    found = total([Term(50.0, counted(3, 700))])
    low, high = stats.beta.ppf(0.025, 3, 698), stats.beta.ppf(0.975, 4, 697)
    assert (found.low, found.high) == pytest.approx((50 * low, 50 * high), rel=1e-9)
    assert found.estimate == pytest.approx(150 / 700)
    # Beside a term that is known, only moved.
    moved = total([Term(50.0, counted(3, 700)), Term(8.0, 0.25)])
    assert (moved.low, moved.high) == pytest.approx((2 + 50 * low, 2 + 50 * high), rel=1e-9)


def test_what_is_known_has_no_width():
    found = total([Term(10.0, 0.1), Term(5.0, 0.4), Term(0.0, counted(1, 2))])
    assert (found.low, found.estimate, found.high) == pytest.approx((3.0, 3.0, 3.0))
    whole = counted(30, 120, sizes=np.array([120]))
    found = total([Term(10.0, whole), Term(5.0, whole)])
    assert found.low == found.high == found.estimate == pytest.approx(15 * 0.25)


def test_a_component_that_no_trial_met_counts_as_anything():
    found = total([Term(10.0, counted(5, 100)), Term(3.0, counted(0, 0))])
    alone = total([Term(10.0, counted(5, 100))])
    assert found.estimate == pytest.approx(13 * 0.05)  # like the mean of the others
    mostly = total([Term(10.0, counted(5, 100)), Term(30.0, counted(0, 0))])
    assert math.isnan(mostly.estimate) and mostly.high >= 30
    looked = total([Term(10.0, counted(5, 100, looked=True)), Term(3.0, counted(0, 0))])
    assert looked.estimate == pytest.approx(13 * 0.05)
    assert found.low <= alone.low and found.high >= 3.0 + alone.estimate


def test_strata_of_a_component_are_weighted_by_their_sizes():
    sizes = np.array([9000, 1000])
    stratified = Counts(np.array([10, 40]), np.array([100, 100]), sizes)
    found = total([Term(2.0, stratified), Term(1.0, 0.0)])
    assert found.estimate == pytest.approx(2 * (0.9 * 0.1 + 0.1 * 0.4))
    assert found.low < found.estimate < found.high


def test_several_images_of_a_fault_are_a_cluster():
    hits = np.array([0] * 45 + [10] * 5, np.int64)
    one = Counts(np.array([50]), np.array([50]), None, hits, images=10)
    pooled = counted(50, 500)
    found, naive = total([Term(1.0, one)]), total([Term(1.0, pooled)])
    assert found.estimate == pytest.approx(0.1) and naive.estimate == pytest.approx(0.1)
    assert found.high - found.low > 2 * (naive.high - naive.low)
    both = total([Term(1.0, one), Term(1.0, pooled)])
    assert "Bonferroni" in both.method and both.high > found.high + naive.high


def test_bounds_hold_for_all_terms_at_once():
    ends = bounds([Term(1.0, counted(3, 100)), Term(9.0, counted(0, 50)), Term(1.0, 0.5)], 0.95)
    tail = 0.05 / 2 / 2
    assert ends[0] == pytest.approx(
        (stats.beta.ppf(tail, 3, 98), stats.beta.ppf(1 - tail, 4, 97)), rel=1e-9
    )
    assert ends[1] == pytest.approx((0, 1 - tail ** (1 / 50)), rel=1e-9)
    assert ends[2] == (0.5, 0.5)


@pytest.mark.parametrize("rate", [-1.0, math.nan, math.inf])
def test_rates_must_be_rates(rate):
    with pytest.raises(ConfigError, match="a rate must be a finite number of at least 0"):
        total([Term(rate, 0.5)])
