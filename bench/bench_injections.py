"""Injections a second: one random accumulator flip an image, against PyTorchFI and MRFI.

A fault is one flipped bit of one accumulator of one convolution, uniform over all bits of
all accumulators of all convolutions, in one image; int8 network, output-stationary array
(`systolic`, os), where every accumulator is stored once. Timed is all that a user pays for a
fault: its site is drawn, the accumulator's new code found, the difference carried to the
answer, the answer classified. The fault-free run of the images, once a campaign, is stated
by itself. fsim and its rivals take turns on the same images, weights and number of threads:
all CPUs, and one, whose ratio other work on the machine changes least.

Every network's timed faults are compared, a sample of them, with running the whole network
again on a copy of the image, all sums bit for bit.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from fsim.accel_models.load import load_accel
from fsim.machine import cpus
from fsim.simulator.capture import capture
from fsim.simulator.kernels import vnni
from fsim.simulator.quantise import quantise
from fsim.simulator.sites import Placement
from fsim.simulator.statistics import Outcome

from .figures import HIGHER, LOWER, Figure
from .flips import PARTS, Campaign, Compared, Round, compare
from .networks import NAMES, network, pictures
from .peak import macs_per_second
from .rivals.client import Rival, RivalError
from .timing import threads_text, torch_threads

IMAGES = 128
FLOOR, AIM, FLOOR_WITHOUT_VNNI = 30, 80, 10
LIMITED = ("resnet20", "resnet8")
"""Networks with a floor. MobileNet-V2 has random weights: timing and equality only."""
SOURCE = (
    "injections against PyTorchFI 0.6.0 at its best batch (the floor is 10 without AVX512-VNNI)"
)
RIVALS = {"pytorchfi": "PyTorchFI", "mrfi": "MRFI"}

NOTES = (
    "fsim flips a bit of a 32-bit accumulator of the int8 network and gives the bits that the "
    "simulated array gives. The rivals run the float32 network (batch normalisation not folded) "
    "and strike an output of a convolution: they have no accumulators, no integers and no array. "
    "Both quantise the struck value alone to 8 bits of the layer's range, flip a random bit and "
    "go back: PyTorchFI by its `single_bit_flip_func`, MRFI by `IntRandomBitFlip` at "
    "`FixPositions`. Which faults matter is therefore not comparable, injections a second are.",
    "All draw one site an image, uniform over the outputs of all convolutions. PyTorchFI's own "
    "random location takes a layer first; sites are drawn here with numpy in its place, which is "
    "faster. Time of the rivals holds: sites, declaring them to the tool, the forward pass, "
    "comparison with golden logits and classes. Golden passes are not counted for anybody.",
    "The rivals run in inference mode at the fastest of several batch sizes and, PyTorchFI, of "
    "both memory layouts, found on this machine just before. Their torch is of the version that "
    "fsim uses.",
    "The bound is multiply-adds of the convolutions that a fault makes necessary, counted on the "
    "compared sample, by the rate of VPDPBUSD on registers that was measured in this run "
    "(`bench/peak.py`): once if every pixel whose window holds a changed input is computed again, "
    "once if only changed inputs are multiplied. Neither counts finding, requantising and "
    "comparing, which any method needs.",
)


@dataclass(frozen=True)
class Sizes:
    """How long to measure, in rounds and seconds.

    batches  of the rivals, each tried for try_seconds until the budget of the tool is spent
    compared  faults run again as a whole
    """

    rounds: int = 5
    seconds: float = 1.0
    batches: tuple[int, ...] = (64, 128, 32, 256, 512, 8, 1)
    try_seconds: float = 0.3
    budget: float = 10.0
    compared: int = 512


QUICK = Sizes(rounds=2, seconds=0.3, batches=(64, 128), try_seconds=0.1, compared=64)


@dataclass
class Opponent:
    """A rival at its best setting, and what its rounds gave."""

    name: str
    rival: Rival
    setting: str
    golden: float
    rates: list[float] = field(default_factory=list)
    differ: int = 0
    injected: int = 0

    def run(self, seconds: float, seed: int) -> None:
        answer = self.rival.ask("run", seconds=seconds, seed=seed)
        self.rates.append(answer["injections"] / answer["seconds"])
        self.differ += answer["differ"]
        self.injected += answer["injections"]


def opponents(
    stack: ExitStack, name: str, model: torch.nn.Module, campaign: Campaign, sizes: Sizes
) -> tuple[list[Opponent], list[str]]:
    """(rivals ready to run, why others are not there)."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    torch.save(model.state_dict(), folder / "weights.pt")
    np.save(folder / "images.npy", campaign.images)
    ready, missing = [], []
    for tool, shown in RIVALS.items():
        try:
            rival = stack.enter_context(Rival(tool))
            told = rival.ask(
                "prepare", network=name, weights=str(folder / "weights.pt"),
                images=str(folder / "images.npy"), threads=campaign.threads,
            )  # fmt: skip
            tried = rival.best(told["layouts"], sizes.batches, sizes.try_seconds, sizes.budget)
        except RivalError as error:
            missing.append(f"{shown}: {error}")
            continue
        best: dict[int, float] = {}
        for rate, batch, _ in tried:
            best[batch] = max(rate, best.get(batch, 0.0))
        setting = f"batch {tried[0][1]}, {tried[0][2]}; when tried: " + ", ".join(
            f"{batch}: {best[batch]:,.0f}/s" for batch in sorted(best)
        )
        label = f"{shown} {told['version']}"
        ready.append(Opponent(label, rival, setting, told["golden_seconds"]))
    return ready, missing


def measure(name: str, counts: list[int], peak: float | None, sizes: Sizes) -> list[Figure]:
    """All figures of one network, injections a second on each number of threads.

    What else there is, is of the last of them.
    """
    images, what = pictures(name, IMAGES)
    model, weights = network(name, images)
    placement = Placement(quantise(capture(model, images), images), load_accel("systolic", "os"))
    Campaign(placement, images[:2], 1).run(100, 0)  # loads the kernels
    campaign = Campaign(placement, images)
    print(f"{name}: {weights}, {len(images)} images ({what})", flush=True)
    figures = []
    for threads in counts:
        campaign.threads = threads
        with torch_threads(threads):
            turns = take_turns(name, model, campaign, sizes)
        figures += against(name, threads, turns, f"{weights}; images: {what}")
    sample = sizes.compared if name in LIMITED else sizes.compared // 4  # it is a large one
    last = turns.rounds[-1]
    compared = compare(campaign, last, sample)
    return [
        *figures,
        Figure(
            f"{name}: faults not equal to the whole network run again",
            [compared.wrong], f"of {compared.faults}", LOWER, floor=0,
            source="a fault has the same bits as the whole network run again",
        ),
        *outcomes(name, turns),
        *spread(name, campaign, last),
        Figure(
            f"{name}: golden run of {len(images)} images, once",
            [campaign.golden_seconds * 1e3], "ms",
            note="codes and sums of every operation kept; "
            + ", ".join(f"{rival.name} {rival.golden * 1e3:.0f} ms" for rival in turns.rivals),
        ),
        *bound(name, turns.rounds, compared, peak, campaign.threads),
        *shares(name, turns.rounds),
        *by_size(name, campaign, last),
    ]  # fmt: skip


@dataclass
class Turns:
    """Rounds that took turns; why a rival is missing."""

    rounds: list[Round]
    rivals: list[Opponent]
    missing: list[str]


def take_turns(name: str, model, campaign: Campaign, sizes: Sizes) -> Turns:
    """fsim and its rivals in turns, on the campaign's number of threads."""
    pilot = campaign.run(1000, 1_000_000)
    count = int(np.clip(pilot.rate * sizes.seconds, 1000, 1_000_000))
    print(
        f"  {threads_text(campaign.threads)}: {sizes.rounds} rounds of {count} faults", flush=True
    )
    turns = Turns([], [], [])
    with ExitStack() as stack:
        turns.rivals, turns.missing = opponents(stack, name, model, campaign, sizes)
        for number in range(sizes.rounds):
            turns.rounds.append(campaign.run(count, number))
            for rival in list(turns.rivals):
                try:
                    rival.run(sizes.seconds, number)
                except RivalError as error:
                    turns.missing.append(f"{rival.name}: {error}")
                    turns.rivals.remove(rival)
    for line in turns.missing:
        print(f"  without {line}", flush=True)
    return turns


def against(name: str, threads: int, turns: Turns, note: str) -> list[Figure]:
    """Injections a second beside each rival."""
    rates = [done.rate for done in turns.rounds]
    label = f"{name}: injections, {threads_text(threads)}"
    if not turns.rivals:
        why = f"{note}; no rival: " + "; ".join(turns.missing)
        return [Figure(label, rates, "/s", HIGHER, note=why)]
    figures = []
    for rival in turns.rivals:
        limits = {}
        if name in LIMITED and rival.name.startswith("PyTorchFI"):
            limits = {"floor": FLOOR_WITHOUT_VNNI, "source": SOURCE}
            if vnni.supported():
                limits |= {"floor": FLOOR, "aim": AIM}
        figures.append(
            Figure(label, rates, "/s", HIGHER, rival.name, rival.rates, **limits,
                   note=f"{note}; {rival.name}: {rival.setting}")
        )  # fmt: skip
    return figures


def outcomes(name: str, turns: Turns) -> list[Figure]:
    """Shares of outcomes of all timed faults."""
    outcome = np.concatenate([done.outcome for done in turns.rounds])
    found = []
    for label, code in (
        ("masked", Outcome.MASKED),
        ("answers differ, same class", Outcome.SDC_BENIGN),
        ("other class", Outcome.SDC_CRITICAL),
    ):
        found.append(
            Figure(f"{name}: {label}", [100 * float((outcome == code).mean())],
                   f"% of {len(outcome):,} faults")
        )  # fmt: skip
    others = [f"{r.name} {100 * (1 - r.differ / r.injected):.0f} %" for r in turns.rivals]
    if others:
        masked = found[0]
        found[0] = Figure(masked.name, masked.values, masked.unit,
                          note="logits unchanged: " + ", ".join(others))  # fmt: skip
    return found


def spread(name: str, campaign: Campaign, done: Round) -> list[Figure]:
    """How far faults get."""
    every = slice(None, None, -(-len(done.rows) // 2000))
    image, rows = done.image[every], done.rows[every]
    struck = campaign.delta.psum_hits(image, rows)
    pixels = campaign.delta.propagate(struck, spread=True, threads=campaign.threads).spread
    alive = pixels[np.arange(len(rows)), struck.op] > 0
    return [
        Figure(f"{name}: masked where it strikes", [100 * float((~alive).mean())],
               f"% of {len(rows):,} faults", note="the code does not change"),
        Figure(f"{name}: pixels that change, of faults that change a code",
               [float(pixels[alive].sum(1).mean())], "pixels", note="all operations together"),
    ]  # fmt: skip


def bound(
    name: str, rounds: list[Round], compared: Compared, peak: float | None, threads: int
) -> list[Figure]:
    """What arithmetic alone would allow."""
    figures = []
    rate = statistics.median(done.rate for done in rounds)
    for what, macs in (
        ("whole windows of pixels that read a change", compared.windows),
        ("changed inputs alone", compared.changed),
    ):
        figures.append(Figure(f"{name}: multiply-adds a fault, {what}", [macs / 1e3], "thousand"))
        if peak and macs:
            figures.append(
                Figure(
                    f"{name}: bound by these multiply-adds", [peak / macs], "/s",
                    note=f"at {peak / 1e9:.0f} G multiply-adds/s of {threads_text(threads)}; "
                    f"reached: {100 * rate * macs / peak:.1f} %",
                )
            )  # fmt: skip
    return figures


def shares(name: str, rounds: list[Round]) -> list[Figure]:
    """Where the time of a fault goes."""
    return [
        Figure(f"{name}: time for {part}",
               [100 * done.seconds[part] / done.total for done in rounds], "%")
        for part in PARTS
    ]  # fmt: skip


def by_size(name: str, campaign: Campaign, done: Round) -> list[Figure]:
    """Propagation by the size of the map that is struck."""
    ops = campaign.placement.program.ops
    side = np.array([op.shape[-1] for op in ops])[done.rows["layer"]]
    found = []
    for size in sorted(set(side.tolist()), reverse=True):
        mine = np.flatnonzero(side == size)
        struck = campaign.delta.psum_hits(done.image[mine], done.rows[mine])
        start = time.perf_counter()
        campaign.delta.propagate(struck, threads=campaign.threads)
        taken = time.perf_counter() - start
        found.append(
            Figure(f"{name}: propagation of a fault in a map of {size} x {size}",
                   [1e6 * taken / len(mine)], "us",
                   note=f"{100 * len(mine) / len(side):.0f} % of the faults")
        )  # fmt: skip
    return found


def main(quick: bool = False) -> list[Figure]:
    """Figures of all networks on all CPUs, of those with a floor on one as well."""
    threads = cpus()
    sizes = QUICK if quick else Sizes()
    peak = macs_per_second(threads)
    figures = []
    if peak:
        print(f"peak: {peak / 1e9:.0f} G multiply-adds/s of 8 bits, {threads_text(threads)}")
        figures.append(
            Figure("8-bit multiply-adds on registers, VPDPBUSD", [peak / 1e9], "G/s",
                   note=f"{threads_text(threads)}, best of several rounds; the peak of the bounds")
        )  # fmt: skip
    else:
        print("no AVX512-VNNI here: the bound is not computed")
    for name in NAMES:
        counts = sorted({1, threads}) if name in LIMITED else [threads]
        figures += measure(name, counts, peak, sizes)
    return figures


if __name__ == "__main__":
    from .figures import table

    print(table(main()))
