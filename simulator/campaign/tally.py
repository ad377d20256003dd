"""Counts of a campaign under way, in the order of its trials."""

from __future__ import annotations

import numpy as np

from fsim.simulator.statistics import OUTCOME_NAMES, Outcome

METRICS = {
    "masked": (Outcome.MASKED,),
    "corrected": (Outcome.CORRECTED,),
    "sdc": (Outcome.SDC_BENIGN, Outcome.SDC_CRITICAL),
    "sdc_benign": (Outcome.SDC_BENIGN,),
    "sdc_critical": (Outcome.SDC_CRITICAL,),
    "due": (Outcome.DUE,),
    "hang": (Outcome.HANG,),
}
"""What a share can be of: metric -> outcomes."""


def events(outcome: np.ndarray, metric: str) -> np.ndarray:
    """Bool of the outcome codes' shape: does each count for the metric?"""
    return np.isin(outcome, [int(code) for code in METRICS[metric]])


class Tally:
    """Outcomes by stratum, and each trial's share of events.

    strata, images  number of strata; images of a trial
    metric          of METRICS: the event that stopping rules look at
    """

    def __init__(self, strata: int, images: int, metric: str):
        self.strata, self.images, self.metric = strata, images, metric
        self.counts = np.zeros((strata, len(OUTCOME_NAMES)), np.int64)
        self.trials = np.zeros(strata, np.int64)
        self._each: list[np.ndarray] = []

    def add(self, stratum: np.ndarray, outcome: np.ndarray) -> None:
        """Count trials: stratum (t,), outcome (t, images)."""
        np.add.at(self.counts, (np.repeat(stratum, self.images), outcome.reshape(-1)), 1)
        self.trials += np.bincount(stratum, minlength=self.strata)
        codes = np.arange(len(OUTCOME_NAMES))
        self._each.append((outcome[:, :, None] == codes).sum(axis=1).astype(np.int32))

    @property
    def total(self) -> int:
        """Trials counted."""
        return int(self.trials.sum())

    def hits(self, metric: str) -> np.ndarray:
        """(trials,) images of each trial for which an event happened, in order."""
        if len(self._each) > 1:
            self._each = [np.concatenate(self._each)]
        if not self._each:
            return np.zeros(0, np.int64)
        return self._each[0][:, [int(code) for code in METRICS[metric]]].sum(axis=1)

    def of(self, metric: str) -> np.ndarray:
        """(strata,) events of a metric."""
        return self.counts[:, [int(code) for code in METRICS[metric]]].sum(axis=1)
