"""When a campaign stops, and the interval that goes with it.

| rule | trials | interval of the metric |
|---|---|---|
| fixed | a number known before | Clopper-Pearson |
| failures | until the k-th event | inverse binomial |
| width | until the interval is no wider than asked, looked at after every shard | Wilson |
| threshold | until a bound is excluded, looked at after every shard | confidence sequence |

A sample of more than a twentieth of its population has the exact hypergeometric interval
under "fixed"; trials with several images have that of Korn and Graubard over trials.
Strata have their own interval (`stratified`) under "fixed" and "width". Other metrics of a
campaign that stopped by looking at one of them have the confidence sequence, which holds
whenever and why ever one stops.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from fsim.errors import ConfigError
from fsim.simulator.finite import hypergeometric
from fsim.simulator.statistics import Interval, clopper_pearson, interval_of_trials
from fsim.simulator.stopping import RULES, confidence_sequence, interval_after
from fsim.simulator.stratified import stratified_interval

from .tally import METRICS, Tally

_FINITE = 20  # a sample of more than 1 / _FINITE of its population is drawn from a finite one

_LEAST = 100  # trials before a width is believed: an interval of few trials is a matter of luck


@dataclass(frozen=True)
class Rule:
    """When to stop.

    name        of stopping.RULES
    metric      of tally.METRICS: what it looks at
    value       failures: k; width: half-width; threshold: the bound; fixed: 0
    confidence  of all intervals
    most        trials at which it stops in any case
    """

    name: str
    metric: str
    value: float
    confidence: float
    most: int

    def __post_init__(self):
        if self.name not in RULES:
            raise ConfigError(f"rule must be one of {', '.join(RULES)}, got {self.name!r}")
        if self.metric not in METRICS:
            raise ConfigError(f"metric must be one of {', '.join(METRICS)}, got {self.metric!r}")
        if not 0 < self.confidence < 1:
            raise ConfigError(
                f"confidence must lie strictly between 0 and 1, got {self.confidence!r}"
            )

    def to_json(self) -> dict:
        return asdict(self)

    def keep(self, tally: Tally, hits: np.ndarray) -> int:
        """How many of the next trials, with these events, are still part of the campaign."""
        if self.name != "failures":
            return len(hits)
        before = int(tally.of(self.metric).sum())
        reached = np.flatnonzero(before + np.cumsum(hits) >= self.value)
        return int(reached[0]) + 1 if len(reached) else len(hits)

    def done(self, tally: Tally, sizes) -> bool:
        """Whether the campaign is at its end. sizes: members of each stratum."""
        return tally.total >= self.most or self.met(tally, sizes)

    def met(self, tally: Tally, sizes) -> bool:
        """Whether what the rule waits for has happened; of "fixed" never before `most`."""
        if self.name == "failures":
            return int(tally.of(self.metric).sum()) >= self.value
        if self.name == "width":
            if tally.total < _LEAST:
                return False
            found = interval(self, tally, sizes)
            return (found.high - found.low) / 2 <= self.value
        if self.name == "threshold":
            found = interval(self, tally, sizes)
            return not found.low <= self.value <= found.high
        return False


def interval(rule: Rule, tally: Tally, sizes, metric: str | None = None) -> Interval:
    """The interval of a metric (default: the rule's own) of what was counted so far."""
    metric = metric or rule.metric
    found = tally.of(metric)
    k, n = int(found[0]), tally.total
    if rule.name == "fixed" or len(sizes) > 1 or tally.images > 1:
        hits = tally.hits(metric)
        return best_of(found, tally.trials, sizes, hits, tally.images, rule.confidence)
    if metric != rule.metric:
        return confidence_sequence(k, n, confidence=rule.confidence)
    if rule.name == "failures" and k < rule.value:  # stopped by `most`
        return confidence_sequence(k, n, confidence=rule.confidence)
    return interval_after(rule.name, k, n, confidence=rule.confidence)


def best_of(failures, trials, sizes, hits, images: int, confidence: float) -> Interval:
    """The interval of a sample whose size did not depend on what it found.

    failures, trials, sizes  (strata,); sizes are members, or None for an unlimited one
    hits    (trials,) events of each trial; images: of a trial
    """
    if len(sizes) > 1:
        return stratified_interval(failures, trials, sizes, confidence=confidence)
    if images > 1:
        return interval_of_trials(hits, images, confidence=confidence)
    k, n = int(failures[0]), int(trials[0])
    if sizes[0] is not None and n * _FINITE > sizes[0]:
        return hypergeometric(k, n, int(sizes[0]), confidence=confidence)
    return clopper_pearson(k, n, confidence=confidence)
