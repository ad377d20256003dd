"""`fsim faults`: which hardware faults accelerators have, and what represents them here."""

from __future__ import annotations

import dataclasses

import click

from fsim.cli.group import one_line
from fsim.cli.options import json_option
from fsim.cli.tables import pairs, print_json, table
from fsim.errors import ConfigError
from fsim.fault_models.catalogue import BEYOND, CERTAINTY, PLATFORMS, SYMBOLS, faults_on


@click.command()
@click.option("--platform", type=click.Choice(PLATFORMS), help="Only faults of this platform.")
@click.option("--models", is_flag=True, help="The fault models of --fault NAME,key=value,... with "
              "their parameters.")  # fmt: skip
@json_option
def faults(platform, models, as_json):
    """Hardware faults of accelerators: causes, places, countermeasures and models.

    The analysis of FTT-NAS (arXiv 2003.10375), and what fsim has beyond it. `fsim model`
    is a model of fsim.fault_models.statistical, `fsim inject` the options that put such a
    fault into a simulated array (P: a probability). The last table lists the fault models
    with parameters, `--fault NAME,key=value,...`.
    """
    if models:
        if platform is not None:
            raise ConfigError("--models lists what fsim has on every platform: no --platform")
        _models(as_json)
        return
    rows = faults_on(platform)
    if as_json:
        used = {row.certainty for row in rows}
        print_json(
            {
                "platform": platform,
                "faults": [dataclasses.asdict(row) for row in rows],
                "symbols": SYMBOLS,
                "certainty": {word: text for word, text in CERTAINTY.items() if word in used},
                "models": [dataclasses.asdict(row) for row in BEYOND],
            }
        )
        return
    click.echo(
        table(
            ("fault", "platform", "source", "where", "component", "hard/soft", "persists",
             "mitigation"),
            [
                (row.name, " ".join(row.platforms), row.source, row.position, row.component,
                 row.kind, "yes" if row.persists else "no", row.mitigation)
                for row in rows
            ],
        )
    )  # fmt: skip
    click.echo()
    click.echo(
        table(
            ("fault", "caused by", "wrong", "model in the paper", "fsim model", "fsim inject",
             "certainty"),
            [
                (row.name, " ".join(row.causes), row.level, row.formula,
                 " ".join(row.models) or "-", row.inject or "-", row.certainty)
                for row in rows
            ],
        )
    )  # fmt: skip
    click.echo("\ncertainty: how sure a row is")
    used = [row.certainty for row in rows]
    click.echo(pairs((f"  {word}", text) for word, text in CERTAINTY.items() if word in used))
    click.echo("\nsymbols of the paper's models")
    click.echo(pairs((f"  {symbol}", text) for symbol, text in SYMBOLS.items()))
    click.echo("\nsource of the rows")
    for reference in dict.fromkeys(row.reference for row in rows):
        click.echo(f"  {reference} (arXiv 2003.10375)")
    click.echo("\nbeyond the paper: --fault NAME,key=value,... (parameters: fsim faults --models)")
    click.echo(
        table(
            ("model", "caused by", "where", "one draw", "source"),
            [
                (row.name, " ".join(row.causes), row.position, row.about, row.source)
                for row in BEYOND
            ],
        )
    )


def _models(as_json: bool) -> None:
    """The named fault models and their parameters."""
    from fsim.fault_models.families import broken_plugins, families_told

    found = families_told()
    for problem in broken_plugins().values():
        click.echo(f"warning: {one_line(problem)}", err=True)
    if as_json:
        print_json({"models": found})
        return
    click.echo(
        table(
            ("model", "rows are", "one fault is"),
            [(m["name"], "a chip" if m["lasting"] else "events", m["about"]) for m in found],
        )
    )
    for model in found:
        click.echo(f"\n{model['name']}")
        click.echo(
            table(
                ("  parameter", "default", "meaning"),
                [
                    (f"  {p['name']}", "needed" if p["default"] is None else p["default"],
                     p["about"])
                    for p in model["parameters"]
                ],
            )
        )  # fmt: skip
