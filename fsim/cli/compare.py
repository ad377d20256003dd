"""`fsim compare`: two campaigns, on the same faults pair by pair."""

from __future__ import annotations

from pathlib import Path

import click

from fsim.cli.campaign_options import METRICS
from fsim.cli.campaign_report import compare_text
from fsim.cli.options import json_option
from fsim.cli.tables import print_json


@click.command()
@click.argument("this", type=click.Path(path_type=Path))
@click.argument("that", type=click.Path(path_type=Path))
@click.option("--metric", type=click.Choice(METRICS), default="sdc_critical", show_default=True)
@json_option
def compare(this, that, metric, as_json):
    """The difference of a share between two campaigns.

    Campaigns with one seed on machines and networks of one shape have the same faults: they
    are compared pair by pair (McNemar), which sees smaller differences.

    \b
    fsim compare hardened.h5 plain.h5
    """
    from fsim.campaign.compare import compare as difference_of
    from fsim.campaign.results import read_results

    found = difference_of(read_results(this), read_results(that), metric=metric)
    print_json(found) if as_json else click.echo(compare_text(found))
