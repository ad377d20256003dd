"""`fsim sites`: where faults can strike a network on an accelerator."""

from __future__ import annotations

from pathlib import Path

import click

from fsim.cli.options import accel_options, json_option, load_accel_option
from fsim.cli.tables import print_json, table


@click.command()
@click.argument("model", default="digits-cnn")
@accel_options(given=False)
@click.option("--accel", default="systolic", show_default=True, metavar="NAME|FILE")
@click.option("--weights", help="Checkpoint: .pt, .pth or .th (tensors only) or .safetensors.")
@click.option("--data", help="Data set whose images the network takes.")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Folder of the data set.")
@json_option
def sites(model, settings, dataflow, accel, weights, data, data_dir, as_json):
    """Words, bits, residencies and cycles of MODEL per component and layer.

    Neither weights nor images matter to them: for a network of the zoo random ones
    stand in where its files are not found.
    """
    machine = load_accel_option(accel, settings, dataflow)
    from fsim.session import open_session

    session = open_session(
        model, machine, weights=weights, data=data, data_dir=data_dir, images=1,
        sizes_only=True,
    )  # fmt: skip
    memories = [
        {"component": b.component, "layer": b.name, "words": b.words, "bits": b.bits,
         "residencies": round(float(b.residencies), 3), "exposed_bits": b.exposed_bits}
        for b in session.placement.blocks
    ]  # fmt: skip
    registers = [
        {"component": s.component_name, "layer": s.layer_name, "words": s.pes, "bits": s.bits,
         "cycles": s.cycles, "sites": s.sites}
        for s in session.placement.register_sites
    ]  # fmt: skip
    totals = {
        "exposed_bits": sum(row["exposed_bits"] for row in memories),
        "register_sites": sum(row["sites"] for row in registers),
    }
    if as_json:
        print_json({"model": model, "accel": machine.name, "memories": memories,
                    "registers": registers, **totals, "notes": list(session.notes)})  # fmt: skip
        return
    numbers = ["words", "bits", "residencies", "exposed bits", "cycles", "sites"]
    click.echo("memories, for one image (bit error rates multiply the exposed bits)")
    click.echo(table(
        ["component", "layer", "words", "bits", "residencies", "exposed bits"],
        [[*list(row.values())[:-1], f"{row['exposed_bits']:,}"] for row in memories], numbers,
    ))  # fmt: skip
    click.echo("\nregisters and nets of the PEs, for one image (sites = words x bits x cycles)")
    click.echo(table(
        ["component", "layer", "words", "bits", "cycles", "sites"],
        [[*list(row.values())[:-1], f"{row['sites']:,}"] for row in registers], numbers,
    ))  # fmt: skip
    click.echo(f"\nexposed bits   {totals['exposed_bits']:,}")
    click.echo(f"register sites {totals['register_sites']:,}")
    for note in session.notes:
        click.echo(f"note: {note}")
