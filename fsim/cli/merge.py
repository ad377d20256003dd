"""`fsim merge`: the files of --shard as one."""

from __future__ import annotations

from pathlib import Path

import click

from fsim.cli.options import json_option
from fsim.cli.tables import print_json


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", "-o", type=click.Path(path_type=Path), required=True, help="The whole.")
@click.option("--overwrite", is_flag=True, help="Replace an existing --out.")
@json_option
def merge(files, out, overwrite, as_json):
    """Join the parts of one campaign.

    Ends with exit code 3 if parts are still missing.

    \b
    fsim merge part1.h5 part2.h5 --out campaign.h5
    """
    from fsim.campaign.merge import merge as join
    from fsim.campaign.summary import summary
    from fsim.cli.campaign_report import campaign_text

    results = join(list(files), out, overwrite=overwrite)
    found = summary(results)
    if as_json:
        print_json(found)
    else:
        click.echo(campaign_text(found))
        if not results.complete:
            left = results.task["trials"] - len(results.trials)
            click.echo(f"{left:,} of {results.task['trials']:,} faults are missing")
    return 0 if results.complete else 3
