"""Sums of rates, each times a probability that was measured: their intervals.

A term is a rate (FIT if every event failed) times P(failure | event), known exactly or from
trials. The interval of a sum of terms is

    one term          that of its probability
    independent ones  the inverted test of strata with known weights
                      (`simulator.stratified.weighted_interval`): the weight of a stratum is
                      its part of all rates, and strata that were never tried count as [0, 1]
    else              Bonferroni: of m terms each has an interval at confidence
                      1 - (1 - c) / m, and limits add up. Conservative, whatever depends on what

The last is for trials whose number depended on what they found, and for trials with several
images. Terms that are known exactly, and populations that were tried whole, add no width.
Coverage is measured in `tests/test_fit_terms.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fsim.errors import ConfigError
from fsim.simulator.campaign.rules import best_of
from fsim.simulator.statistics import Interval, interval_of_trials
from fsim.simulator.stopping import confidence_sequence
from fsim.simulator.stratified import stratified_interval, weighted_interval


@dataclass(frozen=True, eq=False)
class Counts:
    """What trials say of one part: failures in strata of known sizes.

    failures, trials  (s,) int64, failures in images and trials in faults
    sizes   (s,) members of the part in each stratum; 0 < size. None: not numbered
    hits    (t,) failing images of each trial
    images  of a trial; more than one are a cluster
    looked  the number of trials depended on the failures
    """

    failures: np.ndarray
    trials: np.ndarray
    sizes: np.ndarray | None = None
    hits: np.ndarray | None = None
    images: int = 1
    looked: bool = False

    @property
    def total(self) -> tuple[int, int]:
        """(failures, trials) of all strata."""
        return int(self.failures.sum()), int(self.trials.sum())

    @property
    def whole(self) -> bool:
        """Whether every member was tried, once and with all images of the population."""
        if self.sizes is None or self.images > 1:
            return False
        return bool((self.trials == self.sizes).all())

    @property
    def independent(self) -> bool:
        """Whether strata are independent binomials."""
        return self.images == 1 and (not self.looked or len(self.trials) > 1)

    def shares(self) -> np.ndarray:
        """(s,) part of the members that each stratum has."""
        if self.sizes is None:
            return np.ones(1)
        return self.sizes.astype(np.float64) / float(self.sizes.astype(object).sum())

    def interval(self, confidence: float) -> Interval:
        """Of P(failure | event) in this part.

        A number of trials known before: Clopper-Pearson, hypergeometric or stratified, as
        in the tables of a campaign. One that looked: the confidence sequence, or with
        strata the stratified interval. Several images: Korn and Graubard.
        """
        failures, trials = self.total
        if self.images > 1:
            return interval_of_trials(self.hits, self.images, confidence=confidence)
        if len(self.trials) > 1:
            return self._stratified(confidence)
        if self.looked and not self.whole:
            return confidence_sequence(failures, trials, confidence=confidence)
        size = None if self.sizes is None else int(self.sizes[0])
        return best_of(self.failures, self.trials, [size], None, 1, confidence)

    def _stratified(self, confidence: float) -> Interval:
        found = stratified_interval(
            self.failures, self.trials, self.sizes, confidence=confidence
        )  # fmt: skip
        tried = self.trials > 0
        if math.isnan(found.estimate) and tried.any():
            # Most of the part was not tried: the estimate is of what was, the limits of all.
            value = _mean(self.shares()[tried], self.failures[tried] / self.trials[tried])
            found = replace(found, estimate=min(max(value, found.low), found.high))
        return found


def _mean(weights: np.ndarray, values: np.ndarray) -> float:
    return float((weights * values).sum() / weights.sum())


@dataclass(frozen=True, eq=False)
class Term:
    """rate x probability.

    rate      FIT if every event failed, at least 0
    failing   Counts, or the probability itself where a source states it
    """

    rate: float
    failing: Counts | float

    def interval(self, confidence: float) -> Interval:
        """Of rate x probability, in FIT."""
        return scaled(self.probability(confidence), self.rate)

    def probability(self, confidence: float) -> Interval:
        """Of P(failure | event)."""
        if isinstance(self.failing, Counts):
            return self.failing.interval(confidence)
        value = float(self.failing)
        return Interval(value, value, value, "as stated", confidence)

    @property
    def certain(self) -> bool:
        """Whether its probability is known without width."""
        return not isinstance(self.failing, Counts) or self.failing.whole


def scaled(found: Interval, by: float) -> Interval:
    """The interval of `by` times what `found` is of."""
    return replace(found, low=by * found.low, high=by * found.high, estimate=by * found.estimate)


def total(terms: Sequence[Term], confidence: float = 0.95) -> Interval:
    """Interval of the sum of terms, in FIT.

    In the estimate a term without any trial fails like the mean of those that have some, if
    those are at least half of the rate; else the estimate is NaN. The limits know nothing of it.

    ConfigError for a negative or infinite rate.
    """
    for term in terms:
        if not 0.0 <= term.rate < math.inf:
            raise ConfigError(f"a rate must be a finite number of at least 0, got {term.rate!r}")
    terms = [term for term in terms if term.rate > 0]
    known = [term for term in terms if term.certain]
    open_ = [term for term in terms if not term.certain]
    fixed = sum(term.probability(confidence).estimate * term.rate for term in known)
    if not open_:
        method = terms[0].probability(confidence).method if len(terms) == 1 else "no width"
        return Interval(fixed, fixed, fixed, method, confidence)
    if len(open_) == 1:
        found = open_[0].interval(confidence)
    elif all(term.failing.independent for term in open_):
        found = _of_strata(open_, confidence)
    else:
        found = _bonferroni(open_, confidence)
    return replace(
        found, low=fixed + found.low, high=fixed + found.high, estimate=fixed + found.estimate
    )


def _of_strata(terms: Sequence[Term], confidence: float) -> Interval:
    rates = np.concatenate([term.rate * term.failing.shares() for term in terms])
    failures = np.concatenate([term.failing.failures for term in terms])
    trials = np.concatenate([term.failing.trials for term in terms])
    whole = float(rates.sum())
    found = scaled(weighted_interval(failures, trials, rates / whole, confidence=confidence), whole)
    estimate = _estimate(terms, confidence)
    if not math.isnan(estimate):
        estimate = min(max(estimate, found.low), found.high)
    return replace(found, estimate=estimate)


def _estimate(terms: Sequence[Term], confidence: float) -> float:
    """Of the sum: terms without trials fail like the mean of the others."""
    values = [term.interval(confidence).estimate for term in terms]
    tried = [(term.rate, value) for term, value in zip(terms, values) if not math.isnan(value)]
    share = sum(rate for rate, _ in tried) / sum(term.rate for term in terms)
    return sum(value for _, value in tried) / share if share >= 0.5 else math.nan


def _bonferroni(terms: Sequence[Term], confidence: float) -> Interval:
    each = 1.0 - (1.0 - confidence) / len(terms)
    found = [term.interval(each) for term in terms]
    return Interval(
        sum(one.low for one in found), sum(one.high for one in found),
        _estimate(terms, confidence), f"sum of {len(found)} intervals, Bonferroni",
        confidence,
    )  # fmt: skip


def bounds(terms: Sequence[Term], confidence: float) -> list[tuple[float, float]]:
    """(low, high) of every term's probability, all of them at once with `confidence`.

    Bonferroni over the terms that have a width; for what is not a sum of terms.
    """
    width = sum(1 for term in terms if not term.certain)
    each = 1.0 - (1.0 - confidence) / max(width, 1)
    found = [term.probability(each) for term in terms]
    return [(one.low, one.high) for one in found]
