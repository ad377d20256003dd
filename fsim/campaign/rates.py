"""Accuracy and failures against the bit error rate, from one campaign of counted flips."""

from __future__ import annotations

import math

import numpy as np

from fsim.errors import ConfigError
from fsim.simulator.campaign.tally import METRICS
from fsim.simulator.flip_strata import covered_mass, mean_interval, rate_interval

from .results import Results
from .summary import interval_json

_DECADE = 4  # rates a decade, when none are named


def default_rates(bits: int, most_flips: int) -> list[float]:
    """From one flip in a hundred inferences to a mean of twice the largest count."""
    low = math.floor(math.log10(0.01 / bits) * _DECADE)
    high = math.ceil(math.log10(min(0.5, 2 * most_flips / bits)) * _DECADE)
    return [10 ** (i / _DECADE) for i in range(low, high + 1)]


def curve(
    results: Results, rates=None, *, metric: str = "sdc_critical", monotone: bool = False
) -> dict:
    """Failures and accuracy at bit error rates, with intervals; no new simulation.

    rates     bit error rates in [0, 1]; default `default_rates`
    monotone  assume that more flips are never less harmful: counts between and below the
              measured ones are then bounded by their neighbours

    Returns JSON values, lists along "ber": "critical" (intervals of the metric), "accuracy"
    (intervals of the mean), "covered" (share of inferences whose number of flips was
    measured: the rest widens the interval).
    """
    if results.kind != "flips":
        raise ConfigError(
            f"{results.path} must be a campaign of counted flips (fsim campaign --flips), "
            f"got {results.kind}"
        )
    if metric not in METRICS:
        raise ConfigError(f"metric must be one of {', '.join(METRICS)}, got {metric!r}")
    flips = np.array(results.stated["flips"], np.int64)
    bits, confidence = int(results.stated["bits"]), results.rule.confidence
    rates = default_rates(bits, int(flips[-1])) if rates is None else [float(r) for r in rates]
    failures, trials = results.tally.of(metric), results.tally.trials
    right = results.trace.outcomes["faulty"] == results.trace.outcomes["label"]
    stratum = np.mod(results.trials, len(flips))
    values = [right[stratum == h].astype(np.float64) for h in range(len(flips))]
    clean = results.clean_accuracy
    if math.isnan(clean):
        raise ConfigError(f"{results.path} has no trials")
    found = {
        "file": str(results.path), "model": results.task["model"],
        "accel": results.task["accel"]["name"], "bits": bits,
        "memories": results.task["faults"]["memories"], "metric": metric, "monotone": monotone,
        "clean": clean, "ber": rates, "critical": [], "accuracy": [], "covered": [],
    }  # fmt: skip
    for ber in rates:
        rate = rate_interval(
            ber, bits, flips, failures, trials, confidence=confidence, monotone=monotone
        )  # fmt: skip
        mean = mean_interval(ber, bits, flips, values, clean=clean, confidence=confidence)
        found["critical"].append(interval_json(rate))
        found["accuracy"].append(interval_json(mean))
        found["covered"].append(covered_mass(ber, bits, flips))
    return found
