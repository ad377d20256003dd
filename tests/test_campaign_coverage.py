"""Intervals of every stopping rule against the exhaustive truth of a small network.

Every fault of a small network is evaluated once. Then hundreds of campaigns with other seeds
run through the real loop, design and rule, and are asked whether their interval holds the
true share. The Wald interval of the same campaigns must fail the same check.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest
from scipy import special

from fsim.campaign.campaign import design_of
from fsim.fault_models.bit_errors import OneFlip
from fsim.simulator.campaign import run as R
from fsim.simulator.campaign.design import Allocation, Design
from fsim.simulator.campaign.evaluate import Evaluator
from fsim.simulator.campaign.population import _ORDER, SingleFaults
from fsim.simulator.campaign.rules import Rule, interval
from fsim.simulator.campaign.tally import Tally, events
from fsim.simulator.sampling import entries_of_order
from fsim.simulator.sites import select
from fsim.simulator.statistics import interval_of_trials
from fsim.simulator.trace import OUTCOME
from fsim.types import FAULT
from tests.test_delta import IMAGES, made

CAMPAIGNS = 2000
CONFIDENCE = 0.95


def noise(share, campaigns=CAMPAIGNS):
    """Four standard deviations of a share found in so many campaigns: once in 30,000 tests."""
    return 4 * np.sqrt(share * (1 - share) / campaigns)


@functools.cache
def truth(stratify=()):
    """(frame, outcome codes of every member of every stratum)."""
    placement, images = made("residual")
    space = select(placement, ["fc"], ["psums", "weights"])
    faults = SingleFaults(space, OneFlip(("psums", "weights")), IMAGES, stratify=stratify, seed=0)
    frame = faults.frame
    evaluator = Evaluator(placement, images, np.zeros(IMAGES, np.int64), threads=2)
    outcomes = []
    for h, size in enumerate(frame.sizes):
        codes = np.empty(size, np.uint8)
        for first in range(0, size, 20_000):
            index = np.arange(first, min(first + 20_000, size))
            table = evaluator.outcomes(faults.draw(frame.trials(h, first, first + len(index))))
            member = entries_of_order(size, index, seed=0, stream=_ORDER + h)
            codes[member] = table["outcome"]
        outcomes.append(codes)
    return frame, outcomes


def share(stratify, metric):
    _, outcomes = truth(stratify)
    return float(events(np.concatenate(outcomes), metric).mean())


class Looked:
    """An engine that looks faults up in the exhaustive truth."""

    class Died(Exception):
        pass

    window = 2

    def __init__(self, stratify, seed):
        self.frame, self.outcomes = truth(stratify)
        self.seed = seed

    def submit(self, trials):
        stratum, index = self.frame.split(trials)
        table = np.zeros(len(trials), OUTCOME)
        table["trial"] = trials
        for h in np.unique(stratum).tolist():
            here = stratum == h
            size = self.frame.sizes[h]
            member = entries_of_order(size, index[here], seed=self.seed, stream=_ORDER + h)
            table["outcome"][here] = self.outcomes[h][member]
        rows = np.zeros(len(trials), FAULT)
        rows["trial"] = trials

        class Now:
            def result(self):
                return rows, table

        return Now()

    def drop(self, futures):
        pass


def campaign(rule, seed, *, stratify=(), counts=None, pilot=5, shard=64):
    """The tally of one campaign."""
    frame, _ = truth(stratify)
    allocation = None if counts is None else Allocation(tuple(counts))
    design = Design(rule, frame.sizes, frame.trials, allocation, pilot, shard)
    tally = Tally(len(frame.sizes), 1, rule.metric)
    nothing = R.Stored(np.zeros(0, np.int64), np.zeros((0, 1), np.uint8))
    R.run(
        design, frame.split, tally, Looked(stratify, seed), stored=nothing,
        write=lambda rows, table: None,
    )  # fmt: skip
    return tally


def wald(k, n):
    z = float(special.ndtri(0.5 + CONFIDENCE / 2))
    p = k / n
    half = z * np.sqrt(p * (1 - p) / n)
    return p - half, p + half


def stratified_wald(tally, sizes):
    n, x = tally.trials, tally.of("sdc_critical")
    weight = np.array(sizes) / sum(sizes)
    p = x / n
    half = special.ndtri(0.5 + CONFIDENCE / 2) * np.sqrt((weight**2 * p * (1 - p) / n).sum())
    return (weight * p).sum() - half, (weight * p).sum() + half


def misses(tallies, rule, sizes, value):
    """(share of intervals below the truth, share above it)."""
    found = [interval(rule, tally, sizes) for tally in tallies]
    assert all(each.confidence == CONFIDENCE for each in found)
    return np.mean([f.high < value for f in found]), np.mean([f.low > value for f in found])


def wald_misses(tallies, value, wald_of):
    found = [wald_of(tally) for tally in tallies]
    return np.mean([f[1] < value for f in found]), np.mean([f[0] > value for f in found])


def holds(missed, campaigns, *, each_side):
    """Whether misses are no more than nominal: in all, and where promised on either side."""
    alpha = 1 - CONFIDENCE
    both = sum(missed) <= alpha + noise(alpha, campaigns)
    return both and (not each_side or max(missed) <= alpha / 2 + noise(alpha / 2, campaigns))


RULES = {
    "fixed": (Rule("fixed", "sdc_critical", 0, CONFIDENCE, 80), [80]),
    "failures": (Rule("failures", "sdc_critical", 2, CONFIDENCE, 10**6), None),
    "width": (Rule("width", "sdc_critical", 0.03, CONFIDENCE, 10**6), None),
    "threshold": (Rule("threshold", "sdc_critical", 0.05, CONFIDENCE, 3000), None),
}


@pytest.mark.parametrize("name", RULES)
def test_intervals_of_every_rule_hold_the_truth(name):
    rule, counts = RULES[name]
    value = share((), "sdc_critical")
    assert 0.002 < value < 0.05  # rare, and known from every single fault
    frame, outcomes = truth()
    assert len(outcomes[0]) == frame.size
    tallies = [campaign(rule, seed, counts=counts) for seed in range(1, CAMPAIGNS + 1)]

    def wald_of(tally):
        return wald(int(tally.of("sdc_critical")[0]), tally.total)

    # Wilson's interval promises both sides together, the exact ones each of them.
    each_side = name != "width"
    found = misses(tallies, rule, frame.sizes, value)
    assert holds(found, CAMPAIGNS, each_side=each_side), found
    naive = wald_misses(tallies, value, wald_of)
    assert not holds(naive, CAMPAIGNS, each_side=each_side), naive
    if name == "failures":
        k = [int(tally.of("sdc_critical")[0]) for tally in tallies]
        assert set(k) == {2}
        # (k - 1) / (n - 1) has no bias, k / n has: compare with their noise.
        estimate = np.array([interval(rule, tally, frame.sizes).estimate for tally in tallies])
        ratio = np.array([2 / tally.total for tally in tallies])
        assert abs(estimate.mean() - value) < 4 * estimate.std() / np.sqrt(len(estimate))
        assert ratio.mean() - value > 4 * ratio.std() / np.sqrt(len(ratio))


@pytest.mark.parametrize("name", ["fixed", "width"])
def test_strata_with_neymans_allocation_hold_the_truth(name):
    stratify = ("component", "bit")
    rule = Rule(name, "sdc_critical", 0.02, CONFIDENCE, 150 if name == "fixed" else 10**6)
    value = share(stratify, "sdc_critical")
    assert value == pytest.approx(share((), "sdc_critical"))
    frame, _ = truth(stratify)
    assert len(frame.sizes) == 40
    tallies = [campaign(rule, seed, stratify=stratify, pilot=2, shard=16) for seed in range(1, 301)]
    found = misses(tallies, rule, frame.sizes, value)
    assert holds(found, len(tallies), each_side=False), found
    naive = wald_misses(tallies, value, lambda tally: stratified_wald(tally, frame.sizes))
    assert not holds(naive, len(tallies), each_side=False), naive
    if name == "fixed":
        assert {tally.total for tally in tallies} == {150}


def test_strata_narrow_the_interval_where_failures_keep_to_few_of_them():
    stratify, most = ("component", "bit"), 1000
    frame, _ = truth(stratify)
    rule = Rule("fixed", "sdc_critical", 0, CONFIDENCE, most)
    mean = []
    for axes, counts in ((stratify, None), ((), [most])):
        sizes = frame.sizes if axes else (frame.size,)
        found = [
            interval(rule, campaign(rule, seed, stratify=axes, counts=counts), sizes)
            for seed in range(1, 31)
        ]
        mean.append(np.mean([f.high - f.low for f in found]))
    assert mean[0] < 0.8 * mean[1], mean


def test_the_exhaustive_campaign_is_exact():
    frame, outcomes = truth()
    rule = Rule("fixed", "sdc_critical", 0, CONFIDENCE, frame.size)
    tally = campaign(rule, 9, counts=[frame.size], shard=50_000)
    found = interval(rule, tally, frame.sizes)
    value = share((), "sdc_critical")
    assert found.low == found.high == pytest.approx(value) and found.estimate == found.low
    half = campaign(rule, 9, counts=[frame.size // 2], shard=50_000)
    found = interval(rule, half, frame.sizes)
    assert found.method == "hypergeometric" and found.low <= value <= found.high


def test_pooled_images_of_one_fault_do_not_cover():
    """The fault is the unit: its images are anything but independent."""
    placement, images = made("residual")
    space = select(placement, ["a", "fc"], ["weights"])
    every = SingleFaults(space, OneFlip(("weights",)), IMAGES, each=IMAGES, seed=0)
    evaluator = Evaluator(placement, images, np.zeros(IMAGES, np.int64), threads=2)
    drawn = every.draw(every.frame.trials(0, 0, every.frame.size))
    code = evaluator.outcomes(drawn)["outcome"].reshape(every.frame.size, IMAGES)
    hits = events(code, "sdc").sum(axis=1)
    value = hits.mean() / IMAGES
    rng = np.random.default_rng(1)
    held = pooled = 0
    for _ in range(400):
        some = rng.choice(hits, 60, replace=False)
        found = interval_of_trials(some, IMAGES, confidence=CONFIDENCE)
        held += found.low <= value <= found.high
        low, high = wald(int(some.sum()), some.size * IMAGES)
        pooled += low <= value <= high
    assert held / 400 >= CONFIDENCE - noise(CONFIDENCE, 400), held
    assert pooled / 400 < 0.8, pooled


def test_a_design_from_a_task_has_the_strata_of_its_frame():
    stratify = ("component", "bit")
    frame, _ = truth(stratify)
    rule = Rule("fixed", "sdc", 0, CONFIDENCE, 500)
    task = {"campaign": {
        "design": "single", "frame": frame.to_json(), "flips": [], "rule": rule.to_json(),
        "allocation": None, "pilot": 7, "shard": 32,
    }}  # fmt: skip
    design = design_of(task, None)
    assert design.sizes == frame.sizes and not design.fixed
    tally = Tally(len(frame.sizes), 1, "sdc")
    first = next(design.stages(tally))
    assert sum(len(shard) for shard in first) == 7 * len(frame.sizes)
    assert max(len(shard) for shard in first) <= 32
