"""`fsim inject`: faults in a network on an accelerator, and what they do to its answers."""

from __future__ import annotations

import io
import json
import os
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryFile

import click

from fsim.cli.options import (
    Probability,
    accel_options,
    json_option,
    load_accel_option,
    seed_option,
    threads_option,
    use_threads,
)
from fsim.cli.tables import pairs, print_json, table
from fsim.errors import ConfigError, FsimError, TraceError

MEMORIES = ("acts", "weights", "psums")

REPORT_FILES = ("report.json", "ber_curve.png")
"""What --out may hold."""


def network_options(command):
    """--model, --weights, --data, --data-dir, --images, --quant-params."""
    for option in (
        click.option("--quant-params", type=click.Path(path_type=Path), metavar="FILE",
                     help="JSON of your own scales; what it does not name is calibrated."),
        click.option("--images", type=click.IntRange(1), help="Test images (default: up to 500)."),
        click.option("--data-dir", help="Folder of the data set."),
        click.option("--data", help="digits, cifar10, fashion-mnist or an .npz file."),
        click.option("--weights", help="Checkpoint: .pt (tensors only) or .safetensors."),
        click.option("--model", default="digits-cnn", show_default=True,
                     help="digits-cnn, resnet20, resnet8 or module:factory."),
    ):  # fmt: skip
        command = option(command)
    return command


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


MAX_PARAMS_BYTES = 64 << 20


def _distinct(items: list[tuple[str, object]]) -> dict:
    """A JSON object whose keys differ: of two equal ones JSON would keep the last."""
    found = dict(items)
    if len(found) < len(items):
        names = [name for name, _ in items]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} twice")
    return found


def read_quant_params(path: Path | None) -> dict | None:
    if path is None:
        return None
    if not path.is_file():
        raise ConfigError(f"quantisation parameters must be a file that exists, got {path}")
    if path.stat().st_size > MAX_PARAMS_BYTES:
        raise ConfigError(f"quantisation parameters must be under 64 MiB ({path})")
    try:
        value = json.loads(path.read_text("utf-8"), object_pairs_hook=_distinct)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"quantisation parameters must be JSON, got {error} ({path})") from None
    if not isinstance(value, dict):
        raise ConfigError(f"quantisation parameters must be a JSON object ({path})")
    return value


def fault_model(ber, seu_rate, faults, hw_batch):
    """(fault model, its JSON description) that the options ask for; exactly one source."""
    from fsim.fault_models.bit_errors import BitErrors
    from fsim.fault_models.network import Explicit
    from fsim.fault_models.upsets import KINDS, SingleFault, UpsetRate
    from fsim.parse import parse_fault

    batch = parse_hw_batch("1" if hw_batch is None else hw_batch)
    given = [name for name, value in
             (("--ber", ber), ("--seu-rate", seu_rate), ("--fault", faults or None))
             if value is not None]  # fmt: skip
    if len(given) != 1:
        raise ConfigError(
            "exactly one of --ber, --seu-rate and --fault must be given, got "
            + (" and ".join(given) or "none")
        )
    if hw_batch is not None and ber is None:
        raise ConfigError(
            f"--hw-batch needs --ber: only bit error rates count the writes of weights, "
            f"got {given[0]}"
        )
    if ber is not None:
        rates = parse_ber(ber)
        return BitErrors(**rates, hw_batch=batch), {"kind": "ber", **rates, "hw_batch": batch}
    if seu_rate is not None:
        return UpsetRate(seu_rate), {"kind": "seu-rate", "rate": seu_rate}
    if len(faults) == 1 and "=" not in faults[0]:
        if faults[0] not in KINDS:
            raise ConfigError(
                f"--fault must be key=value,... or one of {', '.join(KINDS)}, got {faults[0]!r}"
            )
        return SingleFault(faults[0]), {"kind": faults[0]}
    alone = [text for text in faults if text in KINDS]
    if alone:
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
@click.option("--accel", default="systolic", show_default=True, metavar="NAME|FILE",
              help="A preset (fsim accel list) or a .yaml or .toml file.")
@network_options
@click.option("--ber", metavar="P", help="Flip probability per bit and residency of all on-chip "
              "memories, or weights=P,acts=P,psums=P.  [default without another fault: 1e-5]")
@click.option("--seu-rate", type=Probability, help="Upsets per register bit and cycle.")
@click.option("--fault", "faults", multiple=True,
              help="seu, mbu, transient, stuck0, stuck1 or intermittent: one at a random site; or "
              "layer=conv1,component=psum,row=0,col=3,bit=7,cycle=40. May be repeated.")
@click.option("--sites", help="Only these components, comma separated (fsim sites lists them).")
@click.option("--layers", help="Only these layers, comma separated.")
@click.option("--trials", type=click.IntRange(1, 1 << 29),
              help="Draws of faults.  [default: 10; of faults that are named 1]")
@click.option("--flips", type=click.IntRange(1, 1 << 26), default=2000, show_default=True,
              help="With --ber: single flips that P(critical | a flip) is measured with.")
@click.option("--hw-batch", metavar="N|all",
              help="With --ber: images between two writes of the weights, or 'all'.  [default: 1]")
@click.option("--trace", type=click.Path(path_type=Path), help="Write all faults and outcomes.")
@click.option("--resume", is_flag=True, help="Go on with an unfinished --trace.")
@click.option("--overwrite", is_flag=True, help="Replace an existing --trace.")
@click.option("--out", type=click.Path(path_type=Path),
              help="Folder for report.json and the curve.")
@click.option("--curve/--no-curve", default=None, help="With --ber: P(critical | a flip) and the "
              "rate at which accuracy falls by one point.")
@click.option("--backend", type=click.Choice(["auto", "tile", "reference"]), default="auto",
              help="How products under register faults are computed.")
@click.option("--dry-run", is_flag=True, help="What would be done, and nothing more.")
@click.option("--quiet", is_flag=True, help="No progress.")
@seed_option
@threads_option
@json_option
def inject(accel, settings, dataflow, model, weights, data, data_dir, images, quant_params, ber,
           seu_rate, faults, sites, layers, trials, flips, hw_batch, trace, resume, overwrite, out,
           curve, backend, dry_run, quiet, seed, threads, as_json):  # fmt: skip
    """Inject faults into a network on an accelerator.

    \b
    fsim inject --accel systolic --ber 1e-5
    fsim inject --model resnet20 --data cifar10 --ber weights=1e-6 --trace run.h5
    """
    if ber is None and seu_rate is None and not faults:
        ber = "1e-5"
    chosen, described = fault_model(ber, seu_rate, faults, hw_batch)
    if curve and described["kind"] != "ber":
        raise ConfigError("--curve needs --ber, got " + ("--fault" if faults else "--seu-rate"))
    names = {"layers": _names(layers, "--layers"), "sites": _names(sites, "--sites")}
    if described["kind"] == "explicit" and (layers is not None or sites is not None):
        raise ConfigError(
            "--sites and --layers restrict random faults: a --fault that names its component "
            "must go without them"
        )
    if described["kind"].startswith("stuck") and layers is not None:
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
    from fsim.cli.session import open_session
    from fsim.simulator.sites import select

    session = open_session(
        model, machine, weights=weights, data=data, data_dir=data_dir, images=images or 500,
        quant_params=read_quant_params(quant_params),
    )  # fmt: skip
    if images is not None and len(session.images) < images:
        short = f"{images} images were asked for, the data set has {len(session.images)}"
        session = replace(session, notes=(*session.notes, short))
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
    plan = _plan(session, space, described, trials)
    _check_size(plan, trace)
    _check_outputs(trace, out)
    if dry_run:
        plan["seconds"] = _seconds(session, space, chosen, plan, seed, backend)
        _print_plan(plan, session, described, as_json)
        return
    task = {**session.identity, "faults": described, "seed": seed, "trials": trials,
            "select": names, "rng_version": _rng_version()}  # fmt: skip
    report = _run(session, space, chosen, described, task, plan, flips if curve is not False else 0,
                  trace, resume, overwrite, out, backend, quiet or as_json)  # fmt: skip
    if as_json:
        print_json(report)
    else:
        click.echo(_text(report, session))


def _names(text: str | None, option: str) -> list[str] | None:
    if text is None:
        return None
    names = [name.strip() for name in text.split(",")]
    if not all(names) or len(set(names)) < len(names):
        raise ConfigError(f"{option} must name things once each, comma separated, got {text!r}")
    return names


def _check_sites(space, chosen, described) -> None:
    """The chosen layers and components must have something that the faults can strike."""
    import numpy as np

    from fsim.simulator.draws import Draws

    if described["kind"] == "ber":
        struck = [name for name in MEMORIES if described[name]]
        if struck and not any(b.exposed_bits for b in space.blocks if b.component in struck):
            raise ConfigError(
                f"--ber needs words of {' or '.join(struck)} among the chosen sites and layers, "
                "got none"
            )
    elif described["kind"] != "explicit":
        chosen.rows(space, 0, np.zeros(0, np.int64), Draws(0))  # raises where there is no site


POSSIBLE = ("masked", "sdc_benign", "sdc_critical")
"""Outcomes of a machine without error correction, detection or watchdog."""

BYTES_A_FAULT = 250
"""Peak memory of a drawn fault: its row, sorted copies and masks."""


def memory_limit() -> int:
    """Bytes that a run may plan to take: half of what is free, 4 GiB if that is not known."""
    from fsim.machine import available_memory

    free = available_memory()
    return 4 << 30 if free is None else free // 2


def _check_size(plan: dict, trace) -> None:
    """Refuse what cannot be held, before anything runs."""
    from fsim.simulator.trace import MAX_BYTES
    from fsim.simulator.trace_format import OUTCOME
    from fsim.types import FAULT

    need, limit = plan["memory_mib"], memory_limit() / 2**20
    flips, trials, images = (
        plan[name] for name in ("expected_faults_per_trial", "trials", "images")
    )
    what = f"{flips:.6g} faults in each of {trials} trials with {images} images"
    if need > limit:
        raise ConfigError(
            f"a run must take at most {limit:,.0f} MiB, half of the memory that is free, got about "
            f"{need:,.0f} MiB for {what}"
        )
    size = trials * (flips * FAULT.itemsize + images * OUTCOME.itemsize)
    if trace is not None and size > MAX_BYTES:
        raise ConfigError(
            f"a trace must hold at most {MAX_BYTES >> 20:,} MiB, got about {size / 2**20:,.0f} "
            f"MiB for {what} ({trace})"
        )


def _rng_version() -> int:
    from fsim.simulator.sampling import RNG_VERSION

    return RNG_VERSION


def _plan(session, space, described, trials) -> dict:
    """Sites, exposed bits, expected flips and memory, before anything runs."""
    images = len(session.images)
    exposed: Counter = Counter()
    for block in space.blocks:
        exposed[block.component] += block.exposed_bits
    plan = {
        "images": images,
        "trials": trials,
        "exposed_bits_per_image": dict(exposed),
        "register_sites_per_image": sum(site.sites for site in space.registers),
        "cycles_per_image": sum(
            session.placement.cycles(op.index) for op in session.program.array_ops
        ),
        "macs_per_image": sum(low.macs for low in session.placement.lowered.values()),
    }
    if described["kind"] == "ber":
        hw_batch = described["hw_batch"] or images
        writes = {"weights": -(-images // hw_batch), "acts": images, "psums": images}
        flips = sum(described[name] * bits * writes[name] for name, bits in exposed.items())
    elif described["kind"] == "seu-rate":
        kinds = [component.kind for component in session.placement.accel.components]
        bits = sum(s.sites for s in space.registers if kinds[s.component] == "register")
        flips = described["rate"] * bits * images
    elif described["kind"] == "explicit":
        flips = len(described["faults"])
    else:
        flips = 1 if described["kind"].startswith("stuck") else images
    plan["expected_faults_per_trial"] = flips
    largest = max(int(_product(op.shape)) for op in session.program.ops)
    # Faults of a trial, a batch of the largest tensor, the images, outcomes of all trials.
    memory = flips * BYTES_A_FAULT + 128 * largest * 16 + session.images.nbytes
    memory += trials * (images + 200)
    plan["memory_mib"] = round(memory / 2**20, 1)
    return plan


def _check_outputs(trace, out) -> None:
    """Refuse what the run could not write at its end, and outputs in each other's place."""
    files = [] if out is None else [out / name for name in REPORT_FILES]
    for path in [*files, trace]:
        if path is None:
            continue
        real = Path(os.path.realpath(path))
        if (real.exists() and not real.is_file()) or real.is_symlink():
            raise ConfigError(
                f"an output must be a regular file, got a folder, device or circle of links "
                f"({path})"
            )
    if out is not None and trace is not None:
        parts = os.path.realpath(f"{trace}.parts")
        inside = os.path.commonpath([parts, os.path.realpath(out)]) == parts
        if inside or os.path.realpath(trace) in map(os.path.realpath, [out, *files]):
            raise ConfigError(f"--trace and --out must be two places, got {trace} and {out}")
    if out is not None and out.is_dir():
        with TemporaryFile(dir=out):  # a folder that cannot be written is known now
            pass


def _product(shape) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


def _seconds(session, space, chosen, plan, seed, backend) -> float:
    """Seconds that the trials will take: a trial of a few images, timed."""
    import numba

    from fsim.simulator.inject import golden_run, run_trials

    count = min(16, plan["images"])
    golden = golden_run(session.placement, session.images[:count], session.labels[:count])
    times = []
    for _ in range(2):  # the first may compile
        begin = time.monotonic()
        sample = run_trials(
            space, golden, chosen, seed=seed, trials=[0], backend=backend, threads=1
        )
        for _ in sample:
            times.append(time.monotonic() - begin)
    threads = min(numba.get_num_threads(), plan["trials"])
    return min(times) / count * plan["images"] * plan["trials"] / threads


def _print_plan(plan: dict, session, described, as_json: bool) -> None:
    if as_json:
        print_json(plan)
        return
    accel = session.placement.accel
    rows = [
        ("network", session.identity["model"]),
        ("accelerator", f"{accel.name} ({accel.dataflow}), {accel.rows} x {accel.cols} PEs"),
        ("faults", _describe(described)),
    ]
    rows += [
        (name.replace("_", " ").replace("mib", "(MiB)"),
         f"{value:,}" if isinstance(value, int)
         else f"about {value:.2g}" if name == "seconds" else f"{value:,.6g}")
        for name, value in plan.items() if not isinstance(value, dict)
    ]  # fmt: skip
    rows += [(f"exposed bits, {name}", f"{bits:,}")
             for name, bits in plan["exposed_bits_per_image"].items()]  # fmt: skip
    click.echo(pairs(rows))


def _interval(interval) -> dict:
    return {"estimate": interval.estimate, "low": interval.low, "high": interval.high,
            "method": interval.method}  # fmt: skip


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
                    _one_a_image(described))  # fmt: skip
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
        report = _report(session, chosen, described, task, plan, golden, outcomes, accuracy, struck,
                         {"clean": clean_s, "trials": seconds})  # fmt: skip
        picture = None
        if described["kind"] == "ber" and flips and any(described[n] for n in MEMORIES):
            picture = _add_curve(report, session, space, golden, chosen, task["seed"], flips, out)
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

    contents = [json.dumps(report, indent=2, allow_nan=False).encode()]
    contents += [] if picture is None else [picture]
    with atomic_write_all(*(out / name for name, _ in zip(REPORT_FILES, contents))) as files:
        for file, content in zip(files, contents):
            file.write(content)


def _report(session, chosen, described, task, plan, golden, outcomes, accuracy, struck,
            seconds) -> dict:  # fmt: skip
    """What the trials found, as JSON values."""
    import numpy as np

    from fsim.simulator.statistics import summarise

    order = sorted(outcomes)
    summary = summarise(np.stack([outcomes[t] for t in order]), unit=chosen.unit)
    accuracies = np.array([accuracy[t] for t in order])
    return {
        "model": task["model"],
        "accel": session.placement.accel.name,
        "dataflow": session.placement.accel.dataflow,
        "array": [session.placement.accel.rows, session.placement.accel.cols],
        "faults": described,
        "select": task["select"],
        "seed": task["seed"],
        "plan": plan,
        "accuracy": {"clean": golden.accuracy, "faulty_mean": float(accuracies.mean()),
                     "faulty_min": float(accuracies.min()),
                     "faulty_max": float(accuracies.max())},
        "outcomes": {name: _outcome(name, summary.counts[name], share)
                     for name, share in summary.shares.items()},
        "faults_by": [{"component": c, "layer": x, "faults": k}
                      for (c, x), k in sorted(struck.faults.items())],
        "outcomes_by_bit": struck.table() if _one_a_image(described) else None,
        "seconds": seconds,
        "notes": list(session.notes),
    }  # fmt: skip


def _outcome(name: str, count: int, share) -> dict:
    if name in POSSIBLE:
        return {"count": count, **_interval(share)}
    return {"count": count, "estimate": 0.0, "low": 0.0, "high": 0.0,
            "method": "cannot occur: nothing corrects, detects or watches"}  # fmt: skip


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


def _one_a_image(described: dict) -> bool:
    """Whether every image has exactly one event, to which its outcome belongs."""
    return described["kind"] in ("seu", "mbu", "transient", "intermittent")


class Struck:
    """Faults by component and layer; of single faults also outcomes by component and bit."""

    def __init__(self, names, layers, single: bool):
        self.names, self.layers, self.single = names, layers, single
        self.faults: Counter = Counter()
        self.bits: Counter = Counter()

    def count(self, rows, outcome) -> None:
        """Add the rows of trials; outcome (images,) of the trial they are all of."""
        import numpy as np

        if not len(rows):
            return
        pairs_, counts = np.unique(
            np.stack([rows["component"], rows["layer"]]), axis=1, return_counts=True
        )
        for (component, layer), count in zip(pairs_.T, counts):
            where = self.layers[layer] if layer >= 0 else "(all)"
            self.faults[self.names[component], where] += int(count)
        if self.single and outcome is not None:
            masks = rows["xor_mask"] | rows["or_mask"]
            for component, image, mask in zip(rows["component"], rows["image"], masks):
                mask = int(mask)
                bit = (mask & -mask).bit_length() - 1  # of several the lowest
                self.bits[self.names[component], bit, int(outcome[image])] += 1

    def table(self) -> list[dict]:
        """Outcome counts of each component and bit."""
        from fsim.simulator.statistics import OUTCOME_NAMES

        found: dict[tuple, dict] = {}
        for (name, bit, code), count in sorted(self.bits.items()):
            row = found.setdefault((name, bit), {"component": name, "bit": bit, "faults": 0})
            row["faults"] += count
            row[OUTCOME_NAMES[code]] = count
        return list(found.values())


def outcome_rows(result, golden, count=None):
    """The OUTCOME rows of a trial over the first `count` images (default: all)."""
    import numpy as np

    from fsim.simulator.trace import OUTCOME, tensor_digest

    rows = np.zeros(len(result.outcome), OUTCOME)
    rows["trial"], rows["image"] = result.trial, np.arange(len(rows))
    rows["label"], rows["golden"] = golden.labels[:count], golden.top1[:count]
    rows["faulty"], rows["outcome"] = result.top1, result.outcome
    rows["digest"] = tensor_digest(result.acc)
    return rows


def _add_curve(report, session, space, golden, chosen, seed, flips, out) -> bytes | None:
    """P(critical | one flip) and the accuracy curve; its picture as PNG if there is an `out`."""
    import numpy as np

    from fsim.fault_models.bit_errors import OneFlip
    from fsim.simulator.curve import draw, quick_curve
    from fsim.simulator.inject import run_trials
    from fsim.simulator.statistics import Outcome, wilson

    memories = tuple(name for name in MEMORIES if getattr(chosen, name))
    repeats = -(-flips // len(golden.images))
    critical = total = 0
    split: dict[tuple[str, str], list[int]] = {}
    names, layers = session.identity["components"], session.identity["layers"]
    # Trial numbers apart from those of the main run.
    for result in run_trials(
        space, golden, OneFlip(memories), seed=seed, trials=range(1 << 29, (1 << 29) + repeats)
    ):
        wrong = result.outcome == Outcome.SDC_CRITICAL
        critical, total = critical + int(wrong.sum()), total + len(wrong)
        rows = result.rows
        for number, layer in np.unique(np.stack([rows["component"], rows["layer"]]), axis=1).T:
            here = (rows["component"] == number) & (rows["layer"] == layer)
            tally = split.setdefault((names[number], layers[layer]), [0, 0])
            tally[0] += int(wrong[here].sum())
            tally[1] += int(here.sum())
    whole: dict[str, list[int]] = {}
    for (name, _), (k, n) in split.items():
        whole[name] = [a + b for a, b in zip(whole.get(name, [0, 0]), (k, n))]
    report["critical_given_a_flip"] = {
        **_interval(wilson(critical, total)), "flips": total,
        "by_component": {name: {"critical": k, "flips": n, **_interval(wilson(k, n))}
                         for name, (k, n) in sorted(whole.items())},
        "by_layer": [{"component": name, "layer": layer, "critical": k, "flips": n,
                      **_interval(wilson(k, n))}
                     for (name, layer), (k, n) in sorted(split.items())],
    }  # fmt: skip
    most = memory_limit() // BYTES_A_FAULT
    found = quick_curve(space, golden, chosen, seed=seed, most_faults=most)
    report["curve"] = {
        "ber": list(found.ber),
        "accuracy": list(found.accuracy),
        "trials": list(found.trials),
        "images": found.images,
        "ber_at_one_point_drop": found.ber_at_drop,
        "low": found.low,
        "high": found.high,
    }
    if out is None:
        return None
    report["curve"]["picture"] = str(out / "ber_curve.png")
    content = io.BytesIO()  # the drawing library would not tell a full disk from other errors
    title = f"{report['model']} on {report['accel']} ({report['dataflow']})"
    chosen_layers = report["select"]["layers"]
    title += f", {', '.join(chosen_layers)}" if chosen_layers else ""
    what = "all memories" if len(memories) == len(MEMORIES) else " and ".join(memories)
    draw(found, content, title, what)
    return content.getvalue()


def _text(report: dict, session) -> str:
    """The report for people."""
    accuracy, plan = report["accuracy"], report["plan"]
    rows, cols = report["array"]
    lines = [
        pairs([
            ("network", f"{report['model']}, {plan['images']} images, "
                        f"{plan['macs_per_image']:,} MACs an image"),
            ("accelerator", f"{report['accel']} ({report['dataflow']}), {rows} x {cols} PEs, "
                            f"{plan['cycles_per_image']:,} cycles an image"),
            ("faults", _describe(report["faults"])),
            *_exposed(report),
            ("trials", f"{plan['trials']} in {report['seconds']['trials']:.1f} s, "
                       f"{plan['expected_faults_per_trial']:.6g} faults expected in each"),
            ("clean accuracy", f"{100 * accuracy['clean']:.2f} %"),
            ("faulty accuracy", f"{100 * accuracy['faulty_mean']:.2f} % (trials "
                                f"{100 * accuracy['faulty_min']:.2f} to "
                                f"{100 * accuracy['faulty_max']:.2f} %)"),
        ]),
        "",
        table(
            ["outcome", "count", "share", "95 % interval"],
            [[name.replace("_", "-"), o["count"], f"{100 * o['estimate']:.3f} %",
              f"{100 * o['low']:.3f} .. {100 * o['high']:.3f} %"]
             for name, o in report["outcomes"].items() if name in POSSIBLE],
            right=["count", "share"],
        ),
        "",
        _faults_table(report),
    ]  # fmt: skip
    if "curve" in report:
        hit, curve = report["critical_given_a_flip"], report["curve"]
        at = curve["ber_at_one_point_drop"]
        lines += [
            "",
            f"P(critical | a flip)       {100 * hit['estimate']:.3f} % "
            f"({100 * hit['low']:.3f} .. {100 * hit['high']:.3f} %, {hit['flips']} flips)",
            "accuracy falls by a point  "
            + (f"at a bit error rate of about {at:.2g} ({_limit(curve['low'])} .. "
               f"{_limit(curve['high'])})" if at
               else f"nowhere up to a rate of {curve['ber'][-1]:.2g}"),
        ]
        if "picture" in curve:
            lines.append(f"curve                      {curve['picture']}")
    lines += [f"note: {note}" for note in report["notes"]]
    return "\n".join(lines)


def _limit(rate: float | None) -> str:
    return "?" if rate is None else f"{rate:.1e}"


def _exposed(report: dict) -> list[tuple[str, str]]:
    """What the faults choose from, as a line of the report."""
    plan, faults = report["plan"], report["faults"]
    if faults["kind"] == "ber":
        bits = {n: b for n, b in plan["exposed_bits_per_image"].items() if faults[n]}
        text = ", ".join(f"{name} {count:,}" for name, count in bits.items())
        return [("exposed bits", f"{text} an image")] if text else []
    if faults["kind"] == "explicit":
        return []
    return [("register sites", f"{plan['register_sites_per_image']:,} bits x cycles an image")]


def _faults_table(report: dict) -> str:
    """Faults by component and layer; with --ber also how many single flips were critical."""
    head, right = ["component", "layer", "faults"], ["faults"]
    rows = [[f["component"], f["layer"], f["faults"]] for f in report["faults_by"]]
    flips = report.get("critical_given_a_flip", {}).get("by_layer")
    if flips:
        head, right = [*head, "single flips", "critical"], [*right, "single flips", "critical"]
        tally = {(f["component"], f["layer"]): f for f in flips}
        struck = {(row[0], row[1]): row[2] for row in rows}
        rows = [
            [*key, struck.get(key, 0), *(tally[key][n] if key in tally else 0
                                         for n in ("flips", "critical"))]
            for key in sorted(set(struck) | set(tally))
        ]  # fmt: skip
    return table(head, rows, right=right)


def _describe(faults: dict) -> str:
    if faults["kind"] == "ber":
        batch = faults["hw_batch"] or "all"
        rates = ", ".join(f"{name} {faults[name]:g}" for name in MEMORIES)
        return f"bit errors, per bit and residency: {rates}; weights written every {batch} image(s)"
    if faults["kind"] == "seu-rate":
        return f"single-event upsets, {faults['rate']:g} per register bit and cycle"
    if faults["kind"] == "explicit":
        return "; ".join(faults["faults"])
    each = "trial" if faults["kind"].startswith("stuck") else "image"
    return f"one random {faults['kind']} for each {each}"
