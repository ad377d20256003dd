"""One PE of `eyeriss-like`, clock edge by clock edge, in plain Python: the specification.

Checked against RTL (`eyeriss_pe.npz`). Order, per output f: for i, for j:
psum[j] = (0 if i == 0 else psum[j]) + product(ifmap[i], filter[i p + j]), then psum[j] plus
the incoming sum leaves the PE. A zero flag a cell, computed from the incoming pixel and
shifted along with it, gates product and reads: the product is 0 then, whatever the
scratchpads hold. `schedule.py` says which edge does what.
"""

from __future__ import annotations

from dataclasses import dataclass

from fsim.types import (
    LEVEL,
    T_AND,
    T_COMPONENT,
    T_EFFECT,
    T_FIRST,
    T_LAST,
    T_OR,
    T_WORD,
    T_XOR,
    wrap,
)

from .schedule import RowPass

SPADS = ("ifmap_spad", "filter_spad", "psum_spad")


@dataclass(frozen=True)
class SpadStrike:
    """A fault in one PE, cycles those of the pass.

    component  of `schedule.NAMES`, no bus
    word       of the scratchpad (product: not looked at)
    level      acts after every edge of [first, last], else once, after edge `first`;
               first = -1 reaches the state before the pass too
    """

    component: str
    word: int
    bits: int
    level: bool
    first: int
    last: int
    and_mask: int
    or_mask: int
    xor_mask: int

    def active(self, t: int) -> bool:
        """Whether the fault acts in cycle t."""
        return self.first <= t <= self.last if self.level else t == self.first

    def force(self, value: int) -> int:
        """The value that comes out."""
        return wrap(((value & self.and_mask) | self.or_mask) ^ self.xor_mask, self.bits)


def run_pe(
    accel, row: RowPass, ifmap, filters, incoming, strikes=(), truncate: int = 0
) -> list[list[int]]:
    """What leaves a PE in one pass: outputs by filters, integers of acc_bits.

    ifmap     (row.row) pixels, channels innermost; filters (n p), filter innermost
    incoming  [f][j] partial sums that arrive
    strikes   SpadStrikes, applied in their order
    truncate  bits dropped from the low end of a product
    """
    pads = {
        "ifmap_spad": [0] * accel.parameters["ifmap_words"],
        "filter_spad": [0] * accel.parameters["filter_words"],
        "psum_spad": [0] * accel.parameters["psum_words"],
    }
    cells, weights, sums = (pads[name] for name in SPADS)
    zero = [True] * len(cells)
    n, p = row.window, row.p
    clock = -1

    def edge() -> None:
        nonlocal clock
        for strike in strikes:
            if strike.component in pads and strike.active(clock):
                pad = pads[strike.component]
                pad[strike.word] = strike.force(pad[strike.word])
        clock += 1

    def multiply(x: int, w: int, gated: bool) -> int:
        value = 0 if gated else wrap((x * w) >> truncate, accel.product_bits)
        for strike in strikes:
            if strike.component == "product" and strike.active(clock):
                value = strike.force(value)
        return value

    def fetch(cell: int, pixel: int) -> None:
        cells[cell], zero[cell] = ifmap[pixel], ifmap[pixel] == 0

    edge()  # the state before the pass
    for t in range(n * p):
        weights[t] = filters[t]
        if t < n:
            fetch(t, t)
        edge()
    delivered = []
    for f in range(row.outputs):
        waiting = [
            (n - row.fresh + k, f * row.step + n - row.fresh + k) for k in range(row.fresh)
        ] if f else []  # fmt: skip
        if waiting and row.renewed:
            fetch(*waiting.pop(0))
            edge()
        for i in range(n):
            for j in range(p):
                before = 0 if i == 0 else sums[j]
                product = multiply(cells[i], weights[i * p + j], zero[i])
                sums[j] = wrap(before + product, accel.acc_bits)
                if waiting:
                    fetch(*waiting.pop(0))
                edge()
        delivered.append([])
        for j in range(p):
            delivered[-1].append(wrap(sums[j] + incoming[f][j], accel.acc_bits))
            edge()
        if f + 1 < row.outputs:
            for _ in range(row.fresh):
                cells[:-1], zero[:-1] = cells[1:], zero[1:]
                edge()
    return delivered


def pe_strikes(accel, table) -> list[SpadStrike]:
    """The rows of a fault table (columns T_*) as strikes of one PE, whichever they name."""
    return [
        SpadStrike(
            component=accel.components[entry[T_COMPONENT]].name,
            word=entry[T_WORD],
            bits=accel.components[entry[T_COMPONENT]].bits,
            level=entry[T_EFFECT] == LEVEL,
            first=entry[T_FIRST],
            last=entry[T_LAST],
            and_mask=entry[T_AND],
            or_mask=entry[T_OR],
            xor_mask=entry[T_XOR],
        )
        for entry in table.tolist()
    ]
