"""`fsim fit`: failures in time, from finished campaigns or tables, and the safety metrics."""

from __future__ import annotations

from pathlib import Path

import click

from fsim.cli.fit_options import MBIT, mechanisms_of, named_numbers, number, read_file
from fsim.cli.options import json_option
from fsim.cli.tables import print_json
from fsim.errors import ConfigError

LIFETIME = 10_000.0
"""Hours of operation in the life of a passenger car: assumed where none are stated."""


@click.command()
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
@click.option("--table", "table_file", type=click.Path(path_type=Path),
              help="A table instead: component, share or bits, active, unmasked, class."
)  # fmt: skip
@click.option("--example", metavar="NAME", help="A published table instead: nvdla.")
@click.option("--assume", type=click.Path(path_type=Path), metavar="FILE",
              help="YAML file with rates, deratings, mechanisms; options count more.")  # fmt: skip
@click.option("--fit-per-mbit", type=float, help="Raw rate of all storage, FIT per Mbit.")
@click.option("--cross-section", type=float, help="Instead: upset cross-section, cm2 per bit.")
@click.option("--flux", type=float, help="Of the particles of that, n/cm2/h.  [default: 13]")
@click.option("--rate", "rates", metavar="NAME=X", multiple=True,
              help="FIT per Mbit of a component or class (register, memory, net). "
                   "May be repeated.")  # fmt: skip
@click.option("--mbit", type=click.Choice(list(MBIT)),
              help="A Mbit of 1,000,000 or of 2^20 bits.  [default: decimal]")  # fmt: skip
@click.option("--raw-fit", type=float, help="Of a table with shares: FIT of the whole.")
@click.option("--failure", type=click.Choice(["sdc-critical", "sdc", "any"]),
              default="sdc-critical", show_default=True,
              help="What counts as a failure.")  # fmt: skip
@click.option("--duty", type=float, help="Share of time in which inferences run.  [default: 1]")
@click.option("--occupancy", metavar="NAME=X|schedule", multiple=True,
              help="Share of a memory's bits x time that is live, or the upper limit that the "
                   "network's schedule gives.  [default: 1] May be repeated.")  # fmt: skip
@click.option("--model", help="For the schedule of a module:factory network: the same name.")
@click.option("--derate", metavar="NAME=X", multiple=True,
              help="A further factor of all components. May be repeated.")  # fmt: skip
@click.option("--bits", metavar="NAME=N", multiple=True,
              help="Bits of a component instead of the machine's. May be repeated.")  # fmt: skip
@click.option("--clock", type=float, help="Hz: also P(failure) of an inference.")
@click.option("--safety", "wants_safety", is_flag=True,
              help="The safety table of ISO 26262-5, also without mechanisms.")  # fmt: skip
@click.option("--mechanism", "mechanisms", metavar="KEY=VALUE,..", multiple=True,
              help="name, components (joined by +), coverage; fit, self_coverage, reported. "
                   "May be repeated.")  # fmt: skip
@click.option("--lifetime", type=float,
              help="Hours of operation, for the dual-point term.  [default: 10000]")  # fmt: skip
@click.option("--confidence", type=float, default=0.95, show_default=True,
              help="Of the intervals of a table; campaigns have their own.")  # fmt: skip
@click.option("--csv", "csv_file", type=click.Path(path_type=Path), help="Write the numbers.")
@json_option
@click.pass_context
def fit(ctx, files, table_file, example, assume, fit_per_mbit, cross_section, flux, rates, mbit,
        raw_fit, failure, duty, occupancy, model, derate, bits, clock, wants_safety, mechanisms,
        lifetime, confidence, csv_file, as_json):  # fmt: skip
    """Failures in time: raw rates, bits, deratings and what campaigns measured, multiplied.

    FILES are of fsim campaign with --fault seu (registers), flip (memories), mbu, transient or
    stuck0 and stuck1, on one machine and network. Nothing is simulated.

    \b
    fsim fit seu.h5 flip.h5 --fit-per-mbit 600 --duty 0.4
    fsim fit seu.h5 --rate psum=300 --rate register=150 --safety
    fsim fit flip.h5 --fit-per-mbit 600 --mechanism name=ecc,components=acts+weights,coverage=0.99
    fsim fit --example nvdla
    """
    if sum((bool(files), table_file is not None, example is not None)) != 1:
        raise ConfigError("fsim fit needs campaigns, or --table, or --example: one of the three")
    file = read_file(assume)
    declared = mechanisms_of(file, mechanisms)
    stated = _stated(file, fit_per_mbit, cross_section, flux, mbit)
    hours = lifetime if lifetime is not None else number(file.get("lifetime", LIFETIME), "lifetime")
    shown = wants_safety or bool(declared)
    if lifetime is not None and not shown:
        raise ConfigError("--lifetime belongs to the safety table: --safety or --mechanism")
    if files:
        _refuse(ctx, TABLES_ONLY, "a table, got campaigns, which have their own")
        if model is not None and "schedule" not in occupancy:
            raise ConfigError("--model belongs to --occupancy schedule")
        found, budget = _campaigns(
            files, file, stated, failure=failure, duty=duty, clock=clock, model=model,
            schedule="schedule" in occupancy,
            named=[named_numbers(given, option) for given, option in
                   ((rates, "--rate"), ([x for x in occupancy if x != "schedule"], "--occupancy"),
                    (derate, "--derate"), (bits, "--bits"))],
        )  # fmt: skip
    else:
        _refuse(ctx, CAMPAIGNS_ONLY, "campaigns: a table has columns for it")
        for key in ("rates", "duty", "occupancy", "derate", "bits"):
            if key in file:
                raise ConfigError(f"{key} of {assume} belongs to campaigns, got a table")
        found, budget = _table(table_file, example, raw_fit, stated, confidence)
    if shown:
        from fsim.fit.document import safety_document
        from fsim.fit.safety import safety

        found["safety"] = safety_document(safety(budget, declared, lifetime=hours))
    if csv_file is not None:
        from fsim.cli.fit_report import budget_csv
        from fsim.files import atomic_write

        with atomic_write(csv_file) as handle:
            handle.write(budget_csv(found))
    if as_json:
        print_json(found)
        return
    from fsim.cli.fit_report import budget_text

    click.echo(budget_text(found))


CAMPAIGNS_ONLY = ("rates", "duty", "occupancy", "model", "derate", "bits", "clock", "failure")
"""Options that say something of campaigns alone."""

TABLES_ONLY = ("raw_fit", "confidence")


def _refuse(ctx: click.Context, names: tuple[str, ...], said: str) -> None:
    """An option that would not be heeded is an error."""
    for name in names:
        if ctx.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT:
            option = next(p for p in ctx.command.params if p.name == name).opts[0]
            raise ConfigError(f"{option} belongs to {said}")


def _stated(file: dict, fit_per_mbit, cross_section, flux, mbit) -> dict:
    """fit_per_mbit (None if none) and mbit of a file and of options."""
    from fsim.simulator.rates import SEA_LEVEL_FLUX, fit_of_cross_section

    size = MBIT[mbit or file.get("mbit", "decimal")]
    if cross_section is None:
        if flux is not None:
            raise ConfigError("--flux needs --cross-section")
        if fit_per_mbit is None and "fit_per_mbit" in file:
            fit_per_mbit = number(file["fit_per_mbit"], "fit_per_mbit")
        return {"fit_per_mbit": fit_per_mbit, "mbit": size}
    if fit_per_mbit is not None:
        raise ConfigError("one raw rate must be stated, got --fit-per-mbit and --cross-section")
    per_bit = fit_of_cross_section(cross_section, SEA_LEVEL_FLUX if flux is None else flux)
    return {"fit_per_mbit": per_bit * size, "mbit": size}


def _table(table_file, example, raw_fit, stated, confidence):
    from fsim.fit.document import document
    from fsim.fit.table import comments, example_path, read_budget

    path = table_file if example is None else example_path(example)
    budget = read_budget(path, raw_fit=raw_fit, **stated, confidence=confidence)
    said = " ".join(comments(path))
    return {"source": example or str(path), "about": said, **document(budget)}, budget


def _campaigns(files, file, stated, *, failure, duty, clock, model, schedule, named):
    from fsim.campaign.results import read_results
    from fsim.fit.assumed import Assumed
    from fsim.fit.campaigns import budget as budget_of
    from fsim.fit.campaigns import cycles_of
    from fsim.fit.document import document, per_inference

    rates, occupancy, derate, bits = (
        {**file.get(key, {}), **given}
        for key, given in zip(("rates", "occupancy", "derate", "bits"), named)
    )
    if stated["fit_per_mbit"] is not None:
        rates[""] = stated["fit_per_mbit"]
    share = duty if duty is not None else number(file.get("duty", 1.0), "duty")
    campaigns = [read_results(path) for path in files]
    scheduled = {}
    if schedule:
        from fsim.fit.occupancy import scheduled_occupancy

        scheduled = scheduled_occupancy(campaigns[0], model)
    assumed = Assumed(rates, stated["mbit"], share, occupancy, scheduled, derate, bits)
    budget = budget_of(campaigns, assumed, failure=failure)
    task = campaigns[0].task
    found = {
        "files": [str(path) for path in files],
        "model": task["model"],
        "accel": task["accel"]["name"],
        "fit_per_mbit": rates,
        "mbit": assumed.mbit,
        **document(budget),
    }
    if clock is not None:
        cycles = next((n for n in map(cycles_of, campaigns) if n is not None), None)
        lasting = any("duty" not in line.factors for line in budget.lines)
        if cycles is None or share == 0.0 or lasting:
            raise ConfigError(
                "--clock needs a duty above 0, upsets only, and a campaign of registers in all "
                "layers, which knows the cycles of an inference"
            )
        found["inference"] = per_inference(found, cycles, clock, share)
    return found, budget
