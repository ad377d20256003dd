"""Sections on the whole of a campaign: the headline, what was done, outcomes, provenance."""

from __future__ import annotations

from fsim.words import RULES, faults_text

from . import charts
from .markup import Html, el, join, plain, table
from .section import Section, figure
from .words import FAULTS, METRICS, bounds, count, estimate, percent, plural


def headline(numbers: dict) -> Html:
    """The few numbers a reader came for, each with what is known about it."""
    told = numbers["summary"]
    cards = []
    accuracy = told["accuracy"]
    strata = (told["population"] or {"strata": 1})["strata"]
    weighted = ", weighted" if strata > 1 else ""
    if numbers["outcomes"]:
        by = {row["outcome"]: row for row in numbers["outcomes"]}
        for name in ("sdc_critical", "sdc_benign", "due", "hang", "corrected", "masked"):
            if name not in by:
                continue
            row = by[name]
            seen = f"{count(row['count'])} of {count(row['of'])}{weighted}"
            cards.append(
                (METRICS[name], estimate(row["share"]), f"{bounds(row['share'])}; {seen}", name)
            )
    if numbers["kind"] == "flips":
        cards.append(("accuracy without faults", percent(accuracy["clean"], 4),
                      "with faults it depends on the rate", "accuracy"))  # fmt: skip
    else:
        told_of = numbers["accuracy"]
        cards.append(("accuracy with faults", "unknown" if told_of is None else estimate(told_of),
                      ("" if told_of is None else f"{bounds(told_of)}; ")
                      + f"{percent(accuracy['clean'], 4)} without{_drop(accuracy)}",
                      "accuracy"))  # fmt: skip
    what = {"chips": "chips", "flips": "inferences", "list": "faults"}.get(
        numbers["kind"], "faults"
    )
    sites = told["population"]
    cards.append(
        (f"{what} simulated", count(told["trials"]),
         f"of {count(sites['members'])} possible" if sites else
         plural(told["images_per_trial"], "image") + " each", "n")
    )  # fmt: skip
    return el("div", [
        el("div", el("div", name, class_="name"), el("div", value, class_="value"),
           el("div", more, class_="more"), class_=f"card of-{kind.replace('_', '-')}")
        for name, value, more, kind in cards
    ], class_="cards")  # fmt: skip


def _drop(accuracy: dict) -> str:
    if accuracy["clean"] is None or accuracy["faulty"] is None:
        return ""
    change = 100 * (accuracy["faulty"] - accuracy["clean"])
    return f", {change:+.2f} points"


def cautions(numbers: dict) -> Html | None:
    """What a reader must know before believing a number."""
    told, notes = numbers["summary"], []
    if not told["complete"]:
        notes.append("This file holds a part of its campaign: its trials are fewer than planned.")
    if not told["trials"]:
        notes.append("This campaign has no trials: nothing was observed.")
    if numbers["outcomes"]:
        (critical,) = (r for r in numbers["outcomes"] if r["outcome"] == "sdc_critical")
        if told["trials"] and not critical["count"]:
            notes.append(
                "No critical outcome was seen. That is no share of zero: the interval says how "
                "large it may be."
            )
        elif told["trials"] and critical["count"] < 30:
            notes.append(
                f"Only {plural(critical['count'], 'critical outcome')}: what is said about where "
                "critical faults strike rests on few events. Intervals say how few."
            )
    critical = told.get("critical", "top1")
    if critical != "top1":
        notes.append(
            f"Critical is not that the class changes: an answer is critical if it "
            f"{_CRITICAL.get(critical, f'fails the criterion {plain(critical)}')}."
        )
    if numbers["kind"] == "list":
        notes.append(
            "The faults are a list that somebody made, not a random sample: intervals hold for "
            "a population only if the list was drawn from it at random."
        )
    if not notes:
        return None
    return el("ul", [el("li", note) for note in notes], class_="cautions")


def setup(s: Section) -> Html:
    told = s.numbers["summary"]
    rule, population = told["rule"], told["population"]
    rows = [
        ("Network", f"{plain(told['model'])}, {plain(s.numbers['provenance']['data'])}, "
                    f"{plural(told['images'], 'image')}"),
        ("Accelerator", f"{plain(told['accel'])}, {told['array'][0]} × {told['array'][1]} PEs, "
                        f"{_DATAFLOW.get(told['dataflow'], plain(told['dataflow']))}"),
        ("Faults", plain(FAULTS.get(told["faults"]["kind"]) or faults_text(told["faults"]))),
        ("Restricted to", _restricted(told["select"])),
        ("Population", None if population is None else
         f"{count(population['sites_per_image'])} sites of an image, "
         f"{count(population['members'])} in all"
         + (f"; {population['strata']} strata by {', '.join(population['stratify'])}"
            if population["strata"] > 1 else "")),
        ("Trials", count(told["trials"])
         + (f", each with {told['images_per_trial']} images"
            if told["images_per_trial"] > 1 else "")),
        ("Stopping rule", RULES[rule["name"]].format(**rule)
         + ("" if rule["name"] == "fixed" else f" ({METRICS[rule['metric']]})")),
        ("Intervals", f"{100 * rule['confidence']:g} %"),
        ("File", plain(told["file"])),
    ]  # fmt: skip
    return el("dl", [[el("dt", k), el("dd", v)] for k, v in rows if v])


_DATAFLOW = {"ws": "weight stationary", "os": "output stationary", "is": "input stationary"}


def _restricted(select: dict) -> str | None:
    given = [f"{axis}: {', '.join(plain(x) for x in names)}"
             for axis, names in sorted(select.items()) if names]  # fmt: skip
    return "; ".join(given) or None


def parts(rows: list[dict]) -> list[dict]:
    """The outcomes that add up to all."""
    return [row for row in rows if row["outcome"] != "sdc"]


def outcomes(s: Section) -> Html | None:
    rows = s.numbers["outcomes"]
    if rows is None:
        return None
    drawn = charts.outcome_bars(
        s.named("outcomes"),
        "Outcomes of all inferences",
        [(s.numbers["name"], parts(rows))],
        s.files,
    )
    confidence = f"{100 * s.numbers['summary']['rule']['confidence']:g} % interval"
    behind = table(
        ["outcome", "count", "of", "share", confidence, "method"],
        [[METRICS[r["outcome"]], count(r["count"]), count(r["of"]), estimate(r["share"]),
          bounds(r["share"]), r["share"]["method"]] for r in rows],
        right=["count", "of", "share", confidence], caption="Outcomes",
    )  # fmt: skip
    s.pictures.append(drawn)
    critical = s.numbers["summary"].get("critical", "top1")
    text = _OUTCOME_TEXT.format(_CRITICAL.get(critical, f"fails the criterion {plain(critical)}"))
    return el("div", figure(drawn, text), el("div", behind), class_="pair")


_CRITICAL = {
    "top1": "has another class",
    "top5": "has the class no more among its first five",
    "wrong": "was right and is wrong",
}
"""Criterion (`simulator.criteria`) -> what a critical answer does."""

_OUTCOME_TEXT = (
    "Masked: the last integer tensor is as without the fault. Critical SDC: the answer {}. Benign "
    "SDC: the tensor differs, and the answer does not do that. Shares are estimates for the "
    "population; where strata were sampled unevenly they are weighted."
)


def provenance(s: Section) -> Html:
    told = s.numbers["provenance"]
    rows = [
        ("Task, SHA-256", told["task_sha256"]), ("Weights, SHA-256", told["weights_sha256"]),
        ("Quantised codes, SHA-256", told["codes_sha256"]),
        ("Data, SHA-256", told["data_sha256"]), ("Accelerator, SHA-256", told["accel_sha256"]),
        ("Seed, generator", f"{s.numbers['summary']['seed']}, version {told['rng_version']}"),
        ("Made by", ", ".join(f"{plain(k)} {plain(v, 60)}"
                              for k, v in sorted(told["made_by"].items()))),
    ]  # fmt: skip
    methods = s.numbers["methods"]
    return join([
        el("p", "The same command gives the same faults and the same outcomes, on any machine "
                "and with any number of threads:"),
        el("pre", el("code", plain(s.numbers["command"], 4000)), tabindex="0"),
        el("dl", [[el("dt", k), el("dd", el("code", plain(v)) if "SHA" in k else plain(v))]
                  for k, v in rows if v]),
        el("h4", "Methods, to cite") if methods else None,
        el("blockquote", el("p", plain(methods, 6000))) if methods else None,
    ])  # fmt: skip
