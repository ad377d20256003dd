"""Faults in a running network: FAULT rows turned into changed codes and sums.

`FaultHooks` is what `program.run` calls. For every operation it does the least
that is exact:

* an error in a stored feature map that all readers see changes the codes;
* wrong weights, hit partial sums and activations that a tile fetched for itself, where
  adders wrap, are updates of the exact accumulators (`updates.py`), all images at once;
* everything else - registers, nets, control, weights that are fetched more than
  once, adders that saturate - is done image by image on the lowered product:
  replay where every component has it, the tile simulation otherwise, or the
  cycle-level reference when asked for; on a machine that runs whole layers, by the
  passes that they touch (`layers.py`).
"""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np

from fsim.accel_models.families import has_tile
from fsim.errors import FaultError, HangError
from fsim.types import LEVEL, fault_table

from . import layers, lower, updates
from .batch import Batch, no_faults
from .gemm import clean, overflow_free
from .kernels import memory
from .ops import ArrayOp, MatMul, Op
from .replay import own_walk, walk_outputs
from .sites import Placement


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
        self._found: dict[tuple[int, bool], np.ndarray] = {}
        self.hung: set[int] = set()  # inferences whose machine gave no result
        names = [component.name for component in placement.accel.components]
        self.acts, self.weights, self.psums = (names.index(n) for n in ("acts", "weights", "psums"))

    def part(self, begin: int, end: int) -> FaultHooks:
        """The hooks of inferences [begin, end) alone, numbered from 0."""
        hooks = copy.copy(self)
        hooks.batch, hooks._found, hooks.hung = self.batch.part(begin, end), {}, set()
        return hooks

    def _acts(self, layer: int, fetched: bool) -> np.ndarray:
        """Rows of a feature map (fetched: of residency numbers above 0)."""
        if (layer, fetched) not in self._found:
            index = self.batch.of(layer, self.acts)
            later = self.batch.rows["first"][index] > 0
            self._found[layer, True], self._found[layer, False] = index[later], index[~later]
        return self._found[layer, fetched]

    def stored(self, op: Op, codes: np.ndarray) -> None:
        """Errors in the words that `op` wrote, seen by every reader."""
        self._strike(codes, self._acts(op.index, fetched=False))

    def loaded(self, op: Op, slot: int, codes: np.ndarray) -> np.ndarray:
        """Errors in a copy that `op` fetched for itself and reads as a whole."""
        index = self._acts(op.index, fetched=True)
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
            flat = codes.reshape(len(codes), -1)
            memory.apply_words(flat, self.batch.rows, index, self.batch.slot[index])

    def accumulated(self, op: ArrayOp, inputs, acc):
        """Final sums that differ from plain arithmetic on the codes that were read."""
        if self.placement.accel.kind.layers:
            return self._in_layer(op, inputs, acc)
        walked = self._walked(op, len(inputs[0]))
        found = []
        if not walked.all() and not isinstance(op, MatMul):
            weights, psums, fetched = (
                self._unwalked(index, walked)
                for index in (
                    self.batch.of(op.index, self.weights),
                    self.batch.of(op.index, self.psums),
                    self._tile_fetches(op),
                )
            )
            stored = psums[:0]
            if self._walks_words(op):
                psums, stored = stored, psums
            if len(weights) or len(psums) or len(fetched):
                found.append(
                    updates.changed_sums(
                        self.placement, op, inputs[0], acc, self.batch, weights, psums, fetched,
                        ~walked,
                    )
                )  # fmt: skip
            if len(stored):  # with the wrong weights of their outputs: they come last
                found.append(
                    updates.stored_sums(
                        self.placement, op, inputs[0], self.batch, weights, stored, ~walked
                    )
                )
        if walked.any():
            index = self.batch.of(op.index, 0, self.psums)
            slots = self.batch.slot[index]
            for slot in np.flatnonzero(walked):
                mine = index[(slots == slot) | (slots < 0)]
                found.append(
                    self._walk(op, [codes[slot] for codes in inputs], acc[slot], mine, int(slot))
                )
        if len(found) < 2:
            return found[0] if found else None
        return tuple(np.concatenate(parts) for parts in zip(*found))

    def _in_layer(self, op: ArrayOp, inputs, acc):
        """Final sums that differ, on a machine that runs whole layers."""
        index = self.batch.of(op.index, 0, self.psums)
        index = index[self.batch.rows["component"][index] != self.acts]
        index = np.concatenate([index, self._tile_fetches(op)])
        if not len(index):
            return None
        slots, found = self.batch.slot[index], []
        every = (slots < 0).any()
        for slot in range(len(inputs[0])) if every else np.unique(slots):
            rows = self.batch.rows[index[(slots == slot) | (slots < 0)]]
            where, value = layers.changed_sums(
                self.placement, op, [codes[slot] for codes in inputs], acc[slot], rows,
                self.backend,
            )  # fmt: skip
            found.append((where + slot * acc[slot].size, value))
        return tuple(np.concatenate(parts) for parts in zip(*found))

    def _tile_fetches(self, op: ArrayOp) -> np.ndarray:
        """Rows of activations that some of an operation's products fetched for themselves."""
        found = self._acts(op.index, fetched=True)
        return found if self.placement.fetch_groups(op.index) > 1 else found[:0]

    def _walks_words(self, op: ArrayOp) -> bool:
        """Whether the machine's own walk makes hit partial sums anew, all images at once."""
        return bool(own_walk(self.placement.accel)) and not len(self._tile_fetches(op))

    def _unwalked(self, index: np.ndarray, walked: np.ndarray) -> np.ndarray:
        if not walked.any():
            return index
        slots = self.batch.slot[index]
        return index[(slots < 0) | ~walked[np.maximum(slots, 0)]]

    def _walked(self, op: ArrayOp, count: int) -> np.ndarray:
        """(images,) bool: whose products are recomputed sum by sum."""
        if not self.plain(op):
            return np.ones(count, bool)
        find = self.batch.of
        slow = [find(op.index, 0, self.acts - 1)]
        saturates = self.placement.accel.overflow != "wrap"
        if isinstance(op, MatMul) or (saturates and not self._walks_words(op)):
            slow.append(find(op.index, self.psums))
        if isinstance(op, MatMul):
            slow += [find(op.index, self.weights), self._tile_fetches(op)]
        elif not self.placement.weights_once(op):
            slow.append(find(op.index, self.weights))
        slots = self.batch.slot[np.concatenate(slow)]
        walked = np.zeros(count, bool)
        if (slots < 0).any():
            walked[:] = True
        walked[slots[slots >= 0]] = True
        return walked

    def plain(self, op: ArrayOp) -> bool:
        """Whether the machine's arithmetic is plain integer arithmetic for any codes."""
        accel = self.placement.accel
        limit = accel.plain_limit()
        # A program for a machine of layers has its truncated products.
        if limit is None or accel.kind.layers:
            return True
        low = self.placement.lowered[op.index]
        sources = [self.placement.program.ops[i] for i in op.inputs]
        largest = max(abs(x) for x in sources[0].range)
        weight = 1 << (accel.operand_bits - 1)
        bias = int(np.abs(op.bias).max(initial=0))
        return low.k * largest * weight + bias <= limit

    def _walk(self, op: ArrayOp, inputs, acc, index, slot):
        """One image's products recomputed where faults touch them.

        Returns (flat index into the batch's accumulators, value) of what differs.
        """
        low = self.placement.lowered[op.index]
        rows = self.batch.rows[index]
        indices, values = [], []
        for group in range(low.groups):
            try:
                out, plain = self._product(op, low, inputs, acc, rows, group)
            except HangError:
                self._no_result(slot)
                break  # what follows is never computed
            m, n = np.nonzero(out != plain)
            indices.append(lower.psum_word(low, group, m, n) + slot * acc.size)
            values.append(out[m, n])
        none = np.zeros(0, np.int64)
        return np.concatenate([none, *indices]), np.concatenate([none, *values])

    def _no_result(self, slot: int) -> None:
        """The machine of one inference hangs: its last accumulators will say so."""
        last = self.placement.program.ops[-1]
        if not last.is_array:
            raise FaultError(
                f"a machine that hangs is told apart by a network that ends on the array, "
                f"got {last.name} at its end"
            )
        self.hung.add(slot)

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
        self._run(machine, a, b, d, table, out, exact, bool(parts))
        for m, n, a_part, b_part in parts:
            part = clean(machine, a_part, b_part, d)
            exact = overflow_free(machine, a_part, b_part, d)
            walk_outputs(machine, a_part, b_part, d, table, part, everything=not exact)
            out[m, n] = part[m, n]
        return out, plain

    def _run(self, machine, a, b, d, table, out, exact, tiled):
        """Patch `out` with the product under a fault table, by the backend in use."""
        if not len(table) and exact:
            return
        components = [machine.components[i] for i in np.unique(table[:, 0])]
        stored = any(component.kind == "memory" for component in components)
        backend = self.backend
        if backend == "auto":
            registers = [c for c in components if c.kind != "memory"]
            if all("replay" in c.backends for c in registers):
                backend = "replay"
            else:
                backend = "tile" if has_tile(machine.family) else "reference"
        words_only = (stored and len(components) == 1) or (tiled and not components)
        if backend == "replay" or words_only:
            walk_outputs(machine, a, b, d, table, out, everything=not exact)
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
        rows["word"] = np.where(register, rows["word"], m * low.n + n)
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
        if len(fetched) and self.placement.fetch_groups(op.index) > 1:
            a, more, direct = self._fetched_tiles(op, low, fetched, group, a, b)
            changed |= direct
            parts = [(m, n, a, b_part) for m, n, _, b_part in parts] + more
        return a, b, changed, parts

    def _weight_tiles(self, a, b, weights, k, n, op):
        """Tiles of output positions that fetched wrong weights of their own."""
        side = self.placement.accel.loops.m or self.placement.lowered[op.index].m
        first, lasting = weights["first"], weights["effect"] == LEVEL
        tiles = np.unique(first)
        if lasting.any():
            tiles = np.arange(self.placement.position_tiles(op.index))
        parts = []
        for tile in tiles:
            mine = (first == tile) | (lasting & (first <= tile) & (weights["last"] >= tile))
            if not mine.any():
                continue
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


def clean_hooks(placement: Placement) -> FaultHooks | None:
    """Hooks of a run without faults; None where plain arithmetic is the machine's.

    Adders that saturate make other sums than integers do, if they are reached.
    """
    hooks = FaultHooks(placement, no_faults())
    plain = all(hooks.plain(op) for op in placement.program.array_ops)
    return None if plain else hooks


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
