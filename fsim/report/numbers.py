"""All numbers of a report as JSON values; pages, pictures and tables only show them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fsim._version import __version__
from fsim.campaign.campaign import split_of
from fsim.campaign.results import Results
from fsim.campaign.summary import flips_json, group_json, interval_json, summary
from fsim.errors import FsimError
from fsim.simulator.campaign.rules import best_of
from fsim.simulator.stopping import confidence_sequence
from fsim.simulator.trace_format import hash_task

from .places import pe_maps
from .worst import worst_faults

PARTS = (
    ("component",), ("layer",), ("layer", "component"), ("component", "bit"),
    ("layer", "component", "bit"),
)  # fmt: skip
"""Ways in which a population is cut, from coarse to fine."""

METRICS = ("sdc_critical", "sdc")


def report_numbers(
    campaigns: Sequence[Results],
    *,
    title: str | None = None,
    follow: bool = True,
    model: str | None = None,
) -> dict:
    """Everything a report of some campaigns shows.

    follow  open the networks to follow the worst faults
    model   name of a network whose code may run for that, as `fsim.session.from_task` asks
    Returns {"fsim": version, "title", "campaigns": [campaign_numbers ...], "comparisons": [of
    each other campaign with the first]}.
    """
    names = _names(campaigns)
    found = [campaign_numbers(r, name, follow, model) for r, name in zip(campaigns, names)]
    return finite({
        "fsim": __version__,
        "title": title or _title(found),
        "campaigns": found,
        "comparisons": [
            {"name": name, "with": names[0], **_comparison(other, campaigns[0])}
            for name, other in zip(names[1:], campaigns[1:])
        ],
    })  # fmt: skip


def campaign_numbers(
    results: Results, name: str, follow: bool = True, model: str | None = None
) -> dict:
    """Everything a report shows of one campaign, called `name` in it."""
    from fsim.campaign.cite import cite, command_of

    task = results.task
    kind, single = results.kind, results.kind == "single"
    whole = single and results.frame.cells[0].layer < 0
    parts = {}
    for axes in PARTS if single else ():
        if not (whole and "layer" in axes):
            parts[",".join(axes)] = [group_json(row) for row in results.groups(axes, METRICS)]
    found = {
        "name": name,
        "kind": kind,
        "summary": summary(results),
        "outcomes": _outcomes(results),
        "accuracy": _accuracy(results),
        "parts": parts,
        "pe": pe_maps(results, METRICS),
        "protect": _protect(results) if single else None,
        "flips": flips_json(results) if kind == "flips" else None,
        "curve": _curve(results) if kind == "flips" else None,
        "chips": _chips(results) if kind == "chips" else None,
        "worst": worst_faults(results, follow, model if model == task["model"] else None),
        "command": command_of(task),
        "methods": cite(results),
        "provenance": {
            "task_sha256": hash_task(task),
            "weights_sha256": task.get("weights_sha256"),
            "codes_sha256": task.get("codes_sha256"),
            "data": task.get("data"),
            "data_sha256": task.get("data_sha256"),
            "accel_sha256": task.get("accel_sha256"),
            "rng_version": task.get("rng_version"),
            "made_by": {str(k): str(v) for k, v in results.trace.provenance.items()},
        },
    }
    return finite(found)


def finite(value):
    """The same values with None for numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _names(campaigns) -> list[str]:
    """The files' names without folder and ending; with a number where two are alike."""
    stems = [r.path.stem for r in campaigns]
    return [
        stem if stems.count(stem) == 1 else f"{stem} ({stems[: at + 1].count(stem)})"
        for at, stem in enumerate(stems)
    ]


def _title(campaigns) -> str:
    first = campaigns[0]["summary"]
    if len(campaigns) == 1:
        return f"Faults in {first['model']} on {first['accel']}"
    return f"{len(campaigns)} fault campaigns"


def _outcomes(results: Results) -> list[dict] | None:
    """Counts and shares of outcomes; "sdc" is both SDCs."""
    if results.kind == "flips":
        return None
    total = int(results.tally.counts.sum())
    rows = []
    for name in ("masked", "corrected", "sdc_benign", "sdc_critical", "due", "hang", "sdc"):
        count = int(results.tally.of(name).sum())
        if count or name in ("masked", "sdc_benign", "sdc_critical", "sdc"):
            share = interval_json(results.share(name))
            rows.append({"outcome": name, "count": count, "of": total, "share": share})
    return rows


def _accuracy(results: Results) -> dict | None:
    """The share of right answers with faults, an interval; None where it depends on a rate."""
    if results.kind == "flips" or not len(results.trials):
        return None
    table, rule = results.trace.outcomes, results.rule
    right = (table["faulty"] == table["label"]).reshape(len(results.trials), -1).sum(axis=1)
    if rule.name != "fixed" and len(results.sizes) == 1 and results.images == 1:
        # Where it stopped depends on what it found: an interval that holds at any time.
        found = confidence_sequence(int(right.sum()), len(right), confidence=rule.confidence)
        return interval_json(found)
    strata = len(results.sizes)
    stratum = split_of(results.task, results.trials)[0]
    hits = np.bincount(stratum, right, minlength=strata).astype(np.int64)
    trials = np.bincount(stratum, minlength=strata)
    return interval_json(
        best_of(hits, trials, results.sizes, right, results.images, rule.confidence)
    )


def _protect(results: Results) -> dict | None:
    from fsim.campaign.protect import protect

    try:
        return protect(results)
    except FsimError as error:
        return {"why_not": str(error)}


def _curve(results: Results) -> dict:
    from fsim.campaign.rates import curve

    try:
        return curve(results)
    except FsimError as error:
        return {"why_not": str(error)}


def _chips(results: Results) -> dict:
    from fsim.campaign.chips import chips

    try:
        return chips(results)
    except FsimError as error:
        return {"why_not": str(error)}


def _comparison(results: Results, first: Results) -> dict:
    from fsim.campaign.compare import compare

    try:
        return compare(results, first, metric=first.rule.metric)
    except FsimError as error:
        return {"cannot": str(error)}
