"""Chips with fixed fault maps: how accurate they are, and how many are good enough."""

from __future__ import annotations

import math

import numpy as np

from fsim.errors import ConfigError
from fsim.simulator.chips import chips_for_quantile, quantile_interval, yield_interval
from fsim.simulator.statistics import Outcome

from .results import Results
from .summary import interval_json

QUANTILE = 0.05


def chips(results: Results, bound: float | None = None, *, quantile: float = QUANTILE) -> dict:
    """Accuracies of all chips, a low quantile of them, and the yield at a bound.

    bound     accuracy in [0, 1] that a good chip reaches; None: no yield
    quantile  in (0, 1)

    Returns JSON values; "due" is the share of inferences in which an error was detected, whose
    answers count as they are. A limit of the quantile that so few chips do not give is None;
    "chips_needed" says how many do.
    """
    if results.kind != "chips" and not (results.kind == "single" and results.images > 1):
        raise ConfigError(
            f"{results.path} must be a campaign of chips (fsim campaign --chips), "
            f"got {results.kind}"
        )
    if bound is not None and not 0 <= bound <= 1:
        raise ConfigError(f"the bound of a yield must lie in [0, 1], got {bound!r}")
    if not 0 < quantile < 1:
        raise ConfigError(f"a quantile must lie strictly between 0 and 1, got {quantile!r}")
    table = results.trace.outcomes
    right = (table["faulty"] == table["label"]).reshape(len(results.trials), results.images)
    accuracy = right.mean(axis=1)
    if not len(accuracy):
        raise ConfigError(f"{results.path} has no trials")
    confidence = results.rule.confidence
    low = interval_json(quantile_interval(accuracy, quantile, confidence=confidence))
    for end in ("low", "high"):
        low[end] = low[end] if math.isfinite(low[end]) else None
    found = {
        "file": str(results.path), "chips": len(accuracy), "images": results.images,
        "clean": results.clean_accuracy, "accuracy": accuracy.tolist(),
        "due": float((table["outcome"] == Outcome.DUE).mean()),
        "mean": float(accuracy.mean()), "median": float(np.median(accuracy)),
        "worst": float(accuracy.min()), "quantile": {"q": quantile, **low},
        "chips_needed": chips_for_quantile(quantile, confidence=confidence), "yield": None,
    }  # fmt: skip
    if bound is not None:
        good = yield_interval(accuracy, bound, confidence=confidence)
        found["yield"] = {"bound": bound, **interval_json(good)}
    return found
