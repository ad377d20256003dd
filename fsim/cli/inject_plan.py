"""What `fsim inject` would do, and whether it may: before anything runs."""

from __future__ import annotations

import os
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryFile

import click

from fsim.cli.tables import pairs, print_json
from fsim.errors import ConfigError
from fsim.words import describe_faults

REPORT_FILES = ("report.json", "ber_curve.png")
"""What --out may hold."""

BYTES_A_FAULT = 250
"""Peak memory of a drawn fault: its row, sorted copies and masks."""


def memory_limit() -> int:
    """Bytes that a run may plan to take: half of what is free, 4 GiB if that is not known."""
    from fsim.machine import available_memory

    free = available_memory()
    return 4 << 30 if free is None else free // 2


def most_faults() -> int:
    """Faults of a trial that memory holds."""
    return memory_limit() // BYTES_A_FAULT


def check_size(plan: dict, trace) -> None:
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


def make_plan(session, space, chosen, described, trials) -> dict:
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
        of = {block.component: block.memory for block in space.blocks}
        flips = sum(described[of[n]] * bits * writes[of[n]] for n, bits in exposed.items())
    elif described["kind"] == "seu-rate":
        kinds = [component.kind for component in session.placement.accel.components]
        bits = sum(s.sites for s in space.registers if kinds[s.component] == "register")
        flips = described["rate"] * bits * images
    elif described["kind"] == "stuck-cells":
        from fsim.fault_models.stuck_cells import StuckCells

        plan["weight_cells"] = StuckCells(described["p"]).cells(space)
        flips = described["p"] * plan["weight_cells"]
    elif described["kind"] == "explicit":
        flips = len(described["faults"])
    elif hasattr(chosen, "expected"):
        flips = chosen.expected(space, images)
    else:
        flips = 1 if getattr(chosen, "permanent", False) else images
    plan["expected_faults_per_trial"] = flips
    largest = max(int(_product(op.shape)) for op in session.program.ops)
    # Faults of a trial, a batch of the largest tensor, the images, outcomes of all trials.
    memory = flips * BYTES_A_FAULT + 128 * largest * 16 + session.images.nbytes
    memory += trials * (images + 200)
    plan["memory_mib"] = round(memory / 2**20, 1)
    return plan


def check_outputs(trace, out) -> None:
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


def seconds_needed(session, space, chosen, plan, seed, backend) -> float:
    """Seconds that the trials will take: a trial of a few images, timed."""
    import numba

    from fsim.simulator.inject import golden_run, run_trials

    # A chip costs the same whatever the images: more of them, or it counts for too much.
    chip = chosen.name == "stuck-cells" or getattr(chosen, "lasting", False)
    count = min(128 if chip else 16, plan["images"])
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


def print_plan(plan: dict, session, described, as_json: bool) -> None:
    if as_json:
        print_json(plan)
        return
    accel = session.placement.accel
    rows = [
        ("network", session.identity["model"]),
        ("accelerator", f"{accel.name} ({accel.dataflow}), {accel.rows} x {accel.cols} PEs"),
        ("faults", describe_faults(described)),
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
