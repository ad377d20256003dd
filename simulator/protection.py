"""Parity and SECDED: what struck words of a protected memory are read as.

FAULT rows are physical: what happens to stored bits, check bits included. Before anything
runs, `read_rows` turns those of protected memories into what leaves the decoder. It looks at
every memory word, residency and inference that rows strike:

* all errors of the residency act before the word is read (as everywhere, see `sites`), and
  the word is read as a whole: an error in any of its bits is seen;
* with a scrub interval, errors carry the number of the interval they struck in (column `col`
  of a row, -1: the last). At the end of every interval the word goes through the decoder and
  is written back: what it corrected is gone, what it miscorrected or cannot correct stays.
  Errors of different intervals therefore do not add up, unless they could not be corrected;
* parity detects an odd number of wrong bits; an even number is read as it is;
* SECDED corrects one wrong bit and detects two. Of three and more some are detected; the
  others make the decoder change one bit too many (or, if they are a code word, nothing), and
  what is read is wrong without a sign.

Data in which an error is detected are read as they are stored: the outcome of the inference
is DUE whatever it makes of them. A repair is *corrected* if what is read is right.

The code is Hsiao's (IBM Journal of Research and Development 14 (1970) 395): all columns of
the parity-check matrix are distinct and have an odd number of ones, so that two errors have a
syndrome with an even number, which no single error has. Data bits have, in order, the words of
three ones by rising value, then those of five, and so on; check bits the unit vectors. That is
(72, 64) with 8 check bits and (39, 32) with 7. Hsiao also balances the rows of the matrix, for
the depth of the circuit; which triple errors are miscorrected depends on such choices.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from fsim.accel_models.accel import CHECK
from fsim.errors import ConfigError, FaultError
from fsim.fault_models.rows import flip_rows
from fsim.types import LEVEL, STATE

from .kernels import ecc
from .kernels.ecc import CLEAN, CORRECTED, DETECTED


@dataclass(frozen=True, eq=False)
class Code:
    """A code over memory words of `word_bits` data bits; tables as `kernels/ecc.py` has them.

    protection  "parity" or "secded"
    """

    protection: str
    word_bits: int
    check_bits: int
    columns: np.ndarray
    fixes: np.ndarray

    def encode(self, data: np.ndarray) -> np.ndarray:
        """Check bits of data words, both (n,) uint64."""
        data = np.ascontiguousarray(data, np.uint64)
        check = np.empty(len(data), np.uint64)
        ecc.encode(data, self.columns, check)
        return check

    def decode(self, data, check) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(data, check, status) of stored words; status CLEAN, CORRECTED or DETECTED, uint8."""
        data, check = (np.array(x, np.uint64, ndmin=1) for x in (data, check))
        status = np.empty(len(data), np.uint8)
        ecc.decode(data, check, self.columns, self.fixes, status)
        return data, check, status


@lru_cache(maxsize=64)
def code_of(protection: str, word_bits: int, check_bits: int) -> Code:
    """The code of a protection; `Buffer.check_bits` says how many check bits it needs.

    ConfigError if there is none of that size.
    """
    fixes = np.full(1 << check_bits, ecc.DETECT, np.int64)
    fixes[0] = ecc.NOTHING
    if protection == "parity":
        columns = np.ones(word_bits, np.uint64)
        return Code(protection, word_bits, check_bits, columns, fixes)
    words = np.arange(1 << check_bits)
    ones = np.array([int(word).bit_count() for word in words])
    odd = words[(ones % 2 == 1) & (ones > 1)]
    if protection != "secded" or len(odd) < word_bits:
        raise ConfigError(
            f"a code must be parity, or secded with enough check bits, got {protection} with "
            f"{check_bits} for {word_bits} data bits"
        )
    columns = odd[np.lexsort((odd, ones[odd]))][:word_bits].astype(np.uint64)
    fixes[columns.astype(np.int64)] = np.arange(word_bits)
    fixes[1 << np.arange(check_bits)] = word_bits + np.arange(check_bits)
    return Code(protection, word_bits, check_bits, columns, fixes)


@dataclass(frozen=True, eq=False)
class Read:
    """FAULT rows after the decoders.

    rows  FAULT; none of check bits, and of protected memories what is read wrong
    key   (rows,) int64 inference of each, as it was given
    repaired, detected  FAULT rows of memory words that were repaired, and in which an error
          was detected: one of the rows that struck it, its component the memory's
    repaired_key, detected_key  int64 inference of each of these
    """

    rows: np.ndarray
    key: np.ndarray
    repaired: np.ndarray
    repaired_key: np.ndarray
    detected: np.ndarray
    detected_key: np.ndarray


def read_rows(
    placement, rows: np.ndarray, key: np.ndarray, count: int = 1, hw_batch: int | None = 1
) -> Read:
    """What protected memories make of faults.

    placement  of the rows' layers and components; also that of a joined space
    rows       FAULT
    key        (rows,) int64: rows of one key strike one inference (of weights: the images
               between two writes); -1: all inferences
    count, hw_batch  inferences 0..count - 1 that -1 stands for, where it meets others in a
               word; images between two writes of the weights

    Rows keep their order; a word that is read wrong has the place of the first row that struck
    its memory word. FaultError for faults whose effect depends on what an activation or a
    partial sum is (stuck bits): the decoder is asked before any value is known.
    """
    accel = placement.accel
    names = [component.name for component in accel.components]
    parts, sources, keys, seen = [], [], [], {"repaired": [], "detected": []}
    rest = np.ones(len(rows), bool)
    for memory in accel.protected:
        data, check = names.index(memory), names.index(memory + CHECK)
        mine = np.flatnonzero((rows["component"] == data) | (rows["component"] == check))
        if not len(mine):
            continue
        rest[mine] = False
        source, struck, its_key = mine, rows[mine], key[mine]
        if (its_key < 0).any() or (struck["effect"] == LEVEL).any():
            size = (hw_batch or count) if memory == "weights" else 1
            every = np.arange(0, count, size)
            source, struck, its_key = _told_apart(
                placement, memory, check, source, struck, its_key, every
            )
        words = _Words(placement, memory, check, struck, its_key)
        out, of = words.read()
        parts.append(out)
        sources.append(source[of])
        keys.append(its_key[of])
        for name, which in (("repaired", words.repaired), ("detected", words.detected)):
            heads = words.heads[which]
            found = struck[heads]
            found["component"] = data
            seen[name].append((found, its_key[heads]))
    others = np.flatnonzero(rest)
    sources, keys = np.concatenate([others, *sources]), np.concatenate([key[others], *keys])
    order = np.argsort(sources, kind="stable")
    found = np.concatenate([rows[others], *parts])[order]
    heads = [
        np.concatenate([empty, *(pair[at] for pair in seen[name])])
        for name in ("repaired", "detected")
        for at, empty in enumerate((rows[:0], key[:0]))
    ]
    return Read(found, keys[order], *heads)


class _Words:
    """The memory words of one memory that rows strike, one for each inference and residency.

    heads     (words,) int64 first row of each
    repaired, detected  (words,) bool, after `read`
    """

    def __init__(self, placement, memory: str, check: int, rows, key):
        self.placement, self.memory, self.rows = placement, memory, rows
        self.buffer = placement.accel.buffers[memory]
        self.check = rows["component"] == check
        self.block, self.line, self.at, self.bits = lines_of(placement, memory, check, rows)
        # `col` -1 is the last scrub interval.
        interval = rows["col"].astype(np.int64)
        interval[interval < 0] = np.iinfo(np.int64).max
        by = (self.line, rows["first"], self.block, key)
        self.order = np.lexsort((np.arange(len(rows)), interval, *by))
        same = np.ones(max(len(rows) - 1, 0), bool)
        for column in by:
            same &= np.diff(column[self.order]) == 0
        self.begins = np.flatnonzero(np.concatenate([[True], ~same, [True]]))
        self.heads = np.minimum.reduceat(self.order, self.begins[:-1])

    def read(self) -> tuple[np.ndarray, np.ndarray]:
        """(FAULT rows of tensor words that are read wrong, (r,) row that each is instead of)."""
        buffer, words = self.buffer, len(self.heads)
        code = code_of(buffer.protection, buffer.word_bits, buffer.check_bits)
        error = np.empty(words, np.uint64)
        self.repaired, self.detected = np.empty(words, bool), np.empty(words, bool)
        ecc.read_words(
            self.rows, self.order, self.begins, self.at, self.bits, self._written(), code.columns,
            code.fixes, error, self.repaired, self.detected,
        )  # fmt: skip
        parts, heads = [flip_rows(0)], [np.zeros(0, np.int64)]
        wrong = np.flatnonzero(error)
        blocks = self.placement.blocks
        for number in np.unique(self.block[self.heads[wrong]]).tolist():
            block = blocks[number]
            mine = wrong[self.block[self.heads[wrong]] == number]
            for at in range(buffer.word_bits // block.bits):
                field = error[mine] >> np.uint64(at * block.bits)
                field = (field & np.uint64((1 << block.bits) - 1)).astype(np.int64)
                here = np.flatnonzero(field)
                head = self.heads[mine[here]]
                place = self.line[head] * (buffer.word_bits // block.bits) + at
                residency = np.maximum(self.rows["first"][head], block.first)
                held = place < block.words_in(residency)  # the decoder may touch unused bits
                here, head, place, residency = (x[held] for x in (here, head, place, residency))
                parts.append(
                    self._wrong(block, head, block.unpacked(place, residency), field[here])
                )
                heads.append(head)
        return np.concatenate(parts), np.concatenate(heads)

    def _wrong(self, block, head, word, mask) -> np.ndarray:
        """Flips of the bits of `mask` in tensor words, otherwise like the rows `head`."""
        if block.signed and block.bits > 1:
            mask = np.where(mask >> (block.bits - 1), mask - (1 << block.bits), mask)
        rows = self.rows[head]
        component = self.placement.accel.component_index(self.memory)
        for name, values in (("component", component), ("row", -1), ("col", -1), ("word", word),
                             ("and_mask", -1), ("or_mask", 0), ("xor_mask", mask)):  # fmt: skip
            rows[name] = values
        return rows

    def _written(self) -> np.ndarray:
        """(words,) uint64 data of each memory word; 0 where only flips strike, which suffices.

        The codes are linear: what a decoder does to flips is the same in every word.
        """
        rows = self.rows
        old = np.zeros(len(self.heads), np.uint64)
        flips = (rows["and_mask"] == -1) & (rows["or_mask"] == 0)
        if flips.all():
            return old
        if self.memory != "weights":
            raise FaultError(
                f"faults in protected {self.memory} must be flips, whose check bits follow, got a "
                f"stuck bit (row {int(np.flatnonzero(~flips)[0])})"
            )
        ops, blocks = self.placement.program.ops, self.placement.blocks
        for number in np.unique(self.block[self.heads]).tolist():
            block = blocks[number]
            mine = np.flatnonzero(self.block[self.heads] == number)
            op = ops[block.layer]
            codes = (op if hasattr(op, "weight") else op.op).weight.reshape(-1).astype(np.int64)
            per = self.buffer.word_bits // block.bits
            for at in range(per):
                place = self.line[self.heads[mine]] * per + at
                code = np.where(place < len(codes), codes[np.minimum(place, len(codes) - 1)], 0)
                field = (code & ((1 << block.bits) - 1)).astype(np.uint64)
                old[mine] |= field << np.uint64(at * block.bits)
        return old


def lines_of(placement, memory: str, check: int, rows):
    """Where rows of a memory (check bits: component `check`) strike it.

    Returns int64 (rows,): block of the data, number of the memory word in its residency, place
    of the tensor word in that (-1: check bits), and width of what is struck.
    """
    buffer = placement.accel.buffers[memory]
    block, line, at, bits = (np.full(len(rows), -1, np.int64) for _ in range(4))
    is_check = rows["component"] == check
    layers, of = np.unique(rows["layer"], return_inverse=True)
    by_layer = np.argsort(of, kind="stable")
    cuts = np.searchsorted(of[by_layer], np.arange(len(layers) + 1))
    for one in placement.blocks:
        number = int(np.searchsorted(layers, one.layer))
        if one.component != memory or number == len(layers) or layers[number] != one.layer:
            continue
        mine = by_layer[cuts[number] : cuts[number + 1]]
        first = rows["first"][mine]
        # What lasts is in weights, which have one block a layer.
        here = (rows["effect"][mine] == LEVEL) | (one.content(first) >= 0)
        mine, first, checks = mine[here], first[here], is_check[mine[here]]
        word = rows["word"][mine]
        data = ~checks
        own, place = word.copy(), np.full(len(mine), -1)
        own[data], place[data] = np.divmod(
            one.packed(word[data], first[data]), buffer.word_bits // one.bits
        )
        block[mine], line[mine], at[mine] = one.number, own, place
        bits[mine] = np.where(checks, buffer.check_bits, one.bits)
    if (block < 0).any():
        lost = int(np.flatnonzero(block < 0)[0])
        raise FaultError(
            f"a fault in {memory} must be in a word and residency of its layer, got word "
            f"{int(rows['word'][lost])} and residency {int(rows['first'][lost])} (row {lost})"
        )
    return block, line, at, bits


def _told_apart(placement, memory: str, check: int, source, rows, key, every):
    """(source, rows, key) in which rows of one memory word act together wherever they act.

    Where lasting rows meet others in a memory word, or rows for all inferences those of single
    ones, they become one row for each residency and each inference of `every`.
    """
    block, line, _, _ = lines_of(placement, memory, check, rows)
    time = np.zeros_like(line) if memory == "weights" else rows["first"]
    _, word = np.unique(np.stack([block, time, line]), axis=1, return_inverse=True)
    word = word.reshape(-1)
    count = int(word.max(initial=-1)) + 1

    def differ(values) -> np.ndarray:
        """(rows,) bool: whether a value is not the same in all rows of the memory word."""
        low, high = np.full(count, np.iinfo(np.int64).max), np.full(count, np.iinfo(np.int64).min)
        np.minimum.at(low, word, values)
        np.maximum.at(high, word, values)
        return (low < high)[word]

    lasting = rows["effect"] == LEVEL
    by_time = lasting & (differ(lasting.astype(np.int64)) | differ(rows["first"])
                                | differ(rows["last"]))  # fmt: skip
    by_key = (key < 0) & differ((key < 0).astype(np.int64))
    if not (by_time | by_key).any():
        return source, rows, key
    found = []
    for i in range(len(rows)):
        times = [None]
        if by_time[i]:
            contents = placement.blocks[int(block[i])].contents
            times = range(max(int(rows["first"][i]), 0), min(int(rows["last"][i]) + 1, contents))
        for inference in every if by_key[i] else [key[i]]:
            for time in times:
                row = rows[i : i + 1].copy()
                if time is not None:
                    row["effect"], row["first"], row["last"] = STATE, time, time
                if by_key[i]:
                    row["image"] = inference
                found.append((source[i], row, inference))
    source, rows, key = zip(*found)
    return np.array(source, np.int64), np.concatenate(rows), np.array(key, np.int64)


__all__ = ["CLEAN", "CORRECTED", "DETECTED", "Code", "Read", "code_of", "read_rows"]
