"""What to protect, from finished data: which bits, layers and registers carry the failures.

A protection turns the faults of some parts of the machine into corrected ones: SECDED over
the words of a layer's memory, hardened cells for single bits of a register. What remains is
the share of failures elsewhere, so no new simulation is needed. That is what SECDED does to single
flips; check bits, which are struck too, and several errors in one memory word are matters of a
campaign on a machine that has the protection (`simulator/protection.py`).

The parts are ranked by one half of the trials and the remainder is estimated from the other
half: a ranking fitted to the data it is judged by would promise too much. Intervals hold
for each step by itself.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from fsim.errors import ConfigError
from fsim.simulator.campaign.rules import best_of
from fsim.simulator.campaign.tally import METRICS, events
from fsim.simulator.statistics import clopper_pearson

from .campaign import split_of
from .results import Results
from .summary import interval_json

SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0)
"""Shares of all bits at which the remainder is stated."""


def protect(
    results: Results,
    *,
    by: Iterable[str] = ("layer", "component", "bit"),
    metric: str = "sdc_critical",
    shares: Iterable[float] = SHARES,
) -> dict:
    """Parts of the machine by how much protecting them brings, and what remains.

    by      axes of the frame that parts are told apart by
    shares  of all bits, at which steps are stated

    Returns JSON values: "unprotected" (interval), "steps" with "share_of_bits", "groups" (how
    many parts), "parts" (those that are new) and "residual" (interval), and "ranking" with
    every part's "share" of the bits, "trials", "events" and "rate" (interval), best first.
    """
    if metric not in METRICS:
        raise ConfigError(f"metric must be one of {', '.join(METRICS)}, got {metric!r}")
    if results.kind != "single":
        raise ConfigError(
            f"{results.path} must hold single faults to say what to protect, got {results.kind}"
        )
    by = tuple(by)
    sizes = results.member_sizes(by)
    total = sum(sum(parts.values()) for parts in sizes.values())
    keys = list(sizes)
    number = {key: i for i, key in enumerate(keys)}
    labels = zip(*(results.label(axis).tolist() for axis in by))
    part = np.array([number[key] for key in labels], np.int64)
    stratum, index = split_of(results.task, results.trials)
    hits = events(results.outcome, metric).sum(axis=1)
    first = index % 2 == 0
    seen = np.bincount(part[first], minlength=len(keys))
    failed = np.bincount(part[first], hits[first], minlength=len(keys)) / results.images
    members = np.array([sum(sizes[key].values()) for key in keys], np.float64)
    # Failures of a bit of the part; half a trial more keeps a lucky part of one trial down.
    density = failed / (seen + 0.5)
    order = np.lexsort((np.arange(len(keys)), -members, -density))
    judge = ~first
    steps, protected, done = [], np.zeros(len(keys), bool), 0
    cumulative = np.cumsum(members[order]) / total
    cumulative[-1] = 1.0  # sums beyond 2**53 are rounded
    for share in shares:
        upto = int(np.searchsorted(cumulative, share, "right"))
        if upto <= done:
            continue
        new = order[done:upto]
        protected[new] = True
        done = upto
        left = np.where(protected[part], 0, hits)
        steps.append({
            "share_of_bits": float(cumulative[upto - 1]),
            "groups": upto,
            "parts": [dict(zip(by, keys[i])) for i in new[:50]],
            "residual": interval_json(_residual(results, stratum[judge], left[judge])),
        })  # fmt: skip
    every = [np.bincount(part, weights=w, minlength=len(keys)) for w in (None, hits)]
    ranking = []
    for i in order:
        trials, found = int(every[0][i]), int(every[1][i])
        rate = clopper_pearson(found, trials * results.images, confidence=results.rule.confidence)
        ranking.append({
            **dict(zip(by, keys[i])), "share": float(members[i] / total), "trials": trials,
            "events": found, "rate": interval_json(rate) if results.images == 1 else None,
        })  # fmt: skip
    return {
        "file": str(results.path),
        "metric": metric,
        "by": list(by),
        "unprotected": interval_json(_residual(results, stratum[judge], hits[judge])),
        "steps": steps,
        "ranking": ranking,
        "note": "ranked by every other trial, judged by the rest",
    }


def _residual(results: Results, stratum, hits):
    """Interval of what remains, from the trials that did not rank."""
    strata = len(results.sizes)
    trials = np.bincount(stratum, minlength=strata)
    failures = np.bincount(stratum, hits, minlength=strata).astype(np.int64)
    return best_of(failures, trials, results.sizes, hits, results.images, results.rule.confidence)
