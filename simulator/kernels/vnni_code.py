"""The innermost loops of `vnni.py` as LLVM code, which numba cannot express.

VPDPBUSD adds four products of an unsigned and a signed byte to each of 16 sums of
32 bits, all bits kept. LLVM compiles it only for a CPU that has it, and ends the
process otherwise: callers ask `supported` first.
"""

from __future__ import annotations

import functools

import numpy as np
from llvmlite import ir
from llvmlite.binding import llvm_version_info
from numba.core import cgutils, types
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from fsim.jit import kernel

LANES = 16
"""Output channels of one register."""

_I1, _I8, _I32, _I64 = (ir.IntType(bits) for bits in (1, 8, 32, 64))
_F32 = ir.FloatType()
_INTS, _FLOATS = ir.VectorType(_I32, LANES), ir.VectorType(_F32, LANES)
_BYTES, _MASK = ir.VectorType(_I8, LANES), ir.VectorType(_I1, LANES)


@functools.lru_cache(maxsize=1)
def supported() -> bool:
    """Whether the code that numba generates may use AVX512-VNNI."""
    if llvm_version_info < (20,):
        return False  # older ones have pointers to types, which the code below does not give
    # The features numba was told to use (NUMBA_CPU_FEATURES), not those of the machine.
    features = cpu_target.target_context.codegen().magic_tuple()[2]
    return all(f"+{name}" in features.split(",") for name in ("avx512vnni", "avx512bw", "avx512vl"))


def _splat(builder, value, vector):
    one = builder.insert_element(ir.Constant(vector, ir.Undefined), value, _I32(0))
    zeros = ir.Constant(ir.VectorType(_I32, LANES), [0] * LANES)
    return builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), zeros)


def _call(builder, name, result, *args):
    signature = ir.FunctionType(result, [a.type for a in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, signature, name), args)


def _make_tile(pixels: int, blocks: int):
    """Intrinsic for a tile of `pixels` x (`blocks` * LANES) sums."""

    @intrinsic
    def tile(typingctx, frame, steps, count, weight, bias, multiplier, lo, hi, sums, codes,
             outputs, channels, valid):  # fmt: skip
        """Sums, and codes from them, of neighbouring pixels of one output row.

        frame       address of the tile's first word of the frame
        steps       address of int32 word offsets, one for each four products; count of them
        weight      address of (count, blocks, LANES, 4) int8
        bias, multiplier  addresses of (blocks * LANES,) float32
        lo, hi      float32, the clamp
        sums, codes  addresses of the tile's first int32 sum / code, or 0: not wanted
        outputs     channels from one pixel to the next
        channels    channels of the tile that exist
        valid       pixels of the tile that exist
        """

        def generate(context, builder, signature, args):
            (frame, steps, count, weight, bias, multiplier, lo, hi, sums, codes, outputs,
             channels, valid) = args  # fmt: skip

            def at(address, offset, kind):
                return builder.inttoptr(builder.add(address, offset), kind.as_pointer())

            entry = builder.block
            loop = builder.append_basic_block("slots")
            done = builder.append_basic_block("summed")
            builder.branch(loop)

            builder.position_at_end(loop)
            t = builder.phi(_I64)
            t.add_incoming(_I64(0), entry)
            held = [builder.phi(_INTS) for _ in range(pixels * blocks)]
            for phi in held:
                phi.add_incoming(ir.Constant(_INTS, [0] * LANES), entry)
            step = builder.load(at(steps, builder.shl(t, _I64(2)), _I32))
            base = builder.add(frame, builder.shl(builder.sext(step, _I64), _I64(2)))
            row = builder.add(weight, builder.mul(t, _I64(blocks * 64)))
            rows = []
            for q in range(blocks):
                rows.append(builder.load(at(row, _I64(q * 64), _INTS)))
                rows[-1].align = 1
            new = []
            for p in range(pixels):
                word = builder.load(at(base, _I64(4 * p), _I32))
                word.align = 4
                word = _splat(builder, word, _INTS)
                for q in range(blocks):
                    new.append(
                        _call(builder, "llvm.x86.avx512.vpdpbusd.512", _INTS,
                              held[p * blocks + q], word, rows[q])
                    )  # fmt: skip
            following = builder.add(t, _I64(1))
            t.add_incoming(following, loop)
            for phi, value in zip(held, new):
                phi.add_incoming(value, loop)
            builder.cbranch(builder.icmp_signed("<", following, count), loop, done)

            builder.position_at_end(done)
            wants_sums = builder.icmp_unsigned("!=", sums, _I64(0))
            wants_codes = builder.icmp_unsigned("!=", codes, _I64(0))
            lanes = ir.Constant(_INTS, list(range(LANES)))
            masks, biases, factors = [], [], []
            for q in range(blocks):
                left = builder.sub(builder.trunc(channels, _I32), _I32(q * LANES))
                masks.append(builder.icmp_signed("<", lanes, _splat(builder, left, _INTS)))
                biases.append(builder.load(at(bias, _I64(q * 64), _FLOATS)))
                factors.append(builder.load(at(multiplier, _I64(q * 64), _FLOATS)))
                biases[-1].align = factors[-1].align = 4
            low, high = (_splat(builder, v, _FLOATS) for v in (lo, hi))
            for p in range(pixels):
                exists = builder.icmp_signed("<", _I64(p), valid)
                pixel = builder.mul(outputs, _I64(p))
                for q in range(blocks):
                    value = new[p * blocks + q]
                    first = builder.add(pixel, _I64(q * LANES))
                    with builder.if_then(builder.and_(exists, wants_sums)):
                        target = at(sums, builder.shl(first, _I64(2)), _INTS)
                        _store(builder, value, target, masks[q], 4)
                    with builder.if_then(builder.and_(exists, wants_codes)):
                        # As `requantise_float`: one rounding a step, clamp before rint.
                        v = builder.fadd(builder.sitofp(value, _FLOATS), biases[q])
                        v = builder.fmul(v, factors[q])
                        v = builder.select(builder.fcmp_ordered(">", v, low), v, low)
                        v = builder.select(builder.fcmp_ordered("<", v, high), v, high)
                        v = _call(builder, "llvm.rint.v16f32", _FLOATS, v)
                        code = builder.trunc(builder.fptosi(v, _INTS), _BYTES)
                        _store(builder, code, at(codes, first, _BYTES), masks[q], 1)
            return context.get_dummy_value()

        integers = (types.int64,) * 6
        return types.none(*integers, types.float32, types.float32, *integers[:5]), generate

    return tile


def _store(builder, value, pointer, mask, align):
    # LLVM 22 takes the alignment as an attribute; the argument is upgraded.
    name = f"llvm.masked.store.v16i{value.type.element.width}.p0"
    _call(builder, name, ir.VoidType(), value, pointer, _I32(align), mask)


def _make_spread(pixels: int):
    """Intrinsic that takes four words of each of `pixels` pixels to four lines."""
    quad = ir.VectorType(_I32, 4)

    @intrinsic
    def spread(typingctx, source, stride, target, line, bits):
        """Words 0..3 of pixels that are `stride` bytes apart, each XOR bits.

        source, target  addresses; word i of the pixels goes to target + i * line bytes
        """

        def generate(context, builder, signature, args):
            source, stride, target, line, bits = args
            quads = []
            for p in range(pixels):
                address = builder.add(source, builder.mul(stride, _I64(p)))
                quads.append(builder.load(builder.inttoptr(address, quad.as_pointer())))
                quads[-1].align = 1

            def shuffle(x, y, picks):
                mask = ir.Constant(ir.VectorType(_I32, len(picks)), picks)
                return builder.shuffle_vector(x, y, mask)

            def join(parts):
                while len(parts) > 1:
                    size = 2 * parts[0].type.count
                    parts = [shuffle(x, y, list(range(size)))
                             for x, y in zip(parts[::2], parts[1::2])]  # fmt: skip
                return parts[0]

            # Pixel 4 i + j in part i of register j: every step stays within 128 bits.
            a, b, c, d = (join(quads[j::4]) for j in range(4))
            def picks(*four):
                """Of each 128 bits: lanes of the first register, of the second from 4 on."""
                lanes = [v + (pixels - 4) * (v // 4) for v in four]
                return [4 * i + v for i in range(pixels // 4) for v in lanes]

            low, high = picks(0, 4, 1, 5), picks(2, 6, 3, 7)
            first, last = picks(0, 1, 4, 5), picks(2, 3, 6, 7)
            ab, cd = shuffle(a, b, low), shuffle(c, d, low)
            ab2, cd2 = shuffle(a, b, high), shuffle(c, d, high)
            words = [
                shuffle(ab, cd, first), shuffle(ab, cd, last),
                shuffle(ab2, cd2, first), shuffle(ab2, cd2, last),
            ]  # fmt: skip
            flips = ir.Constant(words[0].type, ir.Undefined)
            flips = builder.insert_element(flips, bits, _I32(0))
            flips = shuffle(flips, flips, [0] * pixels)
            for i, word in enumerate(words):
                address = builder.add(target, builder.mul(line, _I64(i)))
                pointer = builder.inttoptr(address, word.type.as_pointer())
                builder.store(builder.xor(word, flips), pointer).align = 4
            return context.get_dummy_value()

        integers = (types.int64,) * 4
        return types.none(*integers, types.int32), generate

    return spread


@intrinsic
def _dot(typingctx, codes, weights, count):
    """int32 sum of products of `count` unsigned bytes and signed bytes at two addresses."""
    wide = ir.VectorType(_I8, 64)

    def generate(context, builder, signature, args):
        codes, weights, count = args

        def add(total, x, w):
            return _call(builder, "llvm.x86.avx512.vpdpbusd.512", _INTS, total,
                         builder.bitcast(x, _INTS), builder.bitcast(w, _INTS))  # fmt: skip

        entry, zero = builder.block, ir.Constant(_INTS, [0] * LANES)
        check = builder.append_basic_block("check")
        whole, rest = (builder.append_basic_block(name) for name in ("whole", "rest"))
        builder.branch(check)
        builder.position_at_end(check)
        at, total = builder.phi(_I64), builder.phi(_INTS)
        at.add_incoming(_I64(0), entry)
        total.add_incoming(zero, entry)
        left = builder.sub(count, at)
        x, w = (builder.inttoptr(builder.add(p, at), wide.as_pointer()) for p in (codes, weights))
        builder.cbranch(builder.icmp_signed(">=", left, _I64(64)), whole, rest)
        builder.position_at_end(whole)
        loaded = [builder.load(pointer) for pointer in (x, w)]
        for value in loaded:
            value.align = 1
        total.add_incoming(add(total, *loaded), whole)
        at.add_incoming(builder.add(at, _I64(64)), whole)
        builder.branch(check)
        builder.position_at_end(rest)
        bits = builder.sub(builder.shl(_I64(1), left), _I64(1))
        mask = builder.bitcast(bits, ir.VectorType(_I1, 64))
        nothing = ir.Constant(wide, [0] * 64)
        loaded = [
            _call(builder, "llvm.masked.load.v64i8.p0", wide, p, _I32(1), mask, nothing)
            for p in (x, w)
        ]
        return _call(builder, "llvm.vector.reduce.add.v16i32", _I32, add(total, *loaded))

    return types.int32(*(types.int64,) * 3), generate


@kernel
def dot(codes, weights):
    """Sum of products of (n,) uint8 and (n,) int8, contiguous; below 2^31 for n < 2^16."""
    return np.int64(
        _dot(np.int64(codes.ctypes.data), np.int64(weights.ctypes.data), np.int64(len(codes)))
    )


PIXELS, WIDE = 16, 8
tile16x1 = _make_tile(PIXELS, 1)
tile8x2 = _make_tile(WIDE, 2)
spread16, spread8, spread4 = _make_spread(16), _make_spread(8), _make_spread(4)
