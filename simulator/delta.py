"""Faults as differences: from the struck operation on, only what changes is made again.

A `Delta` holds a network's tables and the golden codes of some images. Given the codes that
faults change in one operation of one image each, it carries the differences to the answer,
with the same bits as running the whole network (`kernels/delta.py`). Networks that its
tables cannot express are refused with the reason (`MappingError`); `program.run` takes them
from the struck operation on.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from fsim.errors import MappingError

from . import program as P
from .kernels import delta as K
from .kernels import vnni
from .kernels.vnni_pixel import pack_pixels
from .sites import Placement


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


class _Tables:
    """A program as the arrays of `kernels.delta.propagate`."""

    def __init__(self, program: P.Program):
        self.program = program
        ops = program.ops
        self.ops = np.zeros((len(ops), len(K.FIELDS)), np.int64)
        self.ops[:, K.A] = self.ops[:, K.B] = -1
        self.limits = np.zeros((len(ops), 2), np.float32)
        self.root = self._roots()
        self.parts: dict[str, list[np.ndarray]] = {
            name: [] for name in ("steps", "weights", "bias", "factors", "plain", "wide", "offset")
        }
        self.length = dict.fromkeys(self.parts, 0)
        self.plain_at = np.zeros(len(ops), np.int64)
        self._place()
        for op in ops[1:]:
            if self.root[op.index] == op.index:
                self._fill(op)
        join = {"steps": np.int32, "weights": np.int8, "bias": np.int32, "factors": np.float32,
                "plain": np.int8, "wide": np.int64, "offset": np.int64}  # fmt: skip
        for name, kind in join.items():
            parts = self.parts[name] or [np.zeros(1, kind)]
            setattr(self, name, _aligned(np.concatenate(parts).astype(kind, copy=False)))

    # --- geometry ---

    def _roots(self) -> list[int]:
        """For each operation the one whose frame holds its codes: a flattened map's is the map."""
        root = []
        for op in self.program.ops:
            root.append(root[op.inputs[0]] if isinstance(op, P.Flatten) else op.index)
        return root

    def size(self, index: int) -> tuple[int, int, int]:
        """(h, w, c) of an operation's codes as held."""
        op = self.program.ops[self.root[index]]
        shape = op.shape
        if len(shape) == 3:
            if not op.is_map:
                raise MappingError(f"stacks of matrices are not carried as differences ({op.name})")
            return shape[1], shape[2], shape[0]
        if len(shape) > 3:
            raise MappingError(f"codes must have at most three axes, got {shape} ({op.name})")
        return (*(1,) * (2 - len(shape)), *shape)[0], 1, shape[-1]

    def _window(self, op) -> tuple:
        """(kh, kw, sh, sw, top, left, dh, dw) of what reads windows."""
        if isinstance(op, P.Conv):
            left, _, top, _ = op.padding
            return (*op.weight.shape[2:], *op.stride, top, left, *op.dilation)
        if isinstance(op, P.Linear):
            flat = isinstance(self.program.ops[op.inputs[0]], P.Flatten)
            h, w, _ = self.size(op.inputs[0]) if flat else (1, 1, 0)
            return h, w, 1, 1, 0, 0, 1, 1
        if isinstance(op, (P.AvgPool, P.MaxPool)):
            left_top = (op.padding[1], op.padding[0])
            dilation = getattr(op, "dilation", (1, 1))
            return (*op.kernel, *op.stride, *left_top, *dilation)
        return 1, 1, 1, 1, 0, 0, 1, 1

    def _place(self) -> None:
        """Frames one after another, with room for the padding that readers want."""
        around = {i: [0, 0, 0, 0] for i in range(len(self.ops))}  # top, left, bottom, right
        for op in self.program.ops[1:]:
            if not isinstance(op, P.Conv):
                continue
            kh, kw, sh, sw, top, left, dh, dw = self._window(op)
            h, w, _ = self.size(op.inputs[0])
            _, oh, ow = op.shape
            bottom = (oh - 1) * sh - top + (kh - 1) * dh - (h - 1)
            right = (ow - 1) * sw - left + (kw - 1) * dw - (w - 1)
            held = around[self.root[op.inputs[0]]]
            held[:] = map(max, held, (top, left, bottom, right))
        at = places = words = 0
        for op in self.program.ops:
            if self.root[op.index] != op.index:
                continue
            if op.dtype.itemsize != 1:
                raise MappingError(f"codes must have at most 8 bits, got {op.bits} ({op.name})")
            h, w, c = self.size(op.index)
            top, left, bottom, right = around[op.index]
            pixel = -(-c // 4) * 4
            row = (w + left + right) * pixel
            line = self.ops[op.index]
            line[[K.H, K.W, K.C, K.ROW, K.PIXEL, K.LIST]] = h, w, c, row, pixel, places
            line[K.SIGNED], line[K.AT] = op.signed, at + top * row + left * pixel
            line[K.WORDS] = words
            at += (h + top + bottom) * row
            places += h * w
            words += h * w * ((pixel // 4 + 2) // 2 * 2)  # as `_room` of the kernel
        self.bytes, self.places, self.words = at, places, words
        self.sums, self.window = 0, 1  # golden sums of an image; most words of a window

    # --- operations ---

    def _fill(self, op: P.Op) -> None:
        line, last = self.ops[op.index], op is self.program.ops[-1]
        line[K.A] = self.root[op.inputs[0]]
        if last:
            self._answer(op, line)
        elif isinstance(op, (P.Conv, P.Linear)):
            self._product(op, line)
        elif isinstance(op, P.Add):
            line[K.KIND], line[K.B] = K.ADD, self.root[op.inputs[1]]
            line[[K.M0, K.M1, K.SHIFT]] = op.m0, op.m1, op.shift
            largest = abs(op.m0) * 255 + abs(op.m1) * 255
            line[K.NARROW] = largest <= 1 << 24
            self.limits[op.index] = op.lo, op.hi
        elif isinstance(op, P.AvgPool):
            line[K.KIND], line[K.M0], line[K.SHIFT] = K.AVERAGE, op.m0, op.shift
            self.limits[op.index] = op.range
        elif isinstance(op, P.MaxPool):
            line[K.KIND] = K.MAXIMUM
        elif isinstance(op, P.Relu):
            line[K.KIND] = K.RELU
            self.limits[op.index] = op.lo, op.hi
        elif isinstance(op, (P.Pad, P.Slice, P.Concat)):
            self._copy(op, line)
        else:
            raise MappingError(
                f"{type(op).__name__} operations are not carried as differences ({op.name})"
            )
        if line[K.KIND] == K.COPY:
            return
        window = self._window(op)
        line[[K.KH, K.KW, K.SH, K.SW, K.TOP, K.LEFT, K.DH, K.DW]] = window
        words = window[0] * window[1] * int(self.ops[line[K.A], K.PIXEL]) // 4
        self.window = max(self.window, words)
        if line[K.KIND] in (K.CONV_VNNI, K.CONV, K.DEPTHWISE, K.AVERAGE):
            line[K.SUMS] = self.sums
            self.sums += int(line[K.H] * line[K.W] * line[K.C])

    def _add(self, name: str, values: np.ndarray) -> int:
        """Where a part begins: at a multiple of 64 entries, weights with a cache line."""
        at = self.length[name]
        flat = np.resize(values, 0 if not values.size else -(-values.size // 64) * 64)
        self.parts[name].append(flat)
        self.length[name] += len(flat)
        return at

    def _weights(self, op) -> np.ndarray:
        """(o, kh, kw, c) int64, dense."""
        h, w, c = self.size(op.inputs[0])
        if isinstance(op, P.Linear):
            kh, kw = self._window(op)[:2]
            shape = (len(op.weight), c, kh, kw)  # a flattened map: channels first
            return op.weight.reshape(shape).transpose(0, 2, 3, 1)
        if op.groups == 1:
            return op.weight.transpose(0, 2, 3, 1)
        o, per, kh, kw = op.weight.shape
        full = np.zeros((o, kh, kw, c), np.int64)
        for group in range(op.groups):
            mine = slice(group * o // op.groups, (group + 1) * o // op.groups)
            full[mine, :, :, group * per : (group + 1) * per] = op.weight[mine].transpose(
                0, 2, 3, 1
            )
        return full

    def _product(self, op, line) -> None:
        weight, source = self._weights(op), self.ops[line[K.A]]
        o, kh, kw, c = weight.shape
        if np.abs(weight).max(initial=0) > 128 or weight.max(initial=0) > 127:
            raise MappingError(f"weights must have at most 8 bits ({op.name})")
        bias = np.broadcast_to(op.bias, o).astype(np.int64)
        factor = np.ascontiguousarray(np.broadcast_to(op.multiplier, o), np.float32)
        line[K.ACC_BITS] = self.program.acc_bits
        self.limits[op.index] = op.lo, op.hi
        signed = bool(source[K.SIGNED])
        largest = 128 if signed else 255
        most = int(np.abs(weight).reshape(o, -1).sum(1).max()) * largest
        if most >= 1 << 31:
            raise MappingError(f"sums must fit 31 bits, got up to {most} ({op.name})")
        slots = op.weight if isinstance(op, P.Linear) else op.weight.transpose(0, 2, 3, 1)
        self.plain_at[op.index] = self._add("plain", slots.astype(np.int8))
        line[K.FLAT] = isinstance(op, P.Linear)
        line[K.PER] = c if isinstance(op, P.Linear) else op.weight.shape[1]
        line[K.FACTOR] = self.length["factors"]
        line[K.BIAS] = line[K.FACTOR]
        depthwise = isinstance(op, P.Conv) and op.groups == o == c and op.weight.shape[1] == 1
        offset = 128 * weight.reshape(o, -1).sum(1) if signed else np.zeros(o, np.int64)
        full = int(np.abs(weight).reshape(o, -1).sum(1).max()) * 255
        room = -(-o // vnni.LANES) * vnni.LANES
        fits = full + int(np.abs(bias - offset).max()) <= min(
            1 << 24, (1 << self.program.acc_bits - 1) - 1
        )
        held = np.zeros(-(-room // 64) * 64, np.int32)
        shift = np.zeros(len(held), np.int64)
        words = -(-c // 4)
        if depthwise:
            line[K.KIND] = K.DEPTHWISE
            own = np.zeros((kh, kw, words * 4), np.int8)
            own[..., :c] = op.weight[:, 0].transpose(1, 2, 0)
            line[K.WEIGHT] = self._add("weights", own)
            held[:o] = _checked_bias(bias, op)
        elif vnni.supported() and fits:
            line[K.KIND], line[K.FLIP] = K.CONV_VNNI, 128 if signed else 0
            shift[:o] = offset
            filled = np.zeros((o, kh, kw, words * 4), np.int8)
            filled[..., :c] = weight
            ky, kx, word = np.meshgrid(range(kh), range(kw), range(words), indexing="ij")
            _, _, _, _, _, _, dh, dw = self._window(op)
            steps = ky * dh * source[K.ROW] + kx * dw * source[K.PIXEL] + 4 * word
            packed, steps = pack_pixels(
                filled.reshape(o, -1, 4), steps.reshape(-1).astype(np.int32)
            )
            line[K.SLOTS] = len(steps)
            line[K.WEIGHT], line[K.STEPS] = self._add("weights", packed), self._add("steps", steps)
            line[K.GATHER] = self._add("weights", packed ^ np.int8(-128))
            held[:o] = (bias - offset).astype(np.float32).view(np.int32)
        else:
            line[K.KIND] = K.CONV
            line[K.WEIGHT] = self._add("weights", _filled(weight))
            held[:o] = _checked_bias(bias, op)
        self._add("bias", held)
        self._add("factors", np.resize(factor, len(held)))
        wide = np.zeros(len(held), np.int64)
        wide[:o] = bias
        self._add("wide", wide)
        self._add("offset", shift)

    def _answer(self, op: P.Op, line) -> None:
        if not isinstance(op, P.Linear) or len(op.shape) != 1:
            raise MappingError(
                f"the network must end in a linear layer, got {type(op).__name__} ({op.name})"
            )
        weight = self._weights(op)
        if np.abs(weight).max(initial=0) > 127:
            raise MappingError(f"weights must have at most 8 bits ({op.name})")
        line[K.KIND], line[K.ACC_BITS] = K.LAST, self.program.acc_bits
        line[K.WEIGHT] = self._add("weights", _filled(weight))

    def _copy(self, op: P.Op, line) -> None:
        line[K.KIND] = K.COPY
        line[[K.SH, K.SW]] = 1
        map_like = len(op.shape) == 3
        if isinstance(op, P.Pad):
            amount = op.amount if map_like else None
            if amount is None:
                raise MappingError(f"only maps are padded as differences ({op.name})")
            (line[K.C_OUT], _), (top, _), (left, _) = amount
            line[[K.TOP, K.LEFT]] = -top, -left
        elif isinstance(op, P.Slice):
            source = self.program.ops[op.inputs[0]].shape
            if not map_like:
                raise MappingError(f"only maps are sliced as differences ({op.name})")
            found = [s.indices(n) for s, n in zip(op.slices, source)]
            if any(step < 1 for _, _, step in found) or found[0][2] != 1:
                raise MappingError(f"channels must be sliced one by one ({op.name})")
            line[[K.C_IN, K.TOP, K.LEFT]] = [start for start, _, _ in found]
            line[[K.SH, K.SW]] = found[1][2], found[2][2]
        else:
            if op.axis != 0 or len(op.inputs) != 2 or op.stores or not map_like:
                raise MappingError(
                    f"only two maps of one scale are joined, along channels ({op.name})"
                )
            line[K.B] = self.root[op.inputs[1]]
            line[K.M1] = self.size(op.inputs[0])[2]


def _filled(weight: np.ndarray) -> np.ndarray:
    """(o, kh, kw, c) to (kh, kw, c filled up to whole words, o) int8."""
    o, kh, kw, c = weight.shape
    full = np.zeros((kh, kw, -(-c // 4) * 4, o), np.int8)
    full[:, :, :c] = weight.transpose(1, 2, 3, 0)
    return full


def _aligned(array: np.ndarray) -> np.ndarray:
    """A copy that begins with a cache line."""
    room = np.empty(array.nbytes + 63, np.uint8)
    begin = -room.ctypes.data % 64
    held = room[begin : begin + array.nbytes].view(array.dtype)
    held[...] = array
    return held


def _checked_bias(bias: np.ndarray, op) -> np.ndarray:
    if np.abs(bias).max(initial=0) >= 1 << 31:
        raise MappingError(f"a bias must fit 32 bits ({op.name})")
    return bias.astype(np.int32)


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
        self.placement, self.tables = placement, _Tables(placement.program)
        program, tables = placement.program, self.tables
        # Codes of the last operation are its sums.
        wanted = [op.index for op in program.ops[:-1] if tables.root[op.index] == op.index]
        products = [op.index for op in program.array_ops[:-1]]
        result = P.run(program, images, keep=wanted, keep_acc=products)
        self.acc, self.logits = result.acc, result.logits
        self.frames = np.zeros((len(images), tables.bytes), np.uint8)
        for index in wanted:
            self._frame(index)[...] = (
                result.kept[index].reshape(len(images), *tables.size(index)).view(np.uint8)
            )
        self.known = np.zeros((len(images), tables.sums + 64), np.int32)  # a load may go beyond
        for op in program.ops[:-1]:
            self._sums_of(op, result)
        folds = [
            placement.accel.rows if placement.accel.dataflow != "os" else 1 << 40
            for _ in program.ops
        ]
        self.fold_slots = np.array(folds, np.int64)

    def _sums_of(self, op: P.Op, result: P.Result) -> None:
        t, line = self.tables, self.tables.ops[op.index]
        size = int(line[K.H] * line[K.W] * line[K.C])
        mine = self.known[:, int(line[K.SUMS]) : int(line[K.SUMS]) + size]
        if op.index in result.kept_acc:
            acc = result.kept_acc[op.index].reshape(len(mine), -1, int(line[K.C]))
            begin = int(line[K.BIAS])
            acc = acc + t.offset[begin : begin + acc.shape[2]]
            mine[...] = acc.reshape(len(mine), size)
        elif line[K.KIND] == K.AVERAGE:
            K.window_sums(line, t.ops[line[K.A]], self.frames, mine)

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
        held = self._frame(root)[image].view(self.placement.program.ops[root].dtype)
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
        size, begin, c = int(line[K.H] * line[K.W] * line[K.C]), int(line[K.BIAS]), int(line[K.C])
        at = int(line[K.SUMS])
        acc = self.known[image, at : at + size].reshape(len(image), -1, c)
        return (acc - t.offset[begin : begin + c].astype(acc.dtype)).reshape(len(image), size)

    @staticmethod
    def bytes_of(placement: Placement) -> int:
        """Memory that one image takes."""
        tables = _Tables(placement.program)
        return tables.bytes + 4 * tables.sums

    def psum_hits(self, image: np.ndarray, rows: np.ndarray) -> Changes:
        """What hits in the memory of partial sums change, one a fault.

        image  (f,) which image each strikes; rows (f,) FAULT records of component "psums"
        """
        t = self.tables
        index, code = np.empty(len(rows), np.int64), np.empty(len(rows), np.int32)
        layer = rows["layer"].astype(np.int64)
        K.psum_codes(
            t.ops, t.limits, t.plain, t.plain_at, t.offset, t.wide, t.factors, self.fold_slots,
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
        cuts = [count * i // threads for i in range(threads + 1)]
        parts = [order[a:b] for a, b in zip(cuts, cuts[1:]) if a < b]

        def run(part):
            self._propagate(part, struck, acc, differs, seen)

        if len(parts) < 2:
            for part in parts:
                run(part)
        else:
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(run, parts))
        return Propagated(acc, differs, seen if spread else None)

    def _propagate(self, part, struck: Changes, acc, differs, seen) -> None:
        t = self.tables
        pixels, marks = np.empty(t.places, np.int32), np.zeros(t.places, np.uint8)
        changed, differences = np.empty(t.words, np.int32), np.empty(t.words, np.int32)
        changes, parts = np.empty(t.places, np.uint16), np.empty((t.window, 5), np.int64)
        counts, places = np.zeros(len(t.ops), np.int64), np.empty((t.window, 2), np.int32)
        sums = np.zeros(max(int(t.ops[:, K.C].max()), self.acc.shape[1]), np.int32)
        image = struck.image[part]
        for number, mine in _runs(image, part):
            begin, index, code = _gather(struck, mine)
            found = np.empty((len(mine), acc.shape[1]), np.int64)
            spread = np.zeros((len(mine) if len(seen) else 0, len(t.ops)), np.int32)
            golden = self.frames[number]
            differs[mine] = K.propagate(
                t.ops, t.limits, t.steps, t.weights, t.bias, t.factors, golden.copy(), golden,
                self.known[number], self.acc[number], pixels, marks, counts, changed, differences,
                changes, places, parts, sums, struck.op[mine], begin, index, code, found, spread,
            )  # fmt: skip
            acc[mine] = found
            if len(seen):
                seen[mine] = spread


def _runs(image: np.ndarray, part: np.ndarray) -> Iterable[tuple[int, np.ndarray]]:
    """(image, its faults) of faults that are sorted by image."""
    cuts = np.flatnonzero(np.diff(image)) + 1
    for mine, number in zip(np.split(part, cuts), image[np.r_[0, cuts]] if len(image) else ()):
        yield int(number), mine


def _gather(changes: Changes, mine: np.ndarray):
    """(begin, index, code) of some faults, one after another."""
    sizes = changes.begin[mine + 1] - changes.begin[mine]
    begin = np.zeros(len(mine) + 1, np.int64)
    np.cumsum(sizes, out=begin[1:])
    at = np.repeat(changes.begin[mine] - begin[:-1], sizes) + np.arange(begin[-1])
    return begin, changes.index[at], changes.code[at]


def memory_of(placement: Placement, images: int) -> int:
    """Bytes that a `Delta` of so many images keeps, sums of the answer included."""
    classes = math.prod(placement.program.ops[-1].shape)
    return images * (Delta.bytes_of(placement) + 16 * classes)
