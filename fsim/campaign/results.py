"""A finished campaign: its trials as one table, and shares with the intervals they deserve."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from fsim.errors import ConfigError, FsimError, TraceError
from fsim.simulator.campaign.frame import AXES, Frame
from fsim.simulator.campaign.rules import Rule, best_of, interval
from fsim.simulator.campaign.tally import METRICS, Tally, events
from fsim.simulator.statistics import Interval, interval_of_trials
from fsim.simulator.stratified import stratified_interval
from fsim.simulator.trace import Trace, read_trace

from .campaign import sizes_of, split_of, tally_of
from .checks import check_frame, check_frame_size, check_sites, check_task
from .tables import lowest_bit, names_of


@dataclass(frozen=True, eq=False)
class Results:
    """A campaign read from its file.

    trace  checked; path: where it came from
    """

    trace: Trace
    path: Path

    @property
    def task(self) -> dict:
        return self.trace.task

    @property
    def stated(self) -> dict:
        """The campaign's part of the task."""
        return self.task["campaign"]

    @property
    def kind(self) -> str:
        """Design: single, flips, chips or list."""
        return self.stated["design"]

    @cached_property
    def rule(self) -> Rule:
        return Rule(**self.stated["rule"])

    @cached_property
    def frame(self) -> Frame | None:
        """Of single faults."""
        stated = self.stated["frame"]
        return None if stated is None else Frame.from_json(stated)

    @property
    def images(self) -> int:
        """Images a trial has."""
        return self.stated["unit_images"]

    @property
    def trials(self) -> np.ndarray:
        """(t,) trial numbers."""
        return self.trace.trials["trial"]

    @cached_property
    def outcome(self) -> np.ndarray:
        """(t, images) outcome codes."""
        return self.trace.outcomes["outcome"].reshape(len(self.trials), self.images)

    @cached_property
    def complete(self) -> bool:
        """Whether the file holds all trials of the design."""
        wanted = self.task["trials"]
        return len(self.trials) == wanted if wanted is not None else True

    @cached_property
    def met(self) -> bool:
        """Whether the rule ended the campaign, and not the most trials it was allowed."""
        return self.rule.name == "fixed" or self.rule.met(self.tally, self.sizes)

    @cached_property
    def tally(self) -> Tally:
        found = tally_of(self.task)
        if len(self.trials):
            found.add(split_of(self.task, self.trials)[0], self.outcome)
        return found

    @cached_property
    def sizes(self) -> tuple:
        """Members of each stratum, or None."""
        return sizes_of(self.task)

    def share(self, metric: str) -> Interval:
        """The share of inferences with an outcome, with the interval of the campaign's rule.

        Not for flips, whose strata have the weights that a rate gives them.
        """
        if metric not in METRICS:
            raise ConfigError(f"metric must be one of {', '.join(METRICS)}, got {metric!r}")
        if self.kind == "flips":
            raise ConfigError(f"{self.path} counts flips: its shares depend on a rate, fsim curve")
        return interval(self.rule, self.tally, self.sizes, metric)

    @cached_property
    def accuracy(self) -> float:
        """Share of right answers with faults, NaN without trials; strata by their weights.

        Of flips: unweighted.
        """
        right = self.trace.outcomes["faulty"] == self.trace.outcomes["label"]
        per_trial = right.reshape(len(self.trials), self.images).mean(axis=1)
        return self._weighted(per_trial)

    @cached_property
    def clean_accuracy(self) -> float:
        """Share of right answers without faults, over the images that trials met."""
        table = self.trace.outcomes
        _, first = np.unique(table["image"], return_index=True)
        if not len(first):
            return math.nan
        return float(np.mean(table["golden"][first] == table["label"][first]))

    def _weighted(self, values: np.ndarray) -> float:
        if not len(values):
            return math.nan
        if len(self.sizes) == 1 or None in self.sizes:
            return float(values.mean())
        stratum = split_of(self.task, self.trials)[0]
        n = np.bincount(stratum, minlength=len(self.sizes))
        sums = np.bincount(stratum, values, minlength=len(self.sizes))
        met = n > 0
        weight = np.array(self.sizes, float)[met]
        return float((sums[met] / n[met] * weight).sum() / weight.sum())

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from fsim.report.notebook import repr_html

        return repr_html(self)

    # --- by layer, component, bit, place ---

    @cached_property
    def sites(self) -> np.ndarray:
        """One record a trial of a single fault: where it struck."""
        if self.kind not in ("single", "list"):
            raise ConfigError(f"{self.path} holds no single faults ({self.kind})")
        rows = self.trace.faults
        _, first = np.unique(rows["trial"], return_index=True)
        rows = rows[first]
        found = np.zeros(len(rows), _SITE)
        for name in ("trial", "layer", "component", "row", "col", "word", "first"):
            found[name] = rows[name]
        found["bit"] = lowest_bit(rows)
        return found

    def label(self, axis: str) -> np.ndarray:
        """(t,) value of an axis for every trial: a name, or the bit."""
        if axis == "bit":
            return self.sites["bit"]
        if axis == "layer":
            names = np.array([*self.task["layers"], "(all)"])
            return names[self.sites["layer"]]  # layer -1 is the last name
        if axis == "component":
            return np.array(self.task["components"])[self.sites["component"]]
        if axis in ("row", "col", "word"):
            return self.sites[axis]
        raise ConfigError(f"axis must be one of {', '.join(AXES)}, row, col, word, got {axis!r}")

    def groups(self, axes: Iterable[str], metrics=("sdc", "sdc_critical")) -> list[dict]:
        """Outcomes of each part of the population, with sizes known from the frame.

        axes  of AXES; every part of the frame is listed, those without trials too
        Returns dicts: the axes, "sites" (of one image), "share" (of all sites), "trials",
        "counts" and for each metric an Interval.
        """
        axes = tuple(axes)
        sizes = self.member_sizes(axes)
        stratum = split_of(self.task, self.trials)[0]
        labels = [self.label(axis) for axis in axes]
        found: dict[tuple, np.ndarray] = {}
        if len(self.trials):
            keys = list(zip(*(column.tolist() for column in labels)))
            for number, key in enumerate(keys):
                found.setdefault(key, []).append(number)
        total = sum(sum(parts.values()) for parts in sizes.values())
        answer = []
        for key, parts in sizes.items():
            mine = np.array(found.get(key, []), np.int64)
            outcome = self.outcome[mine]
            row = dict(zip(axes, key))
            row["sites"] = sum(parts.values()) // (1 if self.frame.each else self.frame.images)
            row["share"] = sum(parts.values()) / total
            row["trials"] = len(mine)
            row["counts"] = {m: int(events(outcome, m).sum()) for m in METRICS}
            for metric in metrics:
                row[metric] = self._interval_of(parts, stratum[mine], outcome, metric)
            answer.append(row)
        return answer

    def _interval_of(self, parts, stratum, outcome, metric) -> Interval:
        """Of a part of the population: `parts` has its members in every stratum."""
        hits = events(outcome, metric)
        confidence = self.rule.confidence
        if self.images > 1:
            return interval_of_trials(hits.sum(axis=1), self.images, confidence=confidence)
        if len(parts) == 1:
            (members,) = parts.values()
            found = [int(hits.sum())], [len(hits)], [members]
            return best_of(*found, hits.sum(axis=1), 1, confidence)
        numbers = list(parts)
        x = np.array([int(hits[stratum == h].sum()) for h in numbers])
        n = np.array([int((stratum == h).sum()) for h in numbers])
        size = np.array([parts[h] for h in numbers])
        found = stratified_interval(x, n, size, confidence=confidence)
        tried = n > 0
        if math.isnan(found.estimate) and tried.any():
            # Most of the part was not tried: the estimate is of what was, the limits of all.
            share = size[tried] / size[tried].sum()
            value = float((share * x[tried] / n[tried]).sum())
            found = replace(found, estimate=min(max(value, found.low), found.high))
        return found

    def member_sizes(self, axes) -> dict[tuple, dict[int, int]]:
        """Value of the axes -> {stratum: members}, for every part of the frame."""
        bad = [axis for axis in axes if axis not in AXES]
        if bad or self.frame is None:
            raise ConfigError(f"parts must be told apart by {', '.join(AXES)}, got {axes}")
        per_site = 1 if self.frame.each else self.frame.images
        found: dict[tuple, dict[int, int]] = {}
        for stratum in self.frame.strata:
            for cell, sites in zip(stratum.cells, stratum.sites):
                cell = self.frame.cells[cell]
                bits = [stratum.bit] if stratum.bit >= 0 else range(cell.bits)
                for bit in bits if "bit" in axes else [None]:
                    members = int(sites) if bit is None or stratum.bit >= 0 else cell.words
                    value = {"layer": cell.layer_name, "component": cell.component_name, "bit": bit}
                    key = tuple(value[axis] for axis in axes)
                    part = found.setdefault(key, {})
                    part[stratum.number] = part.get(stratum.number, 0) + members * per_site
        return found


_SITE = np.dtype(
    [("trial", "<i8"), ("layer", "<i4"), ("component", "<i4"), ("bit", "<i8"), ("row", "<i4"),
     ("col", "<i4"), ("word", "<i8"), ("first", "<i8")]
)  # fmt: skip


def read_results(path) -> Results:
    """The campaign in a file; TraceError if it is none."""
    trace = read_trace(path)
    stated = trace.task.get("campaign")
    if not isinstance(stated, dict):
        raise TraceError(
            f"{path} must be the file of a campaign, got a trace of other trials (fsim inject)"
        )
    found = Results(trace, Path(path))
    try:
        check_results(found)
    except TraceError:
        raise
    except (KeyError, TypeError, ValueError, LookupError, OverflowError, ArithmeticError) as error:
        raise TraceError(f"{path} does not describe a campaign: {error!r}") from None
    return found


def check_results(found: Results) -> None:
    """The task and the tables of a campaign must agree; TraceError otherwise."""
    task = found.task
    try:
        check_task(task)
        if found.stated["frame"] is not None:
            check_frame_size(found.stated["frame"])
            check_frame(found.frame, task)
        images = found.images
        numbers, counts = np.unique(found.trace.outcomes["trial"], return_counts=True)
        if len(numbers) and (counts != images).any():
            raise TraceError(f"every trial must have {images} outcomes")
        names_of(found.trace)
        if found.kind == "single":
            if (found.trace.trials["n_faults"] != 1).any():
                raise TraceError("every trial must have one fault")
            check_sites(found.frame, split_of(task, found.trials)[0], found.sites)
        _ = found.rule, found.tally, found.sizes
    except FsimError as error:
        raise TraceError(f"{found.path}: {error}") from None
