"""What a machine is, once its description has been read and checked."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from types import ModuleType

from fsim.types import Component

from .families import Family, Loops, default_loops, family, part

MEMORIES = ("acts", "weights", "psums")
"""On-chip tensor memories of every machine: feature maps, filters, partial sums."""


PROTECTIONS = ("none", "parity", "secded")
"""What a memory word may be protected by."""

CHECK = "_check"
"""Ends the name of the component that holds a memory's check bits: `weights_check`."""


@dataclass(frozen=True)
class Buffer:
    """One on-chip memory.

    kib              capacity in KiB (1024 bytes) of data; check bits come on top
    double_buffered  half of it is filled while the other half is read, so that
                     a tensor fits only if it takes at most half of `kib`
    protection       of every memory word, one of PROTECTIONS
    word_bits        data bits of a memory word: what is read at once, and protected
    banks            consecutive memory words lie in one bank after another
    interleave       column multiplexing: bit i of so many memory words lie side by side
    columns          data cells of a row; None: those of `interleave` words
    scrub_cycles, scrub_inferences  interval at which every word is read, corrected and
                     written back, in cycles or in inferences; None: never
    """

    kib: float
    double_buffered: bool = False
    protection: str = "none"
    word_bits: int = 64
    banks: int = 1
    interleave: int = 1
    columns: int | None = None
    scrub_cycles: int | None = None
    scrub_inferences: int | None = None

    @property
    def usable_bits(self) -> int:
        """Bits a tensor may take and still be fetched once a layer."""
        return int(self.kib * 8192) // (2 if self.double_buffered else 1)

    @property
    def check_bits(self) -> int:
        """Check bits of a memory word.

        Parity: 1. SECDED: the least r for which there are word_bits words of r bits with an
        odd number of ones above one, 2^(r - 1) - r of them (Hsiao, IBM Journal of Research and
        Development 14 (1970) 395): 8 for 64 bits, 7 for 32.
        """
        if self.protection == "none":
            return 0
        if self.protection == "parity":
            return 1
        return next(r for r in range(3, 64) if (1 << (r - 1)) - r >= self.word_bits)

    @property
    def row_words(self) -> int:
        """Memory words of a row."""
        return self.interleave if self.columns is None else self.columns // self.word_bits

    @property
    def memory_words(self) -> int:
        """Memory words that a tensor may take: of double buffers one half; whole rows."""
        step = self.banks * self.row_words
        return self.usable_bits // self.word_bits // step * step


@dataclass(frozen=True)
class Accel:
    """One accelerator: a machine family with sizes, widths and buffers.

    name          as given by the description file
    family        folder under accel_models/ with schedule.py, cycle.py and tile.py
    dataflow      the one in use
    dataflows     those the family can run
    rows, cols    PEs
    operand_bits  width of an activation or weight code
    product_bits  width of the multiplier's output
    acc_bits      width of partial sums and accumulators
    overflow      what an adder does beyond acc_bits: "wrap" or "saturate"
    unsigned_acts activation registers can hold unsigned codes (after a ReLU)
    truncate      bits that the output stage drops, where the family has one
    buffers       memory name -> Buffer, for MEMORIES
    parameters    the family's own numbers, see `families.Family`
    sources       field -> where its number comes from
    """

    name: str
    family: str
    dataflow: str
    dataflows: tuple[str, ...]
    rows: int
    cols: int
    operand_bits: int = 8
    product_bits: int = 16
    acc_bits: int = 32
    overflow: str = "wrap"
    unsigned_acts: bool = False
    truncate: int = 0
    buffers: dict[str, Buffer] = field(default_factory=dict)
    parameters: dict[str, float] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)

    def _module(self, name: str) -> ModuleType:
        return part(self.family, name)

    @property
    def kind(self) -> Family:
        """What the family declares of itself."""
        return family(self.family)

    @property
    def schedule(self) -> ModuleType:
        """Loop bounds, cycles, components and replay plan of the family."""
        return self._module("schedule")

    @property
    def cycle(self) -> ModuleType:
        """The cycle-level reference of the family, plain Python."""
        return self._module("cycle")

    @property
    def tile(self) -> ModuleType:
        """The compiled cycle-level simulation of the family."""
        return self._module("tile")

    @property
    def replay(self) -> ModuleType:
        """Replay of a family that has no accumulation plan."""
        return self._module("replay")

    @property
    def layer(self) -> ModuleType:
        """Whole layers with faults, of a family that runs no products."""
        return self._module("layer")

    @property
    def array(self) -> ModuleType:
        """The same in plain Python: the reference."""
        return self._module("array")

    @property
    def loops(self) -> Loops:
        """How products are cut into tiles."""
        return getattr(self.schedule, "loops", default_loops)(self)

    def plain_limit(self) -> int | None:
        """Largest |sum| that the machine adds up as integers are; None without a limit.

        -1 if its arithmetic without faults is another. A limit is one of final sums with
        their bias, whatever the order of summands.
        """
        own = getattr(self.schedule, "plain_limit", None)
        if own is not None:
            return own(self)
        return None if self.overflow == "wrap" else (1 << (self.acc_bits - 1)) - 1

    def grid(self, component: Component) -> tuple[int, int, int]:
        """(rows, columns, words each) of a register or net."""
        rows, cols = component.grid or (self.rows, self.cols)
        return rows, cols, component.words

    def elements(self, component: Component) -> int:
        """Registers (or nets) of the machine that a component stands for."""
        rows, cols, words = self.grid(component)
        return -(-rows // component.shared) * cols * words

    @property
    def protected(self) -> tuple[str, ...]:
        """Memories whose words have check bits."""
        return tuple(
            name for name in MEMORIES if name in self.buffers and self.buffers[name].check_bits
        )

    @cached_property
    def components(self) -> tuple[Component, ...]:
        """Registers and nets of the dataflow in use, the memories, then their check bits.

        A fault's `component` number is the index into this tuple.
        """
        memories = tuple(
            Component(
                name=name,
                bits=self.acc_bits if name == "psums" else self.operand_bits,
                kind="memory",
                role={"acts": "ifmap", "weights": "filter", "psums": "psum"}[name],
                backends=("network",),
                about=f"on-chip memory of {what}",
            )
            for name, what in zip(MEMORIES, ("feature maps", "filters", "partial sums"))
        )
        checks = tuple(
            Component(
                name=name + CHECK,
                bits=self.buffers[name].check_bits,
                kind="memory",
                role="check",
                backends=("network",),
                about=f"check bits ({self.buffers[name].protection}) of the memory {name}",
            )
            for name in self.protected
        )
        return tuple(self.schedule.components(self)) + memories + checks

    def component_index(self, name: str) -> int:
        """Index of the component called `name`; KeyError if there is none."""
        for index, component in enumerate(self.components):
            if component.name == name:
                return index
        raise KeyError(name)
