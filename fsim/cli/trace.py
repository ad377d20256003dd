"""`fsim trace`: what a trace holds, and its tables for other programs."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import click

from fsim.cli.options import json_option
from fsim.cli.tables import pairs, print_json, table
from fsim.errors import ConfigError

TABLES = ("inferences", "faults", "outcomes", "trials")


@click.group()
def trace():
    """Show a trace, export it as CSV or Parquet."""


@trace.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--rows", type=click.IntRange(0, 10_000), default=10, show_default=True,
              help="Rows of the table to show.")  # fmt: skip
@click.option("--table", "name", type=click.Choice(TABLES), default="inferences",
              show_default=True)  # fmt: skip
@json_option
def show(file, rows, name, as_json):
    """Sizes, task, hashes and the first rows of a trace of fsim inject or fsim campaign."""
    from fsim.campaign.tables import table_of
    from fsim.simulator.trace import hash_task, read_trace

    found = read_trace(file)
    columns = table_of(found, name)
    head = {key: values[:rows].tolist() for key, values in columns.items()}
    kinds = {k: v for k, v in found.task.items() if isinstance(v, (str, int)) or k == "faults"}
    sizes = {"trials": len(found.trials), "faults": len(found.faults),
             "inferences": len(found.outcomes)}  # fmt: skip
    if as_json:
        print_json({"file": str(file), **sizes, "task_sha256": hash_task(found.task),
                    "task": found.task, "provenance": found.provenance, name: head})  # fmt: skip
        return
    click.echo(pairs([
        ("file", file), *((key, f"{value:,}") for key, value in sizes.items()),
        ("task", hash_task(found.task)), *((key, value) for key, value in kinds.items()),
        *(("made with " + key, value) for key, value in found.provenance.items()),
    ]))  # fmt: skip
    if rows:
        lines = list(zip(*head.values()))
        click.echo("\n" + table(list(head), lines))
        left = len(next(iter(columns.values()))) - len(lines)
        if left > 0:
            click.echo(f"... and {left:,} more rows of {name} (--rows, --table, fsim trace export)")


@trace.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--out", "-o", type=click.Path(path_type=Path), required=True,
              help="A .csv or .parquet file.")  # fmt: skip
@click.option("--table", "name", type=click.Choice(TABLES), default="inferences",
              show_default=True, help="inferences: outcomes and where the fault struck; faults: "
              "what fsim campaign --faults reads.")  # fmt: skip
@json_option
def export(file, out, name, as_json):
    """Write a table of a trace as CSV or Parquet.

    \b
    fsim trace export campaign.h5 --out inferences.csv
    fsim trace export campaign.h5 --table faults --out faults.csv
    """
    from fsim.campaign.tables import table_of
    from fsim.files import atomic_write
    from fsim.simulator.trace import read_trace

    if out.suffix not in (".csv", ".parquet"):
        raise ConfigError(f"--out must end in .csv or .parquet, got {out}")
    columns = table_of(read_trace(file), name)
    rows = len(next(iter(columns.values())))
    with atomic_write(out) as handle:
        if out.suffix == ".csv":
            write_csv(columns, handle)
        else:
            _write_parquet(columns, handle)
    if as_json:
        print_json({"file": str(out), "table": name, "rows": rows, "columns": list(columns)})
    else:
        click.echo(f"{rows:,} rows of {name} in {out}")


def write_csv(columns, handle) -> None:
    """Columns (name -> values of equal length) as CSV in UTF-8, into a binary file."""
    text = io.TextIOWrapper(handle, encoding="utf-8", newline="", write_through=True)
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*(values.tolist() for values in columns.values())))
    text.flush()
    text.detach()


def _write_parquet(columns, handle) -> None:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise ConfigError(
            "Parquet needs the package pyarrow: pip install 'fsim[parquet]', or name a .csv"
        ) from None
    arrays = {name: pyarrow.array(values) for name, values in columns.items()}
    parquet.write_table(pyarrow.table(arrays), handle)
