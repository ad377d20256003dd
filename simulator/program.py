"""Run the integer network, clean or with faults.

`run` is plain integer arithmetic from the input's codes to the last accumulators:
the same bits for any number of threads and any batch size. Faults enter through
`Hooks`, which see and change the codes and accumulators that the hardware holds.
"""

from __future__ import annotations

import collections
import functools
import itertools
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch

from fsim.errors import ConfigError

from .kernels import requantise as kernels
from .ops import (
    Add,
    ArrayOp,
    AvgPool,
    Concat,
    Conv,
    Flatten,
    GlobalAvgPool,
    Host,
    Input,
    Linear,
    MatMul,
    MaxPool,
    Op,
    Pad,
    Program,
    Relu,
    Slice,
    code_dtype,
    code_range,
    fixed_point,
    with_weights,
)

__all__ = [
    "Add",
    "ArrayOp",
    "AvgPool",
    "Concat",
    "Conv",
    "Flatten",
    "GlobalAvgPool",
    "Hooks",
    "Host",
    "Input",
    "Linear",
    "MatMul",
    "MaxPool",
    "Op",
    "Pad",
    "Program",
    "Relu",
    "Result",
    "Slice",
    "SplitHooks",
    "code_dtype",
    "code_range",
    "fixed_point",
    "run",
    "with_weights",
]

HUNG = np.iinfo(np.int64).min
"""Every last accumulator of an inference whose machine gave no result: no sum is that."""

CHUNK = 128
"""Images that go through the network together, unless hooks want to see all."""


class Hooks(Protocol):
    """Where faults enter. Arrays are valid during the call only: copy what you keep."""

    def stored(self, op: Op, codes: np.ndarray) -> None:
        """`op` wrote its output `codes` (n, *op.layout); they may be changed in place.

        Called for operations with `stores`, except the last one, whose
        accumulators leave the array and are not stored as codes.
        """

    def loaded(self, op: Op, slot: int, codes: np.ndarray) -> np.ndarray:
        """`op` is about to read its input `slot`: the codes it gets.

        Returns `codes` itself or a changed copy; never changes them in place.
        Called for every operation with `stores`.
        """

    def accumulated(
        self, op: ArrayOp, inputs: tuple[np.ndarray, ...], acc: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """The array finished `op`.

        inputs  codes it read
        acc     exact sums (n, oh, ow, o) or (n, o), float32, int32, float64 or int64
                holding integers, WITHOUT bias, not yet wrapped; read only
        Returns None, or (flat index into acc, int64; final accumulators with the
        bias included, int64) of the outputs that differ; of one that comes twice
        the later value counts.
        """


class SplitHooks(Hooks, Protocol):
    """Hooks that can be told which images they get.

    Hooks without `part` see all images of a run at once, one operation after the
    other, and threads share the work of each operation. With it the images go
    through the network in chunks, on as many threads at the same time as asked for.
    """

    def part(self, begin: int, end: int) -> Hooks:
        """Hooks for images [begin, end) of the run, which they number from 0.

        Called from several threads, and what it returns is used by one.
        """


@dataclass(frozen=True, eq=False)
class Result:
    """What a run gives.

    logits    (n, classes) float32: acc times the dequantising scale
    acc       (n, classes) int64: the last accumulators, bias included, wrapped; of a
              network that does not end on the array, its last codes
    kept      operation index -> codes (n, *op.layout), as they were after any fault
    kept_acc  array operation index -> exact sums without bias, int64, (n, *op.layout)
    """

    logits: np.ndarray
    acc: np.ndarray
    kept: dict[int, np.ndarray] = field(default_factory=dict)
    kept_acc: dict[int, np.ndarray] = field(default_factory=dict)


class _Pool(threading.local):
    """Arrays that are written again and again, so that no page is ever new."""

    def __init__(self):
        self.free: dict[tuple, list[np.ndarray]] = {}

    def take(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        stack = self.free.get((shape, dtype))
        return stack.pop() if stack else np.empty(shape, dtype)

    def give(self, array: np.ndarray) -> None:
        stack = self.free.setdefault((array.shape, array.dtype), [])
        if len(stack) < 4:
            stack.append(array)

    def trim(self, limit_bytes: int = 256 << 20) -> None:
        """Forget everything if more than the limit is held."""
        held = sum(a.nbytes for stack in self.free.values() for a in stack)
        if held > limit_bytes:
            self.free.clear()


_pool = _Pool()


@contextmanager
def _threads(count: int):
    """Torch and numba on `count` threads; the settings of before come back."""
    before = torch.get_num_threads(), kernels.threads()
    if count != before[0]:
        torch.set_num_threads(count)
    kernels.set_threads(count)
    try:
        yield
    finally:
        # Always: a worker that started meanwhile has set MKL's threads for everyone.
        torch.set_num_threads(before[0])
        kernels.set_threads(before[1])


def _one_thread() -> None:
    """Start a worker: what it calls runs on the worker itself."""
    torch.set_num_threads(1)
    kernels.set_threads(1)


@functools.lru_cache(maxsize=4)
def _workers(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, "fsim-run", initializer=_one_thread)


def concurrently(program: Program, task, arguments: Iterable, threads: int | None) -> Iterator:
    """task(argument) of each argument, in order, on that many threads (None: torch's number).

    A task calls `run` with threads=1. Only about as many tasks as threads are begun
    ahead of what the caller has taken.
    """
    count = threads or torch.get_num_threads()
    arguments = iter(arguments)
    head = list(itertools.islice(arguments, 2))
    if count < 2 or len(head) < 2 or not kernels.concurrent():
        yield from map(task, itertools.chain(head, arguments))
        return
    for op in program.array_ops:
        program.ready(op)  # packed once, here, and not by two workers at a time
    workers = _workers(count)
    begun = collections.deque()
    try:
        for argument in itertools.chain(head, arguments):
            begun.append(workers.submit(task, argument))
            if len(begun) > count:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
    finally:
        for future in begun:
            future.cancel()


def run(
    program: Program,
    images: np.ndarray | None = None,
    *,
    hooks: Hooks | SplitHooks | None = None,
    start: tuple[int, Mapping[int, np.ndarray]] | None = None,
    keep: Collection[int] = (),
    keep_acc: Collection[int] = (),
    threads: int | None = None,
    chunk: int | None = None,
) -> Result:
    """Codes through the network.

    images   (n, c, h, w) float32, or the input's codes (n, h, w, c) of any integer type
    hooks    faults; `SplitHooks` run on several threads, others see all images at once
    start    (index, codes of earlier operations): operations before `index` are not
             run and the given codes, `program.live(index)` at least, stand for
             them; `images` is then not needed
    keep     operations whose codes are returned; keep_acc the same for sums
    threads  None leaves torch's and numba's settings
    chunk    images that go through together (default: up to 128); hooks without
             `part` always get all of them

    Raises ConfigError if the images do not fit the network or are not finite.
    """
    first, given = start if start is not None else (0, {})
    if first == 0:
        images = _checked_images(program, images)
        count = len(images)
    else:
        missing = [i for i in program.live(first) if i not in given]
        if missing:
            raise ConfigError(f"start={first} needs the codes of operations {missing} as well")
        count = len(next(iter(given.values())))
    wanted = threads or torch.get_num_threads()
    whole = hooks is not None and not hasattr(hooks, "part")
    step = max(count, 1) if whole else chunk or _step(count, wanted)

    def part(begin: int) -> Result:
        end = min(begin + step, count)
        codes = {i: array[begin:end] for i, array in given.items()}
        source = images[begin:end] if first == 0 else None
        mine = hooks if whole or hooks is None else hooks.part(begin, end)
        return _run_part(program, source, mine, first, codes, set(keep), set(keep_acc))

    begins = range(0, max(count, 1), step)
    with _threads(wanted):
        # One thread takes images through the whole network: no barrier between
        # operations, where a thread that another job holds up would stop the rest.
        parts = list(concurrently(program, part, begins, wanted))
    if len(parts) == 1:
        return parts[0]
    return Result(
        np.concatenate([p.logits for p in parts]),
        np.concatenate([p.acc for p in parts]),
        {i: np.concatenate([p.kept[i] for p in parts]) for i in parts[0].kept},
        {i: np.concatenate([p.kept_acc[i] for p in parts]) for i in parts[0].kept_acc},
    )


def step(program: Program, op: Op, inputs: tuple[np.ndarray, ...], hooks: Hooks) -> np.ndarray:
    """One operation alone, with faults: its codes, or of the last operation its sums.

    inputs  codes as held of the operations it reads, one batch of images
    """
    if op.stores:
        inputs = tuple(hooks.loaded(op, slot, codes) for slot, codes in enumerate(inputs))
    if op.is_array and op is program.ops[-1]:
        return _last(program, op, inputs, hooks, None)[1]
    if op.is_array:
        out = _array(program, op, inputs, hooks, None)
    else:
        sources = tuple(program.ops[i] for i in op.inputs)
        out = _OTHER[type(op)](op, inputs, sources)
    if op.stores:
        hooks.stored(op, out)
    return out


def _step(count: int, threads: int) -> int:
    """Images a chunk: at most CHUNK, and a whole number of rounds for all threads."""
    rounds = max(1, -(-count // (CHUNK * threads)))
    return max(1, -(-count // (rounds * threads)))


def _checked_images(program: Program, images: np.ndarray | None) -> np.ndarray:
    op = program.input
    if images is None:
        raise ConfigError("run needs images, or start= with the codes to go on from")
    images = np.asarray(images)
    is_float = images.dtype.kind == "f"
    shape = op.shape if is_float else op.layout
    if images.shape[1:] != shape:
        kind = "images" if is_float else "input codes"
        raise ConfigError(f"{kind} must be (n, {', '.join(map(str, shape))}), got {images.shape}")
    if is_float:
        if not np.isfinite(images).all():
            raise ConfigError(f"images must be finite, got NaN or infinity (input {op.name!r})")
        return np.ascontiguousarray(images, np.float32)
    lo, hi = op.range
    if images.size and (images.min() < lo or images.max() > hi):
        raise ConfigError(
            f"input codes must lie in [{lo}, {hi}], got [{images.min()}, {images.max()}]"
        )
    return images


def _run_part(program, images, hooks, first, codes, keep, keep_acc) -> Result:
    """One chunk of images through the operations from `first` on."""
    owned: dict[int, np.ndarray] = {}
    kept = {i: codes[i].copy() for i in keep if i in codes}
    kept_acc: dict[int, np.ndarray] = {}
    last = program.ops[-1]
    for op in program.ops[first:]:
        inputs = tuple(codes[i] for i in op.inputs)
        if hooks is not None and op.stores:
            inputs = tuple(hooks.loaded(op, slot, c) for slot, c in enumerate(inputs))
        if op.is_array:
            sums = kept_acc if op.index in keep_acc else None
            if op is last:
                result = _last(program, op, inputs, hooks, sums)
                break
            out = _array(program, op, inputs, hooks, sums)
            owned[op.index] = out
        elif isinstance(op, Input):
            out = _input(op, images)
            owned[op.index] = out
        else:
            sources = tuple(program.ops[i] for i in op.inputs)
            out = _OTHER[type(op)](op, inputs, sources)
            if op.stores or isinstance(op, Pad):
                owned[op.index] = out
        if hooks is not None and op.stores:
            hooks.stored(op, out)
        if op is last:
            final = np.ascontiguousarray(_natural(out, op), np.int64).reshape(len(out), -1)
            result = final.astype(np.float32) * np.float32(op.scale), final
        codes[op.index] = out
        if op.index in keep:
            kept[op.index] = out.copy()
        for i in program.release[op.index]:
            codes.pop(i, None)
            if i in owned:
                _pool.give(owned.pop(i))
    for array in owned.values():
        _pool.give(array)
    _pool.trim()
    return Result(*result, kept, kept_acc)


def _input(op: Input, images: np.ndarray) -> np.ndarray:
    out = _pool.take((len(images), *op.layout), op.dtype)
    if images.dtype.kind != "f":
        out[...] = images
        return out
    lo, hi = (np.float32(v) for v in op.range)
    inverse = np.float32(1.0 / op.scale)
    n, c = images.shape[:2] if images.ndim == 4 else (len(images), 1)
    flat = images.reshape(n, c, -1)
    kernels.quantise_images(flat, inverse, lo, hi, out.reshape(n, -1, c))
    return out


def _sums(program: Program, op: ArrayOp, inputs: tuple[np.ndarray, ...]) -> np.ndarray:
    """Exact sums, the product's offset still in them."""
    raw = program.ready(op).exact.raw
    if isinstance(op, Conv):
        return raw(np.ascontiguousarray(inputs[0]))
    # Linear and matmul read no channels-last map (`capture` sees to that).
    return raw(*(np.ascontiguousarray(c) for c in inputs))


def _array(program, op, inputs, hooks, sums) -> np.ndarray:
    """Output codes of an array operation that is not the last."""
    ready = program.ready(op)
    out = _pool.take((len(inputs[0]), *op.layout), op.dtype)
    observed = hooks is not None or sums is not None
    acc = None
    if ready.scaling is not None:
        if observed:
            acc = _pool.take(out.shape, np.dtype(np.int32))
        ready.exact.fused(np.ascontiguousarray(inputs[0]), ready.scaling, acc, out)
        if not observed:
            return out
    else:
        acc = _sums(program, op, inputs)
        _requantise(program, op, ready, acc, out)
        if not observed:
            return out
    if ready.exact.offset is not None:
        acc -= ready.exact.offset.astype(acc.dtype)
    if sums is not None:
        sums[op.index] = acc.astype(np.int64)
    replaced = hooks.accumulated(op, inputs, acc) if hooks is not None else None
    if replaced is not None and len(replaced[0]):
        index, value = (np.ascontiguousarray(v, np.int64) for v in replaced)
        kernels.requantise_at(
            index, value, _channels(op.multiplier, acc), program.acc_bits, ready.lo, ready.hi,
            out.reshape(-1),
        )  # fmt: skip
    if ready.scaling is not None:
        _pool.give(acc)
    return out


def _requantise(program, op, ready, acc, out) -> None:
    """Codes of sums whose product does not requantise itself; sums hold the offset."""
    if ready.fast:
        arguments = (
            acc.reshape(-1), ready.bias, ready.multiplier, ready.lo, ready.hi, out.reshape(-1)
        )  # fmt: skip
        pieces = _pieces(acc.size)
        if pieces == 1:
            kernels.requantise_float(*arguments)
        else:
            kernels.requantise_float_parallel(*arguments, pieces)
        return
    rows = acc.reshape(-1, acc.shape[-1])
    kernels.requantise_integer(
        rows, _channels(op.bias - _offset(ready), rows), _channels(op.multiplier, rows),
        program.acc_bits, ready.lo, ready.hi, out.reshape(rows.shape),
    )  # fmt: skip


def _last(program, op, inputs, hooks, sums) -> tuple[np.ndarray, np.ndarray]:
    """(logits, accumulators) of the last operation."""
    ready = program.ready(op)
    acc = _sums(program, op, inputs)
    if ready.exact.offset is not None:
        acc -= ready.exact.offset.astype(acc.dtype)
    if sums is not None:
        sums[op.index] = acc.astype(np.int64)
    final = acc.astype(np.int64) + op.bias
    if hooks is not None:
        replaced = hooks.accumulated(op, inputs, acc)
        if replaced is not None:
            final.reshape(-1)[replaced[0]] = replaced[1]
    shift = 64 - program.acc_bits
    final = (final << shift) >> shift
    hung = sorted(getattr(hooks, "hung", ()))
    if hung:
        final[hung] = HUNG
    logits = final.astype(np.float32) * op.multiplier
    return tuple(np.ascontiguousarray(_natural(v, op)).reshape(len(v), -1) for v in (logits, final))


def _offset(ready) -> np.ndarray | int:
    return 0 if ready.exact.offset is None else ready.exact.offset


def _channels(vector: np.ndarray, acc: np.ndarray) -> np.ndarray:
    """A per-channel vector; one entry stands for every channel."""
    return np.ascontiguousarray(np.broadcast_to(vector, acc.shape[-1:]))


def _pieces(size: int) -> int:
    """Pieces of a parallel kernel: one where starting threads costs more than the work."""
    return 1 if size < 1 << 15 else kernels.threads()


def _natural(codes: np.ndarray, op: Op) -> np.ndarray:
    """Output of `op` as held -> (n, *shape), the network's own order."""
    return codes.transpose(0, 3, 1, 2) if op.channels_last else codes


def _held(values: np.ndarray, op: Op) -> np.ndarray:
    """(n, *shape) -> output of `op` as held."""
    return values.transpose(0, 2, 3, 1) if op.channels_last else values


def _add(op: Add, inputs, sources) -> np.ndarray:
    a, b = (np.ascontiguousarray(c) for c in inputs)
    out = _pool.take(a.shape, op.dtype)
    flat = a.reshape(-1), b.reshape(-1)
    largest = (max(map(abs, source.range)) for source in sources)
    if sum(abs(m) * code for m, code in zip((op.m0, op.m1), largest)) <= 2**24:
        numbers = (np.float32(v) for v in (op.m0, op.m1, 2.0**-op.shift, op.lo, op.hi))
        pieces = _pieces(a.size)
        if pieces == 1:
            kernels.add_narrow(*flat, *numbers, out.reshape(-1))
        else:
            kernels.add_narrow_parallel(*flat, *numbers, out.reshape(-1), pieces)
    else:
        kernels.add_wide(*flat, op.m0, op.m1, op.shift, op.lo, op.hi, out.reshape(-1))
    return out


def _average(op: AvgPool, inputs, sources) -> np.ndarray:
    codes = np.ascontiguousarray(inputs[0])
    out = _pool.take((len(codes), *op.layout), op.dtype)
    kernels.average_pool(codes, op.kernel, op.stride, op.padding, op.m0, op.shift, *op.range, out)
    return out


def _maximum(op: MaxPool, inputs, sources) -> np.ndarray:
    codes = np.ascontiguousarray(inputs[0])
    out = _pool.take((len(codes), *op.layout), op.dtype)
    kernels.max_pool(codes, op.kernel, op.stride, op.padding, op.dilation, out)
    return out


def _relu(op: Relu, inputs, sources) -> np.ndarray:
    return np.clip(inputs[0].astype(np.int64), op.lo, op.hi).astype(op.dtype)


def _flatten(op: Flatten, inputs, sources) -> np.ndarray:
    codes = inputs[0]
    return np.ascontiguousarray(_natural(codes, sources[0])).reshape(len(codes), *op.shape)


def _pad(op: Pad, inputs, sources) -> np.ndarray:
    out = _pool.take((len(inputs[0]), *op.layout), op.dtype)
    out[...] = 0
    inner = _natural(out, op)
    ends = (slice(a, n - b) for (a, b), n in zip(op.amount, op.shape))
    inner[(slice(None), *ends)] = _natural(inputs[0], sources[0])
    return out


def _slice(op: Slice, inputs, sources) -> np.ndarray:
    return _held(_natural(inputs[0], sources[0])[(slice(None), *op.slices)], op)


def _concat(op: Concat, inputs, sources) -> np.ndarray:
    parts = []
    for codes, source, m0 in zip(inputs, sources, op.m0):
        if m0 is not None:
            flat = np.ascontiguousarray(codes)
            codes = np.empty(flat.shape, op.dtype)
            kernels.rescale(flat.reshape(-1), m0, op.shift, *op.range, codes.reshape(-1))
        parts.append(_natural(codes, source))
    joined = np.concatenate(parts, axis=op.axis + 1)
    return np.ascontiguousarray(_held(joined, op), op.dtype)


def _host(op: Host, inputs, sources) -> np.ndarray:
    scales = [np.float32(1.0 if op.moves else s) for s in op.in_scales]
    inverse = np.float32(1.0 if op.moves else 1.0 / op.scale)
    lo, hi = op.range
    naturals = [
        _natural(codes, source).astype(np.float32) * scale
        for codes, source, scale in zip(inputs, sources, scales)
    ]
    out = np.empty((len(inputs[0]), *op.shape), op.dtype)
    before = torch.get_num_threads()
    # One image and one thread at a time: float results may not depend on either.
    torch.set_num_threads(1)
    with torch.no_grad():
        for i in range(len(out)):
            images = (torch.from_numpy(np.ascontiguousarray(v[i : i + 1])) for v in naturals)
            values = op.function(*images).to(torch.float32).numpy()[0]
            codes = np.clip(np.rint(values * inverse), lo, hi)
            out[i] = np.nan_to_num(codes, nan=0.0).astype(op.dtype)
    torch.set_num_threads(before)
    return np.ascontiguousarray(_held(out, op))


_OTHER = {
    Add: _add,
    AvgPool: _average,
    GlobalAvgPool: _average,
    MaxPool: _maximum,
    Relu: _relu,
    Flatten: _flatten,
    Pad: _pad,
    Slice: _slice,
    Concat: _concat,
    Host: _host,
}
