"""The report of `fsim calibrate --stuck-cells`: JSON values, text, and the head of its file."""

from __future__ import annotations

import math
from dataclasses import asdict

from fsim.cli.tables import pairs, table
from fsim.words import describe_faults


def stuck_report(session, described, seed, result, tables) -> dict:
    """What was found, as JSON values."""
    counts, fit, accel = result.counts, result.fit, session.placement.accel
    layers = [
        {
            "name": name,
            "words": len(codes),
            "written": {str(v): counts.written[at, :, v].tolist() for v in (0, 1)},
            "wrong": {str(v): counts.wrong[at, :, v].tolist() for v in (0, 1)},
            "wrong_bits": int(fit.observed[at]),
            "expected": float(fit.expected[at]),
        }
        for at, (name, codes) in enumerate(zip(counts.names, counts.codes))
    ]
    rates = ("p0", "p1", "p", "sa1_share")
    return {
        "model": session.identity["model"],
        "accel": accel.name,
        "dataflow": accel.dataflow,
        "array": [accel.rows, accel.cols],
        "faults": described,
        "seed": seed,
        "trials": counts.trials,
        "faults_drawn": counts.faults,
        "bits": counts.bits,
        "layers": layers,
        "differences": {str(d): n for d, n in sorted(counts.differences.items())},
        "fits": {
            **dict.fromkeys(result.absent),
            "adsaf-bits": {
                **{name: _interval(getattr(fit, name)) for name in rates},
                "chi2": fit.chi2, "dof": fit.dof, "p_value": fit.p_value, "poor": list(fit.poor),
            },
        },
        "absent": result.absent,
        "changes": [asdict(change) for change in result.changes],
        "models": tables,
        "notes": [*session.notes, *_notes(result)],
    }  # fmt: skip


def _interval(interval) -> dict | None:
    if interval is None or math.isnan(interval.estimate):  # no cell was written so
        return None
    return {"estimate": interval.estimate, "low": interval.low, "high": interval.high,
            "method": interval.method}  # fmt: skip


def _notes(result) -> list[str]:
    notes = [
        "the machine's codes have a scale for each output channel, the model's grid one for a "
        "whole tensor: the same stuck bit is then worth another share of the largest weight"
    ]
    if result.fit.sa1_share is None:
        notes.append("no cell was read wrong: p is 0 and its upper end is all that is known; "
                     "take more --trials or a higher rate")  # fmt: skip
    elif not result.changes:
        notes.append(f"codes of {result.counts.bits} bits are not compared with adsaf")
    return notes


def stuck_text(report: dict) -> str:
    """The report for people."""
    rows, cols = report["array"]
    head = [
        ("network", report["model"]),
        ("accelerator", f"{report['accel']} ({report['dataflow']}), {rows} x {cols} PEs"),
        ("faults", describe_faults(report["faults"])),
        ("chips", f"{report['trials']}, {report['faults_drawn']:,} stuck cells in all"),
    ]
    if "file" in report:
        head.append(("models", f"{report['file']}  (fsim train --fault-backend torch --faults)"))
    columns = ["layer", "words", "written 0", "read 1", "written 1", "read 0", "wrong", "expected"]
    lines = [pairs(head), "", table(columns, [*map(_row, report["layers"])], right=columns[1:]), ""]
    lines += [pairs(_fit_lines(report))]
    if report["changes"]:
        columns = ["code read - code written", "p", "weights changed", "mean size", "rms",
                   "distance"]  # fmt: skip
        lines += [
            "",
            table(columns, [*map(_change_row, report["changes"])], right=columns[1:]),
            "sizes in codes, over all weights; distance: total variation, to the machine",
        ]
    lines += [f"note: {note}" for note in report["notes"]]
    return "\n".join(lines)


def _row(layer: dict) -> list:
    counts = [sum(layer[kind][v]) for v in "01" for kind in ("written", "wrong")]
    return [layer["name"], f"{layer['words']:,}", *(f"{count:,}" for count in counts),
            layer["wrong_bits"], f"{layer['expected']:.1f}"]  # fmt: skip


def _change_row(change: dict) -> list:
    return [change["name"], "" if change["p"] is None else f"{change['p']:.4g}",
            f"{100 * change['changed']:.3g} %", f"{change['mean']:.3g}", f"{change['rms']:.3g}",
            f"{change['distance']:.3f}" if change["p"] is not None else ""]  # fmt: skip


_RATES = (
    ("p0", "stuck at 0, of the cells written 1"),
    ("p1", "stuck at 1, of the cells written 0"),
    ("p", "p0 + p1: stuck, per cell"),
    ("sa1_share", "p1 / p: at 1, of the stuck cells"),
)


def _fit_lines(report: dict) -> list[tuple[str, str]]:
    """Parameters, intervals, goodness of fit and verdicts."""
    fit = report["fits"]["adsaf-bits"]
    lines = [(name, f"does not apply: {reason}") for name, reason in report["absent"].items()]
    for name, meaning in _RATES:
        found, key = fit[name], f"adsaf-bits  {name}"
        if found is None:
            lines.append((key, f"not known  {meaning}"))
        else:
            lines.append((key, f"{found['estimate']:.4g} (95 % interval {found['low']:.4g} .. "
                               f"{found['high']:.4g})  {meaning}"))  # fmt: skip
    lines.append(("", "fit over layers, bits and written values: " + (
        "too few stuck cells to judge" if fit["p_value"] is None else
        f"chi-square {fit['chi2']:.3g} with {fit['dof']} degrees of freedom, "
        f"p = {fit['p_value']:.2g}")))  # fmt: skip
    lines += [("", f"POOR DESCRIPTION: {reason}") for reason in fit["poor"]]
    if not fit["poor"] and fit["p_value"] is not None:
        lines.append(("", "nothing speaks against this model"))
    return lines


def stuck_comments(report: dict) -> list[str]:
    """Where the parameters come from, for the head of the file."""
    rows, cols = report["array"]
    return [
        f"fsim calibrate: {report['model']} on {report['accel']} ({report['dataflow']}), "
        f"{rows} x {cols} PEs",
        describe_faults(report["faults"]),
        f"{report['trials']} trials, seed {report['seed']}",
        *pairs(_fit_lines(report)).splitlines(),
        *(f"note: {note}" for note in report["notes"]),
    ]
