"""Trials: faults drawn, networks run, outcomes classified.

A trial is one draw of faults for a set of images (and, for permanent faults, one
faulty machine). It is the unit of statistics. Trials are a pure function of
(seed, trial number): batches, threads and order do not matter.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from . import program as P
from .batch import Batch
from .draws import Draws
from .engine import FaultHooks, clean_hooks
from .model_rows import model_rows
from .protection import read_rows
from .sites import Placement, SiteSpace
from .statistics import classify, top1
from .struck import settled

BATCH = 128
"""Inferences that go through the network together."""


@dataclass(frozen=True, eq=False)
class Golden:
    """The fault-free run of a set of images.

    images  (n, c, h, w) float32 network input
    labels  (n,) int64
    acc     (n, classes) int64 last accumulators
    top1    (n,) int32 classes
    """

    images: np.ndarray
    labels: np.ndarray
    acc: np.ndarray
    top1: np.ndarray

    @property
    def accuracy(self) -> float:
        return float(np.mean(self.top1 == self.labels))


def golden_run(placement: Placement, images: np.ndarray, labels: np.ndarray) -> Golden:
    """Run the network without faults."""
    result = P.run(placement.program, images, hooks=clean_hooks(placement))
    return Golden(images, np.asarray(labels), result.acc, top1(result.logits))


@dataclass(frozen=True, eq=False)
class TrialResult:
    """One trial.

    rows     FAULT rows that struck it: physical, before any correction
    acc      (images, classes) int64 last accumulators
    top1     (images,) int32 classes
    outcome  (images,) uint8 codes of statistics.Outcome
    """

    trial: int
    rows: np.ndarray
    acc: np.ndarray
    top1: np.ndarray
    outcome: np.ndarray


def slots_of(
    rows: np.ndarray, first: int, count: int, weights: int, hw_batch: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Rows and the slots they strike in a batch of images [first, first + count).

    weights   component number of the weight memory
    hw_batch  a row of weights strikes this many images from its own on

    Returns (rows, slot): rows repeated for each image of their weight batch.
    """
    image = rows["image"].astype(np.int64)
    here = (image < 0) | ((image >= first) & (image < first + count))
    size = 1 if hw_batch is None else hw_batch
    if size == 1:
        if not here.all():
            rows, image = rows[here], image[here]
        return rows, np.where(image < 0, -1, image - first)
    batch = (rows["component"] == weights) & (image >= 0)
    plain = here & ~batch
    keep = batch & (image < first + count) & (image + size > first)
    # Only the images of each weight batch that are in this software batch.
    begin = np.maximum(image[keep] - first, 0)
    sizes = np.minimum(image[keep] + size - first, count) - begin
    offset = np.arange(int(sizes.sum())) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    slots = np.where(image[plain] < 0, -1, image[plain] - first)
    return (
        np.concatenate([rows[plain], np.repeat(rows[keep], sizes)]),
        np.concatenate([slots, np.repeat(begin, sizes) + offset]),
    )


def run_rows(
    placement: Placement,
    golden: Golden,
    rows: np.ndarray,
    *,
    trial: int = 0,
    hw_batch: int | None = 1,
    backend: str = "auto",
    batch: int = BATCH,
    first: int = 0,
    count: int | None = None,
    threads: int | None = None,
) -> TrialResult:
    """Outcomes of images [first, first + count) under given FAULT rows.

    Nothing is drawn: this is what `fsim replay` calls with the rows of a trace.

    backend  "auto" runs the network with the weights that lasting faults make; "tile" and
             "reference" apply every row by itself, image by image
    """
    end = len(golden.images) if count is None else first + count
    read, corrected, detected = rows, False, False
    if placement.accel.protected:
        key = rows["image"].astype(np.int64)
        found = read_rows(placement, rows, key, len(golden.images), hw_batch)
        read = found.rows
        weights = placement.accel.component_index("weights")
        corrected, detected = (
            _images_of(of, first, end - first, weights, hw_batch)
            for of in (found.repaired, found.detected)
        )
    acc, classes = run_read(
        placement, golden, read, hw_batch=hw_batch, backend=backend, batch=batch, first=first,
        end=end, threads=threads,
    )  # fmt: skip
    hung = (acc == P.HUNG).any(axis=1)
    outcome = classify(
        golden.acc[first:end], acc, golden.top1[first:end], classes, corrected=corrected,
        detected=detected, hung=hung,
    )  # fmt: skip
    return TrialResult(trial, rows, acc, classes, outcome)


def _images_of(rows, first: int, count: int, weights: int, hw_batch: int | None) -> np.ndarray:
    """(count,) bool: which images from `first` on some rows strike."""
    _, slot = slots_of(rows, first, count, weights, hw_batch)
    found = np.full(count, bool((slot < 0).any()))
    found[slot[slot >= 0]] = True
    return found


def run_read(
    placement: Placement, golden: Golden, rows: np.ndarray, *, hw_batch: int | None = 1,
    backend: str = "auto", batch: int = BATCH, first: int = 0, end: int, threads: int | None = None,
):  # fmt: skip
    """(last accumulators, classes) of images [first, end) under what is read.

    rows  FAULT after `protection.read_rows`: every one of them acts
    """
    weights = placement.accel.component_index("weights")
    machine, left = settled(placement, rows) if backend == "auto" else (placement, rows)
    acc, classes = [], []
    for begin in range(first, end, batch):
        size = min(batch, end - begin)
        struck, slot = slots_of(left, begin, size, weights, hw_batch)
        if len(struck) or machine is not placement:
            hooks = clean_hooks(machine)
            if len(struck):
                hooks = FaultHooks(machine, Batch(struck, slot), backend)
            images = golden.images[begin : begin + size]
            result = P.run(machine.program, images, hooks=hooks, threads=threads)
            acc.append(result.acc)
            hung = (result.acc == P.HUNG).any(axis=1)
            classes.append(np.where(hung, -1, top1(result.logits)).astype(np.int32))
        else:
            acc.append(golden.acc[begin : begin + size])
            classes.append(golden.top1[begin : begin + size])
    return np.concatenate(acc), np.concatenate(classes)


def run_trials(
    space: SiteSpace,
    golden: Golden,
    model,
    *,
    seed: int,
    trials,
    backend: str = "auto",
    batch: int = BATCH,
    threads: int | None = None,
) -> Iterator[TrialResult]:
    """Trials of a fault model, in the order of `trials`.

    model    has rows(space, trial, images, draws) and may have hw_batch
    trials   iterable of trial numbers
    threads  None: as many as torch has. Each takes trials of its own; they share the
             images of a trial that is alone.
    """
    draws = Draws(seed)
    hw_batch = getattr(model, "hw_batch", 1)
    everything = np.arange(len(golden.images), dtype=np.int64)

    def run(trial: int, threads: int | None) -> TrialResult:
        rows = model_rows(model, space, trial, everything, draws)
        return run_rows(
            space.placement, golden, rows, trial=trial, hw_batch=hw_batch, backend=backend,
            batch=batch, threads=threads,
        )  # fmt: skip

    trials = [int(trial) for trial in trials]
    if len(trials) == 1:
        yield run(trials[0], threads)
    else:
        program = space.placement.program
        yield from P.concurrently(program, lambda trial: run(trial, 1), trials, threads)
