"""The section on the worst faults and how they spread through the network."""

from __future__ import annotations

import shlex

from .heatmaps import Cell, heat_map
from .markup import Html, el, join, plain, table
from .scale import Scale
from .section import Section
from .words import METRICS, count, percent, plural

MOST_COLUMNS = 300
"""Layers of the picture; the table behind it has all."""


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
    more = f" and {plural(fault['events'] - 1, 'other')}" if fault["events"] > 1 else ""
    return _one_place(fault) + more


def _one_place(fault: dict) -> str:
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
            f"{plain(widest['layer'], 60)}; {_answer(fault)}. "
        )
    if fault["events"] > 1:  # fsim explain follows one of them alone
        return join([text])
    command = f"fsim explain {shlex.quote(plain(file))} --trial {fault['trial']}"
    command += f" --event {fault['event']} --image {fault['image']}"
    return join([text, el("code", command)])


def _answer(fault: dict) -> str:
    clean, faulty = fault["clean_class"], fault["faulty_class"]
    return f"the answer stays {clean}" if clean == faulty else f"the answer {clean} became {faulty}"


def _spread(s: Section, faults: list[dict]) -> Html:
    layers = list(dict.fromkeys(part["layer"] for f in faults for part in f["spread"]))
    some = len(layers) > MOST_COLUMNS
    if some:  # what is left of a fault is most telling at the end
        layers = layers[-MOST_COLUMNS:]
    scale = Scale((0.001, 0.01, 0.05, 0.1, 0.25, 0.5))
    cells = {}
    for row, fault in enumerate(faults):
        for part in fault["spread"]:
            if not part["codes_changed"] or part["layer"] not in layers:
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
        drawn, "Share of each layer's output values that one fault, alone, changed. Blank: none."
        + (f" The last {MOST_COLUMNS} layers of all." if some else ""),
        behind,
    )  # fmt: skip
