"""Two campaigns side by side; on the same faults pair by pair."""

from __future__ import annotations

import math

import numpy as np

from fsim.errors import ConfigError
from fsim.simulator.campaign.tally import METRICS, events
from fsim.simulator.paired import mcnemar, paired_clusters

from .results import Results
from .summary import interval_json

_SITE = ("trial", "image", "layer", "component", "row", "col", "word", "effect", "first", "last",
         "and_mask", "or_mask", "xor_mask")  # fmt: skip


def compare(results: Results, other: Results, *, metric: str = "sdc_critical") -> dict:
    """The difference of a share between two campaigns, as JSON values.

    If both tried the same faults on the same images (same seed, same sites), trials are
    paired: McNemar's exact test and the paired interval. Else the difference has the
    interval of two independent ones (Newcombe, Statistics in Medicine 17 (1998) 873,
    method 10 on the intervals that the campaigns have).
    """
    if metric not in METRICS:
        raise ConfigError(f"metric must be one of {', '.join(METRICS)}, got {metric!r}")
    why_not = _why_not(results, other)
    this, that = results.share(metric), other.share(metric)
    found = {
        "this_file": str(results.path), "other": str(other.path), "metric": metric,
        "this": interval_json(this), "that": interval_json(that), "paired": why_not is None,
        "why_not": why_not, "pairs": None, "only_this": None, "only_that": None, "p_value": None,
    }  # fmt: skip
    if why_not is None:
        a, b = (events(r.outcome, metric) for r in (results, other))
        difference = paired_clusters(a, b, confidence=results.rule.confidence)
        only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
        # One image a trial: pairs are independent. Several are not, and have no such test.
        p_value = mcnemar(only_a, only_b) if results.images == 1 else None
        found |= {"pairs": int(a.size), "only_this": only_a, "only_that": only_b,
                  "p_value": p_value}  # fmt: skip
        found["difference"] = {
            "estimate": _number(difference.estimate), "low": difference.low,
            "high": difference.high, "method": difference.method,
        }  # fmt: skip
        return found
    d = this.estimate - that.estimate
    low = d - math.hypot(this.estimate - this.low, that.high - that.estimate)
    high = d + math.hypot(this.high - this.estimate, that.estimate - that.low)
    found["difference"] = {
        "estimate": _number(d), "low": max(-1.0, low) if low == low else -1.0,
        "high": min(1.0, high) if high == high else 1.0,
        "method": "two independent intervals (Newcombe)",
    }  # fmt: skip
    return found


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _why_not(results: Results, other: Results) -> str | None:
    """Why trials of two campaigns are not pairs; None if they are."""
    if len(results.sizes) > 1 or len(other.sizes) > 1:
        return "strata have weights of their own"
    if results.images != other.images or results.task["images"] != other.task["images"]:
        return "they have other images"
    if results.task["data_sha256"] != other.task["data_sha256"]:
        return "they have other data"
    if not np.array_equal(results.trials, other.trials):
        return "they have other trials"
    a, b = results.trace.faults, other.trace.faults
    if len(a) != len(b) or any(not np.array_equal(a[name], b[name]) for name in _SITE):
        return "they have other faults"
    images = [r.trace.outcomes["image"] for r in (results, other)]
    if not np.array_equal(*images):
        return "they have other images"
    if "failures" in (results.rule.name, other.rule.name):
        return "where they stopped depends on what each of them found"
    return None
