"""`fsim replay`: recompute every outcome of a trace from its rows alone."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from fsim.cli.options import json_option, threads_option
from fsim.cli.tables import pairs, print_json
from fsim.errors import TraceError
from fsim.threads import use_threads


@click.command()
@click.argument("trace", type=click.Path(path_type=Path))
@click.option("--model", help="Needed for a trace of a module:factory network: the same name.")
@click.option("--backend", type=click.Choice(["auto", "tile", "reference"]), default="auto",
              help="reference: a sample of trials and images, cycle by cycle in plain Python.")
@click.option("--sample", type=click.IntRange(1), help="Only this many trials (reference: 1) ...")
@click.option("--sample-images", type=click.IntRange(1), help="... and images (reference: 4).")
@threads_option
@json_option
def replay(trace, model, backend, sample, sample_images, threads, as_json):  # fmt: skip
    """Recompute the outcomes of TRACE from its fault rows and report any difference.

    Draws nothing. Exit code 1 if a class, an outcome or the last integer tensor differs.
    """
    from fsim.simulator.trace import read_trace

    stored = read_trace(trace)
    use_threads(threads)

    if isinstance(stored.task.get("campaign"), dict):
        found = _campaign(trace, model, backend, sample, sample_images)
        return _report(trace, backend, found, as_json)

    from fsim.cli.inject import MAX_HW_BATCH
    from fsim.cli.inject_report import outcome_rows
    from fsim.session import from_task
    from fsim.simulator.inject import run_rows
    from fsim.simulator.sites import check_rows

    session = from_task(stored.task, model)
    check_rows(session.placement, stored.faults, len(session.images))
    golden = session.golden()
    trials = stored.trials["trial"]
    if backend == "reference":
        sample, sample_images = sample or 1, sample_images or 4
    trials = trials[:sample]
    count = min(sample_images or len(session.images), len(session.images))
    described = stored.task.get("faults")
    hw_batch = described.get("hw_batch", 1) if isinstance(described, dict) else 0
    if hw_batch is not None and not (type(hw_batch) is int and 1 <= hw_batch <= MAX_HW_BATCH):
        raise TraceError(
            f"faults of the trace's task must have an hw_batch from 1 to {MAX_HW_BATCH}, "
            f"got {hw_batch!r:.60} ({trace})"
        )
    differences = []
    checked = 0
    for trial in trials:
        result = run_rows(
            session.placement, golden, stored.faults_of(int(trial)), trial=int(trial),
            hw_batch=hw_batch, backend=backend, count=count,
        )  # fmt: skip
        mine = stored.outcomes[stored.outcomes["trial"] == trial]
        mine = mine[mine["image"] < count]
        again = outcome_rows(result, golden, count)
        if len(mine) != len(again):
            differences.append({"trial": int(trial), "image": -1, "column": "image",
                                "stored": len(mine), "recomputed": len(again)})  # fmt: skip
            continue
        differences += _differences(mine, again)
        checked += len(again)
    return _report(trace, backend, (len(trials), checked, differences), as_json)


def _differences(stored, again) -> list[dict]:
    """Values of OUTCOME rows that differ, those of one (trial, image) in one place."""
    import numpy as np

    return [
        {"trial": int(stored["trial"][at]), "image": int(stored["image"][at]), "column": column,
         "stored": int(stored[column][at]), "recomputed": int(again[column][at])}
        for column in stored.dtype.names
        for at in np.flatnonzero(stored[column] != again[column])
    ]  # fmt: skip


def _campaign(trace, model, backend, sample, sample_images):
    """(trials, inferences, differences) of a campaign, as whole inferences of its fault rows."""
    import numpy as np

    from fsim.campaign.results import read_results
    from fsim.session import from_task
    from fsim.simulator.campaign.evaluate import Evaluator
    from fsim.simulator.campaign.layered import LayeredEvaluator
    from fsim.simulator.campaign.population import Drawn
    from fsim.simulator.criteria import DEFAULT
    from fsim.simulator.sites import check_rows

    results = read_results(trace)
    session = from_task(results.task, model, by_layers=True)
    check_rows(session.placement, results.trace.faults, len(session.images))
    table = results.trace.outcomes.reshape(len(results.trials), results.images)
    if table.size and table["image"].max() >= len(session.images):
        raise TraceError(f"images of outcomes must be below {len(session.images)} ({trace})")
    if backend == "reference":
        sample, sample_images = sample or 1, sample_images or 4
    count = len(table[:sample])
    table = table[:count, :sample_images]
    sizes = results.trace.trials["n_faults"][:count]
    begin = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
    drawn = Drawn(
        results.trials[:count], results.trace.faults[: begin[-1]], begin,
        table["image"].astype(np.int64),
    )  # fmt: skip
    critical = results.stated.get("critical", DEFAULT)
    if session.layered is not None:
        evaluator = LayeredEvaluator(
            session.layered, session.images, session.labels, critical=critical
        )
    else:
        import numba

        evaluator = Evaluator(
            session.placement, session.images, session.labels, way="whole", backend=backend,
            threads=numba.get_num_threads(), critical=critical,
        )  # fmt: skip
    again = evaluator.outcomes(drawn)
    return count, table.size, _differences(table.reshape(-1), again)


def _report(trace, backend, found, as_json) -> None:
    trials, checked, differences = found
    report = {"trace": str(trace), "trials": trials, "inferences": checked,
              "backend": backend, "differences": len(differences),
              "first": differences[:10]}  # fmt: skip
    if as_json:
        print_json(report)
    else:
        rows = [("trace", trace), ("trials", trials), ("inferences", checked),
                ("differences", len(differences))]  # fmt: skip
        click.echo(pairs(rows))
        for d in differences[:10]:
            click.echo(
                f"trial {d['trial']} image {d['image']}: {d['column']} stored {d['stored']}, "
                f"recomputed {d['recomputed']}"
            )
    if differences:
        sys.exit(1)
