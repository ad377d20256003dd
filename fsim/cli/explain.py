"""`fsim explain`: what one fault of a trace did, layer by layer."""

from __future__ import annotations

from pathlib import Path

import click

from fsim.cli.options import json_option
from fsim.cli.tables import pairs, print_json, table
from fsim.errors import FaultError


@click.command()
@click.argument("trace", type=click.Path(path_type=Path))
@click.option("--model", help="Needed for a trace of a module:factory network: the same name.")
@click.option("--event", type=click.IntRange(0), required=True, help="Event number in the trial.")
@click.option("--trial", type=click.IntRange(0), default=0, show_default=True)
@click.option("--image", type=click.IntRange(0), help="Image, where the fault strikes many.")
@json_option
def explain(trace, model, event, trial, image, as_json):
    """Follow one event of TRACE alone: register or word, sums, codes, logits."""
    from fsim.simulator.trace import read_trace

    stored = read_trace(trace)
    rows = stored.faults_of(trial)
    rows = rows[rows["event"] == event]
    if not len(rows):
        events = stored.faults_of(trial)["event"]
        most = f"0..{int(events.max())}" if len(events) else "none"
        raise FaultError(f"event must be one of trial {trial} ({most}), got {event} ({trace})")
    from fsim.session import from_task
    from fsim.simulator.explain import explain_rows
    from fsim.simulator.sites import check_rows

    session = from_task(stored.task, model)
    check_rows(session.placement, rows, len(session.images))
    if image is None:
        image = max(int(rows["image"][0]), 0)
    if image >= len(session.images):
        raise FaultError(f"image must be in 0..{len(session.images) - 1}, got {image}")
    found = explain_rows(session.placement, session.images[image], rows)
    found = {"trial": trial, "event": event, "image": image,
             "label": int(session.labels[image]), **found}  # fmt: skip
    if as_json:
        print_json(found)
        return
    for fault in found["faults"]:
        click.echo(pairs([(name.replace("_", " "), value) for name, value in fault.items()]))
    if found["read"] is not None:
        wrong = [f"word {r['word']} of {r['component']}, {r['struck']}" for r in found["read"]
                 if "word" in r]  # fmt: skip
        click.echo(f"read        {'; '.join(wrong) or 'no wrong word'}")
    click.echo()
    click.echo(table(
        ["layer", "operation", "sums changed", "codes changed", "of", "largest code change"],
        [[x["layer"], x["operation"], "" if x["sums_changed"] is None else x["sums_changed"],
          x["codes_changed"], x["codes"], x["largest"]] for x in found["layers"]],
        ["sums changed", "codes changed", "of", "largest code change"],
    ))  # fmt: skip
    click.echo()
    click.echo(table(
        ["class", "clean logit", "faulty logit"],
        [[i, f"{c:.4f}", f"{f:.4f}"] for i, (c, f) in
         enumerate(zip(found["clean_logits"], found["faulty_logits"]))],
        ["class", "clean logit", "faulty logit"],
    ))  # fmt: skip
    click.echo(f"\nimage {image}, label {found['label']}: class {found['clean_class']} -> "
               f"{found['faulty_class']}, {found['outcome']}")  # fmt: skip
