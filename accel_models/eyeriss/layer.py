"""A layer with faults on `eyeriss-like`: which sums differ, and what they are.

Behind a PE there are only adders that wrap, so a fault in a PE or on a bus changes a sum by
the difference it makes to what leaves its PEs, whatever else is wrong: the PEs it touches
are run for the passes it touches (`tile.difference`) and the differences added. A partial
sum struck in the global buffer needs the sum at that time: the final one less what later
passes add.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from fsim.simulator.kernels import truncated
from fsim.types import (
    LEVEL,
    T_AND,
    T_COL,
    T_COMPONENT,
    T_EFFECT,
    T_FIRST,
    T_LAST,
    T_OR,
    T_ROW,
    T_WORD,
    T_XOR,
)

from . import tile
from .mapping import Mapping, place

_IFMAP_BUS, _FILTER_BUS = 4, 5

Tile = tuple[int, int, int]
"""(group, filter pass, strip): the sums of one tile are made in its passes over channels."""


class Operands:
    """What the passes of a layer read.

    codes, weights  group -> (h, w, c) codes and (kh, kw, c, n) weights of the group, int32
    changed         tile -> the same two, where they are others for that tile's passes
    """

    def __init__(self, codes: Callable, weights: Callable, changed: dict | None = None):
        self._codes, self._weights = lru_cache(2)(codes), lru_cache(2)(weights)
        self.changed = changed or {}

    def of(self, tile: Tile) -> tuple[np.ndarray, np.ndarray]:
        """(codes, weights) that a tile's passes read."""
        if tile in self.changed:
            return self.changed[tile]
        return self._codes(tile[0]), self._weights(tile[0])


def changed_sums(accel, low, operands: Operands, clean, bias, table, truncate: int):
    """Final sums of one image that differ.

    low       `fsim.simulator.lower.Lowered`
    clean     (g, p, n) -> int64 sums without bias of plain operands, arrays broadcast
    bias      (groups, n) int64
    table     (f, 10) fault table: registers in cycles of the layer, words of `psums` with
              the pass over channels that stored them; no other memory
    Returns (group, position, filter, value) int64 arrays.
    """
    layer = _Layer(accel, low, operands, truncate)
    names = [component.name for component in accel.components]
    stored = table[:, T_COMPONENT] == names.index("psums")
    passes = layer.passes_of(table[~stored])
    words = layer.words_of(table[stored])
    tiles = {layer.mapping.position(number)[:3] for number in passes}
    found = []
    for at in sorted(tiles | set(words) | set(operands.changed)):
        found.append(layer.tile(at, clean, bias, passes, table[~stored], words.get(at)))
    if not found:
        return tuple(np.zeros(0, np.int64) for _ in range(4))
    return tuple(np.concatenate(parts) for parts in zip(*found))


class _Layer:
    """One layer of one image."""

    def __init__(self, accel, low, operands: Operands, truncate: int):
        self.accel, self.low, self.operands = accel, low, operands
        self.truncate = truncate
        self.mapping: Mapping = place(accel, low)
        self.row = tile.vector(accel, self.mapping.row, truncate)
        self.sizes = np.array([c.words for c in accel.components[:3]], np.int64)
        self.bits = np.array([c.bits for c in accel.components], np.int64)

    def passes_of(self, table) -> dict[int, np.ndarray]:
        """Pass -> which rows of the table act in it."""
        cycles, last = self.mapping.row.cycles, self.mapping.passes - 1
        found: dict[int, list[int]] = {}
        for r, entry in enumerate(table.tolist()):
            begin = max(entry[T_FIRST], 0) // cycles
            end = begin
            if entry[T_EFFECT] == LEVEL:
                if entry[T_LAST] < 0:
                    continue
                end = min(entry[T_LAST] // cycles, last)
            for number in range(begin, min(end, last) + 1):
                found.setdefault(number, []).append(r)
        return {number: np.array(rows) for number, rows in found.items()}

    def sum_of(self, word):
        """(group, position, filter) of partial-sum words, as `lower.psum_position`."""
        low = self.low
        if low.outputs == low.groups * low.n:
            position, output = np.divmod(word, low.outputs)
            group, n = np.divmod(output, low.n)
            return group, position, n
        rest, n = np.divmod(word, low.n)
        group, position = np.divmod(rest, low.m)
        return group, position, n

    def words_of(self, table) -> dict[Tile, tuple]:
        """Tile -> (position, filter, rows of the table) of its struck partial sums, by pass."""
        mapping = self.mapping
        table = table[table[:, T_FIRST] < mapping.channel_passes]
        table = table[np.argsort(table[:, T_FIRST], kind="stable")]
        group, position, n = self.sum_of(table[:, T_WORD])
        block = n // (mapping.row.p * mapping.filter_sets)
        number = mapping.number(group, block, position // self.low.out_w // mapping.cols, 0)
        found = {}
        for one in np.unique(number):
            mine = number == one
            found[mapping.position(int(one))[:3]] = position[mine], n[mine], table[mine]
        return found

    def tile(self, at: Tile, clean, bias, passes, table, words):
        """(group, position, filter, value) of a tile's sums that differ."""
        low, mapping = self.low, self.mapping
        group, block, strip = at
        width = mapping.row.p * mapping.filter_sets
        filters = np.arange(block * width, min((block + 1) * width, low.n))
        first = strip * mapping.cols
        rows = np.arange(first * low.out_w, (first + mapping.height(strip)) * low.out_w)
        plain = clean(group, rows[:, None], filters[None, :]) + bias[group][filters]
        plain = self._wrapped(plain)
        sums = plain
        if at in self.operands.changed:
            sums = self._wrapped(self._recomputed(at, filters) + bias[group][filters])
        deltas = {}
        for channel in range(mapping.channel_passes):
            number = mapping.number(*at, channel)
            if number in passes:
                delta = self._pass(number, table[passes[number]])
                deltas[channel] = delta.reshape(-1, delta.shape[-1])[:, : len(filters)]
                sums = sums + deltas[channel]
        sums = self._wrapped(sums)
        if words is not None:
            position, n, entries = words
            extra = np.zeros(len(entries), np.int64)
            for channel, delta in deltas.items():
                after = entries[:, T_FIRST] < channel
                extra[after] += delta[position[after] - rows[0], n[after] - filters[0]]
            if sums is plain:
                sums = plain.copy()
            tile.struck_words(
                *self.operands.of(at), (*low.stride, *low.padding, low.out_w),
                mapping.row.q * mapping.channel_sets, self.truncate, self.accel.acc_bits,
                position, n, entries, extra, int(rows[0]), int(filters[0]), sums,
            )  # fmt: skip
        m, n = np.nonzero(sums != plain)
        return np.full(len(m), group), rows[m], filters[n], sums[m, n]

    def _wrapped(self, sums):
        shift = 64 - self.accel.acc_bits
        return (sums << shift) >> shift

    def _geometry(self) -> tuple[int, ...]:
        low = self.low
        return (*low.stride, *low.padding, *low.dilation)

    def _recomputed(self, at: Tile, filters) -> np.ndarray:
        """(positions, filters) int64 sums without bias of a tile whose operands changed."""
        codes, weights = self.operands.of(at)
        first = at[2] * self.mapping.cols
        height = self.mapping.height(at[2])
        out = np.empty((1, height, self.low.out_w, len(filters)), np.int32)
        mine = np.ascontiguousarray(weights[None, ..., filters])
        truncated.convolve(
            codes[None], mine, self._geometry(), self.truncate, (first, first + height), out
        )
        return out.reshape(-1, len(filters)).astype(np.int64)

    def _pass(self, number: int, table) -> np.ndarray:
        """(rows of the strip, F, filters of the pass) int64: what faults add to the sums."""
        mapping, row = self.mapping, self.mapping.row
        at = mapping.position(number)
        table = table.copy()
        start = number * row.cycles
        table[:, T_FIRST] = np.maximum(table[:, T_FIRST] - start, -1)
        ends = table[:, T_LAST] < np.iinfo(np.int64).max
        table[ends, T_LAST] -= start
        component = table[:, T_COMPONENT]
        delta = np.zeros(
            (mapping.height(at[2]), row.outputs, row.p * mapping.filter_sets), np.int64
        )
        used = mapping.chain * mapping.filter_sets
        touched = set()
        own = table[component < _IFMAP_BUS]
        touched |= {(int(r), int(c)) for r, c in own[:, [T_ROW, T_COL]]}
        buses = {}
        for entry in table[component == _FILTER_BUS]:
            touched |= {(int(entry[T_ROW]), col) for col in range(mapping.cols)}
        for entry in table[component == _IFMAP_BUS]:
            buses.setdefault((int(entry[T_ROW]), int(entry[T_COL])), []).append(entry)
        if buses:
            for r in range(used):
                for c in range(mapping.height(at[2])):
                    if mapping.entry(r, c) in buses:
                        touched.add((r, c))
        scratch = [np.zeros((row.outputs, row.p), np.int64) for _ in range(2)]
        for r, c in sorted(touched):
            if mapping.place(number, r, c) is None:
                continue
            mine = own[(own[:, T_ROW] == r) & (own[:, T_COL] == c)]
            rows = table[(component == _FILTER_BUS) & (table[:, T_ROW] == r)]
            self._pe(number, at, r, c, mine, buses.get(mapping.entry(r, c), ()), rows, scratch)
            first = r // mapping.chain * row.p
            delta[c, :, first : first + row.p] += scratch[1]
        return delta

    def _pe(self, number, at, r, c, mine, ifmap_bus, filter_bus, scratch) -> None:
        """The difference that faults make to one PE's sums in a pass, in scratch[1]."""
        row, low = self.mapping.row, self.low
        place = self.mapping.place(number, r, c)
        codes, weights = self.operands.of(at[:3])
        ifmap, filters = np.empty(row.row, np.int64), np.empty(row.filters, np.int64)
        y = place.output_row * low.stride[0] + place.kernel_row - low.padding[0]
        tile.pixels(codes, y, place.channel, row.q, low.padding[1], ifmap)
        tile.filter_words(
            weights, place.kernel_row, place.channel, place.filter, row.q, row.p, filters
        )
        read, held = ifmap, filters
        if len(ifmap_bus):
            read = ifmap.copy()
            for entry in ifmap_bus:
                self._on_bus(entry, _IFMAP_BUS, self._arrivals, read)
        if len(filter_bus):
            held = filters.copy()
            words = np.arange(len(held))
            for entry in filter_bus:
                self._on_bus(entry, _FILTER_BUS, (words, words), held)
        tile.difference(
            self.row, self.sizes, self.bits, ifmap, filters, read, held,
            np.ascontiguousarray(mine), *scratch,
        )  # fmt: skip

    @property
    def _arrivals(self) -> tuple[np.ndarray, np.ndarray]:
        """(cycle, pixel) of every word on an ifmap bus."""
        found = self.mapping.row.arrivals
        return np.array(list(found)), np.array(list(found.values()))

    def _on_bus(self, entry, component: int, arrivals, words) -> None:
        """Change the words that pass a bus while its fault acts, in place."""
        cycle, number = arrivals
        if entry[T_EFFECT] == LEVEL:
            hit = number[(cycle >= entry[T_FIRST]) & (cycle <= entry[T_LAST])]
        else:
            hit = number[cycle == entry[T_FIRST]]
        shift = 64 - self.bits[component]
        struck = ((words[hit] & entry[T_AND]) | entry[T_OR]) ^ entry[T_XOR]
        words[hit] = (struck << shift) >> shift
