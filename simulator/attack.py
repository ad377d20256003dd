"""An attacker who flips the worst bits of the weights, one after another.

The progressive bit search of Rakin, He and Fan, "Bit-Flip Attack: Crushing Neural Network with
Progressive Bit Search", ICCV 2019: with the gradient of the loss on a batch, every layer's bits
are ranked by how much a flip would raise the loss to first order; each layer's best are tried;
the flip that raises the loss most is kept, and the search goes on from there. Here a trial is a
run of the simulated machine, so that what the attacker sees is what the machine answers,
protection of its memories included. A flip is in the memory that weights are loaded from: it
lasts, for all images and every read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fsim.errors import ConfigError
from fsim.fault_models.rows import flip_rows, spread_masks
from fsim.types import FOREVER, LEVEL

from .gradients import weight_gradients
from .inject import Golden, golden_run, run_rows
from .ops import MatMul
from .sampling import draw_sites
from .sites import Placement, find_layer
from .statistics import top1
from .struck import settled

_RANDOM = (1 << 24) - 16  # random stream of the flips that are compared with


@dataclass(frozen=True)
class Step:
    """One flip that was kept, and what the network is after it.

    layer, word, bit  where: name of the operation, address of the weight, bit from 0
    loss      mean cross-entropy of the attacker's images
    accuracy  share of all images that are right
    """

    layer: str
    word: int
    bit: int
    loss: float
    accuracy: float


@dataclass(frozen=True, eq=False)
class Attack:
    """A search and what it found.

    steps     in the order of the flips
    rows      FAULT of all flips, one each, in that order; event: their number
    clean     accuracy before; loss: mean cross-entropy of the attacker's images before
    """

    steps: tuple[Step, ...]
    rows: np.ndarray
    clean: float
    loss: float

    def cumulative(self) -> np.ndarray:
        """FAULT rows of a fault list: trial t has the flips 0 to t."""
        count = len(self.rows)
        rows = np.concatenate([self.rows[:0], *(self.rows[: t + 1] for t in range(count))])
        rows["trial"] = np.repeat(np.arange(count), np.arange(1, count + 1))
        return rows


def flip_of(placement: Placement, layer: int, word, bit) -> np.ndarray:
    """FAULT rows of bits of weights that are wrong for good, for all images."""
    op = placement.program.ops[layer]
    word, bit = np.atleast_1d(np.asarray(word, np.int64)), np.atleast_1d(np.asarray(bit, np.int64))
    return flip_rows(
        len(word), image=-1, layer=layer, component=placement.accel.component_index("weights"),
        word=word, effect=LEVEL, first=0, last=FOREVER,
        xor_mask=spread_masks(np.int64(1) << bit, op.weight_bits, True),
    )  # fmt: skip


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean of -log softmax(logits)[label], float64; logits (n, classes), labels (n,)."""
    logits = np.asarray(logits, np.float64)
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_sum = np.log(np.exp(shifted).sum(axis=1))
    return float(np.mean(log_sum - shifted[np.arange(len(labels)), labels]))


def ranked(gradient: np.ndarray, codes: np.ndarray, bits: int, count: int):
    """The `count` bits whose flip raises the loss most to first order, best first.

    gradient, codes  of one layer's weights, any equal shape
    Returns (word, bit, gain), (c,) each: only bits with a gain above 0. A flip of bit i changes
    a two's complement code by 2^i or -2^i, of the sign bit the other way.
    """
    word = codes.reshape(-1).astype(np.int64)
    gain = np.empty((word.size, bits))
    for bit in range(bits):
        up = 1 << bit if bit < bits - 1 else -(1 << bit)
        change = np.where((word >> bit) & 1 == 0, up, -up)
        gain[:, bit] = gradient.reshape(-1) * change
    flat = gain.reshape(-1)
    wanted = min(count, flat.size)
    best = np.argpartition(-flat, wanted - 1)[:wanted]
    best = best[np.lexsort((best, -flat[best]))]
    best = best[flat[best] > 0]
    return best // bits, best % bits, flat[best]


class _Machine:
    """Losses and accuracies of the network with some flips, on the simulated machine."""

    def __init__(self, placement: Placement, images, labels):
        self.placement = placement
        self.golden: Golden = golden_run(placement, images, labels)

    def run(self, rows: np.ndarray) -> tuple[float, float]:
        """(loss, accuracy) under FAULT rows."""
        found = run_rows(self.placement, self.golden, rows)
        logits = found.acc.astype(np.float32) * self.placement.program.ops[-1].multiplier
        labels = self.golden.labels
        return cross_entropy(logits, labels), float(np.mean(top1(logits) == labels))


def progressive_search(
    placement: Placement,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    flips: int,
    batch: int = 128,
    tried: int = 1,
    layers=None,
    on_step: Callable[[Step], None] | None = None,
) -> Attack:
    """Flip the worst bits of the weights, one after another.

    images, labels  (n, ...) float32 and (n,): accuracy is that of all of them
    flips    how many
    batch    the attacker has the first so many images
    tried    bits of each layer that are run on the machine before each flip
    layers   names of the layers the attacker reaches; None: all with weights
    on_step  called after each flip

    A search ends early if no flip raises the loss to first order. A bit is flipped once at
    most. ConfigError for what does not fit.
    """
    program = placement.program
    if not program.ops[-1].is_array:
        raise ConfigError("an attack needs logits: the network must end in a layer on the array")
    if flips < 1 or batch < 1 or tried < 1 or not len(images):
        raise ConfigError(
            f"an attack needs images and at least 1 flip, image of a batch and bit tried, got "
            f"{len(images)}, {flips}, {batch} and {tried}"
        )
    reached = _reached(placement, layers)
    labels = np.asarray(labels, np.int64)
    seen = _Machine(placement, images[:batch], labels[:batch])
    every = _Machine(placement, images, labels)
    rows, steps = flip_rows(0), []
    before, _ = seen.run(rows)
    _, clean = every.run(rows)
    for _ in range(flips):
        wrong = settled(placement, rows)[0].program
        _, gradients = weight_gradients(wrong, images[:batch], labels[:batch])
        best = None
        done = {(int(r["layer"]), int(r["word"]), _bit(r, program)) for r in rows}
        for layer in reached:
            op = wrong.ops[layer]
            word, bit, _ = ranked(gradients[layer], op.weight, op.weight_bits, tried + len(done))
            open_ = [(w, b) for w, b in zip(word.tolist(), bit.tolist())
                     if (layer, w, b) not in done]  # fmt: skip
            for w, b in open_[:tried]:
                one = np.concatenate([rows, flip_of(placement, layer, w, b)])
                loss, _ = seen.run(one)
                if best is None or loss > best[0]:
                    best = loss, one, (op.name, w, b)
        if best is None:
            break
        loss, rows, at = best
        rows["event"] = np.arange(len(rows))
        steps.append(Step(*at, loss, every.run(rows)[1]))
        if on_step is not None:
            on_step(steps[-1])
    return Attack(tuple(steps), rows, clean, before)


def random_flips(
    placement: Placement, images, labels, *, flips: int, repeats: int = 1, layers=None,
    seed: int = 0,
) -> np.ndarray:  # fmt: skip
    """(repeats, flips) float64 accuracy after each of some random flips of weight bits.

    What an attack is compared with: distinct bits, uniform over all bits of the layers; each
    repeat draws its own, a function of (seed, repeat).
    """
    reached = _reached(placement, layers)
    ops = [placement.program.ops[layer] for layer in reached]
    offsets = np.concatenate([[0], np.cumsum([op.weight.size * op.weight_bits for op in ops])])
    total = int(offsets[-1])
    if not 1 <= flips <= total or repeats < 1:
        raise ConfigError(f"random flips must be 1 to {total}, repeated at least once, got {flips}")
    machine = _Machine(placement, images, np.asarray(labels, np.int64))
    found = np.empty((repeats, flips))
    for repeat in range(repeats):
        rows = flip_rows(0)
        for number, position in enumerate(_distinct(total, flips, seed, repeat)):
            at = int(np.searchsorted(offsets, position, "right")) - 1
            word, bit = divmod(int(position - offsets[at]), ops[at].weight_bits)
            rows = np.concatenate([rows, flip_of(placement, reached[at], word, bit)])
            found[repeat, number] = machine.run(rows)[1]
    return found


def _distinct(total: int, count: int, seed: int, trial: int) -> np.ndarray:
    size = count
    while True:  # a prefix of an endless sequence, until enough are distinct
        drawn = draw_sites(total, size, seed=seed, stream=_RANDOM, trial=trial)
        distinct = drawn[np.sort(np.unique(drawn, return_index=True)[1])]
        if len(distinct) >= count:
            return distinct[:count]
        size += 2 * (count - len(distinct)) + 8


def _bit(row, program) -> int:
    mask = int(row["xor_mask"]) & ((1 << program.ops[int(row["layer"])].weight_bits) - 1)
    return mask.bit_length() - 1


def _reached(placement: Placement, layers) -> list[int]:
    """Operations with weights that the attacker reaches."""
    program = placement.program
    own = [op.index for op in program.array_ops if not isinstance(op, MatMul)]
    if layers is None:
        return own
    wanted = [find_layer(program, name) for name in layers]
    bad = [program.ops[index].name for index in wanted if index not in own]
    if bad or not wanted:
        raise ConfigError(f"an attack needs layers with weights, got {', '.join(bad) or 'none'}")
    return wanted
