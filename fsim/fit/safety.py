"""The safety table of a FIT budget: fault classes and metrics of ISO 26262-5, with intervals.

What a budget measured enters as the dangerous share of each component: its deratings times
P(failure | upset). Everything else is the user's: mechanisms, their coverage and own rates.

SPFM and PMHF are linear in the measured probabilities, so that their intervals are those of
sums of terms (`terms.total`). LFM is a ratio that falls with each of them: its limits are taken
at the limits of all probabilities at once (Bonferroni), which is conservative.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fsim.simulator.rates import FIT_HOURS
from fsim.simulator.safety import (
    Classes,
    Element,
    Mechanism,
    Metrics,
    classify,
    dual_point_weight,
    metrics,
)
from fsim.simulator.statistics import Interval

from .lines import Budget
from .terms import Term, bounds, total


@dataclass(frozen=True)
class Safety:
    """A safety table.

    classes   of every component and mechanism, at the estimates
    point     the metrics at the estimates
    spfm, lfm, pmhf  their intervals; pmhf per hour, dual-point term included
    lifetime  hours
    """

    classes: Sequence[Classes]
    point: Metrics
    spfm: Interval
    lfm: Interval
    pmhf: Interval
    lifetime: float


def safety(budget: Budget, mechanisms: Sequence[Mechanism], *, lifetime: float) -> Safety:
    """The safety table; ConfigError for mechanisms of components that the budget has not."""
    confidence = budget.confidence
    guesses = [budget.failing(line).estimate for line in budget.lines]
    # Where no trial told, the mean of the others, as in the estimate of a total.
    mean = budget.probability([line.term for line in budget.lines]).estimate
    guesses = [mean if math.isnan(guess) else guess for guess in guesses]

    def elements(probabilities) -> list[Element]:
        return [
            Element(line.component, line.raw, _share(line) * p)
            for line, p in zip(budget.lines, probabilities)
        ]

    point = metrics(elements(guesses), mechanisms, lifetime=lifetime)
    covers = {name: m for m in mechanisms for name in m.elements}
    whole = sum(line.raw for line in budget.lines) + sum(m.rate for m in mechanisms)
    single, hourly = [], []
    for line in budget.lines:
        by = covers.get(line.component)
        left = 1.0 - (by.coverage if by else 0.0)
        single.append(Term(line.exposed * left, line.failing))
        hourly.append(
            Term(line.exposed * (left + dual_point_weight(by, lifetime)), line.failing)
        )  # fmt: skip
    uncovered, rate = total(single, confidence), total(hourly, confidence)
    ends = bounds([line.term for line in budget.lines], confidence)
    worst, best = (
        metrics(elements([pair[end] for pair in ends]), mechanisms, lifetime=lifetime).lfm
        for end in (1, 0)
    )
    return Safety(
        classify(elements(guesses), mechanisms),
        point,
        _interval(1 - uncovered.high / whole, 1 - uncovered.low / whole, point.spfm, uncovered)
        if whole > 0
        else Interval(math.nan, math.nan, math.nan, "no rate", confidence),
        Interval(worst, best, point.lfm, "limits of all components at once", confidence),
        _interval(rate.low / FIT_HOURS, rate.high / FIT_HOURS, point.pmhf, rate),
        lifetime,
    )


def _share(line) -> float:
    """Part of the raw rate that deratings leave."""
    return math.prod(line.factors.values())


def _interval(low: float, high: float, estimate: float, like: Interval) -> Interval:
    return Interval(low, high, estimate, like.method, like.confidence)
