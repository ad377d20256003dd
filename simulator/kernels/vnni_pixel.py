"""One pixel of a convolution of 8-bit codes with AVX512-VNNI, made again.

As the tiles of `vnni_code.py`, but for pixels that lie anywhere: the others are known, and
only a few have to be made again (`delta.py`), from their whole window or from what changed
in it.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from .vnni_code import _BYTES, _FLOATS, _I8, _I32, _I64, _INTS, LANES, _call, _splat, _store

GROUP = 4
"""Blocks of LANES outputs that are summed together, and slots where there is one block:
four sums in flight hide the latency of an instruction."""


def _at(builder, address, offset, kind):
    return builder.inttoptr(builder.add(address, offset), kind.as_pointer())


def _word(builder, address, offset, flip):
    """Four codes, XORed, in every lane."""
    word = builder.load(_at(builder, address, offset, _I32))
    word.align = 1
    return _splat(builder, builder.xor(word, flip), _INTS)


def _requantise(builder, sums, bias, multiplier, lo, hi, codes, channels):
    """Store the codes of blocks of sums."""
    lanes = ir.Constant(_INTS, list(range(LANES)))
    low, high = (_splat(builder, v, _FLOATS) for v in (lo, hi))
    for q, value in enumerate(sums):
        left = builder.sub(builder.trunc(channels, _I32), _I32(q * LANES))
        mask = builder.icmp_signed("<", lanes, _splat(builder, left, _INTS))
        factors = []
        for address in (bias, multiplier):
            factors.append(builder.load(_at(builder, address, _I64(q * 64), _FLOATS)))
            factors[-1].align = 4
        # As `requantise_float`: one rounding a step, clamp before rint.
        v = builder.fadd(builder.sitofp(value, _FLOATS), factors[0])
        v = builder.fmul(v, factors[1])
        v = builder.select(builder.fcmp_ordered(">", v, low), v, low)
        v = builder.select(builder.fcmp_ordered("<", v, high), v, high)
        v = _call(builder, "llvm.rint.v16f32", _FLOATS, v)
        code = builder.trunc(builder.fptosi(v, _INTS), _BYTES)
        _store(builder, code, _at(builder, codes, _I64(q * LANES), _BYTES), mask, 1)


def _loop(builder, count, step, phis, body):
    """`body(t, values)` gives the next values for t = 0, step, .. < count; the last ones."""
    entry = builder.block
    check = builder.append_basic_block("check")
    work = builder.append_basic_block("work")
    done = builder.append_basic_block("done")
    builder.branch(check)
    builder.position_at_end(check)
    t = builder.phi(_I64)
    t.add_incoming(_I64(0), entry)
    held = []
    for value in phis:
        held.append(builder.phi(_INTS))
        held[-1].add_incoming(value, entry)
    builder.cbranch(builder.icmp_signed("<", t, count), work, done)
    builder.position_at_end(work)
    new = body(t, held)
    end = builder.block  # the body may have loops of its own
    t.add_incoming(builder.add(t, _I64(step)), end)
    for phi, value in zip(held, new):
        phi.add_incoming(value, end)
    builder.branch(check)
    builder.position_at_end(done)
    return held


def _dot(builder, total, word, weights):
    return _call(builder, "llvm.x86.avx512.vpdpbusd.512", _INTS, total, word, weights)


def _weights(builder, address, slot, blocks):
    row = builder.add(address, builder.mul(slot, _I64(blocks * 64)))
    found = []
    for q in range(blocks):
        found.append(builder.load(_at(builder, row, _I64(q * 64), _INTS)))
        found[-1].align = 1
    return found


def _make_whole(blocks: int):
    """Intrinsic for the `blocks` * LANES outputs of one pixel from its whole window."""
    unroll = GROUP // blocks

    @intrinsic
    def whole(typingctx, window, steps, count, flip, weight, bias, multiplier, lo, hi, codes,
              channels):  # fmt: skip
        """Codes of a pixel.

        window      address of the first code that the pixel's window reads
        steps       address of int32 byte offsets, one for each four codes; count of
                    them, a multiple of GROUP / blocks
        flip        int32 that each four codes are XORed with
        weight      address of (count, blocks, LANES, 4) int8
        bias, multiplier  addresses of (blocks * LANES,) float32
        lo, hi      float32, the clamp
        codes       address of the pixel's first code
        channels    outputs from there on that exist
        """

        def generate(context, builder, signature, args):
            window, steps, count, flip, weight, bias, multiplier, lo, hi, codes, channels = args

            def body(t, held):
                new = []
                for u in range(unroll):
                    slot = builder.add(t, _I64(u))
                    step = builder.load(_at(builder, steps, builder.shl(slot, _I64(2)), _I32))
                    word = _word(builder, window, builder.sext(step, _I64), flip)
                    for q, row in enumerate(_weights(builder, weight, slot, blocks)):
                        new.append(_dot(builder, held[u * blocks + q], word, row))
                return new

            zero = ir.Constant(_INTS, [0] * LANES)
            sums = _loop(builder, count, unroll, [zero] * (unroll * blocks), body)
            for u in range(1, unroll):
                for q in range(blocks):
                    sums[q] = builder.add(sums[q], sums[u * blocks + q])
            _requantise(builder, sums[:blocks], bias, multiplier, lo, hi, codes, channels)
            return context.get_dummy_value()

        long, real = types.int64, types.float32
        return types.none(long, long, long, types.int32, long, long, long, real, real, long,
                          long), generate  # fmt: skip

    return whole


def _make_changed(blocks: int):
    """Intrinsic for the `blocks` * LANES outputs of one pixel from what changed in its window."""

    @intrinsic
    def changed(typingctx, work, golden, places, count, flip, weight, known, bias, multiplier,
                lo, hi, codes, channels):  # fmt: skip
        """Codes of a pixel.

        work, golden  addresses of the image's frames, new and known
        places      address of (count, 2) int32: byte offset of four codes in the frames,
                    slot that they are read by
        known       address of (blocks * LANES,) int32 sums of the golden window
        The rest as of `whole`.
        """

        def generate(context, builder, signature, args):
            (work, golden, places, count, flip, weight, known, bias, multiplier, lo, hi, codes,
             channels) = args  # fmt: skip

            def body(t, held):
                pair = _at(builder, places, builder.shl(t, _I64(3)), _I64)
                pair = builder.load(pair)
                offset = builder.sext(builder.trunc(pair, _I32), _I64)
                slot = builder.ashr(pair, _I64(32))
                new, old = (_word(builder, frames, offset, flip) for frames in (work, golden))
                rows = _weights(builder, weight, slot, blocks)
                added = [_dot(builder, held[q], new, rows[q]) for q in range(blocks)]
                taken = [_dot(builder, held[blocks + q], old, rows[q]) for q in range(blocks)]
                return added + taken

            start = []
            for q in range(blocks):
                start.append(builder.load(_at(builder, known, _I64(q * 64), _INTS)))
                start[-1].align = 4
            zero = ir.Constant(_INTS, [0] * LANES)
            found = _loop(builder, count, 1, start + [zero] * blocks, body)
            sums = [builder.sub(found[q], found[blocks + q]) for q in range(blocks)]
            _requantise(builder, sums, bias, multiplier, lo, hi, codes, channels)
            return context.get_dummy_value()

        long, real = types.int64, types.float32
        return types.none(long, long, long, long, types.int32, long, long, long, long, real, real,
                          long, long), generate  # fmt: skip

    return changed


def _make_gather(blocks: int):
    """Intrinsic for the `blocks` * LANES outputs of one pixel from differences in its window."""

    @intrinsic
    def gather(typingctx, parts, count, weight, known, bias, multiplier, lo, hi, codes,
               channels):  # fmt: skip
        """Codes of a pixel.

        parts   address of (count, 5) int64, one for each pixel of the window that differs:
                address of its differences (n,) int32, four signed bytes each, address of
                the int32 words that they are of, n (one more is there, without any), slot
                of its word 0, and what is not read here
        weight  address of (slots, blocks, LANES, 4) bytes, weights + 128
        The rest as of `changed`.

        VPDPBUSD takes one operand unsigned. Weights are made so, and differences are
        bytes with a sign: 128 times their sum has to come off again.
        """

        def generate(context, builder, signature, args):
            parts, count, weight, known, bias, multiplier, lo, hi, codes, channels = args
            zero = ir.Constant(_INTS, [0] * LANES)
            eighties = ir.Constant(_INTS, [0x80808080 - (1 << 32)] * LANES)
            start = []
            for q in range(blocks):
                start.append(builder.load(_at(builder, known, _I64(q * 64), _INTS)))
                start[-1].align = 4

            def each_part(t, held):
                part = builder.add(parts, builder.mul(t, _I64(40)))
                differences, words, entries, slot = (
                    builder.load(_at(builder, part, _I64(8 * i), _I64)) for i in range(4)
                )
                rows = builder.add(weight, builder.mul(slot, _I64(blocks * 64)))

                def each_pair(u, sums):
                    new = []
                    for i in (0, 1):
                        at = builder.shl(builder.add(u, _I64(i)), _I64(2))
                        d = builder.load(_at(builder, differences, at, _I32))
                        d = _splat(builder, d, _INTS)
                        word = builder.load(_at(builder, words, at, _I32))
                        mine = sums[i * (blocks + 1) : (i + 1) * (blocks + 1)]
                        slots = _weights(builder, rows, builder.sext(word, _I64), blocks)
                        new += [_dot(builder, mine[q], slots[q], d) for q in range(blocks)]
                        new.append(_dot(builder, mine[blocks], eighties, d))
                    return new

                return _loop(builder, entries, 2, held, each_pair)

            begin = [*start, *[zero] * (blocks + 2)]
            found = _loop(builder, count, 1, begin, each_part)
            excess = builder.add(found[blocks], found[2 * blocks + 1])
            sums = [
                builder.sub(builder.add(found[q], found[blocks + 1 + q]), excess)
                for q in range(blocks)
            ]
            _requantise(builder, sums, bias, multiplier, lo, hi, codes, channels)
            return context.get_dummy_value()

        long, real = types.int64, types.float32
        return types.none(long, long, long, long, long, long, real, real, long, long), generate

    return gather


@intrinsic
def difference(typingctx, new, golden, first, words, differences, places):
    """What 16 words of codes differ by: how many do, and 1 << 32 if a byte's difference
    does not fit a signed byte (int64).

    new, golden  addresses of the 16 words; only `words` of them exist
    first        number of the first
    differences, places
                 addresses of int32: new - golden of the words that differ, four bytes
                 each, and their numbers; up to 16 are written, whatever the count
    """

    def generate(context, builder, signature, args):
        new, golden, first, words, differences, places = args
        wide = ir.VectorType(_I8, 64)
        lanes = ir.Constant(_INTS, list(range(LANES)))
        exists = builder.icmp_signed("<", lanes, _splat(builder, builder.trunc(words, _I32), _INTS))
        nothing = ir.Constant(_INTS, [0] * LANES)
        one, other = (
            _call(builder, "llvm.masked.load.v16i32.p0", _INTS,
                  builder.inttoptr(address, _INTS.as_pointer()), _I32(4), exists, nothing)
            for address in (new, golden)
        )  # fmt: skip
        a, b = (builder.bitcast(v, wide) for v in (one, other))
        size = builder.or_(
            _call(builder, "llvm.usub.sat.v64i8", wide, a, b),
            _call(builder, "llvm.usub.sat.v64i8", wide, b, a),
        )
        signs = builder.bitcast(builder.icmp_signed("<", size, ir.Constant(wide, [0] * 64)), _I64)
        beyond = builder.zext(builder.icmp_unsigned("!=", signs, _I64(0)), _I64)
        differs = builder.icmp_unsigned("!=", one, other)
        d = builder.bitcast(builder.sub(a, b), _INTS)
        number = builder.add(lanes, _splat(builder, builder.trunc(first, _I32), _INTS))
        for value, address in ((d, differences), (number, places)):
            pointer = builder.inttoptr(address, _I32.as_pointer())
            name = "llvm.masked.compressstore.v16i32"
            _call(builder, name, ir.VoidType(), value, pointer, differs)
        mask = builder.bitcast(differs, ir.IntType(LANES))
        count = _call(builder, "llvm.ctpop.i64", _I64, builder.zext(mask, _I64))
        return builder.or_(count, builder.shl(beyond, _I64(32)))

    return types.int64(*(types.int64,) * 6), generate


def pack_pixels(weight: np.ndarray, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(weights, steps) as the pixel intrinsics read them.

    weight  (o, slots, 4) int8, |code| <= 128; steps (slots,) int32 byte offsets
    Outputs come in groups of GROUP blocks and then of 2 and 1, in each (slots, blocks,
    LANES, 4), flat; slots are filled up to a multiple of GROUP with weights of 0.
    """
    o, slots, _ = weight.shape
    room = -(-slots // GROUP) * GROUP
    full = np.zeros((-(-o // LANES) * LANES, room, 4), np.int8)
    full[:o, :slots] = weight
    blocks = full.reshape(-1, LANES, room, 4).transpose(0, 2, 1, 3)  # (block, slot, lane, byte)
    parts = [
        blocks[begin : begin + size].transpose(1, 0, 2, 3).reshape(-1)
        for begin, size in block_groups(len(blocks))
    ]
    flat = np.concatenate(parts)
    memory = np.empty(len(flat) + 63, np.int8)
    aligned = memory[-memory.ctypes.data % 64 :][: len(flat)]
    aligned[...] = flat
    filled = np.concatenate([steps, np.full(room - slots, steps[0], np.int32)])
    return aligned, np.ascontiguousarray(filled, np.int32)


def block_groups(blocks: int) -> list[tuple[int, int]]:
    """(first block, number of blocks) of each group: as many of GROUP as there are, then 2, 1."""
    groups, at = [], 0
    for size in (GROUP, 2, 1):
        while blocks - at >= size:
            groups.append((at, size))
            at += size
    return groups


whole1, whole2, whole4 = _make_whole(1), _make_whole(2), _make_whole(4)
changed1, changed2, changed4 = _make_changed(1), _make_changed(2), _make_changed(4)
gather1, gather2, gather4 = _make_gather(1), _make_gather(2), _make_gather(4)
