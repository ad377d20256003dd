"""A quantised network with wrong stored words, one image at a time, in plain Python.

Reads the attributes of a program's operations and imports nothing of fsim. Every
product is made on its own: the operands are looked up in the residency that the
product reads, sums go fold by fold through the adder and the memory of partial
sums. Convolution, linear layer, addition, average pool, flattening, padding and moves of values.

A machine is a `Machine`; a fault is a `Hit`; an image's faults are a list of them
in the order in which they act.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import torch

from tests.naive import wrapped


@dataclass
class Machine:
    """What of an accelerator matters to stored words.

    flow        "ws", "os" or "is"
    fetched     operations whose output does not stay on chip
    reloaded    operations whose weights do not fit
    """

    flow: str
    rows: int
    cols: int
    acc_bits: int = 32
    saturate: bool = False
    fetched: set = field(default_factory=set)
    reloaded: set = field(default_factory=set)


@dataclass
class Hit:
    """value' = ((value & keep) | put) ^ turn, in one residency of one word."""

    memory: str
    layer: int
    word: int
    residency: int
    keep: int
    put: int
    turn: int


class Faults:
    def __init__(self, hits):
        self.by_place = defaultdict(list)
        self.struck = {(hit.memory, hit.layer) for hit in hits}
        for hit in hits:
            self.by_place[hit.memory, hit.layer, hit.word, hit.residency].append(hit)

    def read(self, value, memory, layer, word, residency):
        for hit in self.by_place.get((memory, layer, word, residency), ()):
            value = ((value & hit.keep) | hit.put) ^ hit.turn
        return value


VIEWS = ("Flatten", "Host", "Pad")  # store nothing of their own


def run(program, image, machine, hits):
    """(final sums, logits, codes of every operation as held) of one image.

    image  input codes as held, (h, w, c)
    """
    faults = Faults(hits)
    made = []
    for op in program.ops:
        kind = type(op).__name__
        sources = [made[i] for i in op.inputs]
        if kind == "Input":
            codes = np.array(image, dtype=object)
        elif kind in ("Conv", "Linear"):
            tensor = op.inputs[0]
            while type(program.ops[tensor]).__name__ in VIEWS:
                tensor = program.ops[tensor].inputs[0]
            sums = array_sums(op, kind, sources[0], machine, faults, tensor in machine.fetched)
            if op is program.ops[-1]:
                # Channels first, as the network has them.
                final = np.array(sums, np.int64)
                scale = np.broadcast_to(op.multiplier, final.shape)
                logits = final.astype(np.float32) * scale
                return final.T.reshape(-1), logits.T.reshape(-1), made
            codes = requantised(op, sums)
        elif kind == "Flatten":
            codes = np.moveaxis(sources[0], -1, 0).reshape(-1)
        elif kind == "Host":
            codes = moved(op, sources[0])
        elif kind == "Pad":
            channels, *axes = op.amount
            codes = np.pad(sources[0], (*axes, channels))
        else:
            read = [fetch(op, s, slot, program, machine, faults) for slot, s in enumerate(sources)]
            codes = added(op, *read) if kind == "Add" else averaged(op, *read)
        if kind not in VIEWS:
            flat = codes.reshape(-1)
            for word in range(len(flat)):
                flat[word] = faults.read(int(flat[word]), "acts", op.index, word, 0)
        made.append(codes)
    raise AssertionError("the last operation must be on the array")


def moved(op, codes):
    """A move of values, a torch function of one image as the network has it."""
    assert op.moves
    if codes.ndim == 3:
        codes = np.moveaxis(codes, -1, 0)
    image = torch.from_numpy(codes.astype(np.float64))[None]
    found = op.function(image)[0].numpy()
    if found.ndim == 3:
        found = np.moveaxis(found, 0, -1)
    return np.array([int(v) for v in found.reshape(-1)], object).reshape(found.shape)


def fetch(op, codes, slot, program, machine, faults):
    """A whole input of an operation that is not on the array, as it reads it."""
    if op.inputs[slot] not in machine.fetched:
        return codes
    copy = codes.copy().reshape(-1)
    for word in range(len(copy)):
        copy[word] = faults.read(int(copy[word]), "acts", op.index, word, 1 + slot)
    return copy.reshape(codes.shape)


def array_sums(op, kind, codes, machine, faults, fetched):
    """[position][output] final sums."""
    if kind == "Linear":
        codes = codes.reshape(1, 1, -1)
        weight = op.weight.reshape(*op.weight.shape, 1, 1)
        groups, stride, pad, dilation = 1, (1, 1), (0, 0), (1, 1)
        out_h = out_w = 1
    else:
        weight, groups, stride, dilation = op.weight, op.groups, op.stride, op.dilation
        pad = (op.padding[2], op.padding[0])
        _, out_h, out_w = op.shape
    height, width, channels = codes.shape
    outputs, per_group, kernel_h, kernel_w = weight.shape
    n_size = outputs // groups
    slots = [
        (ky, kx, c) for ky in range(kernel_h) for kx in range(kernel_w) for c in range(per_group)
    ]
    m_size, k_size = out_h * out_w, len(slots)
    fold_slots = k_size if machine.flow == "os" else machine.rows
    folds = -(-k_size // machine.rows)
    side = machine.rows if machine.flow == "os" else machine.cols
    m_tiles, n_tiles = -(-m_size // side), -(-n_size // machine.cols)
    fetched = fetched and ("acts", op.index) in faults.struck
    wrong_weights = ("weights", op.index) in faults.struck
    codes, weight = codes.tolist(), weight.tolist()
    bias = np.broadcast_to(op.bias, outputs).tolist()
    result = []
    for m in range(m_size):
        line = []
        for output in range(outputs):
            group, n = divmod(output, n_size)
            total = bias[output]
            for fold, k0 in enumerate(range(0, k_size, fold_slots)):
                part = 0
                for k in range(k0, min(k0 + fold_slots, k_size)):
                    ky, kx, c = slots[k]
                    y = m // out_w * stride[0] + ky * dilation[0] - pad[0]
                    x = m % out_w * stride[1] + kx * dilation[1] - pad[1]
                    if not (0 <= y < height and 0 <= x < width):
                        continue
                    channel = group * per_group + c
                    value = codes[y][x][channel]
                    if fetched:
                        if machine.flow == "os":
                            number = group * m_tiles + m // side
                        elif machine.flow == "ws":
                            tile = group * n_tiles + n // machine.cols
                            number = tile * folds + k // machine.rows
                        else:
                            number = (group * m_tiles + m // side) * folds + k // machine.rows
                        word = (y * width + x) * channels + channel
                        value = faults.read(value, "acts", op.index, word, 1 + number)
                    factor = weight[output][c][ky][kx]
                    if wrong_weights:
                        word = ((output * per_group + c) * kernel_h + ky) * kernel_w + kx
                        time = m // side if op.index in machine.reloaded else 0
                        factor = faults.read(factor, "weights", op.index, word, time)
                    if machine.saturate and machine.flow == "os":
                        total = added_up(total, value * factor, machine)
                    else:
                        part = added_up(part, value * factor, machine)
                total = added_up(total, part, machine)
                total = faults.read(total, "psums", op.index, m * outputs + output, fold)
                total = wrapped(total, machine.acc_bits)
            line.append(total)
        result.append(line)
    return result


def added_up(a, b, machine):
    if machine.saturate:
        top = 2 ** (machine.acc_bits - 1) - 1
        return min(max(a + b, -top - 1), top)
    return wrapped(a + b, machine.acc_bits)


def requantised(op, sums):
    shape = (*op.shape[1:], op.shape[0]) if len(op.shape) == 3 else op.shape
    sums = np.array(sums, np.int64)
    product = sums.astype(np.float32) * np.broadcast_to(op.multiplier, sums.shape[-1:])
    codes = np.clip(np.rint(product.astype(np.float32).astype(np.float64)), op.lo, op.hi)
    return np.array([int(v) for v in codes.reshape(-1)], object).reshape(shape)


def added(op, a, b):
    flat = [
        min(max(round(Fraction(op.m0 * int(x) + op.m1 * int(y), 2**op.shift)), op.lo), op.hi)
        for x, y in zip(a.reshape(-1), b.reshape(-1))
    ]
    return np.array(flat, object).reshape(a.shape)


def averaged(op, codes):
    lo, hi = op.range
    left, top = op.padding
    height, width, channels = codes.shape
    _, out_h, out_w = op.shape
    out = np.empty((out_h, out_w, channels), object)
    for y in range(out_h):
        for x in range(out_w):
            for c in range(channels):
                total = 0
                for ky in range(op.kernel[0]):
                    for kx in range(op.kernel[1]):
                        at = (y * op.stride[0] + ky - top, x * op.stride[1] + kx - left)
                        if 0 <= at[0] < height and 0 <= at[1] < width:
                            total += int(codes[at[0], at[1], c])
                out[y, x, c] = min(max(round(Fraction(total * op.m0, 2**op.shift)), lo), hi)
    return out
