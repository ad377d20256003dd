"""How many 8-bit multiply-adds this CPU does in a second when it does nothing else.

Measured, not looked up: clocks of virtual machines are not told. A loop of VPDPBUSD on
registers alone, no loads in it, CHAINS sums in flight so that their latency hides (5 cycles
on Intel's cores and two a cycle need 10; measured, 12 are not enough and 16 are). The best
round counts: what others do on the machine must not make a bound smaller.
"""

from __future__ import annotations

import functools
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from llvmlite import ir
from numba import njit
from numba.core import cgutils, types
from numba.extending import intrinsic

from fsim.simulator.kernels.vnni import supported

CHAINS = 16
MACS = 64
"""Multiply-adds of one instruction: 16 lanes of four."""
ROUNDS = 9
COUNT = 1_000_000

_I32, _I64 = ir.IntType(32), ir.IntType(64)
_LANES = ir.VectorType(_I32, 16)


def _splat(builder, value):
    one = builder.insert_element(ir.Constant(_LANES, ir.Undefined), value, _I32(0))
    zeros = ir.Constant(_LANES, [0] * 16)
    return builder.shuffle_vector(one, ir.Constant(_LANES, ir.Undefined), zeros)


@intrinsic
def _chains(typingctx, count, seed):
    """`count` rounds of CHAINS independent VPDPBUSD; a number that depends on all of them."""

    def generate(context, builder, signature, args):
        count, seed = args
        name = "llvm.x86.avx512.vpdpbusd.512"
        kind = ir.FunctionType(_LANES, [_LANES] * 3)
        instruction = cgutils.get_or_insert_function(builder.module, kind, name)
        left, right = _splat(builder, seed), _splat(builder, builder.xor(seed, _I32(0x01020304)))
        entry = builder.block
        loop, done = builder.append_basic_block("loop"), builder.append_basic_block("done")
        builder.branch(loop)
        builder.position_at_end(loop)
        step = builder.phi(_I64)
        step.add_incoming(_I64(0), entry)
        sums = [builder.phi(_LANES) for _ in range(CHAINS)]
        for i, total in enumerate(sums):
            total.add_incoming(ir.Constant(_LANES, [i] * 16), entry)
        new = [builder.call(instruction, [total, left, right]) for total in sums]
        after = builder.add(step, _I64(1))
        step.add_incoming(after, loop)
        for total, value in zip(sums, new):
            total.add_incoming(value, loop)
        builder.cbranch(builder.icmp_signed("<", after, count), loop, done)
        builder.position_at_end(done)
        mixed = functools.reduce(builder.add, new)
        return builder.extract_element(mixed, _I32(0))

    return types.int32(types.int64, types.int32), generate


@njit(nogil=True)
def _work(count, seed):
    return _chains(count, seed)


def macs_per_second(threads: int) -> float | None:
    """Of all threads together, in the best round; None where the CPU has no AVX512-VNNI."""
    if not supported():
        return None
    seed = np.int32(7)
    _work(1, seed)
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(ROUNDS):
            start = time.perf_counter()
            list(pool.map(_work, [COUNT] * threads, [seed] * threads))
            best = max(best, threads * COUNT * CHAINS * MACS / (time.perf_counter() - start))
    return best
