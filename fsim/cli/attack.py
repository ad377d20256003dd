"""`fsim attack`: the bit flips of weights that an attacker would choose."""

from __future__ import annotations

from pathlib import Path

import click

from fsim.cli.campaign_report import percent
from fsim.cli.network_options import names_of, network_options, session_of_options
from fsim.cli.options import (
    accel_options,
    json_option,
    load_accel_option,
    seed_option,
    threads_option,
)
from fsim.cli.tables import pairs, print_json, table
from fsim.errors import ConfigError
from fsim.threads import use_threads


@click.command()
@accel_options(given=False)
@click.option("--accel", default="systolic", show_default=True, metavar="NAME|FILE",
              help="A preset (fsim accel list) or a .yaml or .toml file.")  # fmt: skip
@network_options
@click.option("--flips", type=click.IntRange(1, 10_000), default=10, show_default=True,
              help="Bits to flip, one after another.")  # fmt: skip
@click.option("--batch", type=click.IntRange(1, 1 << 20), default=128, show_default=True,
              help="Images the attacker has: the first so many.")  # fmt: skip
@click.option("--tried", type=click.IntRange(1, 10_000), default=1, show_default=True,
              help="Bits of each layer that are run on the machine before each flip.")  # fmt: skip
@click.option("--layers", help="Only these layers, comma separated.")
@click.option("--random", "repeats", type=click.IntRange(0, 10_000), default=3, show_default=True,
              help="Times that as many random flips are run, to compare with.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE.csv",
              help="Write a fault list: trial t has the first t + 1 flips.")  # fmt: skip
@click.option("--quiet", is_flag=True, help="No line for each flip.")
@seed_option
@threads_option
@json_option
def attack(accel, settings, dataflow, model, weights, data, data_dir, images, quant_params, flips,
           batch, tried, layers, repeats, out, quiet, seed, threads, as_json):  # fmt: skip
    """Search for the few weight bits whose flips do most harm.

    The progressive bit search of Rakin et al. (ICCV 2019): bits are ranked by gradient, the
    best of each layer are run on the simulated machine, and the flip that raises the loss
    most is kept. The same number of random flips is run beside it.

    \b
    fsim attack --flips 10 --out attack.csv
    fsim campaign --faults attack.csv --out attack.h5
    fsim replay attack.h5
    """
    import numpy as np

    from fsim.campaign.tables import faults_table
    from fsim.files import atomic_write, check_output

    if out is not None:
        if out.suffix != ".csv":
            raise ConfigError(f"--out must end in .csv, got {out}")
        check_output(out)
    chosen = names_of(layers, "--layers")
    machine = load_accel_option(accel, settings, dataflow)
    use_threads(threads)
    from fsim.cli.trace import write_csv
    from fsim.simulator.attack import progressive_search, random_flips

    session = session_of_options(machine, model, weights, data, data_dir, images, quant_params)

    def show(step) -> None:
        if not (quiet or as_json):
            click.echo(f"{step.layer} word {step.word} bit {step.bit}: {percent(step.accuracy, 2)}",
                       err=True)  # fmt: skip

    found = progressive_search(
        session.placement, session.images, session.labels, flips=flips, batch=batch, tried=tried,
        layers=chosen, on_step=show,
    )  # fmt: skip
    count = len(found.steps)
    random = np.zeros((0, count))
    if repeats and count:
        random = random_flips(
            session.placement, session.images, session.labels, flips=count, repeats=repeats,
            layers=chosen, seed=seed,
        )  # fmt: skip
    if out is not None:
        names = session.identity["layers"], session.identity["components"]
        with atomic_write(out) as handle:
            write_csv(faults_table(found.cumulative(), names), handle)
    report = _report(session, found, random, batch, tried, seed, out)
    if as_json:
        print_json(report)
    else:
        click.echo(_text(report))


def _report(session, found, random, batch, tried, seed, out) -> dict:
    """What the search found, as JSON values."""
    accel = session.placement.accel
    steps = [
        {"layer": s.layer, "word": s.word, "bit": s.bit, "loss": s.loss, "accuracy": s.accuracy,
         "random_accuracy": float(random[:, i].mean()) if len(random) else None}
        for i, s in enumerate(found.steps)
    ]  # fmt: skip
    return {
        "model": session.identity["model"], "accel": accel.name, "dataflow": accel.dataflow,
        "images": len(session.images), "batch": min(batch, len(session.images)), "tried": tried,
        "clean_accuracy": found.clean, "loss": found.loss, "steps": steps,
        "random_repeats": len(random), "seed": seed, "file": None if out is None else str(out),
        "notes": list(session.notes),
    }  # fmt: skip


def _text(report: dict) -> str:
    """The report for people."""
    lines = [
        pairs([
            ("network", f"{report['model']}, {report['images']} images"),
            ("accelerator", f"{report['accel']} ({report['dataflow']})"),
            ("attacker has", f"{report['batch']} images, tries {report['tried']} a layer and flip"),
            ("clean accuracy", percent(report["clean_accuracy"], 2)),
        ]),
        "",
        table(
            ["flip", "layer", "word", "bit", "loss", "accuracy", "random flips"],
            [[i + 1, s["layer"], s["word"], s["bit"], f"{s['loss']:.4g}",
              percent(s["accuracy"], 2),
              "-" if s["random_accuracy"] is None else percent(s["random_accuracy"], 2)]
             for i, s in enumerate(report["steps"])],
            right=["flip", "word", "bit", "loss", "accuracy", "random flips"],
        ) if report["steps"] else "no flip raises the loss to first order",
    ]  # fmt: skip
    if report["file"]:
        lines += ["", f"fault list    {report['file']}"]
    return "\n".join([*lines, *(f"note: {note}" for note in report["notes"])])
