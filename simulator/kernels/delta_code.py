"""Products of matrices at a few pixels: several pixels by several blocks of outputs.

A convolution is made again where its input changed, at pixels that lie anywhere. Sixteen
outputs are the lanes of a register; the sums of `pixels` x `blocks` registers stay there
over the whole window, a row of weights is read once for all the pixels. The window's bytes
are read from the frame as they lie, four codes at a time, and the new codes are put where
they belong.

There are two ways to multiply. VPDPBUSD (AVX512-VNNI) takes four products of bytes at a
time. Elsewhere codes and weights are taken as 16 bits, pairs of products at a time
(VPMADDWD of AVX2 and AVX512-BW, or what LLVM makes of it).
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from . import vnni
from .delta_lanes import load, loop, narrow_codes, pointer, put, wide_codes
from .vnni_code import _I32, _I64, _INTS, LANES, _call, _splat

_PAIRS, _HALF = ir.VectorType(ir.IntType(16), 2 * LANES), ir.VectorType(ir.IntType(16), LANES)


class _Bytes:
    """Four products of bytes; a row of weights is (LANES, 4) int8."""

    row_bytes = 64

    @staticmethod
    def spread(builder, word):
        return [_splat(builder, word, _INTS)]

    @staticmethod
    def weights(builder, address, offset):
        return [load(builder, address, offset, _INTS)]

    @staticmethod
    def add(builder, total, codes, weights):
        name = "llvm.x86.avx512.vpdpbusd.512"
        return _call(builder, name, _INTS, total, codes[0], weights[0])


class _Shorts:
    """Pairs of products of 16 bits; a row of weights is (2, LANES, 2) int16.

    Of four codes the first of the two has numbers 0 and 2, which a mask cuts out, the
    other 1 and 3, which a shift leaves.
    """

    row_bytes = 128

    @staticmethod
    def spread(builder, word):
        pairs = builder.bitcast(_splat(builder, word, _INTS), _PAIRS)
        even = builder.and_(pairs, ir.Constant(_PAIRS, [255] * (2 * LANES)))
        return [even, builder.lshr(pairs, ir.Constant(_PAIRS, [8] * (2 * LANES)))]

    @staticmethod
    def weights(builder, address, offset):
        return [load(builder, address, offset + 64 * i, _PAIRS) for i in (0, 1)]

    @staticmethod
    def add(builder, total, codes, weights):
        features = cpu_target.target_context.codegen().magic_tuple()[2].split(",")
        for x, w in zip(codes, weights):
            if "+avx512bw" in features:
                product = _call(builder, "llvm.x86.avx512.pmaddw.d.512", _INTS, x, w)
            elif "+avx2" in features:
                halves = []
                for lanes in (range(LANES), range(LANES, 2 * LANES)):
                    pick = ir.Constant(_INTS, list(lanes))
                    pair = [builder.shuffle_vector(v, v, pick) for v in (x, w)]
                    kind = ir.VectorType(_I32, LANES // 2)
                    halves.append(_call(builder, "llvm.x86.avx2.pmadd.wd", kind, *pair))
                product = builder.shuffle_vector(*halves, ir.Constant(_INTS, list(range(LANES))))
            else:
                long = ir.VectorType(_I32, 2 * LANES)
                both = builder.mul(builder.sext(x, long), builder.sext(w, long))
                sides = [
                    builder.shuffle_vector(
                        both, both, ir.Constant(_INTS, list(range(side, 2 * LANES, 2)))
                    )
                    for side in (0, 1)
                ]
                product = builder.add(*sides)
            total = builder.add(total, product)
        return total


def _make(pixels: int, blocks: int, way, wide: bool = False):
    """Intrinsic for `pixels` x (`blocks` * LANES) outputs."""

    @intrinsic
    def products(typingctx, frame, windows, targets, flags, steps, runs, words, weight, bias,
                 offset, factors, shift, lo, hi, zero, channel, left):  # fmt: skip
        """New codes of some pixels, put where they belong.

        frame    address of the image's frames
        windows, targets  addresses of (pixels,) int64 byte offsets in it: of the first code
                 that a pixel's window reads, and of the pixel's own first code
        flags    address of (pixels,) int64, ORed with something but 0 where codes differ
        steps    address of (runs,) int32 byte offsets from the window's first code
        words    words of a run
        weight   address of (runs * words, blocks) rows of weights
        bias     address of (blocks * LANES,) int32, or int64 where sums may wrap
        offset, shift  read only where sums may wrap (`wide_codes`)
        factors  address of (blocks * LANES,) float32
        lo, hi   float32, the clamp
        channel, left  the blocks' first output, and words of outputs from there on
        """
        signature = types.none(*(types.int64,) * 12, types.float32, types.float32,
                               *(types.int64,) * 3)  # fmt: skip
        if way is _Bytes and not vnni.supported():
            # LLVM ends the process if it meets the instruction; nobody calls this.
            return signature, lambda context, builder, signature, args: context.get_dummy_value()

        def generate(context, builder, signature, args):
            (frame, windows, targets, flags, steps, runs, words, weight, bias, offset, factors,
             shift, lo, hi, zero, channel, left) = args  # fmt: skip
            bases = [builder.add(frame, load(builder, windows, 8 * p, _I64)) for p in range(pixels)]

            def each_run(r, held):
                step = builder.load(pointer(builder, steps, builder.shl(r, _I64(2)), _I32))
                step = builder.sext(step, _I64)

                def each_word(t, held):
                    row, sums = held[0], held[1:]
                    at = builder.add(step, builder.shl(t, _I64(2)))
                    codes = [way.spread(builder, load(builder, b, at, _I32)) for b in bases]
                    new = [None] * len(sums)
                    for q in range(blocks):
                        weights = way.weights(builder, row, q * way.row_bytes)
                        for p in range(pixels):
                            i = p * blocks + q
                            new[i] = way.add(builder, sums[i], codes[p], weights)
                    return [builder.add(row, _I64(blocks * way.row_bytes)), *new]

                return loop(builder, words, held, each_word)

            start = [ir.Constant(_INTS, [0] * LANES)] * blocks
            if not wide:
                start = [load(builder, bias, 4 * LANES * q, _INTS) for q in range(blocks)]
            sums = loop(builder, runs, [weight, *start * pixels], each_run)[1:]
            for p in range(pixels):
                target = builder.add(frame, load(builder, targets, 8 * p, _I64))
                target = builder.add(target, channel)
                flag = load(builder, flags, 8 * p, _I64)
                for q in range(blocks):
                    first = 4 * LANES * q
                    factor = builder.add(factors, _I64(first))
                    if wide:
                        beyond, more = (builder.add(v, _I64(2 * first)) for v in (offset, bias))
                        codes = wide_codes(builder, sums[p * blocks + q], beyond, more, factor,
                                           shift, lo, hi, zero)  # fmt: skip
                    else:
                        codes = narrow_codes(builder, sums[p * blocks + q], factor, lo, hi, zero)
                    rest = builder.sub(left, _I64(4 * q)) if q == blocks - 1 else None
                    found = put(builder, codes, target, q * LANES, rest)
                    flag = builder.or_(flag, found)
                builder.store(flag, pointer(builder, flags, 8 * p, _I64)).align = 8
            return context.get_dummy_value()

        return signature, generate

    return products


@intrinsic
def depthwise64(typingctx, window, steps, groups, weight, bias, factors, lo, hi, zero, target,
                words):  # fmt: skip
    """New codes of 64 channels of one pixel, each from its own channel, with VPDPBUSD.

    window   address of the first channel's first code that the pixel reads
    steps    address of (groups, 4) int32 byte offsets of the window's positions
    weight   address of weights, `pack_depthwise`
    bias, factors  addresses of (64,) int32 and float32
    target   address of the first channel's code, of which `words` words exist
    Returns something but 0 where codes differ.
    """
    signature = types.int64(*(types.int64,) * 6, types.float32, types.float32,
                            *(types.int64,) * 3)  # fmt: skip
    wide = ir.VectorType(ir.IntType(8), 64)

    def unpacked(builder, kind, one, other, high):
        """Elements of two registers in turn, half of each 128 bits of them."""
        each = 16 // (kind.element.width // 8)
        picks = []
        for begin in range(0, kind.count, each):
            for i in range(begin + high * each // 2, begin + (high + 1) * each // 2):
                picks += [i, kind.count + i]
        picks = ir.Constant(ir.VectorType(_I32, len(picks)), picks)
        one, other = (builder.bitcast(v, kind) for v in (one, other))
        return builder.shuffle_vector(one, other, picks)

    def generate(context, builder, signature, args):
        window, steps, groups, weight, bias, factors, lo, hi, zero, target, words = args
        pairs = ir.VectorType(ir.IntType(16), 32)

        def each_group(g, sums):
            line = builder.add(steps, builder.shl(g, _I64(4)))
            rows = builder.add(weight, builder.shl(g, _I64(8)))
            codes = []
            for i in range(4):
                step = builder.sext(load(builder, line, 4 * i, _I32), _I64)
                codes.append(load(builder, window, step, wide))
            new = []
            for half in (0, 1):
                two = [unpacked(builder, wide, *codes[i : i + 2], half) for i in (0, 2)]
                for part in (0, 1):
                    x = builder.bitcast(unpacked(builder, pairs, *two, part), _INTS)
                    j = len(new)
                    new.append(_Bytes.add(builder, sums[j], [x],
                                          _Bytes.weights(builder, rows, 64 * j)))  # fmt: skip
            return new

        sums = loop(builder, groups, [ir.Constant(_INTS, [0] * LANES)] * 4, each_group)
        flag = ir.Constant(_I64, 0)
        for q in range(4):
            # Sums j hold channels 16 q + 4 j .. + 3 in their part q of 128 bits.
            picks = [*range(4 * q, 4 * q + 4), *range(16 + 4 * q, 20 + 4 * q)]
            picks = ir.Constant(ir.VectorType(_I32, 8), picks)
            halves = [builder.shuffle_vector(sums[i], sums[i + 1], picks) for i in (0, 2)]
            total = builder.shuffle_vector(*halves, ir.Constant(_INTS, list(range(LANES))))
            before, left = builder.block, builder.sub(words, _I64(4 * q))
            with builder.if_then(builder.icmp_signed(">", left, _I64(0))):
                total = builder.add(total, load(builder, bias, 64 * q, _INTS))
                scale = builder.add(factors, _I64(64 * q))
                codes = narrow_codes(builder, total, scale, lo, hi, zero)
                found = builder.or_(flag, put(builder, codes, target, q * LANES, left))
                after = builder.block
            joined = builder.phi(_I64)
            joined.add_incoming(flag, before)
            joined.add_incoming(found, after)
            flag = joined
        return flag

    if not vnni.supported():  # as above
        return signature, lambda context, builder, signature, args: _I64(0)
    return signature, generate


def pack_depthwise(weight: np.ndarray) -> np.ndarray:
    """Weights (positions, channels) int8 as `depthwise64` reads them, flat int8.

    (channels / 64, positions / 4) of four registers of (4, 4) channels by four positions; what
    is missing is 0.
    """
    positions, channels = weight.shape
    full = np.zeros((-(-positions // 4) * 4, -(-channels // 64) * 64), np.int8)
    full[:positions, :channels] = weight
    parts = full.reshape(len(full) // 4, 4, -1, 4, 4, 4)  # (group, position, chunk, part, j, k)
    return np.ascontiguousarray(parts.transpose(2, 0, 4, 3, 5, 1)).reshape(-1)


def pack(weight: np.ndarray, shorts: bool) -> np.ndarray:
    """Weights (o, slots, 4) int8 as the intrinsics read them, flat int8.

    Outputs come in groups of blocks (`groups`), in each (slots, blocks) rows of weights.
    """
    o, slots, _ = weight.shape
    full = np.zeros((-(-o // LANES) * LANES, slots, 4), np.int8)
    full[:o] = weight
    blocks = full.reshape(-1, LANES, slots, 4).transpose(0, 2, 1, 3)  # (block, slot, lane, byte)
    if shorts:
        blocks = np.stack([blocks[..., 0::2], blocks[..., 1::2]], 2).astype(np.int16)
    parts = [
        np.moveaxis(blocks[begin : begin + size], 0, 1).reshape(-1)
        for begin, size in groups(len(blocks), shorts)
    ]
    return np.concatenate(parts).view(np.int8)


def groups(blocks: int, shorts: bool) -> list[tuple[int, int]]:
    """(first block, number of blocks) of each group: of four, then two, then one; or of one."""
    found, at = [], 0
    for size in (1,) if shorts else (4, 2, 1):
        while blocks - at >= size:
            found.append((at, size))
            at += size
    return found


bytes1x1, bytes2x1, bytes4x1, bytes8x1 = (_make(p, 1, _Bytes) for p in (1, 2, 4, 8))
bytes1x2, bytes2x2, bytes4x2, bytes8x2 = (_make(p, 2, _Bytes) for p in (1, 2, 4, 8))
bytes1x4, bytes2x4, bytes3x4, bytes4x4 = (_make(p, 4, _Bytes) for p in (1, 2, 3, 4))
shorts1x1, shorts4x1 = (_make(p, 1, _Shorts) for p in (1, 4))
wide1x1 = _make(1, 1, _Shorts, wide=True)
