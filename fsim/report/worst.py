"""The worst faults of a campaign, and how they spread through the network."""

from __future__ import annotations

import numpy as np

from fsim.campaign.results import Results
from fsim.errors import FsimError
from fsim.simulator.campaign.tally import events
from fsim.simulator.statistics import OUTCOME_NAMES, Outcome

LISTED, FOLLOWED = 20, 5
"""Faults that are listed at most, and those of them that are followed layer by layer. Faults
that changed no answer are listed only to make up FOLLOWED."""


def worst_faults(
    results: Results, follow: bool = True, model: str | None = None, listed: int = LISTED
) -> dict | None:
    """Faults by what they did: answers changed, then outputs changed; None without faults.

    Of equally bad ones those of a (layer, component) that is not listed yet come first, then
    the lower trial number.
    follow  open the network and run the worst FOLLOWED of them alone
    model   as `fsim.session.from_task` takes it
    Returns {"faults": [...], "of": trials that changed any output, "alike": how many are as
    bad as the worst one, "followed": number, "why_not": None or why none was followed}.
    """
    if results.kind not in ("single", "list") or not len(results.trials):
        return None
    critical = events(results.outcome, "sdc_critical").sum(axis=1)
    changed = events(results.outcome, "sdc").sum(axis=1)
    if results.kind == "list" and (results.trace.trials["n_faults"] < 1).any():
        return None
    places = np.stack([results.sites["layer"], results.sites["component"]], axis=1)
    order = _ordered(np.flatnonzero(changed), places, np.stack([critical, changed], axis=1))
    order = order[: min(listed, max(FOLLOWED, int((critical > 0).sum())))]
    found = {"faults": [_fault(results, int(at)) for at in order], "of": int((changed > 0).sum()),
             "alike": 0, "followed": 0, "why_not": None}  # fmt: skip
    if len(order):
        best = int(order[0])
        found["alike"] = int(((critical == critical[best]) & (changed == changed[best])).sum())
    if follow and len(order):
        found["why_not"] = _follow(results, found["faults"][:FOLLOWED], model)
        found["followed"] = sum(fault["spread"] is not None for fault in found["faults"])
    elif len(order):
        found["why_not"] = "it was not asked for (--no-explain)"
    return found


def _ordered(faults: np.ndarray, places: np.ndarray, harm: np.ndarray) -> np.ndarray:
    """Trials by harm; of equally bad ones each place comes once before one comes twice."""
    met: dict[tuple, int] = {}
    keys = []
    for at in faults.tolist():
        key = (*harm[at].tolist(), *places[at].tolist())
        met[key] = met.get(key, 0) + 1
        keys.append((*(-harm[at]).tolist(), met[key], at))
    return np.array([key[-1] for key in sorted(keys)], np.int64)


def _fault(results: Results, at: int) -> dict:
    """One trial's fault: where it struck and what it did."""
    site, outcome = results.sites[at], results.outcome[at]
    table = results.trace.outcomes.reshape(-1, results.images)[at]
    image = int(np.argmax(_severity(outcome)))
    worst = table[image]
    rows = results.trace.faults_of(int(site["trial"]))
    row = rows[0]
    lasting = int(row["last"]) == np.iinfo(np.int64).max
    return {
        "trial": int(site["trial"]),
        "event": int(row["event"]),
        "layer": str(results.label("layer")[at]),
        "component": str(results.label("component")[at]),
        "bit": int(site["bit"]),
        "row": _or_none(site["row"]),
        "col": _or_none(site["col"]),
        "word": _or_none(site["word"]),
        "cycle": None if lasting or int(site["word"]) >= 0 else _or_none(site["first"]),
        "events": int(len(np.unique(rows["event"]))),
        "images": int(len(outcome)),
        "critical": int(events(outcome, "sdc_critical").sum()),
        "changed": int(events(outcome, "sdc").sum()),
        "image": int(worst["image"]),
        "label": int(worst["label"]),
        "clean_class": int(worst["golden"]),
        "faulty_class": int(worst["faulty"]),
        "outcome": OUTCOME_NAMES[int(worst["outcome"])],
        "spread": None,
    }


def _severity(outcome: np.ndarray) -> np.ndarray:
    rank = np.zeros(len(OUTCOME_NAMES), int)
    rank[[Outcome.SDC_BENIGN, Outcome.SDC_CRITICAL]] = 1, 2
    return rank[outcome]


def _or_none(value) -> int | None:
    return int(value) if int(value) >= 0 else None


def _follow(results: Results, faults: list[dict], model: str | None) -> str | None:
    """Run faults alone, each on its worst image, and note what differs; why it cannot be done."""
    from fsim.session import from_task
    from fsim.simulator.explain import explain_rows
    from fsim.simulator.sites import check_rows

    try:
        session = from_task(results.task, model)
        for fault in faults:
            rows = results.trace.faults_of(fault["trial"])
            check_rows(session.placement, rows, len(session.images))
            if fault["image"] >= len(session.images):
                raise FsimError(f"image {fault['image']} is not among the run's images")
            told = explain_rows(session.placement, session.images[fault["image"]], rows)
            if told["outcome"] != fault["outcome"]:
                raise FsimError(
                    f"trial {fault['trial']} must be {fault['outcome']} on image "
                    f"{fault['image']} as in the file, got {told['outcome']}"
                )
            fault["spread"] = told["layers"]
            fault["struck"] = _struck(told["faults"])
    except FsimError as error:
        for fault in faults:
            fault["spread"] = None
        return str(error)
    return None


def _struck(parts: list[dict]) -> str:
    """What was hit, and which bits; of several faults the first and how many more there are."""
    first = parts[0]
    place = f" ({first['place']})" if "place" in first else ""
    more = f", and {len(parts) - 1} more" if len(parts) > 1 else ""
    return f"{first['what']}{place}, {first['struck']}{more}"
