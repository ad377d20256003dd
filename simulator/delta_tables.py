"""A network as the tables that the kernels of differences read (`kernels/delta_table.py`)."""

from __future__ import annotations

import numpy as np

from fsim.errors import MappingError

from . import program as P
from .kernels import delta_table as K
from .kernels.delta_code import pack, pack_depthwise

_KINDS = {
    "steps": np.int32, "weights": np.int8, "bias": np.int32, "factors": np.float32,
    "plain": np.int8, "wide": np.int64, "offset": np.int64,
}  # fmt: skip
"""Tables of operations' parts, and their types."""


class Tables:
    """A program as the arrays of `kernels.delta.propagate`.

    vnni  multiply with VPDPBUSD where sums let it
    Attributes: ops, limits, steps, weights, bias, wide, offset, factors, words, pixels as
    there; plain, plain_at as of `psum_codes`; root, the operation whose frame holds an
    operation's codes; bytes of an image's frames, sums that an image keeps.
    """

    def __init__(self, program: P.Program, vnni: bool):
        self.program, self.vnni = program, vnni
        ops = program.ops
        self.ops = np.zeros((len(ops), len(K.FIELDS)), np.int64)
        self.ops[:, K.A] = self.ops[:, K.B] = -1
        self.limits = np.zeros((len(ops), 2), np.float32)
        self.root = self._roots()
        self.parts: dict[str, list[np.ndarray]] = {name: [] for name in _KINDS}
        self.length = dict.fromkeys(self.parts, 0)
        self.plain_at = np.zeros(len(ops), np.int64)
        self._place()
        for op in ops[1:]:
            if self.root[op.index] == op.index:
                self._fill(op)
        for name, kind in _KINDS.items():
            parts = [*self.parts[name], np.zeros(K.SLACK, kind)]
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
        at = words = 0
        self.regions = []
        for op in self.program.ops:
            if self.root[op.index] != op.index:
                continue
            if op.dtype.itemsize != 1:
                raise MappingError(f"codes must have at most 8 bits, got {op.bits} ({op.name})")
            h, w, c = self.size(op.index)
            top, left, bottom, right = around[op.index]
            pixel, span = -(-c // 4) * 4, -(-w // 64)
            row = (w + left + right) * pixel
            line = self.ops[op.index]
            line[[K.H, K.W, K.C, K.ROW, K.PIXEL, K.SPAN, K.MASK]] = h, w, c, row, pixel, span, words
            line[K.ZERO], line[K.AT] = 128 * op.signed, at + top * row + left * pixel
            end = at + (h + top + bottom) * row
            self.regions.append((at, end, int(line[K.ZERO])))
            at = -(-end // 64) * 64
            words += h * span
        self.bytes, self.words = at + K.SLACK, words
        self.pixels = int((self.ops[:, K.H] * self.ops[:, K.W]).max())
        self.sums = 0  # golden sums of an image

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
            line[K.NARROW] = (abs(op.m0) + abs(op.m1)) * 255 <= 1 << 24
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
        if line[K.KIND] != K.COPY:
            line[[K.KH, K.KW, K.SH, K.SW, K.TOP, K.LEFT, K.DH, K.DW]] = self._window(op)
        if line[K.KIND] in (K.MAXIMUM, K.COPY):
            mine = [self.ops[line[i]] for i in (K.A, K.B) if line[i] >= 0]
            if any(source[K.ZERO] != line[K.ZERO] for source in mine):
                raise MappingError(f"codes must keep their sign where they move ({op.name})")
        elif (
            line[K.KIND] != K.LAST and not self.limits[op.index, 0] <= 0 <= self.limits[op.index, 1]
        ):
            raise MappingError(f"the clamp must let code 0 through ({op.name})")

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
        zero = int(source[K.ZERO])
        largest = int(np.abs(weight).reshape(o, -1).sum(1).max())
        if largest * (zero or 255) >= 1 << 31:
            raise MappingError(
                f"sums must fit 31 bits, got up to {largest * (zero or 255)} ({op.name})"
            )
        offset = zero * weight.reshape(o, -1).sum(1)
        beyond = largest * 255 + int(np.abs(bias - offset).max())
        line[K.NARROW] = beyond <= min(1 << 24, (1 << self.program.acc_bits - 1) - 1)
        line[K.ACC_BITS], line[K.SUMS] = self.program.acc_bits, self.sums
        self.sums += int(line[K.H] * line[K.W] * line[K.C])
        self.limits[op.index] = op.lo, op.hi
        self._scaling(op, line, bias, offset)
        self._slots(op, line, weight)
        slots = op.weight if isinstance(op, P.Linear) else op.weight.transpose(0, 2, 3, 1)
        self.plain_at[op.index] = self._add("plain", slots.astype(np.int8))
        line[K.FLAT] = isinstance(op, P.Linear)
        line[K.PER] = c if isinstance(op, P.Linear) else op.weight.shape[1]

    def _scaling(self, op, line, bias, offset) -> None:
        """Bias and multiplier of each output; of those that do not exist 0."""
        line[K.BIAS] = self.length["bias"]
        factors = np.broadcast_to(op.multiplier, len(bias))
        for name, values in (
            ("bias", bias - offset), ("wide", bias), ("offset", offset), ("factors", factors),
        ):  # fmt: skip
            held = np.zeros(-(-len(bias) // 64) * 64, _KINDS[name])
            held[: len(bias)] = values
            self._add(name, held)

    def _slots(self, op, line, weight) -> None:
        """Weights and where a window's codes lie, as the kind of operation reads them."""
        source, (o, kh, kw, c) = self.ops[line[K.A]], weight.shape
        pixel = int(source[K.PIXEL])
        _, _, _, _, _, _, dh, dw = self._window(op)
        down, across = np.meshgrid(np.arange(kh), np.arange(kw), indexing="ij")
        steps = (down * dh * source[K.ROW] + across * dw * pixel).reshape(-1)
        line[K.RUNS], line[K.WORDS] = kh * kw, pixel // 4
        filled = np.zeros((o, kh, kw, pixel), np.int8)
        filled[..., :c] = weight
        if isinstance(op, P.Conv) and op.groups == o == c and op.weight.shape[1] == 1:
            packed = np.zeros((kh * kw, pixel), np.int8)
            packed[:, :o] = op.weight[:, 0].reshape(o, -1).T
            line[K.KIND] = K.DEPTHWISE_VNNI if self.vnni and line[K.NARROW] else K.DEPTHWISE
            if line[K.KIND] == K.DEPTHWISE_VNNI:
                packed = pack_depthwise(packed)
                steps = np.concatenate([steps, np.full(-len(steps) % 4, steps[0])])
                line[K.RUNS] = len(steps) // 4
        else:
            line[K.KIND] = K.CONV_VNNI if self.vnni and line[K.NARROW] else K.CONV
            packed = pack(filled.reshape(o, -1, 4), line[K.KIND] == K.CONV)
            if dw == 1:  # a row of the window lies in one piece
                line[K.RUNS], line[K.WORDS], steps = kh, kw * pixel // 4, steps[::kw]
        line[K.WEIGHT], line[K.STEPS] = self._add("weights", packed), self._add("steps", steps)

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
        line[[K.KH, K.KW, K.SH, K.SW, K.DH, K.DW]] = 1
        map_like = len(op.shape) == 3
        if isinstance(op, P.Pad):
            amount = op.amount if map_like else None
            if amount is None:
                raise MappingError(f"only maps are padded as differences ({op.name})")
            (line[K.C_OUT], _), (top, _), (left, _) = amount
            line[[K.TOP, K.LEFT]] = top, left
        elif isinstance(op, P.Slice):
            source = self.program.ops[op.inputs[0]].shape
            if not map_like:
                raise MappingError(f"only maps are sliced as differences ({op.name})")
            found = [s.indices(n) for s, n in zip(op.slices, source)]
            if any(step < 1 for _, _, step in found) or found[0][2] != 1:
                raise MappingError(f"channels must be sliced one by one ({op.name})")
            line[K.C_IN] = found[0][0]
            line[[K.TOP, K.LEFT]] = -found[1][0], -found[2][0]
            line[[K.SH, K.SW]] = found[1][2], found[2][2]
        else:
            if op.axis != 0 or len(op.inputs) != 2 or op.stores or not map_like:
                raise MappingError(
                    f"only two maps of one scale are joined, along channels ({op.name})"
                )
            line[K.B] = self.root[op.inputs[1]]
            line[K.M1] = self.size(op.inputs[0])[2]


def _filled(weight: np.ndarray) -> np.ndarray:
    """(o, kh, kw, c) to (kh, kw, c filled up to whole words, o filled up to 16) int8."""
    o, kh, kw, c = weight.shape
    full = np.zeros((kh, kw, -(-c // 4) * 4, -(-o // 16) * 16), np.int8)
    full[:, :, :c, :o] = weight.transpose(1, 2, 3, 0)
    return full


def _aligned(array: np.ndarray) -> np.ndarray:
    """A copy that begins with a cache line."""
    room = np.empty(array.nbytes + 63, np.uint8)
    begin = -room.ctypes.data % 64
    held = room[begin : begin + array.nbytes].view(array.dtype)
    held[...] = array
    return held
