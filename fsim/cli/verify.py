"""`fsim verify`: is what is installed here bit for bit the hardware?"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import click

from fsim.cli.options import Seconds, accel_options, json_option, load_accel_option
from fsim.cli.tables import print_json, table

REFERENCE_EVERY = 10
"""The plain-Python reference does this share of the built-in vectors: the rest takes
a minute, and its tests run them all."""

BACKENDS = ("tile", "replay", "reference")


@click.command()
@accel_options(required=False)
@click.option(
    "--vectors",
    type=click.Path(path_type=Path),
    help="Your own vectors (docs/vectors.md) instead of those that come with fsim.",
)
@click.option(
    "--backend",
    "backends",
    type=click.Choice(BACKENDS),
    multiple=True,
    help="Check only this backend. May be repeated.",
)
@click.option(
    "--every",
    type=click.IntRange(min=1),
    help="Check each N-th vector only. The default is all; for the reference on the "
    f"built-in vectors, each {REFERENCE_EVERY}th.",
)
@click.option(
    "--seconds",
    type=Seconds,
    default=8.0,
    show_default=True,
    help="How long to compare random products between backends; 0 leaves that out.",
)
@json_option
def verify(accel, settings, dataflow, vectors, backends, every, seconds, as_json):
    """Compare every backend with vectors of RTL, and the fast ones with the reference.

    Vectors are numbers from simulations of third-party RTL: results, cycles and
    waveforms, with and without faults. Exit code 1 if anything differs; the
    first difference is shown as cycle, register, expected and got.
    """
    from fsim.errors import ConfigError
    from fsim.simulator import verify as checks
    from fsim.simulator import verify_rows as checks_of_rows
    from fsim.simulator.runners import RUNNERS

    if vectors is None and (accel or settings or dataflow):
        raise ConfigError("--accel, --set and --dataflow need --vectors FILE")
    if accel is None and (settings or dataflow):
        raise ConfigError("--set and --dataflow need --accel NAME")
    machine = load_accel_option(accel, settings, dataflow) if accel else None
    if machine and (settings or dataflow):
        _check_machine(vectors, machine, settings, dataflow)
    if not backends:
        from fsim.accel_models.families import has_tile

        backends = [name for name in BACKENDS
                    if name != "tile" or machine is None or has_tile(machine.family)]  # fmt: skip
    rows = [checks_of_rows.builtin_rows()]
    if vectors:
        rows = [vectors] if checks_of_rows.is_row_file(vectors) else []
    files = checks.builtin_vectors() if vectors is None else [] if rows else [vectors]

    start = time.perf_counter()
    reports, pes = [], []
    for path in files:
        for backend in backends:
            sampled = backend == "reference" and vectors is None
            step = every or (REFERENCE_EVERY if sampled else 1)
            report = checks.verify_vectors(path, machine, backend, every=step)
            reports.append((report, step))
    for path in rows:
        for backend in checks_of_rows.BACKENDS:
            if backend in backends:
                named = {"accel": machine} if machine else {}
                report = checks_of_rows.verify_rows(path, backend, every=every or 1, **named)
                pes.append((report, every or 1))
    compared = [name for name in backends if name != "reference"]
    kernels = []
    if seconds and compared and vectors is None:
        runners = {name: RUNNERS[name] for name in compared}
        kernels = checks.kernel_checks(seconds, runners)
    elapsed = time.perf_counter() - start

    failed = sum(report.failed for report, _ in reports + pes)
    failed += sum(row.failed for row in kernels)
    if as_json:
        print_json(
            {
                "ok": failed == 0,
                "seconds": round(elapsed, 3),
                "vectors": [_vector_json(report, step) for report, step in reports],
                "rows": [_vector_json(report, step) for report, step in pes],
                "kernels": [dataclasses.asdict(row) for row in kernels],
            }
        )
    else:
        _print(reports, pes, kernels, failed, elapsed)
    if failed:
        raise SystemExit(1)


def _check_machine(path, machine, settings, dataflow):
    """Array and dataflow come from the vectors: refuse others that the user asked for."""
    from fsim.errors import ConfigError
    from fsim.parse import parse_assignments
    from fsim.simulator.vectors import read_vectors

    file = read_vectors(path)
    asked = [name for name in ("rows", "cols") if name in parse_assignments(settings)]
    asked += ["dataflow"] if dataflow else []
    for name in asked:
        if getattr(machine, name) != getattr(file, name):
            raise ConfigError(
                f"{name} must be that of the vectors, {getattr(file, name)}, "
                f"got {getattr(machine, name)} ({path}: meta)"
            )


def _vector_json(report, step: int) -> dict:
    return {
        "file": report.path.name,
        "design": report.design,
        "machine": report.machine,
        "backend": report.backend,
        "every": step,
        "vectors": report.vectors,
        "vectors_in_file": report.total,
        "passed": report.passed,
        "failed": report.failed,
        "skipped": report.skipped,
        "checks": [dataclasses.asdict(tally) for tally in report.tallies],
        "mismatches": [dataclasses.asdict(mismatch) for mismatch in report.mismatches],
        "seconds": round(report.seconds, 3),
    }


def _report_table(reports) -> str:
    rows = [
        (
            report.path.name,
            report.machine,
            report.backend,
            f"{report.vectors} of {report.total}",
            report.passed,
            report.failed,
            report.skipped,
            f"{report.seconds:.1f}",
        )
        for report, _ in reports
    ]
    numbers = ("vectors", "pass", "fail", "skip", "s")
    return table(("file", "machine", "backend", *numbers), rows, numbers)


def _print(reports, pes, kernels, failed: int, elapsed: float):
    if reports:
        _print_arrays(reports)
    if pes:
        click.echo("\nVectors of one row-stationary PE:" if reports else "")
        click.echo(_report_table(pes))
    if kernels:
        click.echo("\nRandom products with random faults, against the cycle-level reference:")
        rows = [(row.machine, row.backend, row.passed, row.failed) for row in kernels]
        click.echo(table(("machine", "backend", "pass", "fail"), rows, ("pass", "fail")))
    for report, _ in reports + pes:
        if report.first:
            click.echo(f"\nfirst difference, {report.path.name}, {report.backend}: {report.first}")
    for row in kernels:
        if row.first:
            click.echo(f"\nfirst difference, {row.machine}, {row.backend}: {row.first}")
    passed = sum(report.passed for report, _ in reports + pes)
    passed += sum(row.passed for row in kernels)
    click.echo(f"\nchecks: {passed} passed, {failed} failed in {elapsed:.0f} s")


def _print_arrays(reports):
    click.echo(_report_table(reports))
    files = {report.path: report.total for report, _ in reports}
    click.echo(f"\nvectors: faults, {sum(files.values()):,} in {_count(len(files), 'file')}")
    click.echo("pass, fail, skip: checks. A vector has two or three, each compared whole: result,")
    click.echo("  masked flag and, where the file has one, waveform; a product without faults has")
    click.echo("  result, cycles and waveform")
    click.echo("skip: the backend does not serve that component, or keeps no waveform")


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")
