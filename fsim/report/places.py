"""Register faults over the PE array: rates of blocks of PEs that were struck often enough.

A register's sites are spread evenly over the PEs of its cell (PEs x cycles, every PE alike),
so that a block's part of every stratum is its part of the array.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import special

from fsim.campaign.results import Results
from fsim.campaign.summary import interval_json
from fsim.errors import FsimError
from fsim.simulator.campaign.tally import events
from fsim.simulator.statistics import clopper_pearson, interval_of_trials
from fsim.simulator.stratified import stratified_interval

EVENTS = 6
"""Events that a block is to have at the mean rate: with fewer an interval tells little."""

LEAST = 30
"""Trials that a block is to have."""

MOST_COMPONENTS = 40
"""Components that have maps of their own: those that were struck most often."""

MOST_STRATIFIED = 16
"""Blocks of a stratified campaign: each needs trials of every stratum."""


def pe_map(results: Results, metric: str, component: str | None = None) -> dict | None:
    """Rates by blocks of PEs; None if no register of a PE was struck.

    component  only faults of this one
    Returns {"metric", "component", "array": [rows, cols], "block": [high, wide], "trials",
    "events", "why_not": None or why there are no blocks, "p_alike": chance of differences between
    blocks as large as these if all PEs were alike (chi-squared; None where trials are weighted
    or have several images), "blocks": [{"row", "row_last", "col",
    "col_last", "trials", "events", "rate": interval}], "rows", "cols": the same by row and by
    column alone}.
    """
    rows, cols = results.task["accel"]["rows"], results.task["accel"]["cols"]
    sites = results.sites
    mine = (sites["row"] >= 0) & (sites["col"] >= 0) & (sites["row"] < rows) & (
        sites["col"] < cols
    )  # fmt: skip
    if component is not None:
        mine &= results.label("component") == component
    if not mine.any():
        return None
    hits = events(results.outcome[mine], metric)
    n, k = len(hits), int(hits.sum())
    found = {
        "metric": metric, "component": component, "array": [rows, cols], "block": None,
        "trials": n, "events": k, "why_not": None, "p_alike": None, "blocks": [],
        "rows": [], "cols": [],
    }  # fmt: skip
    need = max(LEAST, math.ceil(EVENTS * hits.size / k)) if k else n + 1
    most = n // need
    rate = _Rates(results, mine, hits, component)
    if rate.stratified:
        most = min(most, MOST_STRATIFIED)
    at_row, at_col = sites["row"][mine], sites["col"][mine]
    for name, at, size in (("rows", at_row, rows), ("cols", at_col, cols)):
        step = _step(most, size)
        if step is not None:
            found[name] = [
                {"first": a, "last": b - 1, **rate.of((at >= a) & (at < b), (b - a) / size)}
                for a, b in _cuts(size, step)
            ]
    block = next(
        (b for b in (1 << e for e in range(20))
         if math.ceil(rows / b) * math.ceil(cols / b) <= most), 1 << 20,
    )  # fmt: skip
    if block >= max(rows, cols):
        found["why_not"] = (
            f"{k:,} such outcomes in {n:,} trials: fewer than two blocks of PEs would have "
            f"{EVENTS} each"
        )
        return found
    found["block"] = [min(block, rows), min(block, cols)]
    for top, bottom in _cuts(rows, block):
        for left, right in _cuts(cols, block):
            inside = (at_row >= top) & (at_row < bottom) & (at_col >= left) & (at_col < right)
            part = (bottom - top) * (right - left) / (rows * cols)
            found["blocks"].append(
                {"row": top, "row_last": bottom - 1, "col": left, "col_last": right - 1,
                 **rate.of(inside, part)}
            )  # fmt: skip
    if results.images == 1 and not rate.stratified:
        found["p_alike"] = alike(
            [block["events"] for block in found["blocks"]],
            [block["trials"] for block in found["blocks"]],
        )
    return found


def alike(events_, trials) -> float | None:
    """Pearson's chi-squared test that all parts have one rate; None if it cannot be asked.

    Source: Pearson, Philosophical Magazine 50 (1900) 157. Parts without trials are left out.
    """
    k, n = np.array(events_, float), np.array(trials, float)
    k, n = k[n > 0], n[n > 0]
    rate = k.sum() / n.sum() if n.sum() else 0.0
    if len(n) < 2 or not 0 < rate < 1:
        return None
    chi = float((((k - n * rate) ** 2) / (n * rate * (1 - rate))).sum())
    return float(special.chdtrc(len(n) - 1, chi))


def _step(most: int, size: int) -> int | None:
    """The least power of two of which `most` make up a side, if at least two do."""
    step = 1
    while math.ceil(size / step) > most:
        step *= 2
        if step >= size:
            return None
    return step if size > 1 else None


def _cuts(size: int, step: int) -> list[tuple[int, int]]:
    return [(a, min(a + step, size)) for a in range(0, size, step)]


class _Rates:
    """Rates of some of the trials, in the way that the campaign's design asks for."""

    def __init__(self, results: Results, mine: np.ndarray, hits: np.ndarray, component):
        self.confidence, self.images, self.hits = results.rule.confidence, results.images, hits
        frame = results.frame
        self.stratified = frame is not None and len(frame.strata) > 1 and self.images == 1
        if self.stratified:
            self.stratum = frame.split(results.trials[mine])[0]
            per_site = 1 if frame.each else frame.images
            of_pes = set(np.unique(results.sites["component"][mine]).tolist())
            sizes = [
                sum(int(sites) * per_site for cell, sites in zip(s.cells, s.sites)
                    if frame.cells[cell].component in of_pes)
                for s in frame.strata
            ]  # fmt: skip
            self.sizes = [(h, size) for h, size in enumerate(sizes) if size]

    def of(self, inside: np.ndarray, part: float) -> dict:
        """inside: which of the trials; part: of the array, in sites."""
        hits = self.hits[inside]
        n = len(hits)
        if self.images > 1:
            found = interval_of_trials(hits.sum(axis=1), self.images, confidence=self.confidence)
        elif not self.stratified:
            found = clopper_pearson(int(hits.sum()), n, confidence=self.confidence)
        else:
            stratum, one = self.stratum[inside], hits[:, 0]
            x = np.array([int(one[stratum == h].sum()) for h, _ in self.sizes])
            m = np.array([int((stratum == h).sum()) for h, _ in self.sizes])
            sizes = [max(round(size * part), int(t)) for (_, size), t in zip(self.sizes, m)]
            found = stratified_interval(x, m, sizes, confidence=self.confidence)
        return {"trials": n, "events": int(hits.sum()), "rate": interval_json(found)}


def pe_maps(results: Results, metrics=("sdc_critical", "sdc")) -> list[dict]:
    """Maps of all registers together and of each, for every metric; [] without registers."""
    if results.kind not in ("single", "list"):
        return []
    try:
        names, counts = np.unique(results.label("component"), return_counts=True)
        names = sorted(names[np.argsort(-counts, kind="stable")][:MOST_COMPONENTS].tolist())
        maps = [pe_map(results, metric) for metric in metrics]
        if maps[0] is not None and len(names) > 1:
            maps += [pe_map(results, metrics[-1], name) for name in names]
        return [found for found in maps if found is not None]
    except FsimError:
        return []
