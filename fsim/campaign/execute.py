"""Running a campaign into its file, from the beginning or from where it was left."""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path

import numpy as np

from fsim._version import __version__
from fsim.errors import ConfigError, TraceError
from fsim.files import check_output
from fsim.simulator.campaign.run import Interrupted, Stored, run
from fsim.simulator.campaign.tally import Tally
from fsim.simulator.trace import MAX_BYTES, OUTCOME, TRIALS, TraceWriter, read_trace
from fsim.types import FAULT

from .campaign import Campaign
from .engines import open_engine


def provenance() -> dict:
    """Versions that a campaign was run with: the same on like machines, whenever it runs."""
    import numba
    import torch

    return {
        "fsim": __version__, "torch": str(torch.__version__), "numpy": np.__version__,
        "numba": numba.__version__, "python": platform.python_version(),
    }  # fmt: skip


def stored_of(files, images: int) -> Stored:
    """What the files of an unfinished campaign hold."""
    trials, outcomes = [np.zeros(0, np.int64)], [np.zeros((0, images), np.uint8)]
    for file in files:
        table = read_trace(file).outcomes
        if len(table) % images or (
            table["trial"].reshape(-1, images) != table["trial"][::images, None]
        ).any():
            raise TraceError(f"every trial must have {images} outcomes ({file})")
        trials.append(table["trial"][::images])
        outcomes.append(table["outcome"].reshape(-1, images))
    trial, outcome = np.concatenate(trials), np.concatenate(outcomes)
    order = np.argsort(trial, kind="stable")
    return Stored(trial[order], outcome[order])


def check_size(campaign: Campaign) -> None:
    """ConfigError if the file of a campaign would be larger than readers take."""
    unit = campaign.task["campaign"]["unit_images"]
    each = FAULT.itemsize + unit * OUTCOME.itemsize + TRIALS.itemsize
    trials = campaign.task["trials"]
    most = MAX_BYTES // each
    if trials is not None and trials > most:
        raise ConfigError(
            f"a campaign's file must hold at most {most:,} trials of {unit} images, got "
            f"{trials:,}: take a sample (--trials, --margin) or fewer --layers, --sites, --images"
        )


def execute(
    campaign: Campaign,
    path: Path,
    *,
    engine: str = "serial",
    workers: int | None = None,
    scheduler: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    part: tuple[int, int] | None = None,
    progress: Callable[[Tally, int], None] = lambda tally, before: None,
    stopping: Callable[[], bool] = lambda: False,
) -> Tally:
    """Run a campaign to its end and write its file; counts of all its trials.

    path      a trace (docs/trace-format.md); until it is complete the folder `<path>.parts`
    engine    of engines.ENGINES; workers belong to "loky", scheduler to "dask"
    part      (k, n): every n-th shard only; `fsim merge` joins the files of all k
    progress  called with the counts and how many trials earlier runs had done
    stopping  asked before every shard; Interrupted is raised when it says yes
    Raises TraceError if the file cannot be written: what was done is kept, resume it.
    """
    if part is not None and not campaign.design.fixed:
        raise ConfigError(
            "--shard needs a campaign whose trials are known before it runs: --trials, --margin "
            "or --exhaustive, with strata --margin or --exhaustive"
        )
    check_output(path)
    check_size(campaign)
    writer = TraceWriter(
        path, campaign.task, provenance(), resume=resume, overwrite=overwrite
    )  # fmt: skip
    try:
        stored = stored_of(writer.files, campaign.task["campaign"]["unit_images"])
        before = len(stored.trial)
        machine = open_engine(engine, campaign, workers=workers, scheduler=scheduler)
        try:
            tally = campaign.tally()
            run(
                campaign.design, campaign.split, tally, machine, stored=stored, write=writer.add,
                progress=lambda found: progress(found, before), stopping=stopping, part=part,
            )  # fmt: skip
        finally:
            machine.close()
        writer.close()
        return tally
    except BaseException as error:
        writer.abandon()
        kept = len(writer.stored_trials)
        if kept and not isinstance(error, ConfigError):
            error.add_note(f"{kept} trials are kept: go on with the same command and --resume")
        raise


__all__ = ["Interrupted", "execute", "provenance", "stored_of"]
