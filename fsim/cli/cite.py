"""`fsim cite`: a campaign as the paragraph of a methods section."""

from __future__ import annotations

from pathlib import Path

import click

from fsim.cli.options import json_option
from fsim.cli.tables import print_json


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@json_option
def cite(file, as_json):
    """What a paper must say of a campaign: machine, faults, sampling, interval, hashes, command."""
    from fsim.campaign.cite import cite as paragraph_of
    from fsim.campaign.cite import command_of
    from fsim.campaign.results import read_results

    results = read_results(file)
    text = paragraph_of(results)
    if as_json:
        print_json({"text": text, "command": command_of(results.task)})
    else:
        click.echo(text)
