"""FIT budgets from campaigns: what was measured, times what the user assumes.

    FIT = raw FIT per bit x bits x duty x occupancy x deratings x P(failure | upset)

The last factor is measured, and its meaning depends on the population of the campaign:

    seu, mbu        AVF: P(failure, given an upset of any bit of the structure in any cycle), dead
                    ones included
    transient       the same, of a bit of a net
    flip            P(failure, given a flip of a word in one of its residencies): conditional on a
                    live word, so that the user's occupancy belongs to it
    stuck0, stuck1  P(some image of the run fails, given that the bit is stuck for good)

Residencies of one memory count alike, however long they last: a campaign of flips knows no
times. A stuck bit is there whether the machine runs or not: duty does not apply to it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fsim.accel_models.accel import Accel
from fsim.campaign.campaign import split_of
from fsim.campaign.results import Results
from fsim.errors import ConfigError
from fsim.simulator.statistics import Outcome

from .assumed import Assumed
from .lines import Budget, Layer, Line
from .machine import bits_of, data_of, machine_of, words_of
from .terms import Counts, Term

FAILURES = {
    "sdc-critical": (Outcome.SDC_CRITICAL,),
    "sdc": (Outcome.SDC_BENIGN, Outcome.SDC_CRITICAL),
    "any": (Outcome.SDC_BENIGN, Outcome.SDC_CRITICAL, Outcome.DUE, Outcome.HANG),
}
"""What may count as a failure -> outcomes. "any" is all that is neither masked nor corrected."""

UPSETS = ("seu", "mbu", "transient")
LASTING = ("stuck0", "stuck1")
KINDS = (*UPSETS, "flip", *LASTING)
"""Kinds of faults that have a rate per bit and time."""

CONDITION = {
    **dict.fromkeys(UPSETS, "AVF: any bit of it, any cycle, dead ones included"),
    "flip": "conditional on a live word: a flip in one of its residencies",
    **dict.fromkeys(LASTING, "some image of the run fails, given the stuck bit"),
}  # fmt: skip


def budget(campaigns: Sequence[Results], assumed: Assumed, *, failure="sdc-critical") -> Budget:
    """The FIT budget of campaigns on one machine that runs one network.

    campaigns  of single faults, no component twice with the same kind of faults
    failure    of FAILURES

    Raises ConfigError for campaigns that no rate can be given to, and for those that do not
    belong together.
    """
    if failure not in FAILURES:
        raise ConfigError(f"failure must be one of {', '.join(FAILURES)}, got {failure!r}")
    for results in campaigns:
        _check(results)
    _check_same(campaigns)
    pairs = [(name, _kind(r)) for r in campaigns for name in _components(r)]
    for pair in pairs:
        if pairs.count(pair) > 1:
            raise ConfigError(
                f"each component must be in one campaign of a kind, got {pair[0]} in two of "
                f"{pair[1]}"
            )
    accel = machine_of(campaigns[0])
    assumed.check_names((c.name for c in accel.components), pairs)
    lines, layers = [], {}
    for results in campaigns:
        mine = _lines(results, accel, assumed, failure)
        lines += mine
        if _kind(results) not in LASTING:
            for name, terms in _layers(results, mine, failure).items():
                layers.setdefault(name, []).extend(terms)
    order = {name: number for number, name in enumerate(campaigns[0].task["layers"])}
    found = [Layer(name, layers[name]) for name in sorted(layers, key=lambda x: order.get(x, -1))]
    confidence = campaigns[0].rule.confidence
    return Budget(lines, failure, confidence, found, _notes(campaigns, accel, assumed, lines))


def cycles_of(results: Results) -> int | None:
    """Cycles of one image's inference; None if the campaign does not tell.

    Campaigns of registers in all layers know them: words of a cell are words of the
    register times cycles.
    """
    if _kind(results) not in UPSETS or results.task["select"]["layers"]:
        return None
    accel = machine_of(results)
    cells = results.frame.cells
    mine = [cell for cell in cells if cell.component == cells[0].component]
    return sum(cell.words for cell in mine) // words_of(accel, accel.components[mine[0].component])


def _kind(results: Results) -> str:
    return results.task["faults"].get("kind")


def _components(results: Results) -> list[str]:
    return list(dict.fromkeys(cell.component_name for cell in results.frame.cells if cell.sites))


def _check(results: Results) -> None:
    """ConfigError for a campaign that no FIT follows from."""
    path, kind = results.path, _kind(results)
    if results.kind == "flips":
        raise ConfigError(
            f"{path} must hold single faults, got sets of flips: their rate is one of bit errors "
            "a residency (fsim curve), and FIT needs fsim campaign --fault flip"
        )
    if results.kind == "chips":
        raise ConfigError(
            f"{path} must hold single faults, got chips: how often a chip is bad is a yield "
            "(fsim chips), not a rate in time"
        )
    if results.kind == "events":
        raise ConfigError(
            f"{path} must hold faults that were drawn from a known population, got events of a "
            f"fault model ({kind})"
        )
    if results.kind == "list":
        raise ConfigError(
            f"{path} must hold faults that were drawn from a known population, got a list"
        )
    if kind not in KINDS:
        raise ConfigError(
            f"{path} must hold faults of kind {', '.join(KINDS)}, got {kind}: its events have "
            "no rate per bit"
        )
    if not results.complete:
        raise ConfigError(
            f"{path} must be a whole campaign, got a part of one: join the parts with fsim merge"
        )
    if not len(results.trials):
        raise ConfigError(f"{path} must have at least one trial, got none")


def _check_same(campaigns: Sequence[Results]) -> None:
    if not campaigns:
        raise ConfigError("a FIT budget needs at least one campaign, got none")
    first = campaigns[0]
    for other in campaigns[1:]:
        for what, key in (("machine", "accel_sha256"), ("network", "codes_sha256")):
            if other.task[key] != first.task[key]:
                raise ConfigError(
                    f"campaigns of one budget must be of one {what}, got another in {other.path} "
                    f"than in {first.path}"
                )
        critical = [r.stated.get("critical", "top1") for r in (first, other)]
        if critical[0] != critical[1]:
            raise ConfigError(
                f"campaigns of one budget must call the same answers critical, got {critical[1]} "
                f"in {other.path} and {critical[0]} in {first.path}"
            )
        if other.rule.confidence != first.rule.confidence:
            raise ConfigError(
                f"campaigns of one budget must have one confidence, got {other.rule.confidence:g} "
                f"in {other.path} and {first.rule.confidence:g} in {first.path}"
            )


def _lines(results: Results, accel: Accel, assumed: Assumed, failure: str) -> list[Line]:
    kind = _kind(results)
    table = {component.name: component for component in accel.components}
    found = []
    for (name,), counts in _counts(results, ("component",), failure).items():
        component = table[name]
        bits = assumed.bits.get(name, bits_of(accel, component))
        if bits is None:
            raise ConfigError(
                f"bits of {name} must be stated, {accel.name} does not describe that memory: "
                f"--bits {name}=N"
            )
        factors = {} if kind in LASTING else {"duty": assumed.duty}
        if component.kind == "memory":
            factors["occupancy"] = assumed.live(name, data_of(name))
        raw = assumed.fit_per_bit(name, kind, component.kind) * bits
        found.append(
            Line(_label(name, kind), component.kind, bits, raw, {**factors, **assumed.derate},
                 counts, CONDITION[kind])
        )  # fmt: skip
    return found


def _label(component: str, kind: str) -> str:
    """Name of a line; ordinary upsets have that of the component alone."""
    return component if kind in ("seu", "flip") else f"{component} ({kind})"


def _layers(results: Results, lines: list[Line], failure: str) -> dict[str, list[Term]]:
    """Layer -> a term a component: its part of the component's rate."""
    whole = {line.component: line.exposed for line in lines}
    members = {name: float(c.sizes.sum()) for (name,), c in
               _counts(results, ("component",), failure).items()}  # fmt: skip
    found: dict[str, list[Term]] = {}
    for (layer, name), counts in _counts(results, ("layer", "component"), failure).items():
        share = float(counts.sizes.sum()) / members[name]
        rate = whole[_label(name, _kind(results))] * share
        found.setdefault(layer, []).append(Term(rate, counts))
    return found


def _counts(results: Results, axes: tuple[str, ...], failure: str) -> dict[tuple, Counts]:
    """Value of the axes -> what the trials say of that part of the population."""
    sizes = results.member_sizes(axes)
    stratum = split_of(results.task, results.trials)[0]
    hits = np.isin(results.outcome, [int(code) for code in FAILURES[failure]]).sum(axis=1)
    images = results.images
    if _kind(results) in LASTING:
        # The defect stays: it is one failure, with however many of the images it shows.
        hits, images = (hits > 0).astype(np.int64), 1
    labels = [results.label(axis).tolist() for axis in axes]
    mine: dict[tuple, list[int]] = {}
    for number, key in enumerate(zip(*labels)):
        mine.setdefault(key, []).append(number)
    looked = results.rule.name != "fixed"
    found = {}
    for key, parts in sizes.items():
        at = np.array(mine.get(key, []), np.int64)
        numbers = list(parts)
        failures = [int(hits[at][stratum[at] == h].sum()) for h in numbers]
        trials = [int((stratum[at] == h).sum()) for h in numbers]
        found[key] = Counts(
            np.array(failures, np.int64), np.array(trials, np.int64),
            np.array([parts[h] for h in numbers], np.int64), hits[at], images, looked,
        )  # fmt: skip
    return found


def _notes(campaigns, accel: Accel, assumed: Assumed, lines: Sequence[Line]) -> tuple[str, ...]:
    found = []
    layers = sorted({name for r in campaigns for name in r.task["select"]["layers"] or ()})
    if layers:
        found.append(
            f"conditional on {', '.join(layers)}: rates hold while only the chosen layers run or "
            "are struck, not for the network"
        )
    stated = set(assumed.occupancy)
    memories = [line.component for line in lines if line.group == "memory"]
    memories = [name for name in memories if not {name, data_of(name)} & stated]
    full = [name for name in memories if data_of(name) not in assumed.scheduled]
    if full:
        found.append(
            f"occupancy of {', '.join(full)} is taken as 1, every bit live all the time: an upper "
            "limit (--occupancy)"
        )
    if set(memories) - set(full):
        found.append("occupancy from the schedule is an upper limit: words count for all of the "
                     "operations that write and read them")  # fmt: skip
    if any(_kind(r) == "mbu" for r in campaigns):
        found.append("rates of mbu must be those of two-bit upsets, not of all upsets")
    images = {r.images for r in campaigns if _kind(r) in LASTING}
    if images:
        found.append(
            f"a stuck bit fails if it fails for one of {', '.join(map(str, sorted(images)))} images"
        )
    if len({r.task["images"] for r in campaigns}) > 1:
        found.append("campaigns have different numbers of images: their populations differ")
    unmet = [line.component for line in lines if line.failing.total[1] == 0]
    if unmet:
        found.append(
            f"no trial met {', '.join(unmet)}: in estimates of sums they fail like the mean of the "
            "rest, in limits like anything"
        )
    struck = {name for r in campaigns for name in _components(r)}
    left = [c.name for c in accel.components if c.name not in struck and c.kind != "net"]
    if left:
        found.append(f"not in the total, no campaign struck them: {', '.join(left)}")
    found.append("not in the total: what the machine's model does not have (its control, buses, "
                 "clock and power)")  # fmt: skip
    return tuple(found)
