"""The site space: every bit that a fault can strike, known before anything runs.

Memories under a bit error rate
    A word's *residency* lasts from its write (by DMA, the array, an
    accumulation) to its next write or last read; a bit error strikes it before
    the first read, so that every reader of the residency sees one value. A
    `Block` is a set of like residencies:

    acts      Codes of a tensor, in the feature-map memory. A tensor that fits
              stays there for all its readers: one residency a word. One that
              does not fit is written out (one residency, if an operation made
              it) and fetched again by every reader: once by an operation that
              is not on the array; by an array operation in the order of its
              loops, once per tile of output positions (output stationary), per
              fold (weight stationary: a fold streams its rows of all windows),
              per fold of the stationary operand (input stationary).
    weights   Weight codes. Weight stationary reads a weight in one fold: one
              residency. The other dataflows read all weights again for every
              tile of output positions: one residency if they fit, else one for
              every such tile. Written once per `hw_batch` images.
    psums     Partial sums at accumulator width, between folds and before
              requantisation: one residency per fold that stores the word.

    A bias enters with the first fold and is not held in these memories. Check bits of a
    protected memory are sites of their own, in a component of their own (`weights_check`):
    those of each memory word, for as many residencies as the words it holds.

Registers and nets of the PEs under a rate per cycle
    (bits) x (PEs) x (cycles of one image's schedule), per layer and component;
    groups of a convolution follow one another.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from fsim.accel_models.accel import CHECK, Accel, Buffer
from fsim.accel_models.families import Loops
from fsim.accel_models.plan import ceil_div
from fsim.errors import ConfigError, FaultError, MappingError
from fsim.types import LEVEL

from .kernels.rows import write_flips
from .lower import Lowered, lower, word_addresses
from .ops import ArrayOp, Concat, Input, MatMul, Op, Program, with_weights

_NONE = np.zeros(0, np.int64)


@dataclass(frozen=True, eq=False)
class Block:
    """Like residencies of one memory.

    number      position among the blocks of a site space; random stream
    component   "acts", "weights" or "psums"; of check bits "acts_check", ...
    layer       operation that makes (acts, psums) or reads (weights, fetched
                acts) the words
    name        of that operation
    words       distinct words (check bits: memory words)
    bits        of one word
    signed      two's complement words
    residencies of every word; for fetched acts the mean
    first       residency number of the first of them
    cycles      of one residency, and cycles of an inference (`period`); 0 where no buffer is
                scrubbed by cycles
    word, residency   for fetched acts: (s,) address and residency of each site
                word, because not every word is read in every fetch
    """

    number: int
    component: str
    layer: int
    name: str
    words: int
    bits: int
    residencies: float
    first: int = 0
    signed: bool = True
    word: np.ndarray | None = None
    residency: np.ndarray | None = None
    cycles: int = 0
    period: int = 0

    @property
    def exposed_words(self) -> int:
        """Words times residencies."""
        if self.word is not None:
            return len(self.word)
        return self.words * int(self.residencies)

    @property
    def exposed_bits(self) -> int:
        """Bits that an error rate multiplies, for one image (weights: one batch)."""
        return self.exposed_words * self.bits

    @property
    def memory(self) -> str:
        """The memory that holds the words, of check bits too."""
        return self.component.removesuffix(CHECK)

    @cached_property
    def _contents(self) -> tuple[np.ndarray, np.ndarray]:
        """(residency numbers ascending, where the words of each begin and the last ends)."""
        if self.word is None:
            count = int(self.residencies)
            return self.first + np.arange(count), np.arange(count + 1) * self.words
        numbers, begins = np.unique(self.residency, return_index=True)
        return numbers, np.append(begins, len(self.word))

    @property
    def contents(self) -> int:
        """How many residencies there are."""
        return len(self._contents[0])

    def content(self, residency):
        """Which of the block's residencies these are, counted from 0; -1 for none of them."""
        numbers, _ = self._contents
        at = np.minimum(np.searchsorted(numbers, residency), len(numbers) - 1)
        return np.where(numbers[at] == residency, at, -1)

    def words_in(self, residency):
        """Words that the memory holds in a residency of the block."""
        begins = self._contents[1]
        at = self.content(residency)
        return begins[at + 1] - begins[at]

    def packed(self, word, residency):
        """Place of words among those that a residency holds, in the order of addresses.

        Memory words are filled in this order. Of a tensor that stays on chip it is the
        word's address.
        """
        if self.word is None:
            return np.asarray(word, np.int64)
        keys = self.residency * self.words + self.word
        begins = self._contents[1]
        at = np.searchsorted(keys, np.asarray(residency) * self.words + word)
        return at - begins[self.content(residency)]

    def unpacked(self, place, residency):
        """Word at a place; the inverse of `packed`."""
        if self.word is None:
            return np.asarray(place, np.int64)
        return self.word[self._contents[1][self.content(residency)] + place]

    def checks(self, word_bits: int, bits: int) -> Block:
        """The check bits, `bits` to each memory word of `word_bits`, of the block's words."""
        per = word_bits // self.bits
        common = dict(component=self.component + CHECK, bits=bits, signed=False)
        if self.word is None:
            return replace(self, words=ceil_div(self.words, per), **common)
        numbers, begins = self._contents
        lines = -(-np.diff(begins) // per)
        word = np.concatenate([np.arange(count) for count in lines])
        return replace(
            self, words=int(lines.max()), residencies=len(word) / int(lines.max()), word=word,
            residency=np.repeat(numbers, lines), **common,
        )  # fmt: skip

    def scrub_intervals(self, buffer: Buffer, images: int = 1) -> int:
        """Scrub intervals in one residency, the last one cut short by its end.

        images  that one residency lasts: between two writes of the weights
        """
        count = 1
        if buffer.scrub_cycles is not None:
            count = ceil_div(self.cycles + (images - 1) * self.period, buffer.scrub_cycles)
        elif buffer.scrub_inferences is not None:
            count = ceil_div(images, buffer.scrub_inferences)
        return min(max(count, 1), np.iinfo(np.int32).max)

    def site(self, position: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(residency, word, bit) of positions in [0, exposed_bits)."""
        index, bit = np.divmod(position, self.bits)
        if self.word is not None:
            return self.residency[index], self.word[index], bit
        residency, word = np.divmod(index, self.words)
        return residency + self.first, word, bit

    def write_flips(self, rows, event, trial, image, component, position) -> None:
        """Overwrite FAULT rows (f,) with flips of the bits at `position`.

        event      number of the first row's event
        image      (f,) int64; component number in the machine's table
        """
        fetched = self.word is not None
        write_flips(
            rows, event, trial, image, self.layer, component, position,
            (self.words, self.bits, self.first, bool(self.signed)),
            self.word if fetched else _NONE, self.residency if fetched else _NONE,
        )  # fmt: skip


@dataclass(frozen=True)
class RegisterSites:
    """One register or net of the PEs during one layer.

    component  index in the machine's table
    grid       (rows, columns, words each)
    cycles     of one image's schedule of the layer
    signed     two's complement words (False: unsigned activations)
    shared     rows of the grid that are one element, of which faults name the first
    """

    layer: int
    layer_name: str
    component: int
    component_name: str
    bits: int
    grid: tuple[int, int, int]
    cycles: int
    signed: bool = True
    shared: int = 1

    @property
    def pes(self) -> int:
        """Words in the whole array at one time."""
        rows, cols, words = self.grid
        return ceil_div(rows, self.shared) * cols * words

    @property
    def sites(self) -> int:
        """bits x words x cycles of one image."""
        return self.bits * self.pes * self.cycles


@dataclass(frozen=True, eq=False)
class Placement:
    """A program on an accelerator: geometry, schedule and storage of each operation.

    Raises ConfigError for codes wider than the machine's words, and for truncated products
    on a machine that has none; MappingError for layers that a machine of layers cannot map.
    """

    program: Program
    accel: Accel
    _cache: dict = field(default_factory=dict, repr=False)

    def __post_init__(self):
        for op in self.program.array_ops:
            for source in (self.program.ops[i] for i in op.inputs):
                if source.bits > self.accel.operand_bits:
                    raise ConfigError(
                        f"codes must fit the operand width of {self.accel.name}, "
                        f"{self.accel.operand_bits} bits, got {source.bits} bits ({source.name})"
                    )
                if not source.signed and not self.accel.unsigned_acts:
                    raise ConfigError(
                        f"{self.accel.name} takes signed activations only, got unsigned codes "
                        f"({source.name})"
                    )
            # `source` is its last input: two unsigned codes overflow the multiplier.
            if isinstance(op, MatMul) and not source.signed:
                raise ConfigError(
                    "what a product of two activations reads second is held where weights are "
                    f"and must be signed, got unsigned codes ({source.name})"
                )
            if op.truncate and not self.accel.kind.layers:
                raise ConfigError(
                    f"products must be whole on {self.accel.name}, got {op.truncate} bits "
                    f"truncated ({op.name})"
                )
            if self.accel.kind.layers:
                try:
                    self.cycles(op.index)
                except MappingError as error:
                    raise MappingError(f"{error} ({op.name})") from None

    def with_weights(self, weights: dict[int, np.ndarray]) -> Placement:
        """The same machine and network with other weight codes; see `ops.with_weights`."""
        kept = {i: value for i, value in dict(self._cache).items() if i not in weights}
        return replace(self, program=with_weights(self.program, weights), _cache=kept)

    @cached_property
    def lowered(self) -> dict[int, Lowered]:
        """Array operation's index -> geometry."""
        return {
            op.index: lower(self.program, op, self.accel.loops.block)
            for op in self.program.array_ops
        }

    def cycles(self, index: int) -> int:
        """Cycles of one image's schedule of an array operation."""
        low = self.lowered[index]
        own = getattr(self.accel.schedule, "layer_cycles", None)
        return own(self.accel, low) if own else low.groups * self.group_cycles(index)

    def group_cycles(self, index: int) -> int:
        """Cycles of one group's product."""
        low = self.lowered[index]
        return self.accel.schedule.cycles(self.accel, low.m, low.k, low.n)

    def loops(self, index: int) -> Loops:
        """The tiles that an array operation is worked off in."""
        own = getattr(self.accel.schedule, "layer_loops", None)
        return own(self.accel, self.lowered[index]) if own else self.accel.loops

    def folds(self, index: int) -> int:
        """How often the sum of one output is stored."""
        loops = self.loops(index)
        folds = 1 if loops.fold is None else ceil_div(self.lowered[index].k, loops.fold)
        return folds if loops.keeps_last else folds - 1

    def _root(self, index: int) -> int:
        """The operation whose stored words tensor `index` shows (through views)."""
        op = self.program.ops[index]
        while not op.stores and len(op.inputs) == 1:
            op = self.program.ops[op.inputs[0]]
        return op.index

    def kept(self, op: Op) -> bool:
        """Whether an operation's output stays on chip for all its readers."""
        usable = self.accel.buffers["acts"].usable_bits
        return math.prod(op.shape) * op.bits <= usable

    def weights_fit(self, op: ArrayOp) -> bool:
        """Whether all weights of an operation are on chip at once."""
        return op.weight.size * op.weight_bits <= self.accel.buffers["weights"].usable_bits

    def weights_once(self, op: ArrayOp) -> bool:
        """Whether every weight word has one residency."""
        return self.accel.loops.weights_once or self.weights_fit(op)

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """All residencies of the three memories, then those of their check bits."""
        found: list[Block] = []
        last = self.program.ops[-1].index
        for op in self.program.ops:
            if op.stores and op.index != last:
                found += self._acts_blocks(op)
        for op in self.program.array_ops:
            if not isinstance(op, MatMul):
                tiles = 1 if self.weights_once(op) else self.position_tiles(op.index)
                found.append(
                    Block(0, "weights", op.index, op.name, op.weight.size, op.weight_bits, tiles)
                )
            words, folds = math.prod(op.shape), self.folds(op.index)
            if folds:
                found.append(
                    Block(0, "psums", op.index, op.name, words, self.accel.acc_bits, folds)
                )
        if any(buffer.scrub_cycles for buffer in self.accel.buffers.values()):
            period = sum(self.cycles(op.index) for op in self.program.array_ops)
            found = [
                replace(block, cycles=self.residency_cycles(block), period=period)
                for block in found
            ]
        for block in tuple(found):
            buffer = self.accel.buffers[block.component]
            if buffer.check_bits:
                found.append(block.checks(buffer.word_bits, buffer.check_bits))
        return tuple(replace(block, number=number) for number, block in enumerate(found))

    def residency_cycles(self, block: Block) -> int:
        """Cycles of one residency of a block, rounded up; weights written for every image.

        A feature map that stays on chip: the schedules of the operations after the one that
        makes it, up to its last reader. Everything else: an equal share of its operation's
        schedule. 0 where that is not on the array, and for what is written out at once.
        """
        if block.memory == "acts" and block.first == 0:
            readers = [
                op.index for op in self.program.ops
                if op.stores and any(self._root(i) == block.layer for i in op.inputs)
            ]  # fmt: skip
            if not self.kept(self.program.ops[block.layer]) or not readers:
                return 0
            return sum(
                self.cycles(op.index) for op in self.program.array_ops
                if block.layer < op.index <= max(readers)
            )  # fmt: skip
        if not self.program.ops[block.layer].is_array:
            return 0
        return ceil_div(self.cycles(block.layer), block.contents)

    def _acts_blocks(self, op: Op) -> list[Block]:
        words = math.prod(op.shape)
        if self.kept(op):
            return [Block(0, "acts", op.index, op.name, words, op.bits, 1, 0, op.signed)]
        blocks = []
        if not isinstance(op, Input):
            blocks.append(Block(0, "acts", op.index, op.name, words, op.bits, 1, 0, op.signed))
        for reader in self.program.ops:
            if not reader.stores:
                if isinstance(reader, Concat) and op.index in map(self._root, reader.inputs):
                    raise MappingError(
                        f"a concatenated tensor must fit the feature-map memory of "
                        f"{self.accel.name}, got {op.name} with {words} words of {op.bits} bits"
                    )
                continue
            for slot, source in enumerate(reader.inputs):
                if self._root(source) == op.index:
                    blocks.append(self._fetches(reader, slot, op))
        return blocks

    def _fetches(self, reader: Op, slot: int, source: Op) -> Block:
        """Residencies of a tensor that `reader` fetches for itself, by `slot`."""
        words = math.prod(self.program.ops[reader.inputs[slot]].layout)
        groups = self.fetch_groups(reader.index) if reader.is_array and slot == 0 else 1
        first, step = 1 + slot, len(reader.inputs)
        if groups == 1:
            return Block(
                0, "acts", reader.index, reader.name, words, source.bits, 1, first, source.signed
            )
        word, residency = [], []
        for group, addresses in self._fetched_words(reader):
            distinct = np.unique(addresses)
            distinct = distinct[distinct >= 0]
            word.append(distinct)
            residency.append(np.full(len(distinct), first + step * group))
        word, residency = np.concatenate(word), np.concatenate(residency)
        return Block(
            0,
            "acts",
            reader.index,
            reader.name,
            words,
            source.bits,
            len(word) / words,
            first,
            source.signed,
            word,
            residency,
        )

    def fetch_of(self, op: Op, residency):
        """(input slot, fetch number) of residencies >= 1 of a fetched tensor."""
        fetch, slot = np.divmod(residency - 1, len(op.inputs))
        return slot, fetch

    def position_tiles(self, index: int) -> int:
        """Tiles of output positions an operation is cut into."""
        side = self.loops(index).m
        return 1 if side is None else ceil_div(self.lowered[index].m, side)

    def _tiles(self, index: int) -> tuple[int, int, int]:
        """How many tiles an operation's n, m and k axes are cut into, outermost first."""
        low, loops = self.lowered[index], self.loops(index)
        return tuple(
            1 if side is None else ceil_div(size, side)
            for size, side in ((low.n, loops.n), (low.m, loops.m), (low.k, loops.k))
        )

    def fetch_groups(self, index: int) -> int:
        """How often an array operation fetches activations that do not stay on chip."""
        if isinstance(self.program.ops[index], MatMul):
            return 1
        return self.lowered[index].groups * math.prod(self._tiles(index))

    def fetch_scope(self, index: int, fetch: int) -> tuple[int, slice, slice, slice]:
        """(group, m slice, k slice, n slice) of products that read one fetch."""
        loops = self.loops(index)
        _, m_tiles, k_tiles = tiles = self._tiles(index)
        group, fetch = divmod(fetch, math.prod(tiles))
        rest, fold = divmod(fetch, k_tiles)
        n, m = divmod(rest, m_tiles)
        return group, _tile(m, loops.m), _tile(fold, loops.k), _tile(n, loops.n)

    def _fetched_words(self, reader: ArrayOp) -> Iterable[tuple[int, np.ndarray]]:
        low = self.lowered[reader.index]
        addresses = [word_addresses(low, group) for group in range(low.groups)]
        for fetch in range(self.fetch_groups(reader.index)):
            group, m, k, _ = self.fetch_scope(reader.index, fetch)
            yield fetch, addresses[group][m, k]

    @cached_property
    def register_sites(self) -> tuple[RegisterSites, ...]:
        """Registers and nets of the PEs, layer by layer."""
        return tuple(
            RegisterSites(
                op.index,
                op.name,
                number,
                component.name,
                component.bits,
                self.accel.grid(component),
                self.cycles(op.index),
                component.role != "ifmap" or self.program.ops[op.inputs[0]].signed,
                component.shared,
            )
            for op in self.program.array_ops
            for number, component in enumerate(self.accel.components)
            if component.kind != "memory"
        )


def _tile(number: int, size: int | None) -> slice:
    """The whole axis where it is not cut."""
    if size is None:
        return slice(None)
    return slice(number * size, (number + 1) * size)


@dataclass(frozen=True, eq=False)
class SiteSpace:
    """The sites of a placement that faults are drawn from.

    blocks     residencies of memory words, for bit error rates
    registers  registers and nets of the PEs, for upsets by cycle
    """

    placement: Placement
    blocks: tuple[Block, ...]
    registers: tuple[RegisterSites, ...]

    @property
    def accel(self) -> Accel:
        return self.placement.accel

    def layer_index(self, name: str) -> int:
        """Index of the operation called `name`; ConfigError with the names otherwise."""
        return find_layer(self.placement.program, name)

    def address_map(self, block: Block, residency: int | None = None):
        """The cells of a block's words in one of its residencies: `address_map.tensor_map`."""
        from .address_map import tensor_map  # it imports this module

        return tensor_map(self.placement, block, residency)


def find_layer(program: Program, name: str) -> int:
    """Index of the operation called `name`; ConfigError with the names otherwise."""
    names = [op.name for op in program.ops]
    if name not in names:
        near = difflib.get_close_matches(name, names, 1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ConfigError(f"layer must be one of {', '.join(names)}, got {name!r}{hint}")
    return names.index(name)


def select(
    placement: Placement,
    layers: Iterable[str] | None = None,
    components: Iterable[str] | None = None,
) -> SiteSpace:
    """The sites in some layers and components only; None means all of them.

    The name of a memory stands for its check bits too.
    """
    wanted = None if layers is None else {find_layer(placement.program, name) for name in layers}
    known = [component.name for component in placement.accel.components]
    for name in components or ():
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise ConfigError(
                f"component must be one of {', '.join(known)} on {placement.accel.name} "
                f"({placement.accel.dataflow}), got {name!r}{hint}"
            )
    names = set(known if components is None else components)
    names |= {name + CHECK for name in names & set(placement.accel.protected)}
    return SiteSpace(
        placement,
        tuple(
            block
            for block in placement.blocks
            if (wanted is None or block.layer in wanted) and block.component in names
        ),
        tuple(
            site
            for site in placement.register_sites
            if (wanted is None or site.layer in wanted) and site.component_name in names
        ),
    )


def check_rows(placement: Placement, rows: np.ndarray, images: int) -> None:
    """FAULT rows from a file must lie in the placement; FaultError otherwise.

    Everything that addresses an array is checked here, once, so that kernels need not.
    """
    accel, program = placement.accel, placement.program
    kinds = np.array([component.kind == "memory" for component in accel.components])

    def refuse(bad: np.ndarray, what: str, values: np.ndarray) -> None:
        if bad.any():
            at = int(np.flatnonzero(bad)[0])
            raise FaultError(f"{what}, got {int(values[at])} (fault row {at})")

    component = rows["component"]
    outside = (component < 0) | (component >= len(kinds))
    refuse(outside, f"component must be in 0..{len(kinds) - 1}", component)
    refuse((rows["image"] < -1) | (rows["image"] >= images), f"image must be -1..{images - 1}",
           rows["image"])  # fmt: skip
    last = len(program.ops) - 1
    memory = kinds[component]
    low = np.where(memory, 0, -1)
    refuse((rows["layer"] < low) | (rows["layer"] > last), f"layer must be in 0..{last}",
           rows["layer"])  # fmt: skip
    for number, one in enumerate(accel.components):
        mine = component == number
        if one.kind == "memory" or not mine.any():
            continue
        height, width, words = accel.grid(one)
        for name, size in (("row", height), ("col", width)):
            bad = mine & ((rows[name] < 0) | (rows[name] >= size))
            refuse(bad, f"{name} must be in 0..{size - 1}", rows[name])
        if words == 1:
            refuse(mine & (rows["word"] != -1), "word of a register must be -1", rows["word"])
        else:
            bad = mine & ((rows["word"] < 0) | (rows["word"] >= words))
            refuse(bad, f"word must be in 0..{words - 1}", rows["word"])
    refuse((rows["effect"] < 0) | (rows["effect"] > 1), "effect must be 0 or 1", rows["effect"])
    names = {component.name: i for i, component in enumerate(accel.components)}
    lasting = memory & (rows["effect"] == LEVEL)
    held = [number for name, number in names.items() if name.removesuffix(CHECK) == "weights"]
    refuse(lasting & ~np.isin(component, held),
           "effect of a memory word other than a weight must be 0", rows["effect"])  # fmt: skip
    refuse(lasting & (rows["last"] < rows["first"]), "last must be first or later", rows["last"])
    limits: dict[tuple[int, int], tuple[int, int]] = {}
    for block in placement.blocks:
        key = (names[block.component], block.layer)
        if block.word is None:
            end = block.first + int(block.residencies)
        else:
            end = int(block.residency.max()) + 1
        words, most = limits.get(key, (0, 0))
        limits[key] = max(words, block.words), max(most, end)
    keys = component.astype(np.int64) * (last + 1) + rows["layer"]
    for key in np.unique(keys[memory]):
        words, most = limits.get((int(key) // (last + 1), int(key) % (last + 1)), (0, 0))
        mine = memory & (keys == key)
        bad = (rows["word"] < 0) | (rows["word"] >= words)
        refuse(mine & bad, f"word must be in 0..{words - 1}", rows["word"])
        bad = (rows["first"] < 0) | (rows["first"] >= most)
        refuse(mine & bad, f"residency must be in 0..{most - 1}", rows["first"])
