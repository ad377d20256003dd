"""Sections on where in the network faults matter: layers, components, bits."""

from __future__ import annotations

from . import charts
from .heatmaps import Cell, heat_map
from .markup import Html, el, join, plain, table
from .scale import Scale, scale_of
from .section import MOST_ROWS, Section, slug
from .words import METRICS, bounds, count, estimate, percent, plural, share

_MOST_LABELS = 60  # rows of a chart with one line a layer

MOST_LAYERS, MOST_COMPONENTS = 300, 40
"""Rows and columns of a map; those with the highest lower limits are shown, and all in tables."""


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
                s.named(f"{plural_name}-{slug(metric)}"),
                f"{METRICS[metric]} by {axis}",
                [(row[axis], row[metric], row["trials"]) for row in shown], metric=metric,
                files=s.files,
            )
            for metric in ("sdc_critical", "sdc")
        ]  # fmt: skip
        caption = _ranking_text(s, rows, axis)
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


def _ranking_text(s: Section, rows: list[dict], axis: str) -> str:
    """Which part has the highest critical rate, and whether that is certain."""
    met = [row for row in rows if row["trials"]]
    if len(met) < 2 or not any(row["counts"]["sdc_critical"] for row in met):
        return "No critical outcome was seen." if met else "No trials."
    best = max(met, key=lambda row: row["sdc_critical"]["low"])
    others = [row for row in rows if row is not best]
    sure = best["sdc_critical"]["low"] > max(row["sdc_critical"]["high"] for row in others)
    text = (
        f"Highest lower limit: {plain(best[axis])}, {share(best['sdc_critical'])}, "
        f"{count(best['counts']['sdc_critical'])} of "
        f"{plural(best['trials'] * s.numbers['summary']['images_per_trial'], 'inference')}."
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
        [*(plain(row[axis], 60) for axis in axes), percent(row["share"]), count(row["trials"]),
         count(row["counts"]["sdc_critical"]), *_rate(row, "sdc_critical"), *_rate(row, "sdc")]
        for row in rows[:MOST_ROWS]
    ]  # fmt: skip
    made = table(head, lines, right=[*(a for a in axes if a == "bit"), *head[len(axes) :]],
                 caption=f"Rates by {', '.join(axes)}")  # fmt: skip
    if len(rows) <= MOST_ROWS:
        return made
    return join([made, el("p", f"The first {MOST_ROWS} of {len(rows)} rows; all of them are in the "
                               "tables beside this page.")])  # fmt: skip


def _rate(row: dict, metric: str) -> tuple[str, str]:
    if not row["trials"]:
        return "no trials", "–"
    return estimate(row[metric]), bounds(row[metric])


def network(s: Section) -> Html | None:
    parts = s.numbers["parts"]
    rows = parts.get("layer,component")
    if not rows:
        return None
    made = []
    layers = _shown(rows, "layer", MOST_LAYERS)
    components = _shown(rows, "component", MOST_COMPONENTS)
    left_out = len(_distinct(rows, "layer")) - len(layers)
    left_out += len(_distinct(rows, "component")) - len(components)
    inside = [r for r in rows if r["layer"] in set(layers) and r["component"] in set(components)]
    pair = []
    for metric in ("sdc_critical", "sdc"):
        cells = {}
        for row in inside:
            at = layers.index(row["layer"]), components.index(row["component"])
            cells[at] = _cell(s, row, metric, f"{row['layer']} {row['component']}")
        drawn = heat_map(
            s.named(f"network-{slug(metric)}"),
            f"{METRICS[metric]} by layer and component", layers, components, cells,
            row_name="layer", col_name="component", values=True,
            cell=(108, 38) if len(layers) <= 14 else (116, 23), files=s.files,
        )  # fmt: skip
        pair.append(s.show(drawn, _MAP_TEXT if metric == "sdc_critical" else _MAP_MORE))
    if left_out:
        made.append(el("p", f"{left_out:,} layers or components with the lowest lower limits are "
                            "in the tables alone.", class_="soft"))  # fmt: skip
    made.append(el("div", pair, class_="pair" if s.pictures[-1].width <= 700 else None))
    made.append(el("details", el("summary", "The numbers by layer and component"),
                   parts_table(rows, ("layer", "component"))))  # fmt: skip
    fine = parts.get("layer,component,bit")
    if fine:
        made.append(el("h4", "Layers and bits"))
        figures, missing = [], {}
        for component in components:
            for metric in ("sdc_critical", "sdc"):
                found = _layer_bits(s, fine, layers, component, metric)
                if found is None:
                    missing.setdefault(metric, []).append(plain(component, 40))
                else:
                    figures.append(found)
        made.append(el("div", figures, class_="pair") if figures else None)
        made += [
            el("p", f"No map of {METRICS[metric]} in {', '.join(names)}: no layer and bit has "
               f"events enough for a colour. {_more(s)}", class_="soft")
            for metric, names in missing.items()
        ]  # fmt: skip
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


def _layer_bits(s: Section, fine, layers, component, metric) -> Html | None:
    """The map of one component; None if no cell of it tells its colour."""
    rows = [row for row in fine if row["component"] == component]
    there = {row["layer"] for row in rows}
    mine = [layer for layer in layers if layer in there]
    rows = [row for row in rows if row["layer"] in set(mine)]
    bits = range(max(row["bit"] for row in rows) + 1)
    cells = {}
    for row in rows:
        at = mine.index(row["layer"]), row["bit"]
        cells[at] = _cell(s, row, metric, f"{row['layer']} {component} bit {row['bit']}")
    scale = scale_of((c.found, c.trials) for c in cells.values())
    if not any(c.trials and not scale.uncertain(c.found) for c in cells.values()):
        return None
    drawn = heat_map(
        s.named(f"bits-{slug(component)}-{slug(metric)}"),
        f"{METRICS[metric]} by layer and bit, {plain(component, 40)}", mine,
        [str(bit) for bit in bits], cells, row_name="layer", col_name="bit (0 is the lowest)",
        scale=scale, cell=(26 if len(bits) <= 16 else 15, 22), files=s.files,
    )  # fmt: skip
    return s.show(drawn, _known_text(s, cells, scale))


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


def _cell(s: Section, row: dict, metric: str, where: str) -> Cell:
    images = s.numbers["summary"]["images_per_trial"]
    return Cell(row[metric], row["trials"], row["counts"][metric], plain(where), images=images)


def _shown(rows: list[dict], axis: str, most: int) -> list:
    """The names on an axis, in order; of too many those with the highest lower limits."""
    names = _distinct(rows, axis)
    if len(names) <= most:
        return names
    best = list(dict.fromkeys(row[axis] for row in _telling(rows)))[:most]
    return [name for name in names if name in set(best)]


def _distinct(rows: list[dict], axis: str) -> list:
    return list(dict.fromkeys(row[axis] for row in rows))


def _telling(rows: list[dict]) -> list[dict]:
    """Rows by what is certain about them: the highest lower limits first."""
    return sorted(rows, key=lambda r: (-r["sdc_critical"]["low"], -r["sdc"]["low"]))


def bits(s: Section) -> Html | None:
    rows = s.numbers["parts"].get("component,bit")
    if not rows or not any(row["trials"] for row in rows):
        return None
    few = set(_shown(rows, "component", MOST_COMPONENTS))
    pair = [
        s.show(
            charts.bit_profile(s.named(f"bit-rates-{slug(metric)}"),
                               f"{METRICS[metric]} by bit",
                               [row for row in rows if row["component"] in few], metric, s.files),
            "Dots: estimates. Lines: intervals. An arrow: it goes on.",
        )
        for metric in ("sdc_critical", "sdc")
    ]  # fmt: skip
    return join([
        el("div", pair, class_="pair"),
        el("details", el("summary", "The numbers by component and bit"),
           parts_table(rows, ("component", "bit"))),
    ])  # fmt: skip
