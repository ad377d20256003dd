"""`fsim calibrate`: which statistical fault models a machine amounts to for a network."""

from __future__ import annotations

from pathlib import Path

import click

from fsim.cli.calibrate_report import comments, report_of, text_of
from fsim.cli.calibrate_stuck import stuck_comments, stuck_report, stuck_text
from fsim.cli.inject import Progress, fault_model
from fsim.cli.inject_plan import BYTES_A_FAULT, memory_limit
from fsim.cli.network_options import network_options, read_quant_params, stuck_options
from fsim.cli.options import (
    Probability,
    accel_options,
    json_option,
    load_accel_option,
    seed_option,
    threads_option,
)
from fsim.cli.tables import print_json
from fsim.errors import ConfigError
from fsim.threads import use_threads

IMAGES = 500


@click.command()
@accel_options(given=False)
@click.option(
    "--accel",
    default="systolic",
    show_default=True,
    metavar="NAME|FILE",
    help="A preset (fsim accel list) or a .yaml or .toml file.",
)
@network_options
@click.option(
    "--ber",
    metavar="P",
    help="Flip probability per bit and residency, or weights=P,acts=P,psums=P.",
)
@click.option("--seu-rate", type=Probability, help="Upsets per register bit and cycle.")
@stuck_options
@click.option(
    "--hw-batch",
    metavar="N|all",
    help="With --ber: images between two writes of the weights, or 'all'.  [default: 1]",
)
@click.option(
    "--trials",
    type=click.IntRange(1, 1 << 20),
    default=10,
    show_default=True,
    help="Draws of faults for all images.",
)
@click.option(
    "--features",
    type=click.Choice(["mibb", "ibf"]),
    help="Model of features in --out where both were fitted.  [default: the one that "
    "strikes more values]",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write the models for fsim train --faults: a .toml or .json file.",
)
@click.option("--quiet", is_flag=True, help="No progress.")
@seed_option
@threads_option
@json_option
def calibrate(accel, settings, dataflow, model, weights, data, data_dir, images, quant_params, ber,
              seu_rate, stuck_cells, sa1_share, hw_batch, trials, features, out, quiet, seed,
              threads, as_json):  # fmt: skip
    """Measure which statistical fault models a machine amounts to for a network.

    Faults of the simulated machine are compared, layer by layer and given the layer's
    inputs, with MiBB (p_m per multiply-add) and iBF (r per bit) of FTT-NAS, and stuck
    cells of the weight memory with adSAF (p per bit). What these models describe poorly
    is said so.

    \b
    fsim calibrate --accel systolic --seu-rate 1e-8 --out out/mibb.toml
    fsim calibrate --accel systolic --stuck-cells 0.05 --out out/adsaf.toml
    fsim train --fault-backend torch --faults out/mibb.toml
    """
    given = {"--ber": ber, "--seu-rate": seu_rate, "--stuck-cells": stuck_cells}
    names = [name for name, value in given.items() if value is not None]
    if len(names) != 1:
        raise ConfigError(
            "exactly one of --ber, --seu-rate and --stuck-cells must be given, got "
            + (" and ".join(names) or "none")
        )
    chosen, described = fault_model(ber, seu_rate, (), hw_batch, stuck_cells, sa1_share)
    rates = [value for key, value in described.items() if key in ("rate", "p", *_MEMORIES)]
    if not any(rates):
        raise ConfigError(f"{names[0]} must be above 0: there would be nothing to fit")
    if stuck_cells is not None:
        for name, value in (("--features", features), ("--images", images)):
            if value is not None:
                raise ConfigError(
                    f"{name} must be left out with --stuck-cells, which are fitted from the "
                    f"codes of the weights alone, got {value}"
                )
    if out is not None:
        _check_out(out)
    machine = load_accel_option(accel, settings, dataflow)
    parameters = read_quant_params(quant_params)
    use_threads(threads)
    from fsim.session import open_session
    from fsim.simulator import calibration
    from fsim.simulator.sites import select

    session = open_session(
        model, machine, weights=weights, data=data, data_dir=data_dir, images=images or IMAGES,
        quant_params=parameters,
    )  # fmt: skip
    space = select(session.placement)
    _check_size(space, described, len(session.images))
    progress = Progress(trials, quiet or as_json)
    options = {"seed": seed, "trials": trials, "on_trial": progress.show}
    try:
        if stuck_cells is None:
            result = calibration.calibrate(space, session.images, chosen, **options)
        else:
            result = calibration.calibrate_stuck(space, chosen, **options)
    finally:
        progress.end()
    if stuck_cells is None:
        tables = calibration.configuration(result, features)
        report, head, text = report_of(session, described, seed, result, tables), comments, text_of
    else:
        tables = calibration.stuck_configuration(result)
        report = stuck_report(session, described, seed, result, tables)
        head, text = stuck_comments, stuck_text
    if out is not None:
        _write(out, calibration.file_text(tables, head(report), out.suffix))
        report["file"] = str(out)
    if as_json:
        print_json(report)
    else:
        click.echo(text(report))


_MEMORIES = ("weights", "acts", "psums")


def _check_out(out: Path) -> None:
    """Refuse, before anything runs, a file that could not be written or read."""
    if out.suffix not in (".toml", ".json"):
        raise ConfigError(f"--out must be a .toml or .json file, got {out}")
    if out.exists() and not out.is_file():
        raise ConfigError(f"--out must be a regular file, got a folder or device ({out})")
    if out.parent.exists() and not out.parent.is_dir():
        raise ConfigError(f"--out must lie in a folder, got {out.parent}")


def _check_size(space, described: dict, images: int) -> None:
    """Refuse faults of one trial that memory would not hold."""
    from fsim.fault_models.stuck_cells import StuckCells

    if described["kind"] == "stuck-cells":
        flips, images = described["p"] * StuckCells(described["p"]).cells(space), 1
    elif described["kind"] == "ber":
        flips = sum(described[block.memory] * block.exposed_bits for block in space.blocks)
    else:
        flips = described["rate"] * sum(site.sites for site in space.registers)
    need, limit = flips * images * BYTES_A_FAULT, memory_limit()
    if need > limit:
        raise ConfigError(
            f"a trial must take at most {limit >> 20:,} MiB, half of the memory that is free, got "
            f"about {need / 2**20:,.0f} MiB for {flips * images:.3g} faults: take fewer images or "
            "a lower rate"
        )


def _write(out: Path, text: str) -> None:
    from fsim.files import atomic_write

    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(out) as file:
        file.write(text.encode())
