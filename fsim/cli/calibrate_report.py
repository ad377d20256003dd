"""The report of `fsim calibrate`: JSON values, text, and the head of the file it writes."""

from __future__ import annotations

from dataclasses import asdict

from fsim.cli.tables import pairs, table
from fsim.words import describe_faults

FEW = 50
"""Struck images below which an interval is called rough. Measured with one fault in ten
striking 300 values: 84 % of the intervals held the truth at 20 faults, 95 % at 60."""


def report_of(session, described, seed, result, tables) -> dict:
    """What was found, as JSON values."""
    found, accel = result.observation, session.placement.accel
    products = found.products
    fitted = {at: i for i, at in enumerate(result.fitted)}
    layers = []
    for at, layer in enumerate(products.layers):
        counts = {
            name: int(getattr(products, name)[at])
            for name in ("sums", "outputs", "powers", "clamped")
        }
        expected = None
        if result.mibb is not None and at in fitted:
            expected = float(result.mibb.expected[fitted[at]])
        struck = int(products.struck[:, at].sum())
        images = int((products.struck[:, at] > 0).sum())
        layers.append({**asdict(layer), "observed_values": layer.values * len(products.struck),
                       "struck": struck, "images": images, "expected": expected, **counts,
                       "biases": products.biases[at].tolist()})  # fmt: skip
    return {
        "model": session.identity["model"],
        "accel": accel.name,
        "dataflow": accel.dataflow,
        "array": [accel.rows, accel.cols],
        "faults": described,
        "seed": seed,
        "trials": found.trials,
        "images": found.images,
        "faults_drawn": found.faults,
        "bits": products.bits,
        "layers": layers,
        "flips": [_flips_report(flips, fit)
                  for flips, fit in ((found.acts, result.acts), (found.weights, result.weights))
                  if fit is not None],
        "fits": {name: None if fit is None else _fit_report(fit)
                 for name, fit in (("mibb", result.mibb), ("ibf features", result.acts),
                                   ("ibf weights", result.weights), ("adsaf", None))},
        "absent": result.absent,
        "models": tables,
        "notes": [*session.notes, *_notes(result, tables)],
    }  # fmt: skip


def _flips_report(flips, fit) -> dict:
    return {
        "memory": flips.memory,
        "tensors": [
            {"name": name, "exposed_words": int(words), "flipped": bits.tolist(),
             "expected": float(expected)}
            for name, words, bits, expected in zip(
                flips.names, flips.exposed, flips.flipped, fit.expected
            )
        ],
        "words_not_watched": flips.missed,
    }  # fmt: skip


def _fit_report(fit) -> dict:
    values = asdict(fit)
    values.pop("observed", None), values.pop("expected", None)
    return values | {"poor": list(fit.poor)}


def _notes(result, tables) -> list[str]:
    """What the parameters leave out."""
    from fsim.simulator.calibration import feature_shares

    notes = []
    shares = feature_shares(result)
    if len(shares) > 1:
        used = next(t["model"] for t in tables if t.get("target") != "weights")
        other = next(name for name in shares if name != used)
        notes.append(
            f"training takes one model of features: {used} ({100 * shares[used]:.3g} % of values "
            f"struck); {other} ({100 * shares[other]:.3g} %) is left out (--features)"
        )
    if result.mibb is not None and not result.mibb.observed.any():
        notes.append("no feature was struck: p_m is 0 and its upper end is all that is known; "
                     "take more --trials, more --images or a higher rate")  # fmt: skip
    hit = int(result.observation.products.struck.any(1).sum())
    if result.mibb is not None and 0 < hit < FEW and result.mibb.design > 2:
        notes.append(
            f"struck values come from {hit} images only, many at once: the interval of p_m is "
            "rough, take more --trials or --images"
        )
    if result.acts is not None:
        notes.append(
            "iBF of features strikes what convolutions give, before the activation function; the "
            "machine's flips strike every stored tensor, after it"
        )
    missed = result.observation.acts.missed
    if result.acts is not None and missed:
        notes.append(f"{missed:,} words fetched tile by tile were not watched: r is of the others")
    return notes


def text_of(report: dict) -> str:
    """The report for people."""
    rows, cols = report["array"]
    lines = [pairs([
        ("network", f"{report['model']}, {report['images']} images"),
        ("accelerator", f"{report['accel']} ({report['dataflow']}), {rows} x {cols} PEs"),
        ("faults", describe_faults(report["faults"])),
        ("trials", f"{report['trials']}, {report['faults_drawn']:,} faults"),
    ])]  # fmt: skip
    if report["fits"]["mibb"] is not None:
        lines += ["", *_product_tables(report)]
    for flips in report["flips"]:
        head = [flips["memory"], "words", "flipped bits", "iBF"]
        lines += ["", table(head, [
            [t["name"], f"{t['exposed_words']:,}", sum(t["flipped"]), f"{t['expected']:.1f}"]
            for t in flips["tensors"]
        ], right=head[1:])]  # fmt: skip
    lines += ["", *_fit_lines(report)]
    lines += [f"note: {note}" for note in report["notes"]]
    if "file" in report:
        lines.append(f"written: {report['file']}")
    return "\n".join(lines)


def _product_tables(report: dict) -> list[str]:
    """What the layers' own faults changed, and by how much."""
    bits = report["bits"]
    head = ["layer", "MACs", "values", "sums", "struck", "images", "share", "MiBB", "codes"]
    sizes = ["1", *(f"{1 << i}..{(2 << i) - 1}" for i in range(1, bits - 1)), f"{1 << bits - 1}.."]
    law = ["MiBB", "50 %", *[f"{100 / bits:.1f} %"] * bits, "100 %", ""]
    differences = ["difference in codes", "positive", *sizes, "+-2^i", "clamped"]
    return [
        table(head, map(_layer_row, report["layers"]), right=head[1:]),
        "  sums: changed by the layer's own faults; struck: features changed, on the "
        f"{bits}-bit grid before the",
        "  activation function, in so many images; MiBB: of the fit; codes: stored codes changed",
        "",
        table(differences, [*map(_size_row, report["layers"]), law], right=differences[1:]),
    ]


def _layer_row(layer: dict) -> list:
    expected = layer["expected"]
    return [
        layer["name"], layer["macs"], f"{layer['observed_values']:,}", layer["sums"],
        layer["struck"], layer["images"],
        f"{100 * layer['struck'] / layer['observed_values']:.3g} %",
        "not fitted" if expected is None else f"{expected:.1f}", layer["outputs"],
    ]  # fmt: skip


def _size_row(layer: dict) -> list:
    struck, bits = layer["struck"], len(layer["biases"]) // 2
    both = [up + down for up, down in zip(layer["biases"][:bits], layer["biases"][bits:])]
    counts = [sum(layer["biases"][:bits]), *both, layer["powers"], layer["clamped"]]
    return [layer["name"], *(f"{100 * n / struck:.1f} %" if struck else "-" for n in counts)]


def _p_value(p: float) -> str:
    return f"p = {p:.2g}" if p > 1e-99 else "p below 1e-99"


def _fit_lines(report: dict) -> list[str]:
    """Parameters, intervals, goodness of fit and verdicts."""
    fits, absent = report["fits"], report["absent"]
    lines = []
    for name, fit in fits.items():
        if fit is None:
            lines.append((name, f"does not apply: {absent[name]}"))
            continue
        key, unit = (
            ("p_m", "per multiply-add") if name == "mibb" else ("r", "per bit and residency")
        )
        lines.append((f"{name}  {key}", f"{fit[key]:.4g} (95 % interval {fit['low']:.4g} .. "
                                        f"{fit['high']:.4g}) {unit}"))  # fmt: skip
        lines.append(("", "fit over " + ("layers" if name == "mibb" else "tensors and bits") + (
            ": too few faults or cells to judge" if fit["p"] is None else
            f": chi-square {fit['chi2']:.3g} with {fit['dof']} degrees of freedom, "
            f"{_p_value(fit['p'])}")))  # fmt: skip
        if fit.get("distance") is not None:
            lines.append(("", f"biases: total variation distance to uniform {fit['distance']:.2f} "
                              f"(chance alone: {fit['chance']:.2f}); {100 * fit['powers']:.0f} % "
                              f"are +-2^i, {100 * fit['clamped']:.0f} % are clamped"))  # fmt: skip
            lines.append(("", "variance between images over that of independent values: "
                              f"{fit['design']:.3g}"))  # fmt: skip
        judged = fit["p"] is not None or fit.get("distance") is not None
        lines += [("", f"POOR DESCRIPTION: {reason}") for reason in fit["poor"]]
        if not fit["poor"]:
            verdict = "nothing speaks against this model" if judged else "not enough to judge"
            lines.append(("", verdict))
    return [pairs(lines)]


def comments(report: dict) -> list[str]:
    """Where the parameters come from, for the head of the file."""
    rows, cols = report["array"]
    return [
        f"fsim calibrate: {report['model']} on {report['accel']} ({report['dataflow']}), "
        f"{rows} x {cols} PEs",
        describe_faults(report["faults"]),
        f"{report['trials']} trials of {report['images']} images, seed {report['seed']}",
        *(line for text in _fit_lines(report) for line in text.splitlines()),
        *(f"note: {note}" for note in report["notes"]),
    ]
