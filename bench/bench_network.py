"""The integer network, without and with faults, against torch's float32 inference.

int8 ResNet-20, batch 128, as `program.run` does it (from float images to logits), and the
torch module as a user has it: eval, inference_mode, in the faster of its two memory layouts.
Runs take turns. The network's speed does not depend on its weights: where no checkpoint is
found they are random.

The same network with errors in its memories: rates of 1e-5 a bit and residency in all three
memories of `systolic`, as `run_trials` does it, TRIALS trials of a batch each, errors drawn
and outcomes classified. Drawing and the run alone are timed as well.
"""

from __future__ import annotations

import numpy as np
import torch

from fsim.accel_models.load import load_accel
from fsim.fault_models.bit_errors import BitErrors
from fsim.simulator import exact, program
from fsim.simulator.capture import capture
from fsim.simulator.draws import Draws
from fsim.simulator.inject import golden_run, run_rows, run_trials
from fsim.simulator.quantise import quantise
from fsim.simulator.sites import Placement, select

from .figures import LOWER, Figure
from .networks import network, pictures
from .timing import THREADS, alternate, faster, threads_text, torch_threads

BATCH = 128
REPEATS, REPEATS_FAULTY = 15, 9
TRIALS = 4
FLOOR, AIM = 0.5, 0.2
SOURCE = "inference against torch's float32 time"
RATE = 1e-5

NOTES = (
    "torch runs the float32 network, batch normalisation not folded, in the faster of "
    "channels-first and channels-last; fsim runs the int8 network of the same weights with "
    "integer sums, bit for bit those of the array.",
)


def main(quick: bool = False) -> list[Figure]:
    """Milliseconds a batch and the ratios, at each number of threads."""
    images, what = pictures("resnet20", BATCH)
    model, weights = network("resnet20", images)
    placement = Placement(quantise(capture(model, images), images), load_accel("systolic"))
    print(f"ResNet-20, {weights}; {BATCH} images, {what}")
    used: dict[str, int] = {}
    for _, path in placement.program.paths():
        used[path.name] = used.get(path.name, 0) + 1
    print("exact paths: " + ", ".join(f"{name} x {count}" for name, count in used.items()))
    for name, usable, why in exact.explain():
        if not usable:
            print(f"  {name} is not used: {why}")
    figures = []
    for threads in THREADS:
        with torch_threads(threads):
            figures += clean(model, placement, images, threads, 3 if quick else REPEATS)
            figures += faulty(model, placement, images, threads, 3 if quick else REPEATS_FAULTY)
    return figures


def floats(model, images) -> dict:
    """The float32 network in both memory layouts, as calls."""
    plain = torch.from_numpy(images)
    last = plain.contiguous(memory_format=torch.channels_last)
    return {"channels first": lambda: model(plain), "channels last": lambda: model(last)}


def milliseconds(seconds: list[float]) -> list[float]:
    return [1e3 * value for value in seconds]


def clean(model, placement, images, threads: int, repeats: int) -> list[Figure]:
    """The fault-free network."""
    with torch.inference_mode():
        taken = alternate(
            {
                **floats(model, images),
                "int8": lambda: program.run(placement.program, images, threads=threads),
            },
            repeats,
        )
    return [
        Figure(
            f"clean inference of {BATCH} images, {threads_text(threads)}",
            milliseconds(taken["int8"]), "ms", LOWER, "torch float32",
            milliseconds(faster(taken["channels first"], taken["channels last"])),
            floor=FLOOR, aim=AIM, source=SOURCE,
        )
    ]  # fmt: skip


def faulty(model, placement, images, threads: int, repeats: int) -> list[Figure]:
    """A trial under bit errors, and its parts."""
    space, draws = select(placement), Draws(0)
    errors = BitErrors(acts=RATE, weights=RATE, psums=RATE)
    golden = golden_run(placement, images, np.zeros(BATCH, np.int64))
    everything = np.arange(BATCH)
    rows = errors.rows(space, 0, everything, draws)
    with torch.inference_mode():
        taken = alternate(
            {
                **floats(model, images),
                "drawing": lambda: errors.rows(space, 0, everything, draws),
                "run": lambda: run_rows(placement, golden, rows),
                "trials": lambda: list(
                    run_trials(space, golden, errors, seed=0, trials=range(TRIALS))
                ),
            },
            repeats,
        )
    on = threads_text(threads)
    trial = [1e3 * value / TRIALS for value in taken["trials"]]
    note = f"rate {RATE:g} in all memories of {placement.accel.name}: {len(rows):,} flips a batch"
    return [
        Figure(
            f"a trial of {BATCH} images under bit errors, {on}",
            trial, "ms", LOWER, "torch float32",
            milliseconds(faster(taken["channels first"], taken["channels last"])),
            floor=FLOOR, aim=AIM, source=SOURCE, note=note,
        ),
        Figure(f"drawing these errors, {on}", milliseconds(taken["drawing"]), "ms",
               note="on one thread"),
        Figure(f"running with them alone, {on}", milliseconds(taken["run"]), "ms"),
    ]  # fmt: skip


if __name__ == "__main__":
    from .figures import table

    print(table(main()))
