"""Trials on machines with protected memories: what the decoders make of their faults."""

from __future__ import annotations

import numpy as np

from fsim.simulator.protection import read_rows
from fsim.simulator.statistics import Outcome

from .population import Drawn


def read_drawn(placement, drawn: Drawn) -> tuple[Drawn, np.ndarray, np.ndarray]:
    """(what is read, (t,) bool: something was repaired, (t,) bool: an error was detected).

    All faults of a trial meet in its inferences: they act together.
    """
    count = len(drawn.trial)
    key = np.repeat(np.arange(count), np.diff(drawn.begin))
    found = read_rows(placement, drawn.rows, key)
    begin = np.searchsorted(found.key, np.arange(count + 1))
    seen = []
    for keys in (found.repaired_key, found.detected_key):
        seen.append(np.zeros(count, bool))
        seen[-1][keys] = True
    return Drawn(drawn.trial, found.rows, begin, drawn.image), *seen


def mark(table: np.ndarray, repaired: np.ndarray, detected: np.ndarray) -> None:
    """Set the outcomes CORRECTED and DUE in OUTCOME rows (t, images); as `classify` does."""
    outcome = table["outcome"]
    outcome[(outcome == Outcome.MASKED) & repaired[:, None]] = Outcome.CORRECTED
    outcome[(outcome != Outcome.HANG) & detected[:, None]] = Outcome.DUE
