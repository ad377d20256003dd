"""What the trials of `fsim inject` found: as JSON values, as text, as a curve."""

from __future__ import annotations

import io
from collections import Counter

from fsim.cli.tables import pairs, table
from fsim.words import describe_faults, protected_outcomes, protection_text, protections

MEMORIES = ("acts", "weights", "psums")

POSSIBLE = ("masked", "sdc_benign", "sdc_critical")
"""Outcomes of a machine without error correction, detection or watchdog."""


def possible(accel: dict) -> tuple[str, ...]:
    """Outcomes that a machine, as tasks hold it, can have."""
    return (*POSSIBLE, *protected_outcomes(accel))


def _interval(interval) -> dict:
    return {"estimate": interval.estimate, "low": interval.low, "high": interval.high,
            "method": interval.method}  # fmt: skip


def make_report(session, chosen, described, task, plan, golden, outcomes, accuracy, struck,
            seconds) -> dict:  # fmt: skip
    """What the trials found, as JSON values."""
    import numpy as np

    from fsim.simulator.statistics import summarise

    order = sorted(outcomes)
    summary = summarise(np.stack([outcomes[t] for t in order]), unit=chosen.unit)
    accuracies = np.array([accuracy[t] for t in order])
    accel = task["accel"]
    return {
        "model": task["model"],
        "accel": session.placement.accel.name,
        "dataflow": session.placement.accel.dataflow,
        "array": [session.placement.accel.rows, session.placement.accel.cols],
        "faults": described,
        "select": task["select"],
        "seed": task["seed"],
        "plan": plan,
        "accuracy": {"clean": golden.accuracy, "faulty_mean": float(accuracies.mean()),
                     "faulty_min": float(accuracies.min()),
                     "faulty_max": float(accuracies.max())},
        "protection": protections(accel),
        "outcomes": {name: _outcome(summary.counts[name], share, name in possible(accel))
                     for name, share in summary.shares.items()},
        "faults_by": [{"component": c, "layer": x, "faults": k}
                      for (c, x), k in sorted(struck.faults.items())],
        "outcomes_by_bit": struck.table() if one_a_image(described) else None,
        "seconds": seconds,
        "notes": list(session.notes),
    }  # fmt: skip


def _outcome(count: int, share, can_occur: bool) -> dict:
    if can_occur or count:
        return {"count": count, **_interval(share)}
    return {"count": count, "estimate": 0.0, "low": 0.0, "high": 0.0,
            "method": "cannot occur: nothing corrects, detects or watches"}  # fmt: skip


def one_a_image(described: dict) -> bool:
    """Whether every image has exactly one event, to which its outcome belongs."""
    return described["kind"] in ("seu", "mbu", "transient", "intermittent")


class Struck:
    """Faults by component and layer; of single faults also outcomes by component and bit."""

    def __init__(self, names, layers, single: bool):
        self.names, self.layers, self.single = names, layers, single
        self.faults: Counter = Counter()
        self.bits: Counter = Counter()

    def count(self, rows, outcome) -> None:
        """Add the rows of trials; outcome (images,) of the trial they are all of."""
        import numpy as np

        if not len(rows):
            return
        pairs_, counts = np.unique(
            np.stack([rows["component"], rows["layer"]]), axis=1, return_counts=True
        )
        for (component, layer), count in zip(pairs_.T, counts):
            where = self.layers[layer] if layer >= 0 else "(all)"
            self.faults[self.names[component], where] += int(count)
        if self.single and outcome is not None:
            masks = rows["xor_mask"] | rows["or_mask"]
            for component, image, mask in zip(rows["component"], rows["image"], masks):
                mask = int(mask)
                bit = (mask & -mask).bit_length() - 1  # of several the lowest
                self.bits[self.names[component], bit, int(outcome[image])] += 1

    def table(self) -> list[dict]:
        """Outcome counts of each component and bit."""
        from fsim.simulator.statistics import OUTCOME_NAMES

        found: dict[tuple, dict] = {}
        for (name, bit, code), count in sorted(self.bits.items()):
            row = found.setdefault((name, bit), {"component": name, "bit": bit, "faults": 0})
            row["faults"] += count
            row[OUTCOME_NAMES[code]] = count
        return list(found.values())


def outcome_rows(result, golden, count=None):
    """The OUTCOME rows of a trial over the first `count` images (default: all)."""
    import numpy as np

    from fsim.simulator.trace import OUTCOME, tensor_digest

    rows = np.zeros(len(result.outcome), OUTCOME)
    rows["trial"], rows["image"] = result.trial, np.arange(len(rows))
    rows["label"], rows["golden"] = golden.labels[:count], golden.top1[:count]
    rows["faulty"], rows["outcome"] = result.top1, result.outcome
    rows["digest"] = tensor_digest(result.acc)
    return rows


def add_curve(
    report, session, space, golden, chosen, seed, flips, most_faults, out
) -> bytes | None:
    """P(critical | one flip) and the accuracy curve; its picture as PNG if there is an `out`."""
    import numpy as np

    from fsim.fault_models.bit_errors import OneFlip
    from fsim.simulator.curve import draw, quick_curve
    from fsim.simulator.inject import run_trials
    from fsim.simulator.statistics import Outcome, wilson

    memories = tuple(name for name in MEMORIES if getattr(chosen, name))
    repeats = -(-flips // len(golden.images))
    critical = total = 0
    split: dict[tuple[str, str], list[int]] = {}
    names, layers = session.identity["components"], session.identity["layers"]
    # Trial numbers apart from those of the main run.
    for result in run_trials(
        space, golden, OneFlip(memories), seed=seed, trials=range(1 << 29, (1 << 29) + repeats)
    ):
        wrong = result.outcome == Outcome.SDC_CRITICAL
        critical, total = critical + int(wrong.sum()), total + len(wrong)
        rows = result.rows
        for number, layer in np.unique(np.stack([rows["component"], rows["layer"]]), axis=1).T:
            here = (rows["component"] == number) & (rows["layer"] == layer)
            tally = split.setdefault((names[number], layers[layer]), [0, 0])
            tally[0] += int(wrong[here].sum())
            tally[1] += int(here.sum())
    whole: dict[str, list[int]] = {}
    for (name, _), (k, n) in split.items():
        whole[name] = [a + b for a, b in zip(whole.get(name, [0, 0]), (k, n))]
    report["critical_given_a_flip"] = {
        **_interval(wilson(critical, total)), "flips": total,
        "by_component": {name: {"critical": k, "flips": n, **_interval(wilson(k, n))}
                         for name, (k, n) in sorted(whole.items())},
        "by_layer": [{"component": name, "layer": layer, "critical": k, "flips": n,
                      **_interval(wilson(k, n))}
                     for (name, layer), (k, n) in sorted(split.items())],
    }  # fmt: skip
    found = quick_curve(space, golden, chosen, seed=seed, most_faults=most_faults)
    report["curve"] = {
        "ber": list(found.ber),
        "accuracy": list(found.accuracy),
        "trials": list(found.trials),
        "images": found.images,
        "ber_at_one_point_drop": found.ber_at_drop,
        "low": found.low,
        "high": found.high,
    }
    if out is None:
        return None
    report["curve"]["picture"] = str(out / "ber_curve.png")
    content = io.BytesIO()  # the drawing library would not tell a full disk from other errors
    title = f"{report['model']} on {report['accel']} ({report['dataflow']})"
    chosen_layers = report["select"]["layers"]
    title += f", {', '.join(chosen_layers)}" if chosen_layers else ""
    what = "all memories" if len(memories) == len(MEMORIES) else " and ".join(memories)
    draw(found, content, title, what)
    return content.getvalue()


def report_text(report: dict, session) -> str:
    """The report for people."""
    accuracy, plan = report["accuracy"], report["plan"]
    accel = session.identity["accel"]
    shown = possible(accel)
    rows, cols = report["array"]
    lines = [
        pairs([
            ("network", f"{report['model']}, {plan['images']} images, "
                        f"{plan['macs_per_image']:,} MACs an image"),
            ("accelerator", f"{report['accel']} ({report['dataflow']}), {rows} x {cols} PEs, "
                            f"{plan['cycles_per_image']:,} cycles an image"),
            ("faults", describe_faults(report["faults"])),
            *([("protection", protection_text(accel))] if report["protection"] else []),
            *_exposed(report),
            ("trials", f"{plan['trials']} in {report['seconds']['trials']:.1f} s, "
                       f"{plan['expected_faults_per_trial']:.6g} faults expected in each"),
            ("clean accuracy", f"{100 * accuracy['clean']:.2f} %"),
            ("faulty accuracy", f"{100 * accuracy['faulty_mean']:.2f} % (trials "
                                f"{100 * accuracy['faulty_min']:.2f} to "
                                f"{100 * accuracy['faulty_max']:.2f} %)"),
        ]),
        "",
        table(
            ["outcome", "count", "share", "95 % interval"],
            [[name.replace("_", "-"), o["count"], f"{100 * o['estimate']:.3f} %",
              f"{100 * o['low']:.3f} .. {100 * o['high']:.3f} %"]
             for name, o in report["outcomes"].items() if name in shown or o["count"]],
            right=["count", "share"],
        ),
        "",
        _faults_table(report),
    ]  # fmt: skip
    if "curve" in report:
        hit, curve = report["critical_given_a_flip"], report["curve"]
        at = curve["ber_at_one_point_drop"]
        lines += [
            "",
            f"P(critical | a flip)       {100 * hit['estimate']:.3f} % "
            f"({100 * hit['low']:.3f} .. {100 * hit['high']:.3f} %, {hit['flips']} flips)",
            "accuracy falls by a point  "
            + (
                f"at a bit error rate of about {at:.2g} ({_limit(curve['low'])} .. "
                f"{_limit(curve['high'])})"
                if at
                else f"nowhere up to a rate of {curve['ber'][-1]:.2g}"
            ),
        ]
        if "picture" in curve:
            lines.append(f"curve                      {curve['picture']}")
    lines += [f"note: {note}" for note in report["notes"]]
    return "\n".join(lines)


def _limit(rate: float | None) -> str:
    return "?" if rate is None else f"{rate:.1e}"


def _exposed(report: dict) -> list[tuple[str, str]]:
    """What the faults choose from, as a line of the report."""
    plan, faults = report["plan"], report["faults"]
    if faults["kind"] == "ber":
        exposed = plan["exposed_bits_per_image"].items()
        bits = {n: b for n, b in exposed if faults[n.removesuffix("_check")]}
        text = ", ".join(f"{name} {count:,}" for name, count in bits.items())
        return [("exposed bits", f"{text} an image")] if text else []
    if faults["kind"] == "stuck-cells":
        return [("cells", f"{plan['weight_cells']:,} of the weight memory, one for each bit")]
    if faults["kind"] == "explicit" or "parameters" in faults:
        return []
    return [("register sites", f"{plan['register_sites_per_image']:,} bits x cycles an image")]


def _faults_table(report: dict) -> str:
    """Faults by component and layer; with --ber also how many single flips were critical."""
    head, right = ["component", "layer", "faults"], ["faults"]
    rows = [[f["component"], f["layer"], f["faults"]] for f in report["faults_by"]]
    flips = report.get("critical_given_a_flip", {}).get("by_layer")
    if flips:
        head, right = [*head, "single flips", "critical"], [*right, "single flips", "critical"]
        tally = {(f["component"], f["layer"]): f for f in flips}
        struck = {(row[0], row[1]): row[2] for row in rows}
        rows = [
            [*key, struck.get(key, 0), *(tally[key][n] if key in tally else 0
                                         for n in ("flips", "critical"))]
            for key in sorted(set(struck) | set(tally))
        ]  # fmt: skip
    return table(head, rows, right=right)
