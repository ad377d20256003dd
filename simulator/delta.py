"""Faults as differences: from the struck operation on, only what changes is made again.

A `Delta` holds a network's tables and the golden codes of some images. Given the codes that
faults change in one operation of one image each, it carries the differences to the answer,
with the same bits as running the whole network (`kernels/delta.py`). Networks that its
tables cannot express are refused with the reason (`MappingError`); `program.run` takes them
from the struck operation on.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from fsim.errors import MappingError

from . import program as P
from .delta_tables import Tables
from .kernels import delta_table as K
from .kernels import vnni
from .kernels.delta import propagate, psum_codes
from .sites import Placement

PART = 64
"""Fewer faults are not worth a part of their own."""


_PIECE = 32  # images whose codes and sums are taken over together


@dataclass(frozen=True, eq=False)
class Changes:
    """Codes that faults change, one operation of one image a fault.

    image  (f,) which image; op (f,) which operation
    begin  (f + 1,) where each fault's changes begin in the next two
    index  (k,) int64 places in the operation's codes as held; code (k,) int32 new codes
    """

    image: np.ndarray
    op: np.ndarray
    begin: np.ndarray
    index: np.ndarray
    code: np.ndarray

    def __len__(self) -> int:
        return len(self.image)


@dataclass(frozen=True, eq=False)
class Propagated:
    """What became of faults.

    acc      (f, classes) int64 sums of the answer
    differs  (f,) bool: not the golden ones
    spread   (f, operations) int32 pixels that differ, or None
    """

    acc: np.ndarray
    differs: np.ndarray
    spread: np.ndarray | None


class Delta:
    """Images whose golden codes are known, and faults carried through them.

    placement  the network on its machine, whose arithmetic must be plain integers'
    images     (n, c, h, w) float32 network input
    Raises MappingError for what differences cannot express.
    """

    def __init__(self, placement: Placement, images: np.ndarray):
        from .engine import clean_hooks

        if clean_hooks(placement) is not None:
            raise MappingError("adders that saturate are not carried as differences")
        if placement.accel.kind.layers:
            raise MappingError("products that lose low bits are not carried as differences")
        self.placement, self.tables = placement, Tables(placement.program, vnni.supported())
        program, tables = placement.program, self.tables
        # Codes of the last operation are its sums.
        wanted = [op.index for op in program.ops[:-1] if tables.root[op.index] == op.index]
        products = [op.index for op in program.array_ops[:-1]]
        self.frames = np.zeros((len(images), tables.bytes), np.uint8)
        for begin, end, zero in tables.regions:
            self.frames[:, begin:end] = zero
        self.known = np.empty((len(images), tables.sums), np.int32)
        answers = []
        # Sums come as int64: of all images at once they would take twice what is kept.
        for first in range(0, max(len(images), 1), _PIECE):
            piece = slice(first, first + _PIECE)
            result = P.run(program, images[piece], keep=wanted, keep_acc=products)
            answers.append((result.acc, result.logits))
            for index in wanted:
                codes = result.kept[index].reshape(-1, *tables.size(index))
                zero = np.uint8(tables.ops[index, K.ZERO])
                np.bitwise_xor(codes.view(np.uint8), zero, out=self._frame(index)[piece])
            for index in products:
                acc = result.kept_acc[index].reshape(len(result.acc), -1)
                begin = int(tables.ops[index, K.SUMS])
                self.known[piece, begin : begin + acc.shape[1]] = acc
        self.acc, self.logits = (np.concatenate(parts) for parts in zip(*answers))
        fold = placement.accel.loops.fold
        self.fold_slots = np.full(len(program.ops), 1 << 40 if fold is None else fold, np.int64)

    def _frame(self, index: int) -> np.ndarray:
        """(images, h, w, c) uint8 view of an operation's frames."""
        line = self.tables.ops[index]
        h, w, c = (int(line[i]) for i in (K.H, K.W, K.C))
        flat = self.frames[:, int(line[K.AT]) :]
        strides = (self.frames.strides[0], int(line[K.ROW]), int(line[K.PIXEL]), 1)
        return np.lib.stride_tricks.as_strided(flat, (len(self.frames), h, w, c), strides)

    def codes(self, index: int, image: np.ndarray) -> np.ndarray:
        """(f, ...) golden codes of an operation as held, a copy; image (f,) which images."""
        op = self.placement.program.ops[index]
        root = self.tables.root[index]
        held = self._frame(root)[image] ^ np.uint8(self.tables.ops[root, K.ZERO])
        held = held.view(self.placement.program.ops[root].dtype)
        if root != index:  # flattened: the network's own order, channels first
            h, w, c = self.tables.size(root)
            if self.placement.program.ops[root].is_map:
                held = held.reshape(-1, h, w, c).transpose(0, 3, 1, 2)
        return np.ascontiguousarray(held).reshape(len(image), *op.layout)

    def sums(self, index: int, image: np.ndarray) -> np.ndarray:
        """(f, sums) golden sums of an array operation, without bias; of the last wrapped."""
        t, op = self.tables, self.placement.program.ops[index]
        if op is self.placement.program.ops[-1]:
            return self.acc[image] - op.bias
        line = t.ops[index]
        begin = int(line[K.SUMS])
        return self.known[image, begin : begin + int(line[K.H] * line[K.W] * line[K.C])]

    @staticmethod
    def bytes_of(placement: Placement) -> int:
        """Memory that one image takes."""
        tables = Tables(placement.program, vnni.supported())
        return tables.bytes + 4 * tables.sums

    def psum_hits(self, image: np.ndarray, rows: np.ndarray) -> Changes:
        """What hits in the memory of partial sums change, one a fault.

        image  (f,) which image each strikes; rows (f,) FAULT records of component "psums"
        """
        t = self.tables
        index, code = np.empty(len(rows), np.int64), np.empty(len(rows), np.int32)
        layer = rows["layer"].astype(np.int64)
        psum_codes(
            t.ops, t.limits, t.plain, t.plain_at, t.wide, t.factors, self.fold_slots,
            self.frames, self.known, image, layer, rows, index, code,
        )  # fmt: skip
        return Changes(image, layer, np.arange(len(rows) + 1), index, code)

    def propagate(self, struck: Changes, *, spread: bool = False, threads: int = 1) -> Propagated:
        """Carry each fault's changes to the answer."""
        count = len(struck)
        acc = np.empty((count, self.acc.shape[1]), np.int64)
        differs = np.zeros(count, bool)
        seen = np.zeros((count if spread else 0, len(self.tables.ops)), np.int32)
        # By image, then by operation: the image's codes and the weights stay in the cache.
        order = np.lexsort((struck.op, struck.image))
        # More parts than threads, as some faults take longer; each part copies its images.
        pieces = 1 if threads < 2 else max(1, min(4 * threads, count // PART))
        cuts = [count * i // pieces for i in range(pieces + 1)]
        parts = [order[a:b] for a, b in zip(cuts, cuts[1:]) if a < b]

        def run(part):
            t = self.tables
            propagate(
                t.ops, t.limits, t.steps, t.weights, t.bias, t.wide, t.offset, t.factors,
                self.frames, self.acc, part, struck.image, struck.op, struck.begin, struck.index,
                struck.code, t.words, t.pixels, acc, differs, seen,
            )  # fmt: skip

        if len(parts) < 2:
            for part in parts:
                run(part)
        else:
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(run, parts))
        return Propagated(acc, differs, seen if spread else None)


def memory_of(placement: Placement, images: int) -> int:
    """Bytes that a `Delta` of so many images keeps, sums of the answer included."""
    classes = math.prod(placement.program.ops[-1].shape)
    return images * (Delta.bytes_of(placement) + 16 * classes)
