"""The section on the PE array."""

from __future__ import annotations

from . import charts
from .heatmaps import Cell, heat_map
from .markup import Html, el, join, plain, table
from .section import MOST_ROWS, Section, slug
from .words import METRICS, bounds, count, estimate, number, plural


def array(s: Section) -> Html | None:
    if not s.numbers["pe"]:
        return None
    made, reasons = [], []
    for found in s.numbers["pe"]:
        metric, component = found["metric"], found["component"]
        what = "all registers" if component is None else plain(component, 40)
        if found["why_not"]:
            reasons.append(f"{METRICS[metric]}, {what}: {found['why_not']}")
        else:
            made.append(_pe_figure(s, found, what))
    marginal = []
    for found in s.numbers["pe"]:
        if found["component"] is not None:
            continue
        for side, x_name in (("rows", "PE row"), ("cols", "PE column")):
            if not found[side]:
                continue
            metric = found["metric"]
            drawn = charts.side_rates(
                s.named(f"pe-{side}-{slug(metric)}"),
                f"{METRICS[metric]} by {x_name}", found[side], x_name, metric, s.files,
            )  # fmt: skip
            behind = table(
                [x_name, "trials", "events", "rate", "interval"],
                [[charts.span(r["first"], r["last"]), count(r["trials"]), count(r["events"]),
                  estimate(r["rate"]), bounds(r["rate"])] for r in found[side]],
                right=["trials", "events", "rate", "interval"], caption=f"Rates by {x_name}",
            )  # fmt: skip
            marginal.append(s.show(drawn, "Bands: intervals; lines: estimates.", behind))
    return join([
        el("p", "Faults in registers of the array, by the PE that they struck. PEs are taken "
                "together in blocks so that each has events enough for a rate."),
        el("div", made, class_="pair") if made else None,
        el("div", marginal, class_="pair") if marginal else None,
        el("p", "No map where events are too few: ", "; ".join(reasons), ".", class_="soft")
        if reasons else None,
    ])  # fmt: skip


def _pe_figure(s: Section, found: dict, what: str) -> Html:
    tops = sorted({block["row"] for block in found["blocks"]})
    lefts = sorted({block["col"] for block in found["blocks"]})
    rows = {b["row"]: charts.span(b["row"], b["row_last"]) for b in found["blocks"]}
    cols = {b["col"]: charts.span(b["col"], b["col_last"]) for b in found["blocks"]}
    cells = {
        (tops.index(b["row"]), lefts.index(b["col"])): Cell(
            b["rate"], b["trials"], b["events"],
            f"PE rows {rows[b['row']]}, columns {cols[b['col']]}",
            images=s.numbers["summary"]["images_per_trial"],
        )
        for b in found["blocks"]
    }  # fmt: skip
    metric = found["metric"]
    side = max(14.0, min(46.0, 420 / max(len(tops), len(lefts))))
    high, wide = found["block"]
    name = "all" if found["component"] is None else slug(found["component"])
    drawn = heat_map(
        s.named(f"pe-{name}-{slug(metric)}"), f"{METRICS[metric]}, {what}",
        [rows[t] for t in tops], [cols[left] for left in lefts], cells, row_name="PE row",
        col_name="PE column",
        cell=(side, side), files=s.files,
    )  # fmt: skip
    n = [b["trials"] for b in found["blocks"]]
    caption = (
        f"{found['array'][0]} × {found['array'][1]} PEs in blocks of {high} × {wide}; "
        f"{count(found['events'])} events in {plural(found['trials'], 'trial')}, {min(n)} to "
        f"{max(n)} a block."
    )
    if found["p_alike"] is not None:
        caption += (
            f" Were all PEs alike, differences this large would come with chance "
            f"{number(found['p_alike'], 2)} (chi-squared)"
            + ("." if found["p_alike"] < 0.05 else ": what looks like a pattern may be chance.")
        )
    behind = table(
        ["PE rows", "PE columns", "trials", "events", "rate", "interval"],
        [[rows[b["row"]], cols[b["col"]], count(b["trials"]), count(b["events"]),
          estimate(b["rate"]), bounds(b["rate"])] for b in found["blocks"][:MOST_ROWS]],
        right=["trials", "events", "rate", "interval"], caption="Rates by block of PEs",
    )  # fmt: skip
    return s.show(drawn, caption, behind)
