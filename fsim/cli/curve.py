"""`fsim curve`: accuracy and failures at any bit error rate, from one campaign of flips."""

from __future__ import annotations

import io
from pathlib import Path

import click

from fsim.cli.campaign_report import interval_text, percent
from fsim.cli.options import json_option
from fsim.cli.tables import pairs, print_json, table
from fsim.errors import ConfigError


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--rates", metavar="P,P,..", help="Bit error rates.  [default: where the flips are]")
@click.option("--monotone", is_flag=True, help="Assume that more flips are never less harmful.")
@click.option("--picture", type=click.Path(path_type=Path), help="Write the curve as PNG or SVG.")
@json_option
def curve(file, rates, monotone, picture, as_json):
    """Accuracy against bit error rate, with intervals and no new simulation.

    FILE is of fsim campaign --flips. A rate whose number of flips the campaign did not
    measure has a wide interval: "measured" says how much of it was.

    \b
    fsim campaign --flips 1-64 --trials 20000 --out flips.h5
    fsim curve flips.h5 --rates 1e-6,1e-5
    """
    from fsim.campaign.rates import curve as rates_of
    from fsim.campaign.results import read_results
    from fsim.parse import parse_probability

    if picture is not None and picture.suffix not in (".png", ".svg"):
        raise ConfigError(f"--picture must end in .png or .svg, got {picture}")
    given = None if rates is None else [parse_probability(text) for text in rates.split(",")]
    found = rates_of(read_results(file), given, monotone=monotone)
    if picture is not None:
        from fsim.files import atomic_write

        content = io.BytesIO()
        draw(found, content, picture.suffix[1:])
        with atomic_write(picture) as handle:
            handle.write(content.getvalue())
    if as_json:
        print_json(found)
        return
    click.echo(pairs([
        ("network", f"{found['model']} on {found['accel']}"),
        ("bits", f"{found['bits']:,} exposed bits of {', '.join(found['memories'])} an image"),
        ("clean", percent(found["clean"], 2)),
    ]))  # fmt: skip
    rows = [
        [f"{ber:.2e}", percent(a["estimate"], 2), interval_text(a, 2), percent(c["estimate"], 3),
         interval_text(c), f"{100 * covered:.1f} %"]
        for ber, a, c, covered in zip(found["ber"], found["accuracy"], found["critical"],
                                      found["covered"])
    ]  # fmt: skip
    head = ["rate", "accuracy", "interval", "critical", "interval ", "measured"]
    click.echo("\n" + table(head, rows, right=["rate", "accuracy", "critical", "measured"]))


def draw(found: dict, file, kind: str) -> None:
    """The curve with its band."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    ber, accuracy = found["ber"], found["accuracy"]
    with pyplot.rc_context({"svg.hashsalt": "fsim"}):
        figure, axes = pyplot.subplots(figsize=(6.4, 4.0), dpi=150)
        band = [[100 * a[end] for a in accuracy] for end in ("low", "high")]
        axes.fill_between(ber, *band, alpha=0.25, linewidth=0, label="interval")
        known = [(p, 100 * a["estimate"]) for p, a in zip(ber, accuracy)
                 if a["estimate"] is not None]  # fmt: skip
        if known:
            axes.plot(*zip(*known), "o-", label="with bit errors")
        axes.axhline(100 * found["clean"], color="grey", linewidth=1, label="clean")
        axes.set_xscale("log")
        axes.set_xlabel(f"bit error rate of {', '.join(found['memories'])} (per bit and residency)")
        axes.set_ylabel("accuracy, %")
        axes.set_title(f"{found['model']} on {found['accel']}", fontsize=10)
        axes.grid(alpha=0.3)
        axes.legend()
        figure.tight_layout()
        metadata = {"Date": None} if kind == "svg" else {"Software": "fsim"}
        figure.savefig(file, format=kind, metadata=metadata)
        pyplot.close(figure)
