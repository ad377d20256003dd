"""`fsim data list|fetch`: the data sets that have a name."""

from __future__ import annotations

import sys

import click

from fsim.cli.options import json_option
from fsim.cli.tables import print_json, table


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def data():
    """List the data sets by name, and download them."""


_data_dir = click.option(
    "--data-dir", metavar="DIR", help="Folder of data sets; also $FSIM_DATA and the cache."
)


@data.command("list")
@_data_dir
@json_option
def list_command(data_dir: str | None, as_json: bool):
    """Which data sets are here, and where."""
    from fsim.nas.data import NAMES, SPLITS, where

    rows = [
        {"name": name} | {split: where(name, split, data_dir) for split in SPLITS} for name in NAMES
    ]
    if as_json:
        print_json(rows)
        return
    lines = [[row["name"], *(row[split] or "not here" for split in SPLITS)] for row in rows]
    click.echo(table(("name", *SPLITS), lines))
    if any(None in row.values() for row in rows):
        click.echo("\nDownload with: fsim data fetch NAME")


@data.command()
@click.argument("name")
@_data_dir
def fetch(name: str, data_dir: str | None):
    """Download NAME and check it against its published checksum.

    It goes to DIR/NAME, or into the cache folder.
    """
    from fsim.nas.fetch import fetch as download

    written = download(name, data_dir, progress=_progress if sys.stderr.isatty() else None)
    for path in written:
        click.echo(path)
    if not written:
        click.echo(f"{name} is complete; nothing to do", err=True)


def _progress(name: str, got: int, total: int | None):
    """One line on the terminal, redrawn as the bytes come in."""
    of = f" of {total / 1e6:.1f}" if total else ""
    click.echo(f"\r{name}: {got / 1e6:.1f}{of} MB", err=True, nl=got == total)
