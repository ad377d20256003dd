"""The sections of a report on one campaign; each takes its numbers and gives HTML, or None."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field

from fsim.cli.campaign_report import RULES, faults_text

from . import charts
from .heatmaps import Cell, heat_map
from .markup import Html, el, join, plain, table
from .pictures import Picture
from .scale import Scale, scale_of
from .words import FAULTS, METRICS, bounds, capital, count, estimate, number, percent, plural, share

MOST_ROWS = 400
"""Rows of a table in a page; the file of the same numbers has all."""

_MOST_LABELS = 60  # rows of a chart with one line a layer
_RANKED = 15


@dataclass
class Section:
    """One campaign's part of a page under way.

    numbers  of `numbers.campaign_numbers`; prefix of its pictures' names
    files    whether pictures are needed as files too
    pictures all that were drawn
    """

    numbers: dict
    prefix: str = ""
    files: bool = True
    pictures: list[Picture] = field(default_factory=list)

    def show(self, drawn: Picture, caption: object, behind: Html | None = None) -> Html:
        """A picture with its caption and the numbers behind it."""
        self.pictures.append(drawn)
        return figure(drawn, caption, behind)

    def named(self, name: str) -> str:
        return f"{self.prefix}{name}"


def figure(drawn: Picture, caption: object, behind: Html | None = None) -> Html:
    """A picture in a page: it scrolls where it would become too small to read."""
    least = min(drawn.width, 520)
    return el(
        "figure",
        el("div", drawn.inline, class_="scroll", tabindex="0", role="group",
           aria_label=drawn.title, style=f"--least:{least}px;--most:{drawn.width}px"),
        el("figcaption", caption),
        el("details", el("summary", "The numbers"), behind) if behind is not None else None,
    )  # fmt: skip


def sections(s: Section) -> Iterator[tuple[str, str, Html]]:
    """(short id, title, content) of each section that the campaign has something for."""
    for name, title, make in (
        ("setup", "What was done", setup),
        ("outcomes", "Outcomes", outcomes),
        ("where", "Where faults matter", where),
        ("network", "Over the network", network),
        ("bits", "Which bits", bits),
        ("array", "Over the PE array", array),
        ("protect", "What to protect", protect),
        ("flips", "Number of flips", flips),
        ("rates", "Bit error rate", rates),
        ("chips", "Chips", chips),
        ("worst", "The worst faults", worst),
        ("provenance", "Provenance, and how to run it again", provenance),
    ):
        found = make(s)
        if found:
            yield name, title, found


# --- what was done, and what came out ---


def headline(numbers: dict) -> Html:
    """The few numbers a reader came for, each with what is known about it."""
    told = numbers["summary"]
    cards = []
    accuracy = told["accuracy"]
    strata = (told["population"] or {"strata": 1})["strata"]
    weighted = ", weighted" if strata > 1 else ""
    if numbers["outcomes"]:
        by = {row["outcome"]: row for row in numbers["outcomes"]}
        for name in ("sdc_critical", "sdc_benign", "masked"):
            row = by[name]
            seen = f"{count(row['count'])} of {count(row['of'])}{weighted}"
            cards.append(
                (METRICS[name], estimate(row["share"]), f"{bounds(row['share'])}; {seen}", name)
            )
    dropped = _drop(accuracy)
    cards.append(
        ("accuracy with faults", percent(accuracy["faulty"], 4),
         f"{percent(accuracy['clean'], 4)} without{dropped}", "accuracy")
    )  # fmt: skip
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
        if told["trials"] and critical["count"] < 30:
            notes.append(
                f"Only {plural(critical['count'], 'critical outcome')}: what is said about where "
                "critical faults strike rests on few events. Intervals say how few."
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


def outcomes(s: Section) -> Html | None:
    rows = s.numbers["outcomes"]
    if rows is None:
        return None
    drawn = charts.outcome_bars(
        s.named("outcomes"), "Outcomes of all inferences", [(s.numbers["name"], rows)], s.files
    )
    confidence = f"{100 * s.numbers['summary']['rule']['confidence']:g} % interval"
    behind = table(
        ["outcome", "count", "of", "share", confidence, "method"],
        [[METRICS[r["outcome"]], count(r["count"]), count(r["of"]), estimate(r["share"]),
          bounds(r["share"]), r["share"]["method"]] for r in rows],
        right=["count", "of", "share", confidence], caption="Outcomes",
    )  # fmt: skip
    s.pictures.append(drawn)
    return el("div", figure(drawn, _OUTCOME_TEXT), el("div", behind), class_="pair")


_OUTCOME_TEXT = (
    "Masked: the last integer tensor is as without the fault. Benign SDC: it differs, the answer "
    "does not. Critical SDC: the answer changed. Shares are estimates for the population; where "
    "strata were sampled unevenly they are weighted."
)


def where(s: Section) -> Html | None:
    made = []
    for axis, plural_name in (("component", "components"), ("layer", "layers")):
        rows = s.numbers["parts"].get(axis)
        if not rows:
            continue
        shown = _first(rows)
        behind = parts_table(rows, (axis,))
        drawn = [
            charts.forest(
                s.named(f"{plural_name}-{metric.replace('_', '-')}"),
                f"{METRICS[metric]} by {axis}",
                [(row[axis], row[metric], row["trials"]) for row in shown], metric=metric,
                files=s.files,
            )
            for metric in ("sdc_critical", "sdc")
        ]  # fmt: skip
        caption = _ranking_text(rows, axis)
        if len(shown) < len(rows):
            caption += f" The {len(shown)} with the highest lower limits of {len(rows)} are shown."
        made.append(
            el("div", s.show(drawn[0], caption),
               s.show(drawn[1], "Dots: estimates. Lines: intervals. An arrow: it goes on."),
               class_="pair")
        )  # fmt: skip
        made.append(el("details", el("summary", f"The numbers by {axis}"), behind))
    return join(made) if made else None


def _first(rows: list[dict]) -> list[dict]:
    """The rows for which a chart has room, in their order."""
    if len(rows) <= _MOST_LABELS:
        return rows
    best = sorted(range(len(rows)), key=lambda i: (-rows[i]["sdc_critical"]["low"], i))
    return [rows[i] for i in sorted(best[:_MOST_LABELS])]


def _ranking_text(rows: list[dict], axis: str) -> str:
    """Which part has the highest critical rate, and whether that is certain."""
    met = [row for row in rows if row["trials"]]
    if len(met) < 2 or not any(row["counts"]["sdc_critical"] for row in met):
        return "No critical outcome was seen." if met else "No trials."
    best = max(met, key=lambda row: row["sdc_critical"]["estimate"])
    others = [row for row in rows if row is not best]
    sure = best["sdc_critical"]["low"] > max(row["sdc_critical"]["high"] for row in others)
    text = (
        f"Highest estimate: {plain(best[axis])}, {share(best['sdc_critical'])}, "
        f"{count(best['counts']['sdc_critical'])} of {plural(best['trials'], 'trial')}."
    )
    return text + (
        " Its interval lies above all others."
        if sure else " Its interval overlaps with others: the order is not certain."
    )  # fmt: skip


def parts_table(rows: list[dict], axes: tuple[str, ...]) -> Html:
    """Rates of parts of a population."""
    head = [*axes, "of sites", "trials", "critical", "critical SDC", "interval", "any SDC",
            "interval "]  # fmt: skip
    lines = [
        [*(_named(row, axis) for axis in axes), percent(row["share"]), count(row["trials"]),
         count(row["counts"]["sdc_critical"]), *_rate(row, "sdc_critical"), *_rate(row, "sdc")]
        for row in rows[:MOST_ROWS]
    ]  # fmt: skip
    made = table(head, lines, right=[*(a for a in axes if a == "bit"), *head[len(axes) :]],
                 caption=f"Rates by {', '.join(axes)}")  # fmt: skip
    if len(rows) <= MOST_ROWS:
        return made
    return join([made, el("p", f"The first {MOST_ROWS} of {len(rows)} rows; all of them are in the "
                               "tables beside this page.")])  # fmt: skip


def _named(row: dict, axis: str) -> str:
    return plain(row[axis], 60)


def _rate(row: dict, metric: str) -> tuple[str, str]:
    if not row["trials"]:
        return "no trials", "–"
    return estimate(row[metric]), bounds(row[metric])


# --- maps ---


def network(s: Section) -> Html | None:
    parts = s.numbers["parts"]
    rows = parts.get("layer,component")
    if not rows:
        return None
    made = []
    layers = _distinct(rows, "layer")
    components = _distinct(rows, "component")
    pair = []
    for metric in ("sdc_critical", "sdc"):
        cells = {
            (layers.index(row["layer"]), components.index(row["component"])): _cell(
                row, metric, f"{row['layer']} {row['component']}"
            )
            for row in rows
        }
        drawn = heat_map(
            s.named(f"network-{metric.replace('_', '-')}"),
            f"{METRICS[metric]} by layer and component", layers, components, cells,
            row_name="layer", col_name="component", values=True, cell=(108, 38), files=s.files,
        )  # fmt: skip
        pair.append(s.show(drawn, _MAP_TEXT if metric == "sdc_critical" else _MAP_MORE))
    made.append(el("div", pair, class_="pair"))
    made.append(el("details", el("summary", "The numbers by layer and component"),
                   parts_table(rows, ("layer", "component"))))  # fmt: skip
    fine = parts.get("layer,component,bit")
    if fine:
        made.append(el("h4", "Layers and bits"))
        for component in components:
            made.append(_layer_bits(s, fine, layers, component))
        made.append(
            el("details", el("summary", "The numbers by layer, component and bit"),
               parts_table(_telling(fine), ("layer", "component", "bit")))
        )  # fmt: skip
    return join(made)


_MAP_TEXT = (
    "Share of inferences in which the answer changed, given a fault in this part. Hatched: the "
    "interval is wider than twice the estimate, so that the colour tells little. Dashed: no trial."
)
_MAP_MORE = "Share of inferences in which any output value changed."


def _layer_bits(s: Section, fine, layers, component) -> Html:
    rows = [row for row in fine if row["component"] == component]
    mine = [layer for layer in layers if any(row["layer"] == layer for row in rows)]
    bits = range(max(row["bit"] for row in rows) + 1)
    pair = []
    for metric in ("sdc_critical", "sdc"):
        cells = {
            (mine.index(row["layer"]), row["bit"]): _cell(
                row, metric, f"{row['layer']} {component} bit {row['bit']}"
            )
            for row in rows
        }
        scale = scale_of((c.found, c.trials) for c in cells.values())
        if not any(c.trials and not scale.uncertain(c.found) for c in cells.values()):
            n = [c.trials for c in cells.values()]
            pair.append(el(
                "p", f"{capital(METRICS[metric])} in {plain(component, 40)}: no map, since none of "
                f"its {len(cells)} cells has events enough for a colour ({min(n)} to {max(n)} "
                f"trials each). {_more(s)}", class_="soft",
            ))  # fmt: skip
            continue
        drawn = heat_map(
            s.named(f"bits-{_slug(component)}-{metric.replace('_', '-')}"),
            f"{METRICS[metric]} by layer and bit, {plain(component, 40)}", mine,
            [str(bit) for bit in bits], cells, row_name="layer", col_name="bit (0 is the lowest)",
            scale=scale, cell=(26 if len(bits) <= 16 else 15, 22), files=s.files,
        )  # fmt: skip
        pair.append(s.show(drawn, _known_text(s, cells, scale)))
    return el("div", pair, class_="pair")


def _more(s: Section) -> str:
    """How to learn more about small parts."""
    if "bit" in s.numbers["summary"]["population"]["stratify"]:
        return "It takes more trials to tell."
    return "Strata by layer, component and bit, or more trials, tell more."


def _known_text(s: Section, cells: dict[tuple, Cell], scale: Scale) -> str:
    """How much of a map is known."""
    met = [c for c in cells.values() if c.trials]
    sure = [c for c in met if not scale.uncertain(c.found)]
    n = sorted(c.trials for c in met) or [0]
    text = f"{len(sure)} of {len(cells)} cells tell their colour ({n[0]} to {n[-1]} trials each)."
    if len(sure) < len(cells) / 2:
        text += f" {_more(s)}"
    return text


def _cell(row: dict, metric: str, where: str) -> Cell:
    return Cell(row[metric], row["trials"], row["counts"][metric], plain(where))


def _distinct(rows: list[dict], axis: str) -> list:
    return list(dict.fromkeys(row[axis] for row in rows))


def _slug(name: str) -> str:
    """A name as part of a file name: letters, digits and dashes."""
    text = "".join(c if c.isascii() and c.isalnum() else "-" for c in name)[:40].strip("-")
    return text.lower() or "x"


def _telling(rows: list[dict]) -> list[dict]:
    """Rows by what is certain about them: the highest lower limits first."""
    return sorted(rows, key=lambda r: (-r["sdc_critical"]["low"], -r["sdc"]["low"]))


def bits(s: Section) -> Html | None:
    rows = s.numbers["parts"].get("component,bit")
    if not rows or not any(row["trials"] for row in rows):
        return None
    pair = [
        s.show(
            charts.bit_profile(s.named(f"bit-rates-{metric.replace('_', '-')}"),
                               f"{METRICS[metric]} by bit", rows, metric, s.files),
            "Dots: estimates. Lines: intervals. An arrow: it goes on.",
        )
        for metric in ("sdc_critical", "sdc")
    ]  # fmt: skip
    return join([
        el("div", pair, class_="pair"),
        el("details", el("summary", "The numbers by component and bit"),
           parts_table(rows, ("component", "bit"))),
    ])  # fmt: skip


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
                s.named(f"pe-{side}-{metric.replace('_', '-')}"),
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
        )
        for b in found["blocks"]
    }  # fmt: skip
    metric = found["metric"]
    side = max(14.0, min(46.0, 420 / max(len(tops), len(lefts))))
    high, wide = found["block"]
    name = "all" if found["component"] is None else _slug(found["component"])
    drawn = heat_map(
        s.named(f"pe-{name}-{metric.replace('_', '-')}"), f"{METRICS[metric]}, {what}",
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


# --- protection, rates, chips ---


def protect(s: Section) -> Html | None:
    found = s.numbers["protect"]
    if found is None:
        return None
    if "why_not" in found:
        return el("p", "No order of protection: ", plain(found["why_not"], 400))
    steps, ranking = found["steps"], found["ranking"]
    if not ranking:
        return None
    metric = METRICS[found["metric"]]
    made = []
    if len(steps) > 1:
        x = [100 * step["share_of_bits"] for step in steps]
        drawn = charts.lines(
            s.named("protect"), f"What is left of {metric} when bits are protected", x,
            [("critical", f"{metric} left", [step["residual"] for step in steps])],
            x_name="bits protected, % of all, the worst first", y_name=f"{metric}, all faults",
            level=("nothing protected", found["unprotected"]["estimate"])
            if found["unprotected"]["estimate"] is not None else None, files=s.files,
        )  # fmt: skip
        made.append(s.show(
            drawn, _protect_text(found),
            table(["bits protected", "groups", f"{metric} left", "interval"],
                  [[percent(st["share_of_bits"]), count(st["groups"]),
                    estimate(st["residual"]), bounds(st["residual"])]
                   for st in steps],
                  right=["bits protected", "groups", f"{metric} left", "interval"],
                  caption="What is left"),
        ))  # fmt: skip
    by = found["by"]
    made.append(el("div", table(
        [*by, "of bits", "trials", "events", metric, "interval"],
        [[*(_named(row, axis) for axis in by), percent(row["share"]), count(row["trials"]),
          count(row["events"]), *_ranked_rate(row["rate"])] for row in ranking[:_RANKED]],
        right=[*(a for a in by if a == "bit"), "of bits", "trials", "events", metric, "interval"],
        caption=f"The first {min(_RANKED, len(ranking))} of {len(ranking)} groups to protect",
    )))  # fmt: skip
    return el("div", made, class_="pair")


def _ranked_rate(found: dict | None) -> tuple[str, str]:
    """Rate and interval of a group; None where a fault met several images."""
    return ("–", "–") if found is None else (estimate(found), bounds(found))


def _protect_text(found: dict) -> str:
    """How far protecting a little goes."""
    text = (
        f"Groups by {', '.join(found['by'])}, the worst first; a protected bit is taken never to "
        "fail. Half of the trials made the order, the other half judge it."
    )
    for step in found["steps"]:
        if step["residual"]["high"] < found["unprotected"]["low"]:
            return text + (
                f" The first step whose interval lies below that of no protection is "
                f"{percent(step['share_of_bits'])} of the bits: {share(step['residual'])} is left "
                f"of {share(found['unprotected'])}."
            )
    return text + " The interval of no step lies below that of no protection: events are too few."


def flips(s: Section) -> Html | None:
    rows = s.numbers["flips"]
    if not rows:
        return None
    drawn = charts.lines(
        s.named("flips"), "Outcomes by number of flips", [row["flips"] for row in rows],
        [("critical", "critical SDC", [row["sdc_critical"] for row in rows]),
         ("masked", "masked", [row["masked"] for row in rows])],
        x_name="bit flips in an inference", y_name="share of inferences", files=s.files,
    )  # fmt: skip
    behind = table(
        ["flips", "trials", "critical SDC", "interval", "masked", "interval "],
        [[row["flips"], count(row["trials"]), estimate(row["sdc_critical"]),
          bounds(row["sdc_critical"]), estimate(row["masked"]), bounds(row["masked"])]
         for row in rows],
        right=["flips", "trials", "critical SDC", "interval", "masked", "interval "],
        caption="Outcomes by number of flips",
    )  # fmt: skip
    return s.show(drawn, "Bands: intervals of each number of flips by itself.", behind)


COVERED = 0.99
"""Chance, at a rate, of a number of flips that was sampled; points with less are dotted."""


def rates(s: Section) -> Html | None:
    found = s.numbers["curve"]
    if found is None:
        return None
    if "why_not" in found:
        return el("p", "No curve: ", plain(found["why_not"], 400))
    ber, covered = found["ber"], found["covered"]
    faded = [mass < COVERED for mass in covered]
    clean = s.numbers["summary"]["accuracy"]["clean"]
    top = charts.lines(
        s.named("accuracy-ber"), "Accuracy against bit error rate", ber,
        [("good", "accuracy", found["accuracy"])], x_name="bit error rate", y_name="accuracy",
        log=True, level=None if clean is None else ("without faults", clean), faded=faded,
        from_zero=False, files=s.files,
    )  # fmt: skip
    low = charts.lines(
        s.named("critical-ber"), "Critical SDC against bit error rate", ber,
        [("critical", "critical SDC", found["critical"])], x_name="bit error rate",
        y_name="share of inferences", log=True, faded=faded, files=s.files,
    )  # fmt: skip
    behind = table(
        ["bit error rate", "accuracy", "interval", "critical SDC", "interval ", "covered"],
        [[number(b), estimate(a), bounds(a), estimate(c), bounds(c),
          percent(m, 4)] for b, a, c, m in zip(ber, found["accuracy"], found["critical"], covered)],
        right=["bit error rate", "accuracy", "interval", "critical SDC", "interval ", "covered"],
        caption="Accuracy and critical SDC by bit error rate",
    )  # fmt: skip
    text = (
        f"Probability per bit and residency, {count(found['bits'])} bits of an inference. Dotted: "
        f"less than {percent(COVERED, 2)} of the numbers of flips that this rate causes were "
        "sampled; the bands allow for what was not."
    )
    return join([
        el("div", s.show(top, text), s.show(low, "Bands: intervals at each rate."), class_="pair"),
        el("details", el("summary", "The numbers by bit error rate"), behind),
    ])  # fmt: skip


def chips(s: Section) -> Html | None:
    found = s.numbers["chips"]
    if found is None:
        return None
    if "why_not" in found:
        return el("p", "No distribution over chips: ", plain(found["why_not"], 400))
    if not found["accuracy"]:
        return None
    drawn = charts.chip_steps(
        s.named("chips"), "Accuracy over chips", found["accuracy"], found["clean"], s.files
    )
    low = found["quantile"]
    rows = [
        ["mean", percent(found["mean"], 4), "–"],
        ["median", percent(found["median"], 4), "–"],
        [f"quantile {number(low['q'])}", percent(low["estimate"], 4), bounds(low)],
        ["worst", percent(found["worst"], 4), "–"],
    ]
    missing = None
    if low["low"] is None or low["high"] is None:
        missing = el(
            "p", f"Limits of this quantile need {charts.plural_chips(found['chips_needed'])}; one "
            "that these do not give is unknown.", class_="soft",
        )  # fmt: skip
    return join([
        s.show(
            drawn,
            "One step a chip, each with a fault map of its own that all images meet. What differs "
            "between chips does not shrink with more images.",
            table(["chip", "accuracy"],
                  [[at, percent(a, 4)] for at, a in enumerate(found["accuracy"][:MOST_ROWS])],
                  right=["chip", "accuracy"], caption="Accuracy of each chip"),
        ),
        table(["accuracy", "estimate", "interval"], rows, right=["estimate", "interval"],
              caption=f"Accuracy over {charts.plural_chips(found['chips'])}"),
        missing,
    ])  # fmt: skip


# --- worst faults, provenance ---


def worst(s: Section) -> Html | None:
    found = s.numbers["worst"]
    if found is None:
        return None
    if not found["faults"]:
        return el("p", "No fault changed any output.")
    many = found["faults"][0]["images"] > 1
    head = ["trial", "layer", "component", "bit", "place", "answer", "outcome"]
    lines = [
        [fault["trial"], plain(fault["layer"], 60), plain(fault["component"], 40), fault["bit"],
         _place(fault), f"{fault['clean_class']} → {fault['faulty_class']}"
                        f" (image {fault['image']}, label {fault['label']})",
         METRICS.get(fault["outcome"], fault["outcome"])
         + (f"; critical for {fault['critical']} of {fault['images']} images" if many else "")]
        for fault in found["faults"]
    ]  # fmt: skip
    alike = found["alike"]
    order = "Ordered by the answers changed, then by the outputs changed. " + (
        f"{alike} faults are as bad as the first; of equally bad ones each layer and component "
        "comes once before any comes twice."
        if alike > 1 else ""
    )  # fmt: skip
    made = [
        el("p", order, f" {plural(found['of'], 'trial')} changed any output at all."),
        table(head, lines, right=["trial", "bit"], caption="The worst faults"),
    ]
    followed = [fault for fault in found["faults"] if fault["spread"]]
    if followed:
        made.append(el("h4", "How they spread"))
        made.append(_spread(s, followed))
        made.append(
            el("ul", [el("li", _story(fault, s.numbers["summary"]["file"])) for fault in followed])
        )
    if found["why_not"]:
        made.append(el("p", "How they spread is not shown: ", plain(found["why_not"], 400),
                       class_="soft"))  # fmt: skip
    return join(made)


def _place(fault: dict) -> str:
    if fault["row"] is not None:
        text = f"PE ({fault['row']}, {fault['col']})"
        return text + (f", cycle {count(fault['cycle'])}" if fault["cycle"] is not None else "")
    return f"word {count(fault['word'])}" if fault["word"] is not None else "–"


def _story(fault: dict, file: str) -> Html:
    """One followed fault in a sentence, and the command that shows all of it."""
    changed = [layer for layer in fault["spread"] if layer["codes_changed"]]
    text = f"Trial {fault['trial']}, {plain(fault['layer'], 60)}: {plain(fault['struck'], 300)}. "
    if changed:
        widest = max(changed, key=lambda layer: layer["codes_changed"] / max(layer["codes"], 1))
        text += (
            f"Values differ in {plural(len(changed), 'layer')}, at most "
            f"{percent(widest['codes_changed'] / max(widest['codes'], 1))} of them in "
            f"{plain(widest['layer'], 60)}; class {fault['clean_class']} became "
            f"{fault['faulty_class']}. "
        )
    command = f"fsim explain {shlex.quote(plain(file))} --trial {fault['trial']}"
    command += f" --event {fault['event']} --image {fault['image']}"
    return join([text, el("code", command)])


def _spread(s: Section, faults: list[dict]) -> Html:
    layers = list(dict.fromkeys(part["layer"] for f in faults for part in f["spread"]))
    scale = Scale((0.001, 0.01, 0.05, 0.1, 0.25, 0.5))
    cells = {}
    for row, fault in enumerate(faults):
        for part in fault["spread"]:
            if not part["codes_changed"]:
                continue
            size = part["codes_changed"] / max(part["codes"], 1)
            cells[row, layers.index(part["layer"])] = Cell(
                {"estimate": size, "low": size, "high": size}, part["codes"],
                part["codes_changed"], f"trial {fault['trial']}, {part['layer']}",
                f"trial {fault['trial']}, {plain(part['layer'])}: "
                f"{count(part['codes_changed'])} of {count(part['codes'])} values differ, the "
                f"largest by {count(part['largest'])}",
            )  # fmt: skip
    drawn = heat_map(
        s.named("spread"), "Values that differ from the run without faults",
        [f"trial {fault['trial']}" for fault in faults], layers, cells, row_name="fault",
        col_name="layer, in the order of the network", scale=scale, cell=(36, 30),
        sampled=False, files=s.files,
    )  # fmt: skip
    behind = table(
        ["fault", "layer", "sums changed", "values changed", "of", "largest change"],
        [[f"trial {f['trial']}", plain(part["layer"], 60),
          "–" if part["sums_changed"] is None else count(part["sums_changed"]),
          count(part["codes_changed"]), count(part["codes"]), count(part["largest"])]
         for f in faults for part in f["spread"]],
        right=["sums changed", "values changed", "of", "largest change"],
        caption="Values that differ",
    )  # fmt: skip
    return s.show(
        drawn, "Share of each layer's output values that one fault, alone, changed. Blank: none.",
        behind,
    )  # fmt: skip


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
