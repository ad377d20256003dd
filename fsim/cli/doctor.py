"""`fsim doctor`: what results and speed depend on here."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

import click

from fsim.cli.options import json_option
from fsim.cli.tables import pairs, print_json, table

PACKAGES = ("torch", "numpy", "numba", "scipy", "h5py", "pydantic", "click")


@click.command()
@json_option
def doctor(as_json: bool):
    """Versions, CPU, threads, kernel cache, and the exact integer paths.

    Every path that this CPU can run is probed with extreme values against
    64-bit integers. Exit code 1 if no path is left that may be used.
    """
    report = examine()
    if as_json:
        print_json(report)
    else:
        _print(report)
    if not any(path["usable"] for path in report["paths"]):
        raise SystemExit(1)


def examine() -> dict:
    """The report, as plain values."""
    import numba
    import torch

    from fsim import __version__, machine
    from fsim.simulator import exact  # loads the kernels, which sets numba's cache folder

    probed = {name: (cases, wrong) for name, cases, wrong in exact.probe()}
    return {
        "versions": {"fsim": __version__, "python": platform.python_version()}
        | {name: _version(name) for name in PACKAGES},
        "cpu": {
            "model": machine.cpu_model(),
            "cpus": machine.cpus(),
            "int8": machine.int8_instructions(),
            "load": [round(value, 2) for value in machine.load()],
        },
        "threads": {"kernels": numba.get_num_threads(), "torch": torch.get_num_threads()},
        "cache": _cache(numba.config.CACHE_DIR),
        "paths": [
            {
                "name": name,
                "usable": usable,
                "reason": reason,
                "probed": probed[name][0],
                "wrong": probed[name][1],
            }
            for name, usable, reason in exact.explain()
        ],
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _cache(folder: str) -> dict:
    """Where compiled kernels are kept, whether that works, and how many there are."""
    writable = bool(folder) and os.access(folder, os.W_OK)
    kernels = len(list(Path(folder).rglob("*.nbi"))) if writable else 0
    return {"folder": folder or None, "writable": writable, "kernels": kernels}


def _print(report: dict):
    cpu, cache = report["cpu"], report["cache"]
    click.echo(pairs(report["versions"].items()))
    click.echo()
    load = ", ".join(f"{value:.2f}" for value in cpu["load"]) or "unknown"
    kept = f"{cache['folder']} ({cache['kernels']} kernels)"
    click.echo(
        pairs(
            [
                ("CPU", f"{cpu['model']}, {cpu['cpus']} CPUs for this process, load {load}"),
                ("int8 instructions", " ".join(cpu["int8"]) or "none known of"),
                (
                    "threads",
                    f"kernels {report['threads']['kernels']}, torch {report['threads']['torch']}",
                ),
                (
                    "kernel cache",
                    kept
                    if cache["writable"]
                    else "none: kernels are compiled at every start "
                    "(set FSIM_CACHE to a folder that can be written)",
                ),
            ]
        )
    )
    click.echo("\nExact integer products: the first usable path whose bound a layer keeps is taken")
    rows = [
        (
            path["name"],
            "yes" if path["usable"] else "no",
            f"{path['wrong']} of {path['probed']} wrong",
            path["reason"],
        )
        for path in report["paths"]
    ]
    click.echo(table(("path", "usable", "extreme values", "why"), rows))
