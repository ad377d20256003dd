"""Campaigns as text: what would run, and what was found."""

from __future__ import annotations

from fsim.cli.tables import pairs, table
from fsim.words import RULES, faults_text

_MOST_LINES = 12


def plan_json(ready) -> dict:
    """What a campaign would do."""
    task = ready.task
    stated = task["campaign"]
    frame = getattr(ready.population, "frame", None)
    evaluator = ready.evaluator
    return {
        "model": task["model"],
        "accel": task["accel"]["name"],
        "faults": task["faults"],
        "design": stated["design"],
        "images": task["images"],
        "images_per_fault": stated["unit_images"],
        "sites_per_image": None if frame is None else frame.sites,
        "population": None if frame is None else frame.size,
        "strata": len(ready.design.sizes),
        "rule": stated["rule"],
        "trials": task["trials"],
        "shard": stated["shard"],
        "way": ready.way[0],
        "way_because": ready.way[1],
        "images_held": evaluator.golden.held if ready.session.layered is None else None,
        "faults_a_second": _speed(ready),
    }


def _speed(ready) -> float:
    """Faults a second, from one shard of a few hundred inferences."""
    import time

    import numpy as np

    count = max(1, 256 // ready.task["campaign"]["unit_images"])
    design = ready.design
    most = design.sizes[0] if design.sizes[0] is not None else count
    if design.allocation is not None:
        most = min(most, design.allocation.counts[0])
    trials = np.sort(design.trials_of(0, 0, max(1, min(count, most))))
    times = []
    for _ in range(2):  # the first may compile
        begin = time.perf_counter()
        ready.shard(trials)
        times.append(time.perf_counter() - begin)
    return len(trials) / min(times)


def _critical(found: dict) -> list[tuple[str, str]]:
    """Which wrong answers are critical, where that is not a change of class."""
    from fsim.simulator.criteria import DEFAULT

    name = found.get("critical", DEFAULT)
    return [] if name == DEFAULT else [("critical", name)]


def plan_text(plan: dict, session) -> str:
    """The plan for people."""
    rule = plan["rule"]
    rows = [
        ("network", f"{plan['model']}, {plan['images']} images"),
        ("accelerator", plan["accel"]),
        ("faults", faults_text(plan["faults"])),
        ("sites of an image", _count(plan["sites_per_image"])),
        ("population", _count(plan["population"])),
        ("strata", _count(plan["strata"])),
        ("images a fault", _count(plan["images_per_fault"])),
        ("stops", RULES[rule["name"]].format(**rule) + f" ({rule['metric']})"),
        ("faults to inject", _count(plan["trials"]) if plan["trials"] else "as many as it takes"),
        ("way", plan["way"] + _because(plan)),
        ("speed", f"about {plan['faults_a_second']:,.0f} faults a second"),
    ]
    if plan["trials"]:
        rows.append(("time", f"about {plan['trials'] / plan['faults_a_second']:.2g} s"))
    return "\n".join([pairs(rows), *(f"note: {note}" for note in session.notes)])


def _because(found: dict) -> str:
    reason = found["way_because"]
    return f": {reason}" if reason else ""


def _count(value) -> str:
    return "-" if value is None else f"{value:,}"


def percent(value: float | None, digits: int = 3) -> str:
    """A share in per cent."""
    return "-" if value is None else f"{100 * value:.{digits}f} %"


def interval_text(found: dict, digits: int = 3) -> str:
    """low .. high in per cent."""
    return f"{100 * found['low']:.{digits}f} .. {100 * found['high']:.{digits}f} %"


def campaign_text(found: dict) -> str:
    """What was found, for people."""
    rows, cols = found["array"]
    rule, accuracy = found["rule"], found["accuracy"]
    seconds = found.get("seconds")
    speed = f" in {seconds:.1f} s" if seconds else ""
    lines = [
        pairs([
            ("network", f"{found['model']}, {found['images']} images"),
            ("accelerator", f"{found['accel']} ({found['dataflow']}), {rows} x {cols} PEs"),
            *([("protection", ", ".join(f"{name} {kind}" for name, kind in
                                        found["protection"].items()))]
              if found["protection"] else []),
            ("faults", faults_text(found["faults"])),
            *_population(found),
            *_critical(found),
            ("trials", f"{found['trials']:,}{speed}"
                       + (f", each with {found['images_per_trial']} images"
                          if found["images_per_trial"] > 1 else "")),
            ("stopped", ("" if found["rule_met"] else "at the most trials allowed, not yet ")
                        + RULES[rule["name"]].format(**rule) + f" ({rule['metric']})"),
            ("accuracy", f"{percent(accuracy['clean'], 2)} clean, "
                         f"{percent(accuracy['faulty'], 2)} with faults"),
            ("file", found["file"] + ("" if found["complete"] else " (part of a campaign)")),
        ]),
        "",
    ]  # fmt: skip
    if "flips" in found:
        lines.append(_flips_table(found["flips"]))
    else:
        confidence = f"{100 * rule['confidence']:g} % interval"
        lines.append(table(
            ["outcome", "count", "share", confidence, "method"],
            [[name.replace("_", "-"), f"{o['count']:,}", percent(o["estimate"]), interval_text(o),
              o["method"]] for name, o in found["outcomes"].items()],
            right=["count", "share"],
        ))  # fmt: skip
    for name in ("by_component", "by_layer"):
        if found.get(name):
            lines += ["", _groups_table(found[name], name.removeprefix("by_"))]
    if found.get("baseline"):
        lines += ["", compare_text(found["baseline"])]
    if found.get("way_because"):
        lines.append(f"note: {found['way']}: {found['way_because']}")
    lines += [f"note: {note}" for note in found.get("notes", ())]
    return "\n".join(lines)


def _population(found: dict) -> list[tuple[str, str]]:
    population = found["population"]
    if population is None:
        return []
    text = f"{population['sites_per_image']:,} sites of an image, {population['members']:,} in all"
    if population["strata"] > 1:
        text += f"; {population['strata']} strata by {', '.join(population['stratify'])}"
    return [("population", text)]


def _groups_table(rows: list[dict], axis: str) -> str:
    rows = [row for row in rows if row["trials"]]
    more = len(rows) - _MOST_LINES
    rows = sorted(rows, key=lambda row: -(row["sdc_critical"]["estimate"] or 0) * row["share"])
    seen = [name for name in ("corrected", "due") if any(row["counts"][name] for row in rows)]
    lines = [
        [row[axis], percent(row["share"], 2), f"{row['trials']:,}",
         *(f"{row['counts'][name]:,}" for name in seen), percent(row["sdc"]["estimate"]),
         percent(row["sdc_critical"]["estimate"]), interval_text(row["sdc_critical"])]
        for row in rows[:_MOST_LINES]
    ]  # fmt: skip
    head = [axis, "of sites", "trials", *seen, "sdc", "sdc-critical", "interval"]
    text = table(head, lines, right=head[1:-1])
    return text + (f"\n... and {more} more (--json, fsim report)" if more > 0 else "")


def _flips_table(rows: list[dict]) -> str:
    shown = rows if len(rows) <= 24 else rows[:: -(-len(rows) // 24)]
    names = ["masked", *(name for name in ("corrected", "due") if name in rows[0])]
    head = ["flips", "trials", *names, "sdc-critical", "interval"]
    return table(
        head,
        [[row["flips"], f"{row['trials']:,}", *(percent(row[name]["estimate"]) for name in names),
          percent(row["sdc_critical"]["estimate"]), interval_text(row["sdc_critical"])]
         for row in shown],
        right=head[:-1],
    )  # fmt: skip


def checks_text(checks: list[dict]) -> str:
    """Acceptance thresholds and whether they held."""
    lines = []
    for check in checks:
        verdict = "FAILED" if check["failed"] else "passed"
        value, bound = (
            "unknown" if check[key] is None else f"{check[key]:.6g}" for key in ("value", "bound")
        )
        lines.append(f"{verdict}: fails if {check['condition']} (got {value}, bound {bound})")
    return "\n" + "\n".join(lines)


def compare_text(found: dict) -> str:
    """A comparison with another campaign."""
    rows = [
        ("compared with", found["other"]),
        ("metric", found["metric"]),
        (
            "this, that",
            f"{percent(found['this']['estimate'])}, {percent(found['that']['estimate'])}",
        ),
    ]
    difference = found["difference"]
    rows.append(
        ("difference", f"{percent(difference['estimate'])} ({interval_text(difference)}), "
                       f"{difference['method']}")
    )  # fmt: skip
    if found["paired"]:
        rows.append(
            ("paired", f"{found['pairs']:,} faults: only this {found['only_this']:,}, only that "
                       f"{found['only_that']:,}, p = {found['p_value']:.3g} (McNemar, exact)")
        )  # fmt: skip
    else:
        rows.append(("paired", f"no: {found['why_not']}"))
    return pairs(rows)
