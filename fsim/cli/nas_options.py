"""What the commands of `fsim nas` share with `fsim train`: its options, and their meaning."""

from __future__ import annotations

import click

from fsim.cli.train import train

FAULTS = ("fault_backend", "accel", "dataflow", "settings", "ber", "seu_rate", "hw_batch",
          "stuck_cells", "sa1_share",
          "faults_file", "mibb", "adsaf")  # fmt: skip
DATA = ("data", "data_dir", "images", "test_images")
COMMON = ("quiet", "device", "seed", "threads", "as_json")


def train_options(*names: str):
    """Decorator: these options of `fsim train`, as they are there."""
    known = {option.name: option for option in train.params}

    def decorate(command):
        command.params += [known[name] for name in names]
        return command

    return decorate


def progress(quiet: bool):
    """A function that shows one changing line on a terminal's stderr; "" clears it."""
    import sys

    lines = sys.stderr.isatty() and not quiet

    def show(text: str) -> None:
        if lines:
            click.echo("\r" + text.ljust(60) + ("" if text else "\r"), nl=False, err=True)

    return show


def bar(done: int, total: int, width: int = 24) -> str:
    """[####----] done/total."""
    full = width * done // max(total, 1)
    return f"[{'#' * full}{'-' * (width - full)}] {done}/{total}"
