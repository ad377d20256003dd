"""The clean integer network against torch's float32 inference of the same network.

int8 ResNet-20, batch 128, as `program.run` does it (from float images to logits),
and the torch module as a user has it: eval, inference_mode, in the faster of its
two memory layouts. Runs alternate, so that both meet the same load; the figure
is the ratio of medians. The network's speed does not depend on its weights: where
no checkpoint is found they are random.

The same network with errors in its memories (`faulty`): rates of 1e-5 a bit and
residency in all three memories of `systolic`, as `run_trials` does it, TRIALS trials
of a batch each, errors drawn and outcomes classified. Drawing and the run alone are
timed as well.
"""

from __future__ import annotations

import statistics
import time

import numpy as np
import torch

from fsim.accel_models.load import load_accel
from fsim.errors import ConfigError
from fsim.fault_models.bit_errors import BitErrors
from fsim.machine import load
from fsim.nas.data import load_data
from fsim.nas.resnet import ResNet20
from fsim.nas.zoo import ZOO, load_model
from fsim.simulator import exact, program
from fsim.simulator.capture import capture
from fsim.simulator.draws import Draws
from fsim.simulator.inject import golden_run, run_rows, run_trials
from fsim.simulator.quantise import quantise
from fsim.simulator.sites import Placement, select

BATCH = 128
REPEATS = 15
TRIALS = 4
FLOOR, AIM = 0.5, 0.2
RATE = 1e-5


def pictures() -> np.ndarray:
    """A batch of CIFAR-10 as network input; noise where the data set is not found.

    With real images activations are as often zero as in use, and bits flip as far.
    """
    try:
        data = load_data("cifar10", limit=BATCH)
    except ConfigError:
        return np.random.default_rng(0).normal(size=(BATCH, 3, 32, 32)).astype(np.float32)
    return ZOO["resnet20"].preprocessing(data.images).numpy()


def network() -> tuple[torch.nn.Module, str]:
    """ResNet-20 in eval mode and where its weights are from."""
    try:
        loaded = load_model("resnet20")
    except ConfigError:
        torch.manual_seed(0)
        return ResNet20().eval(), "random weights"
    return loaded.model, "its checkpoint"


def alternate(calls: dict[str, object], repeats: int = REPEATS) -> dict[str, float]:
    """Median seconds of each call, the calls taking turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(repeats):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def faulty(model, integer, images) -> None:
    """Print the time of a trial under bit errors, its parts, and its ratio to float32."""
    placement = Placement(integer, load_accel("systolic"))
    space, draws = select(placement), Draws(0)
    errors = BitErrors(acts=RATE, weights=RATE, psums=RATE)
    golden = golden_run(placement, images, np.zeros(BATCH, np.int64))
    everything = np.arange(BATCH)
    rows = errors.rows(space, 0, everything, draws)
    plain = torch.from_numpy(images)
    last = plain.contiguous(memory_format=torch.channels_last)
    before = torch.get_num_threads()
    print(
        f"under BER {RATE:g} of all memories of {placement.accel.name}, a batch of {BATCH}: "
        f"{len(rows)} flips"
    )
    for threads in (1, 2):
        torch.set_num_threads(threads)
        with torch.inference_mode():
            seconds = alternate(
                {
                    "fp32 channels first": lambda: model(plain),
                    "fp32 channels last": lambda: model(last),
                    "drawing": lambda: errors.rows(space, 0, everything, draws),
                    "faulty run": lambda: run_rows(placement, golden, rows),
                    "trials": lambda: list(
                        run_trials(space, golden, errors, seed=0, trials=range(TRIALS))
                    ),
                    "clean run": lambda threads=threads: program.run(
                        integer, images, threads=threads
                    ),
                }
            )
        seconds["trials"] /= TRIALS
        fastest = min(seconds["fp32 channels first"], seconds["fp32 channels last"])
        figures = ", ".join(f"{k} {v * 1e3:.1f}" for k, v in seconds.items())
        print(f"{threads} thread(s): {figures} ms a batch")
        verdict(seconds["trials"] / fastest, " (a trial with its drawing)")
    torch.set_num_threads(before)


def verdict(ratio: float, note: str = "") -> None:
    """Print a ratio to float32 and how it stands to floor and aim."""
    word = "meets the aim" if ratio <= AIM else "within the floor" if ratio <= FLOOR else "SLOW"
    print(
        f"  ratio {ratio:.2f}{note}: {word} (floor {FLOOR}, aim {AIM}); "
        f"load {load()[0] if load() else float('nan'):.2f}"
    )


def main() -> None:
    """Print milliseconds an image and the ratio, at 1 and 2 threads."""
    model, source = network()
    images = pictures()
    integer = quantise(capture(model, images), images)
    print(f"ResNet-20 ({source}), batch {BATCH}, medians of {REPEATS} alternating runs")
    used: dict[str, int] = {}
    for _, path in integer.paths():
        used[path.name] = used.get(path.name, 0) + 1
    print("exact paths: " + ", ".join(f"{name} x {count}" for name, count in used.items()))
    for name, usable, why in exact.explain():
        if not usable:
            print(f"  {name} is not used: {why}")
    plain = torch.from_numpy(images)
    last = plain.contiguous(memory_format=torch.channels_last)
    before = torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        with torch.inference_mode():
            seconds = alternate(
                {
                    "fp32 channels first": lambda: model(plain),
                    "fp32 channels last": lambda: model(last),
                    "int8": lambda threads=threads: program.run(integer, images, threads=threads),
                }
            )
        fastest = min(value for name, value in seconds.items() if name != "int8")
        figures = ", ".join(f"{k} {v / BATCH * 1e3:.3f}" for k, v in seconds.items())
        print(f"{threads} thread(s): {figures} ms an image")
        verdict(seconds["int8"] / fastest)
    torch.set_num_threads(before)
    faulty(model, integer, images)


if __name__ == "__main__":
    main()
