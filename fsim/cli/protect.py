"""`fsim protect`: which bits, layers and registers to protect, from a finished campaign."""

from __future__ import annotations

from pathlib import Path

import click

from fsim.cli.campaign_options import METRICS
from fsim.cli.campaign_report import interval_text, percent
from fsim.cli.network_options import names_of
from fsim.cli.options import json_option
from fsim.cli.tables import pairs, print_json, table


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--by", default="layer,component,bit", show_default=True, metavar="AXES",
              help="Parts that are protected as a whole: of layer, component and bit.")  # fmt: skip
@click.option("--metric", type=click.Choice(METRICS), default="sdc_critical", show_default=True)
@click.option("--top", type=click.IntRange(1, 100_000), default=10, show_default=True,
              help="Parts to list.")  # fmt: skip
@json_option
def protect(file, by, metric, top, as_json):
    """What protecting the worst parts brings, without new simulation.

    Parts are ranked by every other trial and judged by the rest, so that what remains is
    not flattered. Words are protected by SECDED (--by layer,component), bits by hardened
    cells.

    \b
    fsim campaign --fault flip --stratify component,bit --trials 50000 --out strata.h5
    fsim protect strata.h5 --by component,bit
    """
    from fsim.campaign.protect import protect as parts_of
    from fsim.campaign.results import read_results

    axes = names_of(by, "--by")
    found = parts_of(read_results(file), by=axes, metric=metric)
    if as_json:
        print_json(found)
        return
    whole = found["unprotected"]
    click.echo(pairs([
        ("file", found["file"]),
        (f"{metric} unprotected", f"{percent(whole['estimate'])} ({interval_text(whole)})"),
        ("intervals", found["note"]),
    ]))  # fmt: skip
    click.echo("\n" + table(
        ["bits protected", "parts", f"{metric} left", "interval"],
        [[percent(s["share_of_bits"], 2), s["groups"], percent(s["residual"]["estimate"]),
          interval_text(s["residual"])] for s in found["steps"]],
        right=["bits protected", "parts", f"{metric} left"],
    ))  # fmt: skip
    click.echo("\n" + table(
        [*axes, "of bits", "trials", "events", "rate", "interval"],
        [[*(row[a] for a in axes), percent(row["share"], 2), row["trials"], row["events"],
          *((percent(row["rate"]["estimate"], 2), interval_text(row["rate"], 2))
            if row["rate"] else ("-", "-"))] for row in found["ranking"][:top]],
        right=["bit", "of bits", "trials", "events", "rate"],
    ))  # fmt: skip
