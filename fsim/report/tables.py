"""The numbers of a report as CSV files that pandas, R and spreadsheets read."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator

_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def tables(numbers: dict) -> dict[str, bytes]:
    """File name -> UTF-8 content, one header line, a row for every line of every campaign.

    Intervals become NAME, NAME_low, NAME_high; shares are in [0, 1]; what is unknown is empty.
    """
    found: dict[str, list[dict]] = {}
    for one in numbers["campaigns"]:
        for name, row in _rows(one):
            found.setdefault(name, []).append({"campaign": one["name"], **_flat(row)})
    return {f"{name}.csv": _csv(rows) for name, rows in found.items()}


def _rows(one: dict) -> Iterator[tuple[str, dict]]:
    """(table, row) of a campaign."""
    for row in one["outcomes"] or ():
        yield "outcomes", row
    for axes, rows in one["parts"].items():
        name = "by-" + axes.replace(",", "-")
        for row in rows:
            counts = {f"{metric}_count": n for metric, n in row["counts"].items()}
            yield name, {**{k: v for k, v in row.items() if k != "counts"}, **counts}
    for found in one["pe"]:
        head = {"metric": found["metric"], "component": found["component"] or "(all)"}
        for block in found["blocks"]:
            yield "by-pe", {**head, **block}
    protect = one["protect"] or {}
    for step in protect.get("steps", ()):
        yield "protect", {k: v for k, v in step.items() if k != "parts"}
    for rank, row in enumerate(protect.get("ranking", ()), 1):
        yield "protect-ranking", {"rank": rank, **row}
    for row in one["flips"] or ():
        yield "flips", row
    curve = one["curve"] or {}
    for at, ber in enumerate(curve.get("ber", ())):
        yield "ber", {"ber": ber, **{k: curve[k][at] for k in ("accuracy", "critical", "covered")}}
    for chip, accuracy in enumerate((one["chips"] or {}).get("accuracy", ())):
        yield "chips", {"chip": chip, "accuracy": accuracy}
    for fault in (one["worst"] or {}).get("faults", ()):
        yield "worst-faults", {k: v for k, v in fault.items() if k not in ("spread", "struck")}
        for layer in fault["spread"] or ():
            yield "spread", {"trial": fault["trial"], **layer}


def _flat(row: dict) -> dict:
    flat = {}
    for name, value in row.items():
        if isinstance(value, dict) and "estimate" in value:
            for key, column in (("estimate", name), ("low", f"{name}_low"),
                                ("high", f"{name}_high")):  # fmt: skip
                flat[column] = value[key]
        else:
            flat[name] = value
    return flat


def _csv(rows: Iterable[dict]) -> bytes:
    rows = list(rows)
    names = list(dict.fromkeys(name for row in rows for name in row))
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        writer.writerow([_cell(row.get(name)) for name in names])
    return stream.getvalue().encode("utf-8", "replace")


def _cell(value: object) -> object:
    """A value of a table; text that a spreadsheet would run as a formula gets an apostrophe."""
    if isinstance(value, str):
        value = value.replace("\x00", " ")
        return f"'{value}" if value.startswith(_FORMULA) else value
    if isinstance(value, float):
        return repr(value)
    return value
