"""A FIT budget as JSON values: the one source of what is printed, written and read on."""

from __future__ import annotations

import math

from fsim.simulator.rates import inference_probability
from fsim.simulator.safety import TARGETS
from fsim.simulator.statistics import Interval

from .lines import Budget, Line
from .safety import Safety


def document(budget: Budget) -> dict:
    """Lines, classes, layers and the total; rates in FIT, what is unknown as None."""
    return {
        "failure": budget.failure,
        "confidence": budget.confidence,
        "components": [_line(budget, line) for line in budget.lines],
        "classes": [
            {"class": name, "fit": _interval(budget.total(_of_class(budget, name)))}
            for name in budget.groups
        ],
        "total": {
            "raw_fit": sum(line.raw for line in budget.lines),
            "exposed_fit": sum(line.exposed for line in budget.lines),
            "fit": _interval(budget.total()),
        },
        "layers": [
            {
                "layer": layer.name,
                "exposed_fit": layer.exposed,
                "failing": _interval(budget.probability(layer.terms)),
                "fit": _interval(budget.total_of(layer.terms)),
            }
            for layer in budget.layers
        ],
        "notes": list(budget.notes),
    }


def _line(budget: Budget, line: Line) -> dict:
    counts = getattr(line.failing, "total", None)
    return {
        "component": line.component,
        "class": line.group,
        "bits": line.bits,
        "raw_fit": line.raw,
        "factors": dict(line.factors),
        "failing": {
            **_interval(budget.failing(line)),
            "condition": line.condition,
            "failures": None if counts is None else counts[0],
            "trials": None if counts is None else counts[1],
        },
        "fit": _interval(budget.fit(line)),
    }


def _of_class(budget: Budget, name: str) -> list[Line]:
    return [line for line in budget.lines if line.group == name]


def per_inference(found: dict, cycles: int, clock: float, duty: float) -> dict:
    """P(failure in an inference) from a document: the total while the machine runs.

    cycles of an inference at `clock` Hz; `duty` is taken out of the total again.
    """
    fit = found["total"]["fit"]
    limits = {
        end: None if fit[end] is None else inference_probability(fit[end] / duty, cycles, clock)
        for end in ("estimate", "low", "high")
    }
    return {"cycles": cycles, "clock": clock, **limits}


def safety_document(found: Safety) -> dict:
    """The safety table as JSON values; rates in FIT, PMHF per hour."""
    names = ("name", "mechanism", "rate", "safe", "single_point", "residual", "detected", "latent")
    rows = [{name: _known(getattr(row, name)) for name in names} for row in found.classes]
    sums = {
        name: _known(math.fsum(getattr(row, name) for row in found.classes)) for name in names[2:]
    }
    return {
        "rows": rows,
        "sum": sums,
        "spfm": _interval(found.spfm),
        "lfm": _interval(found.lfm),
        "pmhf": {
            **_interval(found.pmhf),
            "single_point_and_residual": _known(found.point.pmhf_single),
            "dual_point": _known(found.point.pmhf_dual),
        },
        "lifetime_hours": found.lifetime,
        "targets": TARGETS,
    }


def _known(value):
    """JSON has no NaN: what no trial told is None."""
    return None if isinstance(value, float) and math.isnan(value) else value


def _interval(found: Interval) -> dict:
    return {
        "estimate": _known(float(found.estimate)),
        "low": _known(float(found.low)),
        "high": _known(float(found.high)),
        "method": found.method,
    }
