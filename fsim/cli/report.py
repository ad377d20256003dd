"""`fsim report`: one page of one or several campaigns, with pictures and tables beside it."""

from __future__ import annotations

from pathlib import Path

import click

from fsim.cli.options import json_option
from fsim.cli.tables import pairs, print_json
from fsim.errors import ConfigError


@click.command()
@click.argument(
    "files", nargs=-1, required=True, metavar="FILE...", type=click.Path(path_type=Path)
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="NAME.html (pictures and tables go to NAME_files), or a folder.  "
    "[default: report.html; with --json: nothing is written]",
)
@click.option("--title", help="Of the page.")
@click.option(
    "--pictures/--no-pictures",
    default=True,
    show_default=True,
    help="Write each picture as .svg and .png as well.",
)
@click.option(
    "--explain/--no-explain",
    default=True,
    show_default=True,
    help="Open the network and follow the worst faults through it.",
)
@click.option("--model", help="To follow faults in a module:factory network: the same name.")
@json_option
def report(files, out, title, pictures, explain, model, as_json):  # fmt: skip
    """Make one self-contained page from the campaigns in FILEs.

    The first campaign is the one that the others are compared with.

    \b
    fsim report campaign.h5
    fsim report before.h5 after.h5 --out comparison.html --title "With and without clipping"
    """
    from fsim.campaign.results import read_results
    from fsim.report.numbers import report_numbers
    from fsim.report.write import places, write

    if len(files) > MOST:
        raise ConfigError(f"a report must be of at most {MOST} campaigns, got {len(files)}")
    target = out if out is not None else (None if as_json else Path("report.html"))
    if target is not None:
        places(target)
    campaigns = [read_results(path) for path in files]
    if model is not None and all(model != one.task["model"] for one in campaigns):
        raise ConfigError(f"--model must be that of a campaign, got {model!r}")
    numbers = report_numbers(campaigns, title=title, follow=explain, model=model)
    if target is not None:
        from fsim.report.page import page
        from fsim.report.tables import tables

        made = page(numbers, files=pictures)
        written = write(target, made, tables(numbers), pictures)
    if as_json:
        print_json(numbers)
        return
    click.echo(pairs([
        ("page", f"{written[-1]} ({written[-1].stat().st_size / 1024:,.0f} KiB)"),
        ("pictures", f"{len(made.pictures)}, as .svg and .png" if pictures else "in the page only"),
        ("tables", ", ".join(sorted(p.name for p in written if p.suffix == ".csv"))),
        ("beside it", places(target)[1]),
    ]))  # fmt: skip


MOST = 50
"""Campaigns of one report."""
