"""Stratified intervals: exact coverage by enumeration, and simulated campaigns.

A simulated coverage of R campaigns is accepted by `assert_at_least`: its bound is the
binomial quantile at probability 1e-9, six standard errors sqrt(0.95 * 0.05 / R) below.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from fsim.errors import ConfigError
from fsim.simulator import finite
from fsim.simulator.statistics import clopper_pearson
from fsim.simulator.stratified import (
    needed_budget,
    neyman_allocation,
    stratified_interval,
    weighted_interval,
)
from tests.rates import assert_at_least, seed_for

VAST = 2**50


def wald(failures, trials, weights, left=1.0):
    """The textbook interval: no width where no stratum shows both outcomes."""
    p = failures / trials
    half = 1.959964 * math.sqrt((weights**2 * p * (1 - p) / trials * left).sum())
    return (weights * p).sum() - half, (weights * p).sum() + half


def binomial(n, p):
    return np.array([math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)])


def hypergeometric(population, failing, n):
    return np.array([
        math.comb(failing, k) * math.comb(population - failing, n - k) / math.comb(population, n)
        for k in range(n + 1)
    ])  # fmt: skip


def joint(laws):
    """Probability of every tuple of counts, strata independent, in the order of ndindex."""
    mass = np.ones(1)
    for law in laws:
        mass = np.multiply.outer(mass, law).ravel()
    return mass


def tables(trials):
    return np.array(list(np.ndindex(*(n + 1 for n in trials))))


def inside(limits, truth):
    limits = np.array(limits)
    return (limits[:, 0] <= truth + 1e-12) & (truth - 1e-12 <= limits[:, 1])


@pytest.mark.parametrize(
    "trials, weights",
    [
        ((15, 10), (0.7, 0.3)), ((15, 10), (0.1, 0.9)), ((5, 30), (0.5, 0.5)), ((1, 1), (0.5, 0.5)),
        ((4, 25), (0.02, 0.98)), ((6, 6, 6), (0.6, 0.3, 0.1)),
    ],
)  # fmt: skip
def test_few_strata_cover_at_every_combination_of_rates_and_wald_does_not(trials, weights):
    rates = (0, 0.01, 0.03, 0.1, 0.2, 0.35, 0.5, 0.8, 0.97, 1)[:: len(trials) - 1]
    counts, n, w = tables(trials), np.array(trials), np.array(weights)
    held = [weighted_interval(x, n, w) for x in counts]
    assert all(i.low <= i.estimate <= i.high for i in held)
    lowest = lowest_wald = 1.0
    for p in itertools.product(rates, repeat=len(trials)):
        mass, truth = joint([binomial(m, q) for m, q in zip(trials, p)]), float(w @ p)
        lowest = min(lowest, mass[inside([(i.low, i.high) for i in held], truth)].sum())
        textbook = [wald(x, n, w) for x in counts] if p == (rates[1],) * len(p) else None
        if textbook:
            lowest_wald = mass[inside(textbook, truth)].sum()
    assert lowest >= 0.95
    assert lowest_wald < 0.5


@pytest.mark.parametrize(
    "trials, sizes",
    [((10, 5), (20, 8)), ((3, 3, 3), (6, 5, 4)), ((9, 2), (10, 40)), ((8, 6), (8, 60))],
)
def test_small_populations_cover_at_every_number_of_failing_sites(trials, sizes):
    counts, n, sizes = tables(trials), np.array(trials), np.array(sizes)
    held = [stratified_interval(x, n, sizes) for x in counts]
    limits, total = [(i.low, i.high) for i in held], sizes.sum()
    textbook = [wald(x, n, sizes / total, 1 - n / sizes) for x in counts]
    lowest = lowest_wald = 1.0
    for failing in np.ndindex(*(sizes + 1)):
        mass = joint([hypergeometric(*table) for table in zip(sizes.tolist(), failing, trials)])
        truth = sum(failing) / total
        lowest = min(lowest, mass[inside(limits, truth)].sum())
        lowest_wald = min(lowest_wald, mass[inside(textbook, truth)].sum())
    assert lowest >= 0.95
    assert lowest_wald < 0.6


def test_one_stratum_is_clopper_pearson():
    for k, n in ((0, 30), (1, 30), (7, 100), (50, 100), (29, 30), (30, 30), (3, 100_000)):
        found = weighted_interval([k], [n], [1.0])
        exact = clopper_pearson(k, n)
        assert (found.low, found.high) == pytest.approx((exact.low, exact.high), rel=1e-6)


@pytest.mark.parametrize("k, n, size", [(30, 150, 300), (3, 500, 1000), (4, 90, 100), (0, 70, 100)])
def test_one_small_stratum_is_close_to_the_exact_hypergeometric_interval(k, n, size):
    found = stratified_interval([k], [n], [size])
    exact = finite.hypergeometric(k, n, size)
    # The exact limits are whole numbers of sites: within one site of them.
    assert abs(found.low - exact.low) < 1.0 / size and abs(found.high - exact.high) < 1.0 / size


@pytest.mark.parametrize("strata", [2, 40, 3000])
def test_zero_failures_in_equal_proportion_are_clopper_pearson(strata):
    trials = np.arange(1, strata + 1)
    found = stratified_interval(trials * 0, trials, trials * 10**12)
    exact = clopper_pearson(0, int(trials.sum()))
    assert found.low == 0 and found.high == pytest.approx(exact.high, rel=1e-6)
    every = stratified_interval(trials, trials, trials * 10**12)
    assert every.high == 1 and every.low == pytest.approx(1 - exact.high, rel=1e-6)


def test_without_failures_the_bound_holds_for_every_spread_of_failing_sites():
    """Any population above the limit shows no failure with probability of at most 2.5 %."""
    rng = np.random.default_rng(11)
    closest = 0.0
    for trials, sizes in [((5, 20), (30, 25)), ((3, 4, 9), (7, 30, 12)), ((1, 1, 1), (2, 3, 9))]:
        high = stratified_interval(np.zeros(len(sizes), int), trials, sizes).high
        for _ in range(4_000):
            failing = rng.integers(0, np.array(sizes) + 1)
            if failing.sum() / sum(sizes) > high + 1e-12:
                none = math.prod(
                    math.comb(size - int(k), n) / math.comb(size, n)
                    for size, k, n in zip(sizes, failing, trials)
                )
                closest = max(closest, none)
    assert 0.01 < closest <= 0.025


def campaigns(name, count, sizes, failing, pilot, budget, confidence=0.95):
    """(covered, covered by Wald, estimates): drawn without repetition, then Neyman."""
    rng = np.random.default_rng(seed_for(name))
    truth, total = failing.sum() / sizes.sum(), sizes.sum()
    covered = textbook = 0
    estimates = []
    for _ in range(count):
        n = pilot.copy()
        x = rng.hypergeometric(failing, sizes - failing, n)
        if budget:
            more = neyman_allocation(x, n, sizes, budget)
            x = x + rng.hypergeometric(failing - x, sizes - n - failing + x, more)
            n = n + more
        found = stratified_interval(x, n, sizes)
        covered += found.low - 1e-12 <= truth <= found.high + 1e-12
        low, high = wald(x, n, sizes / total, 1 - n / sizes)
        textbook += low <= truth <= high
        estimates.append(found.estimate)
    return covered, textbook, np.array(estimates)


def population(name, strata):
    """(sizes, failing sites): unequal weights, rates by the story's name."""
    rng = np.random.default_rng(seed_for("strata"))
    sizes = np.ceil(np.exp(rng.normal(9, 2, strata))).astype(np.int64) + 20
    order = np.argsort(sizes)
    rates = np.zeros(strata)
    if name == "few":  # all failures in a twentieth of the strata
        rates[rng.permutation(strata)[: max(1, strata // 20)]] = 0.2
    elif name == "light":  # in the lightest half
        rates[order[: strata // 2 + 1]] = 0.1
    elif name == "heavy":  # in the heaviest tenth
        rates[order[-max(1, strata // 10) :]] = 0.05
    elif name == "bits":  # a fifth of the strata always fail, as sign bits may, one seldom
        rates[rng.permutation(strata)[: strata // 5 + 1]] = 1.0
        rates[order[-1]] = 0.03
    elif name == "alike":
        rates[:] = 0.02
    else:  # "spread": over four decades
        rates[:] = np.exp(rng.uniform(np.log(1e-4), np.log(0.5), strata))
    return sizes, rng.binomial(sizes, rates)


STORIES = ("few", "light", "heavy", "bits", "alike", "spread")


@pytest.mark.parametrize(
    "strata, trials, count", [(3, 400, 1500), (40, 1500, 1500), (300, 3000, 1500)]
)
@pytest.mark.parametrize("plan", ["proportional", "equal", "neyman"])
def test_simulated_campaigns_cover_and_wald_does_not(strata, trials, count, plan):
    covered = total = textbook = 0
    for story in STORIES:
        sizes, failing = population(story, strata)
        pilot = trials // 2 if plan == "neyman" else trials
        share = np.full(strata, 1 / strata) if plan == "equal" else sizes / sizes.sum()
        first = np.clip(np.rint(share * pilot).astype(np.int64), 2, sizes)
        more = trials - pilot if plan == "neyman" else 0
        name = f"{strata} {plan} {story}"
        one, other, _ = campaigns(name, count // 6, sizes, failing, first, more)
        covered, textbook, total = covered + one, textbook + other, total + count // 6
    assert_at_least(covered, total, 0.945, mutant=0.88, named="a narrower interval")
    assert textbook < covered - 0.02 * total


@pytest.mark.slow
@pytest.mark.parametrize("plan", ["proportional", "neyman"])
def test_three_thousand_strata_of_one_or_two_trials(plan):
    covered = textbook = 0
    for story in ("few", "alike", "spread"):
        sizes, failing = population(story, 3000)
        first = np.ones(3000, np.int64)
        more = 3000 if plan == "neyman" else 0
        one, other, _ = campaigns(f"3000 {story} {plan}", 250, sizes, failing, first, more)
        covered, textbook = covered + one, textbook + other
    assert_at_least(covered, 750, 0.945, mutant=0.84, named="a narrower interval")
    assert textbook < covered - 0.02 * 750


def test_what_the_pilot_does_to_the_estimate_stays_small():
    """At the rate and pilot where theory has the bias at its greatest, 0.3 standard errors."""
    strata, count = 60, 1500
    sizes = np.full(strata, 10**6)
    failing = sizes // 50
    pilot = np.full(strata, 100)
    covered, _, estimates = campaigns("pilot bias", count, sizes, failing, pilot, 200 * strata)
    bias = (estimates.mean() - 0.02) / estimates.std()
    # The mean of 1500 campaigns is known to 0.026 standard errors of one campaign.
    assert -0.3 - 5 * 0.026 < bias < 5 * 0.026
    assert_at_least(covered, count, 0.94, mutant=0.87, named="a = 1")


def test_allocation_follows_neymans_rule():
    sizes = np.array([1, 2, 3, 4]) * 10**9
    failures, trials = np.array([5_000, 100, 0, 9_999]), np.full(4, 10_000)
    given = neyman_allocation(failures, trials, sizes, 100_000)
    p = (failures + 1) / (trials + 2)
    wish = sizes * np.sqrt(p * (1 - p))
    assert given.dtype == np.int64 and given.sum() == 100_000
    assert np.abs(given - 100_000 * wish / wish.sum()).max() <= 1
    # It minimises the variance over all whole splits between the two largest shares.
    variance = (sizes.astype(float) ** 2 * p * (1 - p) / given).sum()
    for a, b in itertools.permutations(range(4), 2):
        moved = given.copy()
        moved[a], moved[b] = moved[a] + 300, moved[b] - 300
        if moved.min() > 0:
            assert (sizes.astype(float) ** 2 * p * (1 - p) / moved).sum() > variance


def test_allocation_never_exceeds_a_stratum_and_spends_the_budget():
    rng = np.random.default_rng(2)
    for _ in range(300):
        strata = int(rng.integers(1, 30))
        sizes = rng.integers(0, 50, strata)
        sizes[0] += 1
        trials = rng.integers(0, sizes + 1)
        failures = rng.integers(0, trials + 1)
        left = sizes - trials
        budget = int(rng.integers(0, 1500))
        given = neyman_allocation(failures, trials, sizes, budget)
        assert given.sum() == min(budget, left.sum())
        assert (given >= 0).all() and (given <= left).all()
        assert_array_equal(given, neyman_allocation(failures, trials, sizes, budget))
    assert_array_equal(neyman_allocation([0, 0], [5, 0], [5, 7], 10**30), [0, 7])
    giant = neyman_allocation([1, 0], [9, 9], [2**62, 2**62], 10)
    assert giant.sum() == 10


def test_the_odd_trial_does_not_go_to_those_that_failed():
    """Sixty strata, 2 or 3 trials each to come: who gets 3 must not hang on its pilot."""
    rng = np.random.default_rng(9)
    taken = []
    for _ in range(200):
        failures = rng.binomial(5, 0.2, 60)
        given = neyman_allocation(failures, np.full(60, 5), np.full(60, 10**6), 150)
        taken.append((given[failures > 0].mean(), given[failures == 0].mean()))
    gap = np.mean(taken, axis=0)
    assert 0 < gap[0] - gap[1] < 0.4  # by largest remainders: 1


def test_the_needed_budget_gives_the_half_width():
    sizes, failing = population("few", 40)
    rng = np.random.default_rng(seed_for("budget"))
    trials = np.minimum(sizes, 60)
    failures = rng.hypergeometric(failing, sizes - failing, trials)
    width = stratified_interval(failures, trials, sizes)
    half = (width.high - width.low) / 2
    assert needed_budget(failures, trials, sizes, 1.001 * half) == 0
    need = needed_budget(failures, trials, sizes, half / 3)
    reached = []
    for _ in range(60):
        more = neyman_allocation(failures, trials, sizes, need)
        x = failures + rng.hypergeometric(
            failing - failures, sizes - failing - trials + failures, more
        )
        found = stratified_interval(x, trials + more, sizes)
        reached.append((found.high - found.low) / 2)
    assert np.mean(reached) == pytest.approx(half / 3, rel=0.15)
    # Nothing is narrower than having tried every site.
    few = np.array([20, 30])
    assert needed_budget([1, 1], [5, 5], few, 1e-9) == 40
    assert needed_budget([0, 0], [0, 0], few, 0.05) <= 50


def test_known_strata_add_no_width_and_untried_ones_their_whole_weight():
    alone = stratified_interval([3], [100], [VAST])
    # Three quarters of the sites are dead: tried all, none failed.
    dead = stratified_interval([3, 0], [100, 3 * VAST], [VAST, 3 * VAST])
    assert (dead.low, dead.high) == pytest.approx((alone.low / 4, alone.high / 4))
    assert dead.estimate == pytest.approx(0.03 / 4)
    failing = stratified_interval([3, VAST], [100, VAST], [VAST, VAST])
    expected = ((1 + alone.low) / 2, (1 + alone.high) / 2)
    assert (failing.low, failing.high) == pytest.approx(expected)
    blind = stratified_interval([3, 0], [100, 0], [3 * VAST, VAST])
    assert (blind.low, blind.high) == pytest.approx((0.75 * alone.low, 0.75 * alone.high + 0.25))
    assert blind.estimate == pytest.approx(0.03)  # of the part that was tried
    assert math.isnan(stratified_interval([3, 0], [100, 0], [VAST, 3 * VAST]).estimate)
    every = stratified_interval([3, 4], [10, 20], [10, 20])
    assert every.low == every.high == every.estimate == 7 / 30
    nothing = stratified_interval([0, 0], [0, 0], [10, 20])
    assert (nothing.low, nothing.high) == (0, 1) and math.isnan(nothing.estimate)
    assert weighted_interval([0], [0], [0.4]).high == 1


def test_always_and_never_failing_strata_keep_their_own_directions():
    """One stratum failed in 100 of 100, one in 0 of 100: up means the second, down the first."""
    found = weighted_interval([100, 0], [100, 100], [0.5, 0.5])
    bound = clopper_pearson(0, 100).high / 2
    # A symmetric binomial of the same variance would give 0.5 +- 0.014.
    assert found.high - 0.5 > 0.9 * bound and 0.5 - found.low > 0.9 * bound


def test_mirror_images():
    rng = np.random.default_rng(4)
    trials = rng.integers(1, 40, 25)
    failures = rng.binomial(trials, 0.3)
    sizes = trials + rng.integers(1, 1000, 25)
    one = stratified_interval(failures, trials, sizes)
    other = stratified_interval(trials - failures, trials, sizes)
    assert (one.low, one.high) == pytest.approx((1 - other.high, 1 - other.low), rel=1e-9)


def test_limits_stay_in_order_whatever_the_sizes():
    """Sizes from 1 to 2^61, all or none failing, weights down to 1e-300: no warning either."""
    rng = np.random.default_rng(6)
    for turn in range(400):
        strata = int(rng.choice([1, 2, 3, 10, 100]))
        sizes = np.exp(rng.uniform(0, rng.choice([3, 10, 42]), strata)).astype(np.int64)
        trials = np.exp(rng.uniform(-1, rng.choice([2, 6, 30]), strata)).astype(np.int64)
        trials = np.minimum(trials, sizes)
        failures = rng.binomial(np.minimum(trials, 10**9), rng.choice([0, 1e-6, 0.01, 0.5, 0.999]))
        if turn % 2:
            failures = (trials * rng.choice([0, 0.5, 1], strata)).astype(np.int64)
        confidence = rng.choice([0.5, 0.95, 0.999999])
        weights = (0.1 + rng.random(strata)) ** rng.choice([1, 5, 300])
        for found in (
            stratified_interval(failures, trials, sizes, confidence=confidence),
            weighted_interval(failures, trials, weights / weights.sum(), confidence=confidence),
        ):
            assert 0 <= found.low <= found.high <= 1
            if not math.isnan(found.estimate):
                assert found.low - 1e-12 <= found.estimate <= found.high + 1e-12


def test_a_wider_confidence_is_a_wider_interval():
    widths = []
    for confidence in (0.5, 0.9, 0.95, 0.99, 0.9999):
        found = stratified_interval([2, 0, 9], [50, 40, 30], [900, 90, 900], confidence=confidence)
        assert found.confidence == confidence
        widths.append(found.high - found.low)
    assert np.all(np.diff(widths) > 0)


@pytest.mark.parametrize(
    "call",
    [
        lambda: stratified_interval([3], [2], [10]),
        lambda: stratified_interval([1], [12], [10]),
        lambda: stratified_interval([-1], [2], [10]),
        lambda: stratified_interval([1, 1], [2], [10]),
        lambda: stratified_interval([0.5], [2], [10]),
        lambda: stratified_interval([], [], []),
        lambda: stratified_interval([0], [0], [0]),
        lambda: stratified_interval([0], [1], [2], confidence=0),
        lambda: stratified_interval(np.array([0]), np.array([1]), np.array([2**63], np.uint64)),
        lambda: weighted_interval([1], [2], [1.1]),
        lambda: weighted_interval([1], [2], [-0.1]),
        lambda: weighted_interval([1], [2], [math.nan]),
        lambda: neyman_allocation([1], [2], [10], -1),
        lambda: neyman_allocation([1], [2], [10], 0.5),
        lambda: needed_budget([1], [2], [10], 0.0),
    ],
)
def test_impossible_arguments_are_refused(call):
    with pytest.raises(ConfigError, match="must"):
        call()
