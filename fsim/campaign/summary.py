"""What a campaign found, as JSON values: the one source of tables, reports and notebooks."""

from __future__ import annotations

import math

from fsim.simulator.criteria import DEFAULT
from fsim.simulator.statistics import Interval, clopper_pearson
from fsim.words import protected_outcomes, protections

from .results import Results

SHOWN = ("masked", "sdc_benign", "sdc_critical", "sdc")
"""Metrics that every campaign has."""


def shown(accel: dict) -> tuple[str, ...]:
    """Metrics that campaigns on a machine, as tasks hold it, have."""
    return (*SHOWN, *protected_outcomes(accel))


def _known(value: float) -> float | None:
    """JSON has no NaN: what no trial told is None."""
    return None if math.isnan(value) else value


def interval_json(found: Interval) -> dict:
    """An interval as JSON values; NaN as None."""
    return {
        "estimate": _known(float(found.estimate)),
        "low": float(found.low), "high": float(found.high), "method": found.method,
        "confidence": found.confidence,
    }  # fmt: skip


def group_json(row: dict) -> dict:
    """A row of `Results.groups` as JSON values."""
    return {k: interval_json(v) if isinstance(v, Interval) else v for k, v in row.items()}


def summary(results: Results) -> dict:
    """Sizes, shares and accuracy of a campaign, and its parts by layer and component."""
    task, stated = results.task, results.stated
    found = {
        "file": str(results.path),
        "complete": results.complete,
        "rule_met": results.met,
        "model": task["model"],
        "accel": task["accel"]["name"],
        "dataflow": task["accel"]["dataflow"],
        "array": [task["accel"]["rows"], task["accel"]["cols"]],
        "protection": protections(task["accel"]),
        "faults": task["faults"],
        "select": task["select"],
        "design": stated["design"],
        "rule": stated["rule"],
        "critical": stated.get("critical", DEFAULT),
        "seed": task["seed"],
        "images": task["images"],
        "images_per_trial": results.images,
        "trials": len(results.trials),
        "population": None,
        "accuracy": {"clean": _known(results.clean_accuracy), "faulty": _known(results.accuracy)},
    }
    if results.frame is not None:
        found["population"] = {
            "sites_per_image": results.frame.sites,
            "members": results.frame.size,
            "strata": len(results.frame.strata),
            "stratify": list(results.frame.stratify),
        }
    if results.kind == "flips":
        found["flips"] = flips_json(results)
        return found
    found["outcomes"] = {name: interval_json(results.share(name)) for name in shown(task["accel"])}
    for name in found["outcomes"]:
        found["outcomes"][name]["count"] = int(results.tally.of(name).sum())
    if results.kind == "single":
        found["by_component"] = [group_json(row) for row in results.groups(("component",))]
        if results.frame.cells[0].layer >= 0:
            found["by_layer"] = [group_json(row) for row in results.groups(("layer",))]
    return found


def flips_json(results: Results) -> list[dict]:
    """Outcomes of each number of flips."""
    rows = []
    confidence = results.rule.confidence
    for number, flips in enumerate(results.stated["flips"]):
        n = int(results.tally.trials[number])
        row = {"flips": flips, "trials": n}
        for name in shown(results.task["accel"]):
            k = int(results.tally.of(name)[number])
            row[name] = interval_json(clopper_pearson(k, n, confidence=confidence))
        rows.append(row)
    return rows
