"""The array products of a network in training, and the faults that strike them."""

from __future__ import annotations

import itertools
import threading
import weakref

import numpy as np

from fsim.accel_models.accel import Accel
from fsim.errors import FaultError, MappingError

from .. import program as P
from ..batch import Batch
from ..draws import Draws
from ..inject import slots_of
from ..joined import joined_space
from ..kernels import requantise
from ..protection import read_rows
from ..struck import settled_batch
from .site import ArraySite, run

_sessions: weakref.WeakValueDictionary[int, Session] = weakref.WeakValueDictionary()
_numbers = itertools.count()


class Session:
    """What operators need beside tensors; they know it by `handle`, a plain integer.

    sites  the products, sites[i].number == i
    model  a fault model, or None
    """

    def __init__(self, accel: Accel, sites: tuple[ArraySite, ...], seed: int = 0):
        self.accel, self.sites, self.seed = accel, sites, seed
        self.model = None
        self.space = joined_space(accel, sites)
        self._acts = accel.component_index("acts")
        self._weights = accel.component_index("weights")
        self._start()

    def _start(self) -> None:
        self.handle = next(_numbers)
        self._drawn: tuple | None = None
        self._lock = threading.Lock()
        _sessions[self.handle] = self

    def __getstate__(self) -> dict:
        state = dict(vars(self))
        del state["handle"], state["_drawn"], state["_lock"]
        return state

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state)
        self._start()  # a copy is a session of its own

    @property
    def lasting(self) -> bool:
        """Whether faults are damage that a trial has from its begin to its end.

        Wrong weights are then the weights, for the bound of changed sums too.
        """
        return getattr(self.model, "unit", None) == "trial"

    def faults(self, site: ArraySite, trial: int, images: int) -> Batch | None:
        """What strikes a site in one trial, its images numbered from 0."""
        if self.model is None or trial < 0:
            return None
        with self._lock:
            key = (self.model, trial, images)
            if self._drawn is None or self._drawn[0] != key:
                self._drawn = key, self._draw(trial, images)
            return self._drawn[1][site.number]

    def _draw(self, trial: int, images: int) -> list[Batch | None]:
        numbers = np.arange(images, dtype=np.int64)
        rows = self.model.rows(self.space, trial, numbers, Draws(self.seed))
        hw_batch = getattr(self.model, "hw_batch", 1)
        placement = self.space.placement
        if placement.accel.protected:
            flips = (rows["and_mask"] == -1) & (rows["or_mask"] == 0)
            kinds = [component.kind for component in placement.accel.components]
            stuck = ~flips & (np.array(kinds) == "memory")[rows["component"]]
            if stuck.any():  # what a stuck bit changes hangs on codes that training changes
                raise FaultError(
                    "in training, faults of a machine with protected memories must be flips of "
                    f"words, got {int(stuck.sum())} stuck bits"
                )
            key = rows["image"].astype(np.int64)
            rows = read_rows(placement, rows, key, images, hw_batch).rows
        rows, slot = slots_of(rows, 0, images, self._weights, hw_batch)
        layer = rows["layer"]
        batches = []
        for site in self.sites:
            mine = np.flatnonzero((layer == site.number) | (layer < 0))
            if not len(mine):
                batches.append(None)
                continue
            own = rows[mine]
            every = own["layer"] < 0
            own["layer"] = np.where(every, -1, site.own(own, self._acts))
            batches.append(Batch(own, slot[mine]))
        return batches

    def product(self, number: int, trial: int, x, scale, weight, weight_scale, bias, out):
        """One product: codes of x, weights on the array, real values into `out`.

        x             (n, *layout) float32 in the site's layout, C-contiguous
        scale         of its codes, float32
        weight        int64 codes of the operation's shape; weight_scale (o,) float32
        bias          (o,) int64 in accumulator units
        out           (n, *output layout) float32, overwritten
        Returns the codes that were read, (n, *layout), errors in them included.

        Requantisation bounds what a wrong sum does to the next layer. It comes after
        batch normalisation, which is float here, so the bound is set on the sum: a
        changed one is clamped to the range of its output channel in this batch.
        """
        site = self.sites[number]
        real = np.ascontiguousarray(np.float32(scale) * weight_scale, np.float32)
        return self._run(site, site.holding(weight, bias), trial, (x,), (scale,), real, out)[0]

    def weights_read(self, number: int, trial: int, images: int, weight) -> np.ndarray:
        """Weight codes that all images of a pass read; weight: those that were written."""
        site = self.sites[number]
        batch = self.faults(site, trial, images)
        if batch is None or not self.lasting:
            return weight
        bias = np.zeros(len(weight), np.int64)
        placement, _ = settled_batch(site.holding(weight, bias), batch)
        return placement.program.ops[-1].weight

    def matmul(self, number: int, trial: int, a, b, scales: tuple[float, float], out):
        """A product of two activations, as `product`.

        a, b    (n, ..., m, k) and (n, ..., k, p) float32, C-contiguous
        scales  of their codes, float32
        out     (n, ..., m, p) float32, overwritten
        Returns the codes of both that were read.

        Requantisation has one scale for the whole result (`ops.MatMul`), so that the
        bound of a changed sum is the range of all of them in this batch.
        """
        site = self.sites[number]
        real = np.array([np.float32(scales[0]) * np.float32(scales[1])])
        return self._run(site, site.placement, trial, (a, b), scales, real, out)

    def _run(self, site: ArraySite, placement, trial: int, inputs, scales, real, out):
        """Codes of each input, read by a product whose real values go into `out`.

        inputs  (n, *layout) float32 of each; scales of their codes
        real    (o,) or (1,) float32 scale of sums
        """
        images = len(out)
        batch = self.faults(site, trial, images)
        if batch is not None and self.lasting:
            placement, batch = settled_batch(placement, batch)
        codes = tuple(np.empty(x.shape, s.dtype) for x, s in zip(inputs, site.inputs))

        def part(limits):
            begin, end = limits
            read = tuple(mine[begin:end] for mine in codes)
            for x, scale, source, mine in zip(inputs, scales, site.inputs, read):
                inverse = np.float32(1.0) / np.float32(scale)
                lo, hi = (np.float32(v) for v in source.range)
                requantise.quantise_flat(
                    x[begin:end].reshape(-1), inverse, lo, hi, mine.reshape(-1)
                )
            struck = None if batch is None else batch.part(begin, end)
            return begin, end, *run(placement, read, real, struck, out[begin:end])

        threads = requantise.threads()
        cuts = [images * i // threads for i in range(threads + 1)]
        limits = [pair for pair in zip(cuts, cuts[1:]) if pair[0] < pair[1]]
        parts = list(P.concurrently(placement.program, part, limits, threads))
        if any(changed is not None for _, _, changed, _ in parts):
            lowest = np.min([ends[0] for *_, ends in parts], 0)
            highest = np.max([ends[1] for *_, ends in parts], 0)
            for begin, end, changed, _ in parts:
                if changed is not None:
                    where, value = changed
                    channel = where % len(real)
                    value = np.clip(value, lowest[channel], highest[channel])
                    out[begin:end].reshape(-1)[where] = value
        return codes


def find(handle: int) -> Session:
    """The session of a handle; MappingError if it is gone."""
    try:
        return _sessions[handle]
    except KeyError:
        raise MappingError(
            f"the network of an operator on the array must still exist, got session {handle}"
        ) from None
