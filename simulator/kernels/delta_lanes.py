"""Sixteen channels of one pixel at a time: what is not a product of matrices.

LLVM code in its own vectors, which it compiles for any machine: numba's loops over channels
are too short to become vector code. Codes lie in memory as `delta_table.py` says. Addresses
are int64; `words` counts the words of four channels from there to the pixel's end, and only
those are written. Everything that writes returns which of the four words became others,
as bits of an int64.
"""

from __future__ import annotations

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from .vnni_code import _BYTES, _FLOATS, _I1, _I8, _I32, _I64, _INTS, LANES, _call, _splat

_LONGS = ir.VectorType(_I64, LANES)
_QUAD = ir.VectorType(_I32, 4)


# --- pieces of code ---


def pointer(builder, address, offset, kind):
    if isinstance(offset, int):
        offset = _I64(offset)
    return builder.inttoptr(builder.add(address, offset), kind.as_pointer())


def load(builder, address, offset, kind):
    value = builder.load(pointer(builder, address, offset, kind))
    value.align = 1
    return value


def loop(builder, count, phis, body):
    """`body(t, values)` gives the next values for t = 0 .. count - 1; the last ones."""
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
        held.append(builder.phi(value.type))
        held[-1].add_incoming(value, entry)
    builder.cbranch(builder.icmp_signed("<", t, count), work, done)
    builder.position_at_end(work)
    new = body(t, held)
    end = builder.block  # the body may have loops of its own
    t.add_incoming(builder.add(t, _I64(1)), end)
    for phi, value in zip(held, new):
        phi.add_incoming(value, end)
    builder.branch(check)
    builder.position_at_end(done)
    return held


def put(builder, codes, address, offset=0, words=None):
    """Store 16 bytes, those of the first `words` words; bits of the words that differed."""
    where = builder.add(address, _I64(offset))
    old, new = load(builder, where, 0, _QUAD), builder.bitcast(codes, _QUAD)
    differs = builder.bitcast(builder.icmp_unsigned("!=", old, new), ir.IntType(4))
    differs = builder.zext(differs, _I64)
    whole = pointer(builder, where, 0, _QUAD)
    if words is None:
        builder.store(new, whole).align = 1
        return differs
    full = builder.icmp_signed(">=", words, _I64(4))
    with builder.if_else(full) as (then, otherwise):
        with then:
            builder.store(new, whole).align = 1
        with otherwise:
            for i in range(3):
                with builder.if_then(builder.icmp_signed(">", words, _I64(i))):
                    one = builder.extract_element(new, _I32(i))
                    builder.store(one, pointer(builder, where, 4 * i, _I32)).align = 1
    exist = builder.sub(builder.shl(_I64(1), words), _I64(1))
    return builder.and_(differs, builder.select(full, _I64(15), exist))


def clamped(builder, value, lo, hi, zero):
    """Bytes of float32 values: clamp, round half to even, add `zero`; scalars."""
    low, high = (_splat(builder, v, _FLOATS) for v in (lo, hi))
    value = builder.select(builder.fcmp_ordered(">", value, low), value, low)
    value = builder.select(builder.fcmp_ordered("<", value, high), value, high)
    # Rounds as the machine is set to, which is half to even, like rint.
    code = _call(builder, "llvm.lrint.v16i32.v16f32", _INTS, value)
    code = builder.add(code, _splat(builder, builder.trunc(zero, _I32), _INTS))
    return builder.trunc(code, _BYTES)


def narrow_codes(builder, sums, factors, lo, hi, zero):
    """Bytes of int32 sums, bias included, that are exact in float32.

    As `requantise_float`: one rounding a step, clamp before rounding.
    """
    value = builder.fmul(builder.sitofp(sums, _FLOATS), load(builder, factors, 0, _FLOATS))
    return clamped(builder, value, lo, hi, zero)


def wide_codes(builder, sums, offset, bias, factors, shift, lo, hi, zero):
    """Bytes of sums that may wrap; offset and bias (16,) int64, shift = 64 - width.

    As `requantise_integer`.
    """
    offset = builder.trunc(load(builder, offset, 0, _LONGS), _INTS)
    value = builder.sext(builder.sub(sums, offset), _LONGS)
    value = builder.add(value, load(builder, bias, 0, _LONGS))
    shift = _splat(builder, shift, _LONGS)
    value = builder.ashr(builder.shl(value, shift), shift)
    value = builder.fmul(builder.sitofp(value, _FLOATS), load(builder, factors, 0, _FLOATS))
    return clamped(builder, value, lo, hi, zero)


def _rounded(builder, value, shift, lo, hi, zero):
    """Bytes of clamp(round_half_even(value / 2^shift)), value (16,) int64, shift >= 1."""
    one = ir.Constant(_LONGS, [1] * LANES)
    half = builder.sub(builder.shl(_I64(1), builder.sub(shift, _I64(1))), _I64(1))
    places = _splat(builder, shift, _LONGS)
    even = builder.and_(builder.ashr(value, places), one)
    value = builder.add(builder.add(value, even), _splat(builder, half, _LONGS))
    return _within(builder, builder.ashr(value, places), lo, hi, zero, _LONGS)


def _within(builder, value, lo, hi, zero, kind):
    """Bytes of clamp(value) + zero, all integers of `kind`'s width."""
    low, high, add = (_splat(builder, v, kind) for v in (lo, hi, zero))
    value = builder.select(builder.icmp_signed(">", value, low), value, low)
    value = builder.select(builder.icmp_signed("<", value, high), value, high)
    return builder.trunc(builder.add(value, add), _BYTES)


def _codes(builder, address, kind, zero=None):
    value = builder.zext(load(builder, address, 0, _BYTES), kind)
    return value if zero is None else builder.sub(value, _splat(builder, zero, kind))


_long, _real = types.int64, types.float32


# --- bits ---


@intrinsic
def first_bit(typingctx, bits):
    """Number of the lowest bit of a uint64 that is not 0."""

    def generate(context, builder, signature, args):
        return _call(builder, "llvm.cttz.i64", _I64, args[0], _I1(1))

    return types.int64(types.uint64), generate


@intrinsic
def last_bit(typingctx, bits):
    """Number of the highest bit of a uint64 that is not 0."""

    def generate(context, builder, signature, args):
        return builder.sub(_I64(63), _call(builder, "llvm.ctlz.i64", _I64, args[0], _I1(1)))

    return types.int64(types.uint64), generate


@intrinsic
def count_bits(typingctx, bits):
    """How many bits of a uint64 are 1."""

    def generate(context, builder, signature, args):
        return _call(builder, "llvm.ctpop.i64", _I64, args[0])

    return types.int64(types.uint64), generate


@intrinsic
def even_bits(typingctx, bits):
    """Bits 0, 2, .. 62 of a uint64, one after another."""

    def generate(context, builder, signature, args):
        value = builder.and_(args[0], _I64(0x5555555555555555))
        for shift, mask in (
            (1, 0x3333333333333333), (2, 0x0F0F0F0F0F0F0F0F), (4, 0x00FF00FF00FF00FF),
            (8, 0x0000FFFF0000FFFF), (16, 0x00000000FFFFFFFF),
        ):  # fmt: skip
            value = builder.or_(value, builder.lshr(value, _I64(shift)))
            value = builder.and_(value, _I64(mask))
        return value

    return types.uint64(types.uint64), generate


@intrinsic
def keep_bits(typingctx, bits, flags):
    """Those of a uint64's bits whose flag is not 0; flags: address of an int64 for each bit."""

    def generate(context, builder, signature, args):
        entry = builder.block
        check, work, done = (builder.append_basic_block(n) for n in ("check", "work", "done"))
        builder.branch(check)
        builder.position_at_end(check)
        rest, kept, at = (builder.phi(_I64) for _ in range(3))
        for phi, value in ((rest, args[0]), (kept, _I64(0)), (at, args[1])):
            phi.add_incoming(value, entry)
        builder.cbranch(builder.icmp_unsigned("!=", rest, _I64(0)), work, done)
        builder.position_at_end(work)
        others = builder.and_(rest, builder.sub(rest, _I64(1)))
        differs = builder.icmp_unsigned("!=", load(builder, at, 0, _I64), _I64(0))
        kept.add_incoming(
            builder.select(differs, builder.or_(kept, builder.xor(rest, others)), kept), work
        )
        rest.add_incoming(others, work)
        at.add_incoming(builder.add(at, _I64(8)), work)
        builder.branch(check)
        builder.position_at_end(done)
        return kept

    return types.uint64(types.uint64, _long), generate


@intrinsic
def list_bits(typingctx, bits, count, columns, size, window, across, other, beside, target, along,
              place):  # fmt: skip
    """List the pixels of a word of bits (`delta_rows.py`); how many entries there are then.

    bits     uint64, one for each pixel
    count    entries before
    columns, size  address of the list, bytes of a column
    window, other, target  offsets of the word's first pixel; across, beside, along: from one
             pixel to the next
    place    of the first pixel
    """

    def generate(context, builder, signature, args):
        bits, count, columns, size, *offsets, place = args
        entry = builder.block
        check, work, done = (builder.append_basic_block(n) for n in ("check", "work", "done"))
        builder.branch(check)
        builder.position_at_end(check)
        rest, entries = builder.phi(_I64), builder.phi(_I64)
        for phi, value in ((rest, bits), (entries, count)):
            phi.add_incoming(value, entry)
        builder.cbranch(builder.icmp_unsigned("!=", rest, _I64(0)), work, done)
        builder.position_at_end(work)
        x = _call(builder, "llvm.cttz.i64", _I64, rest, _I1(1))
        at = builder.add(columns, builder.shl(entries, _I64(3)))
        values = [
            builder.add(first, builder.mul(x, step))
            for first, step in zip(offsets[::2], offsets[1::2])
        ]
        for value in (*values, builder.add(place, x), _I64(0)):
            builder.store(value, pointer(builder, at, 0, _I64)).align = 8
            at = builder.add(at, size)
        rest.add_incoming(builder.and_(rest, builder.sub(rest, _I64(1))), work)
        entries.add_incoming(builder.add(entries, _I64(1)), work)
        builder.branch(check)
        builder.position_at_end(done)
        return entries

    return _long(types.uint64, *(_long,) * 10), generate


# --- sixteen channels ---


@intrinsic
def byte(typingctx, address):
    """The byte there, as int64."""

    def generate(context, builder, signature, args):
        return builder.zext(load(builder, args[0], 0, _I8), _I64)

    return _long(_long), generate


@intrinsic
def put_byte(typingctx, value, address):
    """Store a byte."""

    def generate(context, builder, signature, args):
        builder.store(builder.trunc(args[0], _I8), pointer(builder, args[1], 0, _I8))
        return context.get_dummy_value()

    return types.none(_long, _long), generate


@intrinsic
def copy_words(typingctx, source, target, size):
    """Copy `size` bytes, a multiple of four."""

    def generate(context, builder, signature, args):
        source, target, size = args
        done = _I64(0)
        for kind, shift in ((ir.VectorType(_I32, LANES), 6), (_QUAD, 4), (_I32, 2)):
            count = builder.lshr(builder.sub(size, done), _I64(shift))

            def body(t, held, done=done, kind=kind, shift=shift):
                at = builder.add(done, builder.shl(t, _I64(shift)))
                value = load(builder, source, at, kind)
                builder.store(value, pointer(builder, target, at, kind)).align = 1
                return []

            loop(builder, count, [], body)
            done = builder.add(done, builder.shl(count, _I64(shift)))
        return context.get_dummy_value()

    return types.none(_long, _long, _long), generate


@intrinsic
def add_products16(typingctx, sums, weights, factor):
    """Add 16 signed bytes times an int64 factor to 16 int32 sums; addresses."""

    def generate(context, builder, signature, args):
        sums, weights, factor = args
        product = builder.mul(
            builder.sext(load(builder, weights, 0, _BYTES), _INTS),
            _splat(builder, builder.trunc(factor, _I32), _INTS),
        )
        total = builder.add(load(builder, sums, 0, _INTS), product)
        builder.store(total, pointer(builder, sums, 0, _INTS)).align = 1
        return context.get_dummy_value()

    return types.none(_long, _long, _long), generate


@intrinsic
def copy16(typingctx, source, target, words):
    """As they are; what differed."""

    def generate(context, builder, signature, args):
        source, target, words = args
        return put(builder, load(builder, source, 0, _BYTES), target, words=words)

    return _long(_long, _long, _long), generate


@intrinsic
def differ16(typingctx, one, other, words):
    """Which words differ; nothing is written."""

    def generate(context, builder, signature, args):
        one, other = (load(builder, address, 0, _QUAD) for address in args[:2])
        differs = builder.bitcast(builder.icmp_unsigned("!=", one, other), ir.IntType(4))
        exist = builder.sub(builder.shl(_I64(1), args[2]), _I64(1))
        full = builder.icmp_signed(">=", args[2], _I64(4))
        exist = builder.select(full, _I64(15), exist)
        return builder.and_(builder.zext(differs, _I64), exist)

    return _long(_long, _long, _long), generate


@intrinsic
def add16(typingctx, one, other, target, f0, f1, excess, lo, hi, zero, words):
    """clamp(round_half_even(f0 a + f1 b - excess)) of bytes a and b.

    f0, f1, excess  float32: integers of at most 2^24, also in sum, by one power of two
    lo, hi          float32 integers
    All but the rounding is exact, whether products are rounded before they are added or not.
    """

    def generate(context, builder, signature, args):
        one, other, target, f0, f1, excess, lo, hi, zero, words = args
        total = builder.fneg(_splat(builder, excess, _FLOATS))
        for address, factor in ((other, f1), (one, f0)):
            value = builder.sitofp(_codes(builder, address, _INTS), _FLOATS)
            factor = _splat(builder, factor, _FLOATS)
            total = _call(builder, "llvm.fmuladd.v16f32", _FLOATS, value, factor, total)
        return put(builder, clamped(builder, total, lo, hi, zero), target, words=words)

    return _long(_long, _long, _long, *(_real,) * 5, _long, _long), generate


@intrinsic
def add16_wide(typingctx, one, other, target, m0, m1, excess, shift, lo, hi, zero, words):
    """As `add16` in int64, with `shift` itself."""

    def generate(context, builder, signature, args):
        one, other, target, m0, m1, excess, shift, lo, hi, zero, words = args
        total = None
        for address, factor in ((one, m0), (other, m1)):
            value = _codes(builder, address, _LONGS)
            value = builder.mul(value, _splat(builder, factor, _LONGS))
            total = value if total is None else builder.add(total, value)
        total = builder.sub(total, _splat(builder, excess, _LONGS))
        return put(builder, _rounded(builder, total, shift, lo, hi, zero), target, words=words)

    return _long(*(_long,) * 11), generate


@intrinsic
def relu16(typingctx, source, target, zero_in, lo, hi, zero, words):
    """clamp(code)."""

    def generate(context, builder, signature, args):
        source, target, zero_in, lo, hi, zero, words = args
        value = _codes(builder, source, _LONGS, zero_in)
        codes = _within(builder, value, lo, hi, zero, _LONGS)
        return put(builder, codes, target, words=words)

    return _long(*(_long,) * 7), generate


def _over_window(builder, window, start, step):
    """`step(value, address)` over the positions of a window.

    window  (address, rows, columns, bytes from one row, one column to the next)
    """
    address, rows, columns, down, across = window

    def each_row(y, held):
        line = builder.add(address, builder.mul(y, down))

        def each_pixel(x, held):
            return [step(held[0], builder.add(line, builder.mul(x, across)))]

        return loop(builder, columns, held, each_pixel)

    return loop(builder, rows, [start], each_row)[0]


@intrinsic
def average16(typingctx, address, rows, columns, down, across, target, m0, excess, shift, lo, hi,
              zero, words):  # fmt: skip
    """clamp(round_half_even((sum of the window's bytes - excess) * m0 / 2^shift))."""

    def generate(context, builder, signature, args):
        target, m0, excess, shift, lo, hi, zero, words = args[5:]
        total = _over_window(
            builder, args[:5], ir.Constant(_INTS, [0] * LANES),
            lambda value, at: builder.add(value, _codes(builder, at, _INTS)),
        )  # fmt: skip
        total = builder.sub(builder.sext(total, _LONGS), _splat(builder, excess, _LONGS))
        total = builder.mul(total, _splat(builder, m0, _LONGS))
        return put(builder, _rounded(builder, total, shift, lo, hi, zero), target, words=words)

    return _long(*(_long,) * 13), generate


@intrinsic
def maximum16(typingctx, address, rows, columns, down, across, target, words):
    """Largest byte of a window."""

    def generate(context, builder, signature, args):
        most = _over_window(
            builder, args[:5], ir.Constant(_BYTES, [0] * LANES),
            lambda value, at: _call(
                builder, "llvm.umax.v16i8", _BYTES, value, load(builder, at, 0, _BYTES)
            ),
        )  # fmt: skip
        return put(builder, most, args[5], words=args[6])

    return _long(*(_long,) * 7), generate


@intrinsic
def depthwise16(typingctx, window, steps, positions, weight, across, narrow, bias, offset, wide,
                factors, shift, lo, hi, zero, target, words):  # fmt: skip
    """Sum over a window of each channel's products, requantised.

    steps     address of int32 byte offsets of the window's positions
    weight    address of int8 weights, `across` bytes from one position to the next
    narrow    whether `bias` is enough (`narrow_codes`), or offset and wide needed
    """

    def generate(context, builder, signature, args):
        (window, steps, positions, weight, across, narrow, bias, offset, wide, factors, shift,
         lo, hi, zero, target, words) = args  # fmt: skip

        def body(t, held):
            step = builder.load(pointer(builder, steps, builder.shl(t, _I64(2)), _I32))
            codes = load(builder, window, builder.sext(step, _I64), _BYTES)
            factor = load(builder, weight, builder.mul(t, across), _BYTES)
            product = builder.mul(builder.zext(codes, _INTS), builder.sext(factor, _INTS))
            return [builder.add(held[0], product)]

        sums = loop(builder, positions, [ir.Constant(_INTS, [0] * LANES)], body)[0]
        found = []
        with builder.if_else(builder.icmp_signed("!=", narrow, _I64(0))) as (then, otherwise):
            with then:
                total = builder.add(sums, load(builder, bias, 0, _INTS))
                found.append(narrow_codes(builder, total, factors, lo, hi, zero))
                blocks = [builder.block]
            with otherwise:
                found.append(wide_codes(builder, sums, offset, wide, factors, shift, lo, hi, zero))
                blocks.append(builder.block)
        codes = builder.phi(_BYTES)
        for value, block in zip(found, blocks):
            codes.add_incoming(value, block)
        return put(builder, codes, target, words=words)

    longs = (_long,) * 11
    return _long(*longs, _real, _real, _long, _long, _long), generate
