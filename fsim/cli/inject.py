"""`fsim inject`: faults in a network on an accelerator, and what they do to its answers."""

from __future__ import annotations

import json
import sys
import time
from contextlib import suppress
from pathlib import Path

import click

from fsim.cli.inject_plan import (
    REPORT_FILES,
    check_outputs,
    check_size,
    make_plan,
    most_faults,
    print_plan,
    seconds_needed,
)
from fsim.cli.inject_report import (
    MEMORIES,
    Struck,
    add_curve,
    make_report,
    one_a_image,
    outcome_rows,
    report_text,
)
from fsim.cli.network_options import (
    names_of,
    network_options,
    session_of_options,
    stuck_options,
)
from fsim.cli.options import (
    Probability,
    accel_options,
    json_option,
    load_accel_option,
    seed_option,
    threads_option,
)
from fsim.cli.tables import print_json
from fsim.errors import ConfigError, FsimError, TraceError
from fsim.threads import use_threads


def parse_ber(text: str) -> dict[str, float]:
    """`1e-5` for all memories, or `weights=1e-6,acts=1e-5,psums=0` for some."""
    from fsim.parse import parse_probability

    if "=" not in text:
        p = parse_probability(text)
        return dict.fromkeys(MEMORIES, p)
    rates = dict.fromkeys(MEMORIES, 0.0)
    given = set()
    for part in text.split(","):
        name, _, value = (piece.strip() for piece in part.partition("="))
        if name not in rates:
            raise ConfigError(f"--ber must name {', '.join(MEMORIES)}, got {name!r} in {text!r}")
        if name in given:
            raise ConfigError(f"--ber must name each memory once, got {name} twice in {text!r}")
        given.add(name)
        rates[name] = parse_probability(value)
    return rates


MAX_HW_BATCH = 1 << 20


def parse_hw_batch(text: str) -> int | None:
    """A number of images, or `all`."""
    if text == "all":
        return None
    if not text.isdecimal() or len(text) > 7 or not 1 <= int(text) <= MAX_HW_BATCH:
        raise ConfigError(
            f"--hw-batch must be a number of images from 1 to {MAX_HW_BATCH} or 'all', "
            f"got {text[:60]!r}"
        )
    return int(text)


def fault_model(ber, seu_rate, faults, hw_batch, stuck_cells=None, sa1_share=None):
    """(fault model, its JSON description) that the options ask for; exactly one source."""
    from fsim.fault_models import families
    from fsim.fault_models.bit_errors import BitErrors
    from fsim.fault_models.network import Explicit
    from fsim.fault_models.stuck_cells import SA1_SHARE, StuckCells
    from fsim.fault_models.upsets import KINDS, SingleFault, UpsetRate
    from fsim.parse import parse_fault

    batch = parse_hw_batch("1" if hw_batch is None else hw_batch)
    given = [name for name, value in
             (("--ber", ber), ("--seu-rate", seu_rate), ("--stuck-cells", stuck_cells),
              ("--fault", faults or None))
             if value is not None]  # fmt: skip
    if sa1_share is not None and stuck_cells is None:
        raise ConfigError(f"--sa1-share needs --stuck-cells, got {sa1_share:g} without it")
    if len(given) != 1:
        raise ConfigError(
            "exactly one of --ber, --seu-rate, --stuck-cells and --fault must be given, got "
            + (" and ".join(given) or "none")
        )
    if hw_batch is not None and ber is None:
        raise ConfigError(
            f"--hw-batch needs --ber: only bit error rates count the writes of weights, "
            f"got {given[0]}"
        )
    if stuck_cells is not None:
        model = StuckCells(stuck_cells, SA1_SHARE if sa1_share is None else sa1_share)
        return model, {"kind": model.name, "p": model.p, "sa1_share": model.sa1_share}
    if ber is not None:
        rates = parse_ber(ber)
        return BitErrors(**rates, hw_batch=batch), {"kind": "ber", **rates, "hw_batch": batch}
    if seu_rate is not None:
        return UpsetRate(seu_rate), {"kind": "seu-rate", "rate": seu_rate}
    named = [text for text in faults if "=" not in text.partition(",")[0]]
    if len(faults) == 1 and named:
        if faults[0] in KINDS:
            return SingleFault(faults[0]), {"kind": faults[0]}
        name, values = families.parse_family(faults[0])
        if name not in families.family_names() or name in KINDS:
            known = (*KINDS, *families.family_names())
            raise ConfigError(
                f"--fault must be key=value,... or one of {', '.join(known)}, "
                + families.unknown(faults[0], known)
            )
        model = families.make_family(name, values)
        return model, families.described(model)
    if named:
        raise ConfigError(f"a random fault must be the only --fault, got {' and '.join(faults)}")
    explicit = Explicit(tuple(parse_fault(text) for text in faults))
    return explicit, {"kind": "explicit", "faults": list(faults)}


class Progress:
    """One line on a terminal, rewritten; nothing elsewhere."""

    def __init__(self, total: int, quiet: bool):
        self.total, self.start = total, time.monotonic()
        self.on = sys.stderr.isatty() and not quiet

    def show(self, done: int) -> None:
        if self.on:
            spent = time.monotonic() - self.start
            left = spent / max(done, 1) * (self.total - done)
            click.echo(f"\r{done}/{self.total} trials, {left:.0f} s left ", nl=False, err=True)

    def end(self) -> None:
        if self.on:
            click.echo("\r" + " " * 50 + "\r", nl=False, err=True)


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
    help="Flip probability per bit and residency of all on-chip "
    "memories, or weights=P,acts=P,psums=P.  [default without another fault: 1e-5]",
)
@click.option("--seu-rate", type=Probability, help="Upsets per register bit and cycle.")
@stuck_options
@click.option(
    "--fault",
    "faults",
    multiple=True,
    help="seu, mbu, transient, stuck0, stuck1 or intermittent: one at a random site; a "
    "model with parameters, mcu,shapes=2x2 (fsim faults --models); or "
    "layer=conv1,component=psum,row=0,col=3,bit=7,cycle=40. May be repeated.",
)
@click.option("--sites", help="Only these components, comma separated (fsim sites lists them).")
@click.option("--layers", help="Only these layers, comma separated.")
@click.option(
    "--trials",
    type=click.IntRange(1, 1 << 29),
    help="Draws of faults.  [default: 10; of faults that are named 1]",
)
@click.option(
    "--flips",
    type=click.IntRange(1, 1 << 26),
    default=2000,
    show_default=True,
    help="With --ber: single flips that P(critical | a flip) is measured with.",
)
@click.option(
    "--hw-batch",
    metavar="N|all",
    help="With --ber: images between two writes of the weights, or 'all'.  [default: 1]",
)
@click.option("--trace", type=click.Path(path_type=Path), help="Write all faults and outcomes.")
@click.option("--resume", is_flag=True, help="Go on with an unfinished --trace.")
@click.option("--overwrite", is_flag=True, help="Replace an existing --trace.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder for report.json and the curve."
)
@click.option(
    "--curve/--no-curve",
    default=None,
    help="With --ber: P(critical | a flip) and the rate at which accuracy falls by one point.",
)
@click.option(
    "--backend",
    type=click.Choice(["auto", "tile", "reference"]),
    default="auto",
    help="How products under register faults are computed; tile and reference also apply "
    "weights that stay wrong one by one.",
)
@click.option("--dry-run", is_flag=True, help="What would be done, and nothing more.")
@click.option("--quiet", is_flag=True, help="No progress.")
@seed_option
@threads_option
@json_option
def inject(accel, settings, dataflow, model, weights, data, data_dir, images, quant_params, ber,
           seu_rate, stuck_cells, sa1_share, faults, sites, layers, trials, flips, hw_batch, trace,
           resume, overwrite, out, curve, backend, dry_run, quiet, seed, threads,
           as_json):  # fmt: skip
    """Inject faults into a network on an accelerator.

    \b
    fsim inject --accel systolic --ber 1e-5
    fsim inject --model resnet20 --data cifar10 --ber weights=1e-6 --trace run.h5
    """
    if ber is seu_rate is stuck_cells is None and not faults:
        ber = "1e-5"
    chosen, described = fault_model(ber, seu_rate, faults, hw_batch, stuck_cells, sa1_share)
    if curve and described["kind"] != "ber":
        kind = described["kind"]
        given = kind if kind in ("seu-rate", "stuck-cells") else "fault"
        raise ConfigError(f"--curve needs --ber, got --{given}")
    names = {"layers": names_of(layers, "--layers"), "sites": names_of(sites, "--sites")}
    if described["kind"] == "explicit" and (layers is not None or sites is not None):
        raise ConfigError(
            "--sites and --layers restrict random faults: a --fault that names its component "
            "must go without them"
        )
    if getattr(chosen, "permanent", False) and layers is not None:
        raise ConfigError(
            "--layers cannot restrict a stuck-at fault, which is in the machine in every layer: "
            "use --sites"
        )
    trials = trials or (1 if described["kind"] == "explicit" else 10)
    machine = load_accel_option(accel, settings, dataflow)
    if resume and overwrite:
        raise ConfigError("--resume and --overwrite exclude each other")
    if (resume or overwrite) and trace is None:
        raise ConfigError("--resume and --overwrite need --trace")
    use_threads(threads)
    from fsim.simulator.sites import select

    session = session_of_options(
        machine, model, weights, data, data_dir, images, quant_params
    )  # fmt: skip
    space = select(session.placement, names["layers"], names["sites"])
    _check_sites(space, chosen, described)
    if described["kind"] == "explicit":
        from fsim.fault_models.network import network_rows

        network_rows(chosen.faults, space)  # all checks before anything runs
        for fault in chosen.faults:
            if fault.image is not None and not 0 <= fault.image < len(session.images):
                raise FsimError(
                    f"image of a fault must be in 0..{len(session.images) - 1}, got {fault.image}"
                )
    plan = make_plan(session, space, chosen, described, trials)
    check_size(plan, trace)
    check_outputs(trace, out)
    if dry_run:
        plan["seconds"] = seconds_needed(session, space, chosen, plan, seed, backend)
        print_plan(plan, session, described, as_json)
        return
    task = {**session.identity, "faults": described, "seed": seed, "trials": trials,
            "select": names, "rng_version": _rng_version()}  # fmt: skip
    report = _run(session, space, chosen, described, task, plan, flips if curve is not False else 0,
                  trace, resume, overwrite, out, backend, quiet or as_json)  # fmt: skip
    if as_json:
        print_json(report)
    else:
        click.echo(report_text(report, session))


def _check_sites(space, chosen, described) -> None:
    """The chosen layers and components must have something that the faults can strike."""
    import numpy as np

    from fsim.simulator.draws import Draws

    if described["kind"] == "ber":
        struck = [name for name in MEMORIES if described[name]]
        if struck and not any(b.exposed_bits for b in space.blocks if b.memory in struck):
            raise ConfigError(
                f"--ber needs words of {' or '.join(struck)} among the chosen sites and layers, "
                "got none"
            )
    elif described["kind"] == "stuck-cells":
        chosen.blocks(space)
    elif described["kind"] != "explicit":
        chosen.rows(space, 0, np.zeros(0, np.int64), Draws(0))  # raises where there is no site


def _rng_version() -> int:
    from fsim.simulator.sampling import RNG_VERSION

    return RNG_VERSION


def _run(session, space, chosen, described, task, plan, flips, trace, resume, overwrite, out,
         backend, quiet) -> dict:  # fmt: skip
    """All trials; writes the trace and the report's files, returns the report."""
    import numpy as np

    from fsim.simulator.inject import run_trials

    start = time.monotonic()
    golden = session.golden()
    clean_s = time.monotonic() - start
    made = _missing(out) + _missing(None if trace is None else trace.parent)
    writer = None
    outcomes, accuracy = {}, {}
    struck = Struck(session.identity["components"], session.identity["layers"],
                    one_a_image(described))  # fmt: skip
    progress = None
    try:
        writer, done = _open_trace(trace, task, resume, overwrite)
        if out is not None:
            if out.exists() and not out.is_dir():
                raise ConfigError(f"--out must be a folder, got a file ({out})")
            out.mkdir(parents=True, exist_ok=True)
        if writer is not None and len(done):
            _recall(writer, session, outcomes, accuracy, struck, golden)
        trials = [t for t in range(task["trials"]) if t not in outcomes]
        progress = Progress(len(trials), quiet)
        begin = time.monotonic()
        for number, result in enumerate(
            run_trials(space, golden, chosen, seed=task["seed"], trials=trials, backend=backend)
        ):
            outcomes[result.trial] = result.outcome
            accuracy[result.trial] = float(np.mean(result.top1 == golden.labels))
            struck.count(result.rows, result.outcome)
            if writer is not None:
                writer.add(result.rows, outcome_rows(result, golden))
            progress.show(number + 1)
        progress.end()
        seconds = time.monotonic() - begin
        if writer is not None:
            writer.close()
        report = make_report(
            session, chosen, described, task, plan, golden, outcomes, accuracy, struck,
            {"clean": clean_s, "trials": seconds},
        )  # fmt: skip
        picture = None
        if described["kind"] == "ber" and flips and any(described[n] for n in MEMORIES):
            picture = add_curve(report, session, space, golden, chosen, task["seed"], flips,
                                most_faults(), out)  # fmt: skip
        if out is not None:
            _write(out, report, picture)
    except BaseException as error:
        if progress is not None:
            progress.end()
        if writer is not None:
            writer.abandon()
            kept = len(writer.stored_trials)
            if kept and progress is not None:
                error.add_note(f"{kept} trials are kept: go on with --trace {trace} --resume")
        for folder in made:
            with suppress(OSError):  # what is not empty stays
                folder.rmdir()
        raise
    return report


def _missing(folder: Path | None) -> list[Path]:
    """The folder and those above it that do not exist, the innermost first."""
    found = []
    while folder is not None and not folder.exists() and folder != folder.parent:
        found.append(folder)
        folder = folder.parent
    return found


def _write(out, report, picture) -> None:
    """The report and, if there is one, the picture of its curve."""
    from fsim.files import atomic_write_all

    contents = [json.dumps(report, indent=2, allow_nan=False).encode() + b"\n"]
    contents += [] if picture is None else [picture]
    with atomic_write_all(*(out / name for name, _ in zip(REPORT_FILES, contents))) as files:
        for file, content in zip(files, contents):
            file.write(content)


def _open_trace(trace, task, resume, overwrite):
    if trace is None:
        return None, ()
    import numba
    import numpy
    import torch

    from fsim import __version__
    from fsim.machine import cpu_model, cpus
    from fsim.simulator.trace import TraceWriter

    provenance = {"fsim": __version__, "torch": str(torch.__version__), "numpy": numpy.__version__,
                  "numba": numba.__version__, "cpu": cpu_model(), "cpus": cpus(),
                  "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}  # fmt: skip
    writer = TraceWriter(trace, task, provenance, resume=resume, overwrite=overwrite)
    return writer, writer.stored_trials


def _recall(writer, session, outcomes, accuracy, struck, golden):
    """Trials that an earlier run of the same task stored, read back from its files."""
    import numpy as np

    from fsim.simulator.sites import check_rows
    from fsim.simulator.trace import read_trace

    count = len(golden.labels)
    for part in writer.files:
        stored = read_trace(part)
        image = stored.outcomes["image"]
        if not np.array_equal(image, np.tile(np.arange(count), len(stored.trials))):
            raise TraceError(f"every trial must have {count} outcomes, one an image ({part})")
        check_rows(session.placement, stored.faults, count)
        for at, trial in enumerate(stored.trials["trial"]):
            mine = stored.outcomes[at * count : (at + 1) * count]
            outcomes[int(trial)] = mine["outcome"]
            accuracy[int(trial)] = float(np.mean(mine["faulty"] == golden.labels))
            struck.count(stored.faults_of(int(trial)), mine["outcome"])
