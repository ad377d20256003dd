"""Schedule of `eyeriss-like`: components, and the cycles of one pass of a PE.

A PE convolves rows: S filter columns times q channels in its ifmap scratchpad, p filters
in its filter scratchpad, F outputs of each filter, one after another. One *pass* is

    load      n p cycles, n = S q: filter word t is written in cycle t, and so is pixel t
              of the first window, t < n
    output f  n p cycles, one multiply-add each: for i < n, for j < p; then p cycles in
              which sum j meets the incoming partial sum and leaves; then, but for the
              last output, min(U q, n) cycles in which the ifmap scratchpad shifts down by
              one cell each, U the stride
    drain     4 cycles of the pipeline

The U q new pixels of an output are written one a cycle while its first products are made,
pixel k into cell n - U q + k in cycle k of the output. Where nothing of the window is kept
(U q >= n) one more cycle passes first, in which pixel 0 is written.

Without the load these are the cycles of the RTL, F p (n + 1) + (F - 1)(U q + [U q = n]) + 4,
for all 7 cases of the vectors (`eyeriss_pe.npz`, meta). That pixels are written during the
first products is inferred from that extra cycle; that loading takes a word a cycle and
does not overlap with the pass before is assumed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from fsim.errors import ConfigError, MappingError
from fsim.types import Component

from ..accel import Accel
from ..families import Loops

DRAIN = 4
"""Cycles of the PE's pipeline after the last output; from the cycles of the RTL vectors."""

_DATA = ("reference", "replay")

NAMES = ("ifmap_spad", "filter_spad", "psum_spad", "product", "ifmap_bus", "filter_bus")
"""Registers in fault-row order; numbers 0 to 5."""


@dataclass(frozen=True)
class RowPass:
    """What one PE does in one pass.

    s       columns of the filter           q       channels
    p       filters                         stride  of the window along the row
    outputs of each filter
    """

    s: int
    q: int
    p: int
    stride: int
    outputs: int

    @property
    def window(self) -> int:
        """n = S q: pixels of a window, each of one channel."""
        return self.s * self.q

    @property
    def filters(self) -> int:
        """Words of the filter scratchpad in use."""
        return self.window * self.p

    @property
    def fresh(self) -> int:
        """Cells that each output after the first has new."""
        return min(self.stride * self.q, self.window)

    @property
    def renewed(self) -> bool:
        """Nothing of a window is left in the next."""
        return self.fresh == self.window

    @property
    def step(self) -> int:
        """Pixels from a window's first to the next one's."""
        return self.stride * self.q

    @property
    def row(self) -> int:
        """Pixels of the ifmap row; with U > S some of them are never delivered."""
        return (self.outputs - 1) * self.step + self.window

    @property
    def gap(self) -> int:
        """Cycles between an output's last sum and the next one's first product."""
        return self.fresh + self.renewed

    def start(self, f: int) -> int:
        """Cycle of the first product of output f."""
        return self.filters + f * (self.filters + self.p + self.gap)

    def strike(self, f: int) -> int:
        """Cycle whose edge a flip "as output f starts" follows: the window has shifted down,
        nothing new has been written."""
        return self.start(f) - 1 - (self.renewed and f > 0)

    def written(self, f: int, k: int) -> int:
        """Cycle in which fresh pixel k of output f >= 1 is written and is on the bus."""
        return self.start(f) + k - self.renewed

    @property
    def compute(self) -> int:
        """Cycles from the first product on, as the RTL counts them."""
        return self.start(self.outputs - 1) + self.filters + self.p + DRAIN - self.filters

    @property
    def cycles(self) -> int:
        """Cycles of the pass."""
        return self.filters + self.compute

    @cached_property
    def arrivals(self) -> dict[int, int]:
        """Cycle -> pixel of the ifmap row that is on its bus."""
        found = {t: t for t in range(self.window)}
        for f in range(1, self.outputs):
            first = f * self.step + self.window - self.fresh
            found |= {self.written(f, k): first + k for k in range(self.fresh)}
        return found


def check_pass(accel: Accel, row: RowPass) -> None:
    """MappingError that names the limit where a pass does not fit a PE of the machine."""
    words = accel.parameters
    for what, got, limit, pad in (
        ("S x q", row.window, "ifmap_words", "ifmap"),
        ("p x q x S", row.filters, "filter_words", "filter"),
        ("p", row.p, "psum_words", "psum"),
    ):
        if got > words[limit]:
            raise MappingError(
                f"{what} must be at most {words[limit]}, the words of the {pad} scratchpad of "
                f"{accel.name}, got {got} (S={row.s}, q={row.q}, p={row.p})"
            )


def check_widths(accel: Accel) -> None:
    """ConfigError unless products and sums are of one width.

    Then every addition wraps where the truncated product wraps, and the order of the
    additions does not matter.
    """
    if accel.acc_bits != accel.product_bits:
        raise ConfigError(
            f"acc_bits must equal product_bits on {accel.name}, which truncates products to the "
            f"width of its sums, got {accel.acc_bits} and {accel.product_bits}"
        )


def components(accel: Accel) -> tuple[Component, ...]:
    """Scratchpads and the product register of every PE, and the buses' registers."""
    words, word = accel.parameters, accel.operand_bits

    def register(name, bits, role, about, grid=None, count=1):
        return Component(name, bits, "register", role, _DATA, about, grid, count)

    return (
        register("ifmap_spad", word, "ifmap", "ifmap scratchpad, a shift register",
                 count=words["ifmap_words"]),
        register("filter_spad", word, "filter", "filter scratchpad",
                 count=words["filter_words"]),
        register("psum_spad", accel.acc_bits, "psum", "partial sums of the PE's row",
                 count=words["psum_words"]),
        register("product", accel.product_bits, "product", "truncated product"),
        register("ifmap_bus", word, "ifmap",
                 "ifmap word on its way to a diagonal, at the PE where the row enters"),
        register("filter_bus", word, "filter", "filter word on its way to a row of PEs",
                 (accel.rows, 1)),
    )  # fmt: skip


def cycles(accel: Accel, m: int, k: int, n: int) -> int:
    """The machine maps layers by their rows: a bare product has none."""
    raise MappingError(
        f"{accel.name} runs convolutions and linear layers by rows, not matrix products: "
        f"use fsim.row_conv or a network, got a product ({m} x {k})({k} x {n})"
    )


def plain_limit(accel: Accel) -> int:
    """-1: products are truncated, so sums are never those of integers."""
    return -1


def loops(accel: Accel) -> Loops:
    """Of no layer in particular: whole axes; see `layer_loops`."""
    return Loops(None, None, None, None)


def layer_cycles(accel: Accel, low) -> int:
    """Cycles of one image's layer: its passes one after another."""
    from .mapping import place

    mapping = place(accel, low)
    return mapping.passes * mapping.row.cycles


def layer_loops(accel: Accel, low) -> Loops:
    """Tiles of a layer: strips of output rows, blocks of filters, passes over channels."""
    from .mapping import place

    mapping = place(accel, low)
    fold = low.kernel_h * low.kernel_w * mapping.row.q * mapping.channel_sets
    return Loops(
        m=mapping.cols * low.out_w,
        k=None,
        n=mapping.row.p * mapping.filter_sets,
        fold=fold if mapping.channel_passes > 1 else None,
    )
