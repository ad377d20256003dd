"""Counts of what faults changed: sums, features and stored codes, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..ops import ArrayOp, Op
from ..sites import SiteSpace


@dataclass(frozen=True)
class Layer:
    """An array operation.

    macs     M, multiply-adds of one output value
    values   output values of one image
    step     real value of one code of the feature's grid, a power of two
    is_last  its sums are the network's answer: no feature is stored
    """

    index: int
    name: str
    macs: int
    values: int
    step: float
    is_last: bool


@dataclass(frozen=True, eq=False)
class Products:
    """What faults of registers, wires and partial sums did; layers in the order of `layers`.

    bits      of the features' grid
    struck    (units, layers) features whose code changed; a unit is one image in one
              trial, for which faults are drawn independently
    sums      (layers,) sums that changed
    outputs   (layers,) stored codes that changed, after the machine's requantisation
              and fused activation; of a last layer, which stores none, sums
    biases    (layers, 2 bits) struck features by code difference before the clamp: sign
              (+ first), then floor(log2 |d|), what lies beyond in the last place
    powers    (layers,) struck features with a difference of exactly +-2^i codes, i < bits
    clamped   (layers,) struck features that reach beyond the grid
    """

    layers: tuple[Layer, ...]
    bits: int
    struck: np.ndarray
    sums: np.ndarray
    outputs: np.ndarray
    biases: np.ndarray
    powers: np.ndarray
    clamped: np.ndarray


@dataclass(frozen=True, eq=False)
class Flips:
    """Flipped bits of stored words, by tensor.

    memory   "acts" or "weights"
    names    of the operations that store (acts), fetch (acts) or read (weights) them
    exposed  (tensors,) words times residencies, over all images and trials
    flipped  (tensors, bits) bits found inverted, bit 0 least significant
    missed   exposed words that could not be watched: fetched tile by tile
    """

    memory: str
    names: tuple[str, ...]
    exposed: np.ndarray
    flipped: np.ndarray
    missed: int = 0


class Tally:
    """The counts, as they grow."""

    def __init__(self, space: SiteSpace, layers: tuple[Layer, ...], units: int):
        self.layers, self.accel = layers, space.accel
        bits = self.bits = self.accel.operand_bits
        self.at = {layer.index: i for i, layer in enumerate(layers)}
        count = len(layers)
        self.struck = np.zeros((units, count), np.int64)
        self.biases = np.zeros((count, 2 * bits), np.int64)
        names = ("changed", "outputs", "powers", "clamped")
        self.totals = {name: np.zeros(count, np.int64) for name in names}
        self.blocks, self.missed = {}, 0
        blocks = [block for block in space.blocks if block.component in ("acts", "weights")]
        for block in blocks:
            first = -1 if block.component == "weights" else block.first
            if block.word is not None:
                self.missed += block.exposed_words * units
                continue
            empty = np.zeros(block.bits, np.int64)
            self.blocks[block.layer, first] = [block, 0, empty]

    def codes(self, op: Op, first: int, before: np.ndarray, after: np.ndarray) -> None:
        """Codes as written and as read; first: residency number."""
        if (op.index, first) not in self.blocks:
            return
        entry = self.blocks[op.index, first]
        entry[1] += before.size
        if after is not before:
            wrong = before != after
            self._flips(entry[2], before[wrong].astype(np.int64) ^ after[wrong])

    def written(self, rows: np.ndarray, images: int, hw_batch: int | None) -> None:
        """Rows of the weight memory in one trial."""
        writes = 1 if hw_batch is None else -(-images // hw_batch)
        for (layer, first), entry in self.blocks.items():
            if first < 0:
                entry[1] += writes * entry[0].exposed_words
                self._flips(entry[2], rows["xor_mask"][rows["layer"] == layer])

    @staticmethod
    def _flips(count: np.ndarray, masks: np.ndarray) -> None:
        for bit in range(len(count)):
            count[bit] += int(((masks >> bit) & 1).sum())

    def sums(self, op: ArrayOp, acc, own, plain, unit: int, acc_bits: int) -> None:
        """Sums (flat index into acc, value) under the layer's own faults."""
        index, value = _last_of_each(*own)
        clean = acc.reshape(-1)[index].astype(np.int64)
        clean += np.broadcast_to(op.bias, acc.shape[-1:])[index % acc.shape[-1]]
        shift = 64 - acc_bits
        clean = (clean << shift) >> shift
        if plain is not None:
            known, correct = _last_of_each(*plain)
            place = np.searchsorted(known, index)
            found = np.flatnonzero(place < len(known))
            found = found[known[place[found]] == index[found]]
            clean[found] = correct[place[found]]
        changed = value != clean
        index, value, clean = index[changed], value[changed], clean[changed]
        at = self.at[op.index]
        layer, totals = self.layers[at], self.totals
        totals["changed"][at] += len(index)
        multiplier = np.broadcast_to(op.multiplier, acc.shape[-1:])[index % acc.shape[-1]]
        if layer.is_last:
            totals["outputs"][at] += len(index)
        else:
            before, after = (
                np.clip(np.rint(v.astype(np.float32) * multiplier), op.lo, op.hi)
                for v in (clean, value)
            )
            totals["outputs"][at] += int((before != after).sum())
        # The grid of the statistical model: before the activation function.
        real = multiplier.astype(np.float64) * (op.scale / layer.step)
        low, high = -(1 << (self.bits - 1)), (1 << (self.bits - 1)) - 1
        before, beyond = np.clip(np.rint(clean * real), low, high), np.rint(value * real)
        after = np.clip(beyond, low, high)
        hit = before != after
        image = index[hit] // (acc.size // len(acc))
        np.add.at(self.struck[:, at], unit + image, 1)
        difference = (beyond - before)[hit]
        size, power = np.frexp(np.abs(difference))
        place = np.minimum(power - 1, self.bits - 1) + self.bits * (difference < 0)
        self.biases[at] += np.bincount(place, minlength=2 * self.bits)
        totals["powers"][at] += int(((size == 0.5) & (power <= self.bits)).sum())
        totals["clamped"][at] += int((beyond != after)[hit].sum())

    def result(self) -> tuple[Products, Flips, Flips]:
        totals = self.totals
        products = Products(
            self.layers, self.bits, self.struck, totals["changed"], totals["outputs"],
            self.biases, totals["powers"], totals["clamped"],
        )  # fmt: skip
        return products, self._of("acts", self.missed), self._of("weights", 0)

    def _of(self, memory: str, missed: int) -> Flips:
        mine = [entry for entry in self.blocks.values() if entry[0].component == memory]
        names = [block.name + (" (fetched)" if block.first else "") for block, *_ in mine]
        flipped = np.zeros((len(mine), max((len(e[2]) for e in mine), default=self.bits)), np.int64)
        for i, (_, _, count) in enumerate(mine):
            flipped[i, : len(count)] = count
        return Flips(memory, tuple(names), np.array([e[1] for e in mine], np.int64), flipped,
                     missed)  # fmt: skip


def _last_of_each(index: np.ndarray, value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct indices, ascending, each with the last value that came with it."""
    distinct, at = np.unique(index[::-1], return_index=True)
    return distinct, value[::-1][at]
