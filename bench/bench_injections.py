"""Injections a second: one random accumulator flip an image, against PyTorchFI and MRFI.

A fault is one flipped bit of one accumulator of one convolution, uniform over all bits of
all accumulators of all convolutions, in one image; int8 network, output-stationary array
(`systolic`, os), where every accumulator is stored once. Timed is all that a user pays for a
fault: its site is drawn, the accumulator's new code found, the difference carried to the
answer, the answer classified. The fault-free run of the images, once a campaign, is stated
by itself. fsim and its rivals take turns on the same images, weights and number of threads.

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
import torch.nn.functional as F

from fsim.accel_models.load import load_accel
from fsim.fault_models.bit_errors import OneFlip
from fsim.machine import cpus
from fsim.simulator import program as P
from fsim.simulator.batch import Batch
from fsim.simulator.capture import capture
from fsim.simulator.delta import Delta, Propagated
from fsim.simulator.draws import Draws
from fsim.simulator.engine import FaultHooks
from fsim.simulator.kernels import vnni
from fsim.simulator.quantise import quantise
from fsim.simulator.sites import Placement, select
from fsim.simulator.statistics import Outcome, classify, top1

from .figures import HIGHER, LOWER, Figure
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
PARTS = ("drawing sites", "accumulators to codes", "propagation", "classification")

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
    budget: float = 15.0
    compared: int = 512


QUICK = Sizes(rounds=2, seconds=0.3, batches=(64, 128), try_seconds=0.1, compared=64)


@dataclass
class Round:
    """What one round of faults gave.

    seconds  by part; outcome (f,) codes of statistics.Outcome
    """

    seconds: dict[str, float]
    image: np.ndarray
    rows: np.ndarray
    found: Propagated
    outcome: np.ndarray

    @property
    def total(self) -> float:
        return sum(self.seconds.values())

    @property
    def rate(self) -> float:
        return len(self.rows) / self.total


class Campaign:
    """Faults in the accumulators of all convolutions of a network."""

    def __init__(self, placement: Placement, images: np.ndarray, threads: int):
        self.placement, self.images, self.threads = placement, images, threads
        convolutions = [op.name for op in placement.program.ops if isinstance(op, P.Conv)]
        self.space = select(placement, convolutions, ("psums",))
        self.faults, self.draws = OneFlip(("psums",)), Draws(0)
        start = time.perf_counter()
        self.delta = Delta(placement, images)
        self.golden_seconds = time.perf_counter() - start
        self.top1 = top1(self.delta.logits)

    def run(self, count: int, number: int) -> Round:
        """`count` faults, every image struck as often; other numbers are other faults."""
        clock = [time.perf_counter()]

        def lap():
            clock.append(time.perf_counter())

        rows = self.faults.rows(self.space, number, np.arange(count), self.draws)
        image = rows["image"] % len(self.images)
        lap()
        struck = self.delta.psum_hits(image, rows)
        lap()
        found = self.delta.propagate(struck, threads=self.threads)
        lap()
        scale = self.placement.program.ops[-1].multiplier
        classes = top1(found.acc.astype(np.float32) * scale)
        outcome = classify(self.delta.acc[image], found.acc, self.top1[image], classes)
        lap()
        seconds = dict(zip(PARTS, np.diff(clock).tolist()))
        return Round(seconds, image, rows, found, outcome)


@dataclass(frozen=True)
class Compared:
    """A sample run again as a whole.

    wrong    faults whose sums are not those of the whole run, of `faults`
    windows  multiply-adds a fault, all inputs of every pixel that reads a changed one
    changed  the same, changed inputs alone
    """

    faults: int
    wrong: int
    windows: float
    changed: float


def compare(campaign: Campaign, done: Round, count: int) -> Compared:
    """The first faults of a round against the slow way: the whole network for each fault."""
    program = campaign.placement.program
    image, rows = done.image[:count], done.rows[:count]
    convolutions = [op for op in program.ops if isinstance(op, P.Conv)]
    sources = sorted({op.inputs[0] for op in convolutions})
    golden = P.run(program, campaign.images, keep=sources).kept
    hooks = FaultHooks(campaign.placement, Batch(rows, np.arange(len(rows))))
    whole = P.run(program, campaign.images[image], hooks=hooks, keep=sources)
    wrong = int((whole.acc != done.found.acc[: len(rows)]).any(1).sum())
    windows = changed = 0
    for op in convolutions:
        source = op.inputs[0]
        differs = (whole.kept[source] != golden[source][image]).sum(-1).astype(np.float32)
        if not differs.any():
            continue
        out, per_group, height, width = op.weight.shape
        left, right, top, bottom = op.padding
        padded = F.pad(torch.from_numpy(differs)[:, None], (left, right, top, bottom))
        window = torch.ones(1, 1, height, width)
        reads = F.conv2d(padded, window, stride=op.stride, dilation=op.dilation)
        windows += int((reads > 0).sum()) * op.weight.size
        changed += int(reads.sum()) * (out // op.groups)
    return Compared(len(rows), wrong, windows / len(rows), changed / len(rows))


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


def opponents(stack: ExitStack, name, model, images, threads, sizes) -> tuple[list, list[str]]:
    """(rivals ready to run, why others are not there)."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    torch.save(model.state_dict(), folder / "weights.pt")
    np.save(folder / "images.npy", images)
    ready, missing = [], []
    for tool, shown in RIVALS.items():
        try:
            rival = stack.enter_context(Rival(tool))
            told = rival.ask(
                "prepare", network=name, weights=str(folder / "weights.pt"),
                images=str(folder / "images.npy"), threads=threads,
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


def measure(name: str, threads: int, peak: float | None, sizes: Sizes) -> list[Figure]:
    """All figures of one network."""
    images, what = pictures(name, IMAGES)
    model, weights = network(name, images)
    placement = Placement(quantise(capture(model, images), images), load_accel("systolic", "os"))
    Campaign(placement, images[:threads], threads).run(100, 0)  # loads the kernels
    campaign = Campaign(placement, images, threads)
    pilot = campaign.run(1000, 1_000_000)
    count = int(np.clip(pilot.rate * sizes.seconds, 1000, 1_000_000))
    print(f"{name}: {weights}, {len(images)} images ({what}), {threads_text(threads)}, "
          f"{sizes.rounds} rounds of {count} faults", flush=True)  # fmt: skip
    rounds: list[Round] = []
    with ExitStack() as stack:
        rivals, missing = opponents(stack, name, model, images, threads, sizes)
        for line in missing:
            print(f"  without {line}", flush=True)
        for number in range(sizes.rounds):
            rounds.append(campaign.run(count, number))
            for rival in list(rivals):
                try:
                    rival.run(sizes.seconds, number)
                except RivalError as error:
                    missing.append(f"{rival.name}: {error}")
                    rivals.remove(rival)
                    print(f"  without {missing[-1]}", flush=True)
    sample = sizes.compared if name in LIMITED else sizes.compared // 4  # it is a large one
    compared = compare(campaign, rounds[-1], sample)
    return [
        *against(name, rounds, rivals, missing, f"{weights}; images: {what}"),
        Figure(
            f"{name}: faults not equal to the whole network run again",
            [compared.wrong], f"of {compared.faults}", LOWER, floor=0,
            source="a fault has the same bits as the whole network run again",
        ),
        *outcomes(name, rounds, rivals),
        *spread(name, campaign, rounds[-1]),
        Figure(
            f"{name}: golden run of {len(images)} images, once",
            [campaign.golden_seconds * 1e3], "ms",
            note="codes and sums of every operation kept; "
            + ", ".join(f"{rival.name} {rival.golden * 1e3:.0f} ms" for rival in rivals),
        ),
        *bound(name, rounds, compared, peak, threads),
        *shares(name, rounds),
        *by_size(name, campaign, rounds[-1]),
    ]  # fmt: skip


def against(name, rounds, rivals, missing, note) -> list[Figure]:
    """Injections a second beside each rival."""
    rates = [done.rate for done in rounds]
    label = f"{name}: injections"
    if not rivals:
        why = f"{note}; no rival: " + "; ".join(missing)
        return [Figure(label, rates, "/s", HIGHER, note=why)]
    figures = []
    for rival in rivals:
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


def outcomes(name, rounds, rivals) -> list[Figure]:
    """Shares of outcomes of all timed faults."""
    outcome = np.concatenate([done.outcome for done in rounds])
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
    others = [f"{r.name} {100 * (1 - r.differ / r.injected):.0f} %" for r in rivals]
    if others:
        masked = found[0]
        found[0] = Figure(masked.name, masked.values, masked.unit,
                          note="logits unchanged: " + ", ".join(others))  # fmt: skip
    return found


def spread(name, campaign: Campaign, done: Round) -> list[Figure]:
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


def bound(name, rounds, compared, peak, threads) -> list[Figure]:
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


def shares(name, rounds) -> list[Figure]:
    """Where the time of a fault goes."""
    return [
        Figure(f"{name}: time for {part}",
               [100 * done.seconds[part] / done.total for done in rounds], "%")
        for part in PARTS
    ]  # fmt: skip


def by_size(name, campaign: Campaign, done: Round) -> list[Figure]:
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
    """Figures of all networks, on all CPUs."""
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
    with torch_threads(threads):
        for name in NAMES:
            figures += measure(name, threads, peak, sizes)
    return figures


if __name__ == "__main__":
    from .figures import table

    print(table(main()))
