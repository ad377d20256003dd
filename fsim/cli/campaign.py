"""`fsim campaign`: how likely a fault is to matter, with an interval and a file."""

from __future__ import annotations

import signal
import sys
import time
from contextlib import contextmanager, suppress

import click

from fsim.cli.campaign_options import (
    campaign_options,
    each_of,
    fault_of,
    flips_of,
    part_of,
    rule_of,
)
from fsim.cli.network_options import names_of, session_of_options
from fsim.cli.options import (
    json_option,
    load_accel_option,
    seed_option,
    threads_option,
)
from fsim.cli.tables import print_json
from fsim.errors import ConfigError
from fsim.threads import use_threads

MEMORIES = ("acts", "weights", "psums")
PILOT = 30  # simulator.campaign.design has it too, but costs numpy to import


class Stop:
    """SIGINT and SIGTERM as a wish to stop after the shard; the second one stops at once."""

    def __init__(self):
        self.signal: int | None = None

    def __call__(self) -> bool:
        return self.signal is not None

    @contextmanager
    def listening(self):
        """While this lasts, signals are wishes (main thread only)."""
        before = {}

        def heard(number, frame):
            if self.signal is not None:
                handler = before[number]
                if callable(handler):
                    handler(number, frame)
                raise KeyboardInterrupt
            self.signal = number
            click.echo("\nstopping after the shard that is under way; again to stop now", err=True)

        with suppress(ValueError):  # not the main thread: its owner handles signals
            for number in (signal.SIGINT, signal.SIGTERM):
                before[number] = signal.signal(number, heard)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class Progress:
    """One line on a terminal, rewritten: trials, speed, time left and the share so far."""

    def __init__(self, total: int | None, rule, sizes, quiet: bool):
        self.total, self.rule, self.sizes = total, rule, sizes
        self.start, self.on = time.monotonic(), sys.stderr.isatty() and not quiet

    def __call__(self, tally, before: int) -> None:
        if not self.on:
            return
        from fsim.simulator.campaign.rules import interval

        done, spent = tally.total, time.monotonic() - self.start
        speed = max(done - before, 0) / max(spent, 1e-9)
        of = f"/{self.total:,}" if self.total else ""
        left = ""
        if self.total and speed:
            left = f", {(self.total - done) / speed:.0f} s left"
        share = ""
        if None not in self.sizes or len(self.sizes) == 1:
            found = interval(self.rule, tally, self.sizes)
            share = f", {self.rule.metric} {100 * found.low:.2f} .. {100 * found.high:.2f} %"
        line = f"{done:,}{of} faults, {speed:,.0f} a second{left}{share}"
        click.echo("\r" + line.ljust(90)[:110], nl=False, err=True)

    def end(self) -> None:
        if self.on:
            click.echo("\r" + " " * 110 + "\r", nl=False, err=True)


@click.command()
@campaign_options
@seed_option
@threads_option
@json_option
def campaign(plan, accel, settings, dataflow, model, weights, data, data_dir, images, quant_params,
             fault, fault_list, flips, chips, stuck_cells, sa1_share, ber, sites, layers, stratify,
             images_per_fault, trials, margin, t_value, p_value, rounding, exhaustive, failures,
             target_halfwidth, threshold, max_trials, metric, critical, confidence, pilot, way,
             memory, engine, workers, scheduler, shard, shard_size, out, resume, overwrite,
             baseline, fail_if, dry_run, quiet, seed, threads, as_json):  # fmt: skip
    """Inject faults until their effect is known, and write them all to a file.

    PLAN is a YAML file of the same options (--trials 1000 is `trials: 1000`); options on
    the command line go before it.

    \b
    fsim campaign --model resnet20 --accel gemmini-like --fault seu --target-halfwidth 0.005
    fsim campaign --fault flip --stratify layer,bit --trials 50000 --out strata.h5
    fsim campaign --chips 200 --stuck-cells 1e-3
    """
    from fsim.campaign.acceptance import parse_condition

    conditions = [parse_condition(text) for text in fail_if]
    if any(c.needs_baseline for c in conditions) and baseline is None:
        raise ConfigError("--fail-if speaks of the baseline: give --baseline")
    if resume and overwrite:
        raise ConfigError("--resume and --overwrite exclude each other")
    from fsim.files import check_output

    check_output(out)
    part = part_of(shard)
    numbers = flips_of(flips)
    rule = rule_of(
        {"trials": trials, "margin": margin, "exhaustive": exhaustive, "failures": failures,
         "target_halfwidth": target_halfwidth, "threshold": threshold, "metric": metric,
         "confidence": confidence, "max_trials": max_trials}
    )  # fmt: skip
    _check(click.get_current_context(), rule, margin, t_value, p_value)
    axes = tuple(names_of(stratify, "--stratify") or ())
    design, faults, permanent = _faults(
        fault, fault_list, numbers, chips, stuck_cells, sa1_share, ber, sites
    )
    if design != "single":
        option = {"list": "--faults", "events": f"--fault {faults['kind']}"}.get(
            design, f"--{design}"
        )
        own = [("--stratify", stratify), ("--images-per-fault", images_per_fault),
               ("--exhaustive", exhaustive)]  # fmt: skip
        if design in ("list", "chips"):
            own += [("--trials", trials), ("--margin", margin)]
        if design == "list":
            own.append(("--layers", layers))
        given = [name for name, value in own if value]
        if given:
            raise ConfigError(f"{given[0]} does not go with {option}, which says what there is")
        if rule["name"] != "fixed" and design != "events":
            raise ConfigError(
                f"{option} needs a number of trials known before, got --{rule['name']}"
            )
    if pilot is not None and not (axes and margin is None and not exhaustive):
        raise ConfigError("--pilot belongs to --stratify with --trials or --target-halfwidth")
    pilot = pilot or PILOT
    if part is not None and (conditions or baseline is not None):
        raise ConfigError("--fail-if and --baseline judge a whole campaign, got --shard")
    if design == "flips" and (baseline is not None or any(c.metric != "accuracy"
                                                          for c in conditions)):  # fmt: skip
        raise ConfigError(
            "shares of --flips depend on a rate (fsim curve): --fail-if may speak of accuracy "
            "alone, and --baseline cannot be compared"
        )
    machine = load_accel_option(accel, settings, dataflow)
    old = None
    if baseline is not None:
        from fsim.campaign.results import read_results

        old = read_results(baseline)
        if old.kind == "flips":
            raise ConfigError(f"--baseline must not be a campaign of --flips, got {baseline}")
    threads = use_threads(threads)

    from fsim.campaign.campaign import Campaign, Options, make_task

    session = session_of_options(
        machine, model, weights, data, data_dir, images, quant_params, by_layers=True
    )  # fmt: skip
    rows = None
    if fault_list is not None:
        from fsim.campaign.fault_lists import read_fault_list

        rows = read_fault_list(fault_list, session.placement, len(session.images))
    each = each_of(images_per_fault, permanent, len(session.images)) if design == "single" else None
    if each not in (None, 1) and axes:
        raise ConfigError("--stratify needs faults that meet one image each: --images-per-fault 1")
    if each not in (None, 1) and rule["name"] in ("failures", "threshold"):
        raise ConfigError(
            f"--{rule['name']} counts single inferences: --images-per-fault must be 1, "
            f"got {each} (--fault {fault})"
        )
    if axes and rule["name"] in ("failures", "threshold"):
        raise ConfigError(f"--stratify stops by --trials, --margin, --exhaustive or "
                          f"--target-halfwidth, got --{rule['name']}")  # fmt: skip

    chosen = {"layers": names_of(layers, "--layers"), "sites": names_of(sites, "--sites")}
    task = make_task(
        session, faults, chosen, seed, design=design, rule=rule, each=each, stratify=axes,
        allocation=_allocation(design, rule, chips, rows, trials, margin, t_value, p_value,
                               rounding, exhaustive, confidence, axes),
        pilot=pilot, shard=shard_size, flips=numbers, rows=rows, critical=critical,
        stated=_stated(accel, settings, rule, trials, margin, t_value, p_value, rounding,
                       exhaustive),
    )  # fmt: skip
    if task["trials"] == 0:
        raise ConfigError("a campaign must have at least one fault, got none by its sample size")
    options = Options(way, memory << 20, threads)
    ready = Campaign(task, options, session, rows)
    if dry_run:
        from fsim.cli.campaign_report import plan_json, plan_text

        found = plan_json(ready)
        print_json(found) if as_json else click.echo(plan_text(found, session))
        return None
    return _run(ready, out, engine, workers, scheduler, resume, overwrite, part, quiet or as_json,
                conditions, old, as_json)  # fmt: skip


def _check(context, rule, margin, t_value, p_value) -> None:
    """Options that belong to others."""
    of_margin = rule["name"] == "fixed" and context.params["trials"] is None
    of_margin = of_margin and not context.params["exhaustive"]
    for name, value in (("--t", t_value), ("--p", p_value)):
        if value is not None and not of_margin:
            raise ConfigError(f"{name} belongs to --margin, got another rule")


def _faults(fault, fault_list, numbers, chips, stuck_cells, sa1_share, ber, sites):
    """(design, "faults" of the task, they are a defect of the machine) by the options."""
    from fsim.fault_models.stuck_cells import SA1_SHARE

    own, named_fault, model = fault_of(fault)
    if own == "chips" and fault_list is None and not numbers:
        if chips is None:
            raise ConfigError(f"--fault {model.name} draws chips: give their number, --chips")
        if stuck_cells is not None or ber is not None or sa1_share is not None:
            raise ConfigError("--chips needs one of --stuck-cells, --ber and --fault")
        return "chips", named_fault, True

    named = names_of(sites, "--sites")
    given = [name for name, value in (("--faults", fault_list), ("--flips", numbers or None),
                                      ("--chips", chips)) if value is not None]  # fmt: skip
    context = click.get_current_context()
    if context.get_parameter_source("fault").name != "DEFAULT":
        given.append("--fault")
    if len(given) > 1:
        raise ConfigError(f"a campaign must have one kind of faults, got {' and '.join(given)}")
    if chips is None and (stuck_cells is not None or ber is not None):
        raise ConfigError("--stuck-cells and --ber are of chips: give --chips")
    if sa1_share is not None and stuck_cells is None:
        raise ConfigError(f"--sa1-share needs --stuck-cells, got {sa1_share:g} without it")
    wanted = list(named or MEMORIES)
    memories = numbers or fault == "flip" or ber is not None or stuck_cells is not None
    other = [name for name in wanted if name not in MEMORIES]
    if memories and fault_list is None and other:
        raise ConfigError(
            f"these faults strike stored words: --sites must name {', '.join(MEMORIES)}, "
            f"got {other[0]!r}"
        )
    if chips is not None and "weights" not in wanted:
        raise ConfigError(f"chips have faults in weights: --sites must name them, got {sites!r}")
    if fault_list is not None:
        if sites is not None:
            raise ConfigError("--sites restricts random faults: a fault list must go without it")
        return "list", {"kind": "list", "file": str(fault_list)}, False
    if numbers:
        return "flips", {"kind": "flips", "memories": wanted}, False
    if chips is not None:
        if (stuck_cells is None) == (ber is None):
            raise ConfigError("--chips needs one of --stuck-cells and --ber")
        if ber is not None:
            rates = {name: ber if name == "weights" else 0.0 for name in MEMORIES}
            return "chips", {"kind": "ber", **rates, "hw_batch": None}, True
        share = SA1_SHARE if sa1_share is None else sa1_share
        return "chips", {"kind": "stuck-cells", "p": stuck_cells, "sa1_share": share}, True
    if fault == "flip":
        return "single", {"kind": "flip", "memories": wanted}, False
    return own, named_fault, getattr(model, "permanent", False)


def _stated(accel, settings, rule, trials, margin, t_value, p_value, rounding, exhaustive) -> dict:
    """Options that a task states in other words, for the command that reproduces it."""
    found = {"accel": accel, "settings": list(settings)}
    if exhaustive:
        found["exhaustive"] = True
    elif rule["name"] == "fixed" and trials is None:
        found |= {"margin": 0.01 if margin is None else margin, "t": t_value, "p": p_value,
                  "rounding": rounding}  # fmt: skip
    return found


def _allocation(design, rule, chips, rows, trials, margin, t_value, p_value, rounding, exhaustive,
                confidence, axes):  # fmt: skip
    """Sizes of strata -> trials of each, or None where counts decide."""
    if rule["name"] != "fixed":
        return None
    if design == "chips":
        return lambda sizes: [chips]
    if design == "list":
        import numpy as np

        return lambda sizes: [len(np.unique(rows["trial"]))]
    if exhaustive:
        return lambda sizes: list(sizes)
    if trials is not None:
        if axes:
            return None  # Neyman's allocation after a pilot
        return lambda sizes: _evenly(trials, sizes)

    def by_margin(sizes):
        from fsim.simulator.campaign.design import date_2009

        return date_2009(
            sizes, 0.01 if margin is None else margin, t_value,
            0.5 if p_value is None else p_value, rounding, confidence,
        ).counts  # fmt: skip

    return by_margin


def _evenly(trials: int, sizes) -> list[int]:
    """`trials` over strata without sizes, or over the one stratum that has one."""
    if len(sizes) == 1 and sizes[0] is not None and trials > sizes[0]:
        raise ConfigError(
            f"--trials must be at most {sizes[0]:,}, the faults there are (--exhaustive), "
            f"got {trials:,}"
        )
    each, more = divmod(trials, len(sizes))
    return [each + (h < more) for h in range(len(sizes))]


def _run(ready, out, engine, workers, scheduler, resume, overwrite, part, quiet, conditions, old,
         as_json):  # fmt: skip
    from fsim.campaign.execute import Interrupted, execute
    from fsim.campaign.results import read_results
    from fsim.campaign.summary import summary
    from fsim.cli.campaign_report import campaign_text, checks_text

    stop = Stop()
    design = ready.design
    progress = Progress(ready.task["trials"], design.rule, design.sizes, quiet)
    begin = time.monotonic()
    try:
        with stop.listening():
            tally = execute(
                ready, out, engine=engine, workers=workers, scheduler=scheduler, resume=resume,
                overwrite=overwrite, part=part, progress=progress, stopping=stop,
            )  # fmt: skip
    except Interrupted as error:
        from fsim.cli.group import Terminated

        kind = Terminated if stop.signal == signal.SIGTERM else KeyboardInterrupt
        ended = kind()
        for note in getattr(error, "__notes__", ()):
            ended.add_note(note)
        raise ended from None
    finally:
        progress.end()
    seconds = time.monotonic() - begin
    if part is not None:
        k, n = part
        text = f"part {k} of {n}: {tally.total:,} of {ready.task['trials']:,} faults in {out}"
        print_json({"file": str(out), "part": [k, n], "trials": tally.total}) if as_json else (
            click.echo(text)
        )
        return 0
    results = read_results(out)
    found = summary(results)
    found["seconds"] = seconds
    if engine == "serial":
        found["way"], found["way_because"] = ready.way
    found["notes"] = list(ready.session.notes)
    checks = [condition.check(results, old) for condition in conditions]
    if old is not None:
        from fsim.campaign.compare import compare

        found["baseline"] = compare(results, old, metric=results.rule.metric)
    found["checks"] = checks
    if as_json:
        print_json(found)
    else:
        click.echo(campaign_text(found))
        if checks:
            click.echo(checks_text(checks))
    return 4 if any(check["failed"] for check in checks) else 0
