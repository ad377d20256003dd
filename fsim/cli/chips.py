"""`fsim chips`: how accurate chips with fixed faults are, and how many are good enough."""

from __future__ import annotations

from pathlib import Path

import click

from fsim.cli.campaign_report import interval_text, percent
from fsim.cli.options import Probability, json_option
from fsim.cli.tables import pairs, print_json


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--yield-at", "bound", type=Probability, metavar="ACCURACY",
              help="Share of chips that reach this accuracy, in [0, 1].")  # fmt: skip
@click.option("--quantile", type=float, default=0.05, show_default=True,
              help="Accuracy that all but this share of chips reach.")  # fmt: skip
@json_option
def chips(file, bound, quantile, as_json):
    """The distribution of chips: median, 5th percentile, yield at an accuracy.

    \b
    fsim campaign --chips 100 --stuck-cells 1e-3 --out chips.h5
    fsim chips chips.h5 --yield-at 0.97
    """
    from fsim.campaign.chips import chips as chips_of
    from fsim.campaign.results import read_results

    found = chips_of(read_results(file), bound, quantile=quantile)
    if as_json:
        print_json(found)
        return
    low = found["quantile"]
    ends = [("?" if low[end] is None else percent(low[end], 2)) for end in ("low", "high")]
    rows = [
        ("chips", f"{found['chips']:,}, each with {found['images']} images"),
        ("clean accuracy", percent(found["clean"], 2)),
        ("mean, median", f"{percent(found['mean'], 2)}, {percent(found['median'], 2)}"),
        ("worst chip", percent(found["worst"], 2)),
        (f"{100 * quantile:g} % quantile", f"{percent(low['estimate'], 2)} "
                                           f"({ends[0]} .. {ends[1]})"),
    ]  # fmt: skip
    if None in (low["low"], low["high"]):
        rows.append(("", f"{found['chips_needed']} chips give it both limits"))
    if found["due"]:
        rows.append(("detected (DUE)", f"{percent(found['due'], 2)} of inferences, their answers "
                                       "counted as they are"))  # fmt: skip
    if found["yield"]:
        good = found["yield"]
        share = f"{percent(good['estimate'], 2)} of chips ({interval_text(good, 2)})"
        rows.append((f"yield at {percent(bound, 2)}", share))
    click.echo(pairs(rows))
