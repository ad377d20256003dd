"""Faults in a running network: FAULT rows turned into changed codes and sums.

`FaultHooks` is what `program.run` calls. For every operation it does the least
that is exact:

* an error in a stored feature map that all readers see changes the codes;
* wrong weights and hit partial sums, where adders wrap, are updates of the
  exact accumulators (`kernels/memory.py`), all images at once;
* everything else - registers, nets, control, words that are fetched more than
  once, adders that saturate - is done image by image on the lowered product:
  replay where every component has it, the tile simulation otherwise, or the
  cycle-level reference when asked for.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from fsim.errors import FaultError
from fsim.types import FAULT, LEVEL, fault_table

from . import lower
from .gemm import clean, overflow_free
from .kernels import memory
from .ops import ArrayOp, MatMul, Op
from .replay import walk_outputs
from .sites import Placement

_NONE = np.zeros(0, np.int64)


@dataclass(frozen=True, eq=False)
class Batch:
    """The faults of a batch of inferences.

    rows   FAULT rows; their trial and image are not looked at
    slot   (rows,) int64 inference of the batch that each row strikes, -1 for all
    """

    rows: np.ndarray
    slot: np.ndarray

    @cached_property
    def order(self) -> np.ndarray:
        """Rows by layer, in their order within a layer."""
        return np.argsort(self.rows["layer"], kind="stable")

    @cached_property
    def _layers(self) -> np.ndarray:
        return np.ascontiguousarray(self.rows["layer"][self.order])

    def of_layer(self, layer: int) -> np.ndarray:
        """Indices of the rows that strike a layer, those for every layer last."""
        found = [
            self.order[np.searchsorted(self._layers, x) : np.searchsorted(self._layers, x, "right")]
            for x in (layer, -1)
        ]
        return np.concatenate(found)


class FaultHooks:
    """The `Hooks` of one run of a placed program.

    placement  the network on its machine
    batch      which rows strike which inference
    backend    "auto", or "tile" or "reference" for every product that register
               faults touch
    """

    def __init__(self, placement: Placement, batch: Batch, backend: str = "auto"):
        self.placement = placement
        self.batch = batch
        self.backend = backend
        names = [component.name for component in placement.accel.components]
        self.acts, self.weights, self.psums = (names.index(n) for n in ("acts", "weights", "psums"))

    def part(self, begin: int, end: int) -> FaultHooks:
        """The hooks of inferences [begin, end) alone, numbered from 0."""
        slot = self.batch.slot
        keep = (slot < 0) | ((slot >= begin) & (slot < end))
        mine = np.where(slot[keep] < 0, -1, slot[keep] - begin)
        hooks = copy.copy(self)
        hooks.batch = Batch(self.batch.rows[keep], mine)
        return hooks

    def _select(self, layer: int, component: int, fetched: bool | None = None) -> np.ndarray:
        """Rows of one layer and component (fetched: residency numbers above 0 only)."""
        rows, index = self.batch.rows, self.batch.of_layer(layer)
        index = index[rows["component"][index] == component]
        if fetched is not None:
            index = index[(rows["first"][index] > 0) == fetched]
        return index

    def stored(self, op: Op, codes: np.ndarray) -> None:
        """Errors in the words that `op` wrote, seen by every reader."""
        self._strike(codes, self._select(op.index, self.acts, fetched=False))

    def loaded(self, op: Op, slot: int, codes: np.ndarray) -> np.ndarray:
        """Errors in a copy that `op` fetched for itself and reads as a whole."""
        index = self._select(op.index, self.acts, fetched=True)
        if not len(index):
            return codes
        in_slot, fetch = self.placement.fetch_of(op, self.batch.rows["first"][index])
        if op.is_array and slot == 0 and self.placement.fetch_groups(op.index) > 1:
            return codes  # tile by tile, in `accumulated`
        index = index[(in_slot == slot) & (fetch == 0)]
        if not len(index):
            return codes
        codes = codes.copy()
        self._strike(codes, index)
        return codes

    def _strike(self, codes: np.ndarray, index: np.ndarray) -> None:
        if len(index):
            memory.apply_words(
                codes.reshape(len(codes), -1), *self._words(index, ("and_mask", "or_mask", "xor_mask"))
            )

    def _words(self, index: np.ndarray, fields) -> tuple[np.ndarray, ...]:
        """(slot, word, *fields) of rows, int64."""
        rows = self.batch.rows
        columns = [rows[name][index].astype(np.int64) for name in ("word", *fields)]
        return (self.batch.slot[index].astype(np.int64), *columns)

    def accumulated(self, op: ArrayOp, inputs, acc):
        """Final sums that differ from plain arithmetic on the codes that were read."""
        index = self.batch.of_layer(op.index)
        always_walk = not self._plain(op)
        if not len(index) and not always_walk:
            return None
        rows = self.batch.rows[index]
        component = rows["component"]
        slow = (component < self.acts) | ((component == self.acts) & (rows["first"] > 0))
        if slow.any() and not self._tiled(op):
            slow &= component != self.acts
        if not isinstance(op, MatMul) and not self.placement.weights_once(op):
            slow |= component == self.weights
        slots = self.batch.slot[index]
        count = len(inputs[0])
        if always_walk:
            walked = np.ones(count, bool)
        else:
            walked = np.zeros(count, bool)
            walked[slots[slow & (slots >= 0)]] = True
            if (slow & (slots < 0)).any():
                walked[:] = True
        in_walked = np.where(slots >= 0, walked[np.maximum(slots, 0)], walked.all())
        found = []
        if not walked.all():
            fast = index[~in_walked | (slots < 0)]
            found.append(self._fast(op, inputs, acc, fast, walked))
        for slot in np.flatnonzero(walked):
            mine = index[(slots == slot) | (slots < 0)]
            found.append(
                self._walk(op, [codes[slot] for codes in inputs], acc[slot], mine, int(slot))
            )
        return tuple(np.concatenate(parts) for parts in zip(*found)) if found else None

    def _plain(self, op: ArrayOp) -> bool:
        """Whether the machine's arithmetic is plain integer arithmetic for any codes."""
        accel = self.placement.accel
        if accel.overflow == "wrap":
            return True
        low = self.placement.lowered[op.index]
        sources = [self.placement.program.ops[i] for i in op.inputs]
        largest = max(abs(x) for x in sources[0].range)
        weight = 1 << (accel.operand_bits - 1)
        bias = int(np.abs(op.bias).max(initial=0))
        return low.k * largest * weight + bias < 1 << (accel.acc_bits - 1)

    def _tiled(self, op: ArrayOp) -> bool:
        return self.placement.fetch_groups(op.index) > 1

    def _fast(self, op: ArrayOp, inputs, acc, index, walked):
        """Wrong weights and hit partial sums of all images at once."""
        if isinstance(op, MatMul) or self.placement.accel.overflow != "wrap":
            return self._walk_memory(op, inputs, acc, index, walked)
        low = self.placement.lowered[op.index]
        count = len(inputs[0])
        component = self.batch.rows["component"][index]
        weights = self._weight_errors(op, index[component == self.weights], walked)
        psums = self._psum_errors(index[component == self.psums], walked)
        codes = np.ascontiguousarray(inputs[0]).reshape(count, low.h, low.w, low.c)
        sums = acc.reshape(count, low.m, low.outputs)
        bias = np.ascontiguousarray(np.broadcast_to(op.bias, low.outputs), np.int64)
        geometry = (
            low.h, low.w, low.channels, low.out_w, low.kernel_w, *low.stride, *low.padding, *low.dilation,
        )  # fmt: skip
        acc_bits = self.placement.accel.acc_bits
        image, output = weights[0], weights[1]
        pairs = image * low.outputs + output
        groups = 1 + int(np.count_nonzero(np.diff(pairs))) if len(pairs) else 0
        index_w = np.empty(groups * low.m, np.int64)
        value_w = np.empty(groups * low.m, np.int64)
        start = np.empty(groups, np.int64)
        if groups:
            memory.weight_errors(
                codes, sums, bias, geometry, low.n, acc_bits, *weights, (index_w, value_w, start)
            )
        index_p = np.empty(len(psums[0]), np.int64)
        value_p = np.empty(len(psums[0]), np.int64)
        if len(psums[0]):
            slots = low.k if self.placement.accel.dataflow == "os" else self.placement.accel.rows
            hit = memory.psum_errors(
                codes,
                self._flat_weight(op),
                sums,
                bias,
                geometry,
                low.n,
                acc_bits,
                slots,
                psums,
                weights,
                (index_p, value_p),
            )
            index_p, value_p = index_p[:hit], value_p[:hit]
            # A sum that both kinds hit was computed with both by psum_errors.
            size = low.m * low.outputs
            where, rest = np.divmod(index_p, size)
            m, o = np.divmod(rest, low.outputs)
            both = np.zeros(hit, bool)
            if groups:
                distinct = unique_sorted(pairs)
                at = np.searchsorted(distinct, where * low.outputs + o)
                both = distinct[np.minimum(at, groups - 1)] == where * low.outputs + o
                value_w[start[at[both]] + m[both]] = value_p[both]
            index_p, value_p = index_p[~both], value_p[~both]
        return np.concatenate([index_w, index_p]), np.concatenate([value_w, value_p])

    def _flat_weight(self, op: ArrayOp) -> np.ndarray:
        """(o, k) int32 weight codes in slot order, made once an operation."""
        cache = self.placement._cache
        if op.index not in cache:
            low = self.placement.lowered[op.index]
            matrices = [lower.weight_matrix(low, op, None, g).T for g in range(low.groups)]
            cache[op.index] = np.ascontiguousarray(np.concatenate(matrices), np.int32)
        return cache[op.index]

    def _expand(self, index: np.ndarray, walked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows for all images repeated for each image that takes the fast way, order kept."""
        slot = self.batch.slot[index]
        every = slot < 0
        if not every.any():
            return index, slot
        images = np.flatnonzero(~walked)
        times = np.where(every, len(images), 1)
        slots = np.repeat(slot, times)
        slots[slots < 0] = np.tile(images, int(every.sum()))
        return np.repeat(index, times), slots

    def _weight_errors(self, op, index, walked):
        """(image, output, k, delta) of wrong weights, sorted by (image, output)."""
        if not len(index):
            return _NONE, _NONE, _NONE, _NONE
        low = self.placement.lowered[op.index]
        index, slot = self._expand(index, walked)
        word = self.batch.rows["word"][index].astype(np.int64)
        key = slot * op.weight.size + word
        order = np.argsort(key, kind="stable")
        key, index = key[order], index[order]
        codes = op.weight.reshape(-1)[word[order]]
        new = np.empty(len(key), np.int64)
        _, _, and_, or_, xor = self._words(index, ("and_mask", "or_mask", "xor_mask"))
        runs = memory.struck_words(codes, key, and_, or_, xor, new)
        key, first = np.unique(key, return_index=True)
        image, word = np.divmod(key, op.weight.size)
        group, k, n = lower.weight_position(low, word)
        output = group * low.n + n
        delta = new[:runs] - codes[first]
        order = np.argsort(image * low.outputs + output, kind="stable")
        return image[order], output[order], k[order], delta[order]

    def _psum_errors(self, index, walked):
        """(image, word, fold, and, or, xor) sorted by (image, word, fold)."""
        index, slot = self._expand(index, walked)
        _, word, fold, *mask = self._words(index, ("first", "and_mask", "or_mask", "xor_mask"))
        words, folds = (int(column.max(initial=0)) + 1 for column in (word, fold))
        order = np.argsort((slot * words + word) * folds + fold, kind="stable")
        return tuple(column[order] for column in (slot.astype(np.int64), word, fold, *mask))

    def _walk_memory(self, op, inputs, acc, index, walked):
        """Memory faults where the fast way does not hold: image by image."""
        slot = self.batch.slot[index]
        hit = np.flatnonzero(~walked) if (slot < 0).any() else np.unique(slot)
        found = [(_NONE, _NONE)]
        for s in hit:
            mine = index[(slot == s) | (slot < 0)]
            found.append(self._walk(op, [codes[s] for codes in inputs], acc[s], mine, int(s)))
        return tuple(np.concatenate(parts) for parts in zip(*found))

    def _walk(self, op: ArrayOp, inputs, acc, index, slot):
        """One image's products recomputed where faults touch them.

        Returns (flat index into the batch's accumulators, value) of what differs.
        """
        low = self.placement.lowered[op.index]
        rows = self.batch.rows[index]
        indices, values = [], []
        for group in range(low.groups):
            out, plain = self._product(op, low, inputs, acc, rows, group)
            m, n = np.nonzero(out != plain)
            indices.append(lower.psum_word(low, group, m, n) + slot * acc.size)
            values.append(out[m, n])
        return np.concatenate(indices), np.concatenate(values)

    def _product(self, op, low, inputs, acc, rows, group):
        """(faulty, plain) final sums (m, n) of one group's product."""
        placement = self.placement
        accel = placement.accel
        source = placement.program.ops[op.inputs[0]]
        machine = accel if source.signed else replace(accel, operand_bits=accel.operand_bits + 1)
        a = lower.moving_matrix(low, op, inputs[0], group)
        b = lower.weight_matrix(low, op, inputs[1] if len(inputs) > 1 else None, group)
        first = group * low.n if low.outputs == low.groups * low.n else 0
        bias = np.broadcast_to(op.bias, low.outputs)[first : first + low.n]
        d = np.ascontiguousarray(np.broadcast_to(bias.astype(np.int64), (low.m, low.n)))
        mm, nn = np.meshgrid(np.arange(low.m), np.arange(low.n), indexing="ij")
        plain = acc.reshape(-1)[lower.psum_word(low, group, mm, nn)].astype(np.int64) + d
        shift = 64 - accel.acc_bits
        plain = (plain << shift) >> shift

        table = self._product_table(low, op, rows, group)
        a, b, changed, parts = self._operand_variants(op, low, rows, group, a, b)
        exact = overflow_free(machine, a, b, d)
        out = clean(machine, a, b, d) if changed or not exact else plain.copy()
        plan = machine.schedule.plan(machine, low.m, low.k, low.n)
        self._run(machine, plan, a, b, d, table, out, exact, bool(parts))
        for m, n, a_part, b_part in parts:
            part = clean(machine, a_part, b_part, d)
            exact = overflow_free(machine, a_part, b_part, d)
            walk_outputs(machine, plan, a_part, b_part, d, table, part, everything=not exact)
            out[m, n] = part[m, n]
        return out, plain

    def _run(self, machine, plan, a, b, d, table, out, exact, tiled):
        """Patch `out` with the product under a fault table, by the backend in use."""
        if not len(table) and exact:
            return
        components = [machine.components[i] for i in np.unique(table[:, 0])]
        stored = any(component.kind == "memory" for component in components)
        backend = self.backend
        if backend == "auto":
            registers = [c for c in components if c.kind != "memory"]
            backend = "replay" if all("replay" in c.backends for c in registers) else "tile"
        if backend == "replay" or (stored and len(components) == 1):
            walk_outputs(machine, plan, a, b, d, table, out, everything=not exact)
            return
        if stored or tiled:
            raise FaultError(
                f"the {backend} simulation takes no faults in stored words of the same product"
            )
        if backend == "reference":
            out[...] = machine.cycle.run(machine, a, b, d, table)[0]
        else:
            out[...] = machine.tile.run(machine, a, b, d, table, clean=out.copy())[0]

    def _product_table(self, low, op, rows, group) -> np.ndarray:
        """The fault table of one group's product: its own cycles and addresses."""
        keep = (rows["component"] < self.acts) | (rows["component"] == self.psums)
        rows = rows[keep].copy()
        cycles = self.placement.group_cycles(op.index)
        register = rows["component"] < self.acts
        start = group * cycles
        level = rows["effect"] == LEVEL
        inside = (rows["first"] < start + cycles) & (rows["last"] >= start)
        inside &= level | (rows["first"] >= start)
        groups, m, n = lower.psum_position(low, rows["word"])
        inside = np.where(register, inside, groups == group)
        rows["word"] = np.where(register, -1, m * low.n + n)
        rows["first"] = np.where(register, np.maximum(rows["first"] - start, -1), rows["first"])
        ends = register & (rows["last"] < np.iinfo(np.int64).max)
        rows["last"] = np.where(ends, rows["last"] - start, rows["last"])
        unsigned = not self.placement.program.ops[op.inputs[0]].signed
        for number, component in enumerate(self.placement.accel.components):
            if component.role == "ifmap" and component.kind != "memory":
                # A permanent fault meets signed and unsigned layers in the same word.
                _extend(rows, rows["component"] == number, component.bits, not unsigned)
        return fault_table(rows[inside])

    def _operand_variants(self, op, low, rows, group, a, b):
        """Operands with stored-word errors.

        Returns (a, b, changed, parts): the operands every output sees, whether
        they differ from the plain ones, and (m, n, a, b) for tiles of outputs
        that read codes of a fetch of their own.
        """
        changed, parts = False, []
        weights = rows[rows["component"] == self.weights]
        if len(weights):
            groups, k, n = lower.weight_position(low, weights["word"])
            mine = groups == group
            weights, k, n = weights[mine], k[mine], n[mine]
            if self.placement.weights_once(op):
                changed = True
                b = b.copy()
                _mask(b, k, n, weights)
            else:
                parts = self._weight_tiles(a, b, weights, k, n, op)
        fetched = rows[(rows["component"] == self.acts) & (rows["first"] > 0)]
        if len(fetched) and self._tiled(op):
            a, more, direct = self._fetched_tiles(op, low, fetched, group, a, b)
            changed |= direct
            parts = [(m, n, a, b_part) for m, n, _, b_part in parts] + more
        return a, b, changed, parts

    def _weight_tiles(self, a, b, weights, k, n, op):
        """Tiles of output positions that fetched wrong weights of their own."""
        accel = self.placement.accel
        side = accel.rows if accel.dataflow == "os" else accel.cols
        parts = []
        for tile in np.unique(weights["first"]):
            mine = weights["first"] == tile
            wrong = b.copy()
            _mask(wrong, k[mine], n[mine], weights[mine])
            parts.append((slice(tile * side, (tile + 1) * side), slice(None), a, wrong))
        return parts

    def _fetched_tiles(self, op, low, fetched, group, a, b):
        """Activations that a tile fetched for itself.

        Returns (a, parts, direct): where every (position, slot) belongs to one
        fetch, `a` itself is changed (direct); a weight-stationary machine fetches
        anew for every tile of output channels, and each gets its own operand.
        """
        addresses = lower.word_addresses(low, group)
        _, fetch = self.placement.fetch_of(op, fetched["first"])
        scopes = [self.placement.fetch_scope(op.index, int(f)) for f in fetch]
        variants: dict[tuple, np.ndarray] = {}
        direct = False
        for row, (scope_group, m, k, n) in zip(fetched, scopes):
            if scope_group != group:
                continue
            key = (n.start, n.stop)
            if n == slice(None):
                if not direct:
                    a, direct = a.copy(), True
                target = a
            else:
                target = variants.setdefault(key, a.copy())
            here = np.zeros(addresses.shape, bool)
            here[m, k] = addresses[m, k] == row["word"]
            target[here] = ((target[here] & row["and_mask"]) | row["or_mask"]) ^ row["xor_mask"]
        parts = [(slice(None), slice(*key), wrong, b) for key, wrong in variants.items()]
        return a, parts, direct


def _mask(codes: np.ndarray, k: np.ndarray, n: np.ndarray, rows: np.ndarray) -> None:
    """Apply rows to codes[k, n] one after another."""
    for i, j, row in zip(k, n, rows):
        codes[i, j] = ((codes[i, j] & row["and_mask"]) | row["or_mask"]) ^ row["xor_mask"]


def _extend(rows: np.ndarray, which: np.ndarray, bits: int, signed: bool) -> None:
    """Masks of some rows extended beyond their width as the layer's words are."""
    full = (1 << bits) - 1
    for name, invert in (("and_mask", True), ("or_mask", False), ("xor_mask", False)):
        mask = (~rows[name][which] if invert else rows[name][which]) & full
        if signed:
            mask = np.where(mask >> (bits - 1), mask - (1 << bits), mask)
        rows[name][which] = ~mask if invert else mask


def unique_sorted(values: np.ndarray) -> np.ndarray:
    """Distinct values of a sorted array."""
    if not len(values):
        return values
    return values[np.concatenate([[True], np.diff(values) != 0])]


def no_faults(count: int = 0) -> Batch:
    """A batch without faults."""
    return Batch(np.zeros(count, FAULT), np.zeros(count, np.int64))
