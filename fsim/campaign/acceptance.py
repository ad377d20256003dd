"""Acceptance thresholds for continuous integration: "sdc_critical > 0.01".

    CONDITION = METRIC [.low | .high] (> | >= | < | <=) BOUND
    BOUND     = number | baseline [.low | .high] [(+ | - | *) number]

A condition that holds is a failure. Without .low or .high the estimate is compared;
`.low > bound` fails only when the campaign is sure, `.high > bound` as soon as it may be.
`baseline` is the same metric of the campaign that --baseline names.
"""

from __future__ import annotations

import math
import operator
import re
from dataclasses import dataclass

from fsim.errors import ConfigError
from fsim.simulator.campaign.tally import METRICS

from .results import Results

_COMPARE = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}
_CHANGE = {"+": operator.add, "-": operator.sub, "*": operator.mul}
_NUMBER = r"[0-9.]+(?:[eE][-+]?[0-9]+)?"
_PATTERN = re.compile(
    r"\s*(?P<metric>[a-z_]+)(?:\.(?P<end>low|high))?\s*(?P<compare>>=|<=|>|<)\s*"
    rf"(?:(?P<number>{_NUMBER})|baseline(?:\.(?P<base_end>low|high))?"
    rf"(?:\s*(?P<change>[-+*])\s*(?P<by>{_NUMBER}))?)\s*"
)
NAMES = (*METRICS, "accuracy")


@dataclass(frozen=True)
class Condition:
    """One condition, parsed. `needs_baseline`: it speaks of the baseline."""

    text: str
    metric: str
    end: str | None
    compare: str
    number: float | None
    base_end: str | None
    change: str | None
    by: float | None

    @property
    def needs_baseline(self) -> bool:
        return self.number is None

    def check(self, results: Results, baseline: Results | None) -> dict:
        """{"condition", "value", "bound", "failed"} as JSON values."""
        value = _value(results, self.metric, self.end)
        if self.number is not None:
            bound = self.number
        else:
            bound = _value(baseline, self.metric, self.base_end)
            if self.change is not None:
                bound = _CHANGE[self.change](bound, self.by)
        # Of nothing nothing is known: an empty campaign must not pass.
        failed = math.isnan(value) or math.isnan(bound) or _COMPARE[self.compare](value, bound)
        return {
            "condition": self.text,
            "value": None if math.isnan(value) else value,
            "bound": None if math.isnan(bound) else bound,
            "failed": bool(failed),
        }


def _value(results: Results, metric: str, end: str | None) -> float:
    if metric == "accuracy":
        return results.accuracy
    found = results.share(metric)
    return float(getattr(found, end or "estimate"))


def parse_condition(text: str) -> Condition:
    """The condition in `text`; ConfigError says what is expected."""
    match = _PATTERN.fullmatch(text)
    if match is None or match["metric"] not in NAMES:
        raise ConfigError(
            f"--fail-if must be like 'sdc_critical > 0.01' or 'sdc.low > baseline + 0.002' with "
            f"one of {', '.join(NAMES)}, got {text[:80]!r}"
        )
    try:
        number = None if match["number"] is None else float(match["number"])
        by = None if match["by"] is None else float(match["by"])
        if not all(math.isfinite(x) for x in (number, by) if x is not None):
            raise ValueError("beyond all floats")
    except ValueError:
        raise ConfigError(f"--fail-if must compare with a number, got {text[:80]!r}") from None
    if match["metric"] == "accuracy" and (match["end"] or match["base_end"]):
        raise ConfigError("accuracy has no .low or .high in --fail-if, use sdc_critical")
    return Condition(
        text.strip(), match["metric"], match["end"], match["compare"], number, match["base_end"],
        match["change"], by,
    )  # fmt: skip
