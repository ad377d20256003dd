"""FIT budgets as text and as CSV."""

from __future__ import annotations

import csv
import io
import textwrap

from fsim.cli.tables import pairs, table


def rate_text(value: float | None) -> str:
    """A rate with four decimals, or as a power of ten where those would show little."""
    if value is None:
        return "-"
    if value == 0.0 or abs(value) >= 0.01:
        return f"{value:,.4f}"
    return f"{value:.3e}"


def share_text(value: float | None) -> str:
    """A probability in per cent."""
    return "-" if value is None else f"{100 * value:.4g} %"


def limits_text(found: dict, text) -> str:
    """low .. high; a dash for what has no width."""
    if found["low"] is None or found["low"] == found["high"]:
        return "-"
    return f"{text(found['low'])} .. {text(found['high'])}"


def budget_text(found: dict) -> str:
    """The budget for people."""
    parts = [_head(found), _components(found)]
    rows = [[one["class"], rate_text(one["fit"]["estimate"]), limits_text(one["fit"], rate_text)]
            for one in found["classes"]]  # fmt: skip
    total = found["total"]["fit"]
    rows.append(["total", rate_text(total["estimate"]), limits_text(total, rate_text)])
    parts.append(table(["class", "FIT", "interval"], rows, right=["FIT"]))
    if found["layers"]:
        parts.append(
            table(
                ["layer", "exposed FIT", "P(failure)", "interval", "FIT", "interval "],
                [[one["layer"], rate_text(one["exposed_fit"]),
                  share_text(one["failing"]["estimate"]), limits_text(one["failing"], share_text),
                  rate_text(one["fit"]["estimate"]), limits_text(one["fit"], rate_text)]
                 for one in found["layers"]],
                right=["exposed FIT", "P(failure)", "FIT"],
            )
        )  # fmt: skip
    if "inference" in found:
        one = found["inference"]
        parts.append(
            pairs([
                ("an inference", f"{one['cycles']:,} cycles at {one['clock']:g} Hz"),
                ("P(failure) of it",
                 f"{power_text(one['estimate'])} ({limits_text(one, power_text)})"),
            ])
        )  # fmt: skip
    if "safety" in found:
        parts.append(safety_text(found["safety"]))
    return "\n\n".join([*parts, "\n".join(f"note: {note}" for note in _notes(found))])


def _head(found: dict) -> str:
    """What the budget is of."""
    if "files" not in found:
        return textwrap.fill(found["about"], 100) if found["about"] else f"table {found['source']}"
    rates = ", ".join(f"{name or 'all storage'} {value:g}"
                      for name, value in found["fit_per_mbit"].items())  # fmt: skip
    return pairs([
        ("network", f"{found['model']} on {found['accel']}"),
        ("campaigns", ", ".join(found["files"])),
        ("failure", found["failure"]),
        ("raw rate", f"{rates} FIT per Mbit of {found['mbit']:,} bits"),
        ("intervals", f"{100 * found['confidence']:g} %"),
    ])  # fmt: skip


def _notes(found: dict) -> list[str]:
    """What P(failure) is conditional on, then what the budget says of itself."""
    means: dict[str, list[str]] = {}
    for line in found["components"]:
        classes = means.setdefault(line["failing"]["condition"], [])
        if line["class"] not in classes:
            classes.append(line["class"])
    said = [f"P(failure) of {', '.join(of)}: {text}" for text, of in means.items()]
    return said + found["notes"]


def _components(found: dict) -> str:
    lines = found["components"]
    factors = list(dict.fromkeys(name for line in lines for name in line["factors"]))
    rows = []
    for line in lines:
        rows.append([
            line["component"], line["class"],
            "-" if line["bits"] is None else f"{line['bits']:,.0f}", rate_text(line["raw_fit"]),
            *(f"{line['factors'][name]:.4g}" if name in line["factors"] else "-"
              for name in factors),
            share_text(line["failing"]["estimate"]), limits_text(line["failing"], share_text),
            rate_text(line["fit"]["estimate"]), limits_text(line["fit"], rate_text),
        ])  # fmt: skip
    head = ["component", "class", "bits", "raw FIT", *factors, "P(failure)", "interval", "FIT",
            "interval "]  # fmt: skip
    bare = all(row[-3:-2] == ["-"] for row in rows) and all(row[-1] == "-" for row in rows)
    if bare:  # a table of stated numbers: no column of dashes
        keep = [i for i, name in enumerate(head) if name.strip() != "interval"]
        head, rows = [head[i] for i in keep], [[row[i] for i in keep] for row in rows]
    return table(head, rows, right=["bits", "raw FIT", *factors, "P(failure)", "FIT"])


def safety_text(found: dict) -> str:
    """The safety table for people."""
    columns = ("rate", "safe", "single_point", "residual", "detected", "latent")
    head = ["element", "mechanism", "FIT", "safe", "single-point", "residual", "detected", "latent"]
    rows = [[row["name"], row["mechanism"] or "-", *(rate_text(row[name]) for name in columns)]
            for row in found["rows"]]  # fmt: skip
    rows.append(["sum", "", *(rate_text(found["sum"][name]) for name in columns)])
    parts = [table(head, rows, right=head[2:])]
    pmhf, targets = found["pmhf"], found["targets"]
    metrics = [
        ["SPFM", _percent(found["spfm"]["estimate"]), limits_text(found["spfm"], _percent),
         *(_percent(targets[level]["spfm"]) for level in targets)],
        ["LFM", _percent(found["lfm"]["estimate"]), limits_text(found["lfm"], _percent),
         *(_percent(targets[level]["lfm"]) for level in targets)],
        ["PMHF, per hour", power_text(pmhf["estimate"]), limits_text(pmhf, power_text),
         *(power_text(targets[level]["pmhf"]) for level in targets)],
    ]  # fmt: skip
    parts.append(
        table(["metric", "estimate", "interval", *(f"ASIL {level}" for level in targets)], metrics,
              right=["estimate", *(f"ASIL {level}" for level in targets)])
    )  # fmt: skip
    parts.append(
        pairs([
            ("single-point and residual",
             f"{power_text(pmhf['single_point_and_residual'])} per hour"),
            ("dual-point", f"{power_text(pmhf['dual_point'])} per hour, over "
                           f"{found['lifetime_hours']:,.0f} h of operation"),
            ("targets", "of ISO 26262-5, for a whole item: this is a part of one"),
        ])
    )  # fmt: skip
    return "\n\n".join(parts)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.4f} %"


def power_text(value: float | None) -> str:
    """A small number as a power of ten."""
    return "-" if value is None else f"{value:.3e}"


def budget_csv(found: dict) -> bytes:
    """One row a component, class, layer and the total; `kind` says which."""
    factors = list(dict.fromkeys(n for line in found["components"] for n in line["factors"]))
    head = ["kind", "name", "class", "bits", "raw_fit", *factors, "condition", "failures", "trials",
            "p", "p_low", "p_high", "fit", "fit_low", "fit_high"]  # fmt: skip
    stream = io.StringIO()
    out = csv.DictWriter(stream, head, restval="", lineterminator="\n")
    out.writeheader()

    def limits(name: str, one: dict) -> dict:
        return {name: one["estimate"], f"{name}_low": one["low"], f"{name}_high": one["high"]}

    for line in found["components"]:
        failing = line["failing"]
        given = {name: failing[name] for name in ("condition", "failures", "trials")}
        out.writerow({
            "kind": "component", "name": line["component"], "class": line["class"],
            "bits": line["bits"], "raw_fit": line["raw_fit"], **line["factors"], **given,
            **limits("p", failing), **limits("fit", line["fit"]),
        })  # fmt: skip
    for one in found["classes"]:
        out.writerow({"kind": "class", "name": one["class"], **limits("fit", one["fit"])})
    for one in found["layers"]:
        out.writerow({"kind": "layer", "name": one["layer"], **limits("p", one["failing"]),
                      **limits("fit", one["fit"])})  # fmt: skip
    total = found["total"]
    out.writerow({"kind": "total", "name": "total", "raw_fit": total["raw_fit"],
                  **limits("fit", total["fit"])})  # fmt: skip
    return stream.getvalue().encode("utf-8")
