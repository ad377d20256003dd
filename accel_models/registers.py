"""What the cycle-level references share: registers of a PE grid, and faults in them.

The machines themselves are in `<family>/cycle.py`, one function a clock edge.
Here is only what surrounds an edge. The state S[t] of a machine is a
`SimpleNamespace` of grids: `S.psum[i][j]` is the register `psum` of the PE in row
i and column j after clock edge t. Values are Python ints, so nothing overflows
unless `wrap` says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np

from fsim.errors import FaultError
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
    T_XOR,
    wrap,
)


def grid(rows: int, cols: int) -> list[list[int]]:
    """One register in every PE, all 0, as after reset."""
    return [[0] * cols for _ in range(rows)]


def state(names, rows: int, cols: int) -> SimpleNamespace:
    """The reset state: a grid of zeros for each of `names`."""
    return SimpleNamespace(**{name: grid(rows, cols) for name in names})


def held(old: SimpleNamespace) -> SimpleNamespace:
    """A copy of every register: what an edge does not write keeps its value."""
    return SimpleNamespace(
        **{name: [row[:] for row in registers] for name, registers in vars(old).items()}
    )


def padded(matrix: list[list[int]] | None, i: int, j: int) -> int:
    """`matrix[i][j]`, and 0 beyond its edges (tiles are padded with zeros)."""
    if matrix is not None and 0 <= i < len(matrix) and 0 <= j < len(matrix[0]):
        return matrix[i][j]
    return 0


@dataclass(frozen=True)
class Strike:
    """One row of the fault table, with the machine's own name and width."""

    component: str
    bits: int
    row: int
    col: int
    level: bool
    first: int
    last: int
    and_mask: int
    or_mask: int
    xor_mask: int

    def active(self, t: int) -> bool:
        """Whether the fault acts in cycle t; t = -1 is the reset state."""
        if self.level:
            return self.first <= t <= self.last
        return self.first == t >= 0

    def force(self, value: int) -> int:
        """The value that comes out: wrap(((v & and) | or) ^ xor, bits)."""
        return wrap(((value & self.and_mask) | self.or_mask) ^ self.xor_mask, self.bits)


@dataclass(frozen=True)
class Faults:
    """All faults of one run, in the order of the table.

    registers  Strikes of storage elements
    nets       (component, row, col) -> Strikes of that combinational net
    """

    registers: tuple[Strike, ...]
    nets: dict[tuple[str, int, int], tuple[Strike, ...]]

    def after_edge(self, state: SimpleNamespace, t: int) -> None:
        """Turn what clock edge t wrote into S[t] by the faults of cycle t, in place."""
        for strike in self.registers:
            if strike.active(t):
                row = getattr(state, strike.component)[strike.row]
                row[strike.col] = strike.force(row[strike.col])

    def on_net(self, component: str, i: int, j: int, t: int, value: int) -> int:
        """What clock edge t captures of a net that carries `value` in PE (i, j)."""
        for strike in self.nets.get((component, i, j), ()):
            if strike.active(t):
                value = strike.force(value)
        return value


def read_faults(accel, table: np.ndarray) -> Faults:
    """The faults of a table with the columns T_* of `fsim.types`.

    Raises FaultError where a row names no register or net of `accel`, a PE
    outside the array, or a STATE fault of a net, which stores nothing.
    """
    registers, nets = [], {}
    for number, entry in enumerate(np.asarray(table).tolist()):
        index, row, col = entry[T_COMPONENT], entry[T_ROW], entry[T_COL]
        where = f"(row {number} of the fault table)"
        if not 0 <= index < len(accel.components):
            raise FaultError(
                f"component must be 0 to {len(accel.components) - 1}, got {index} {where}"
            )
        component = accel.components[index]
        if component.kind == "memory":
            raise FaultError(
                f"a cycle-level run takes faults of registers and nets, "
                f"got memory {component.name!r} {where}"
            )
        rows, cols, _ = accel.grid(component)
        if not (0 <= row < rows and 0 <= col < cols):
            raise FaultError(
                f"a fault of {component.name!r} must lie inside the {rows} x {cols} "
                f"array, got row={row}, col={col} {where}"
            )
        level = entry[T_EFFECT] == LEVEL
        strike = Strike(
            component=component.name,
            bits=component.bits,
            row=row // component.shared,
            col=col,
            level=level,
            first=entry[T_FIRST],
            last=entry[T_LAST],
            and_mask=entry[T_AND],
            or_mask=entry[T_OR],
            xor_mask=entry[T_XOR],
        )
        if component.kind == "net":
            if not level:
                raise FaultError(
                    f"net {component.name!r} stores nothing and takes LEVEL faults only, "
                    f"got a STATE fault {where}"
                )
            nets.setdefault((component.name, row, col), []).append(strike)
        else:
            registers.append(strike)
    return Faults(tuple(registers), {site: tuple(strikes) for site, strikes in nets.items()})


class Waveform:
    """S[t] of every cycle, kept only when asked for."""

    def __init__(self, wanted: bool, names: tuple[str, ...]):
        self._kept = {name: [] for name in (*names, "out")} if wanted else None
        self._names = names

    def record(self, state: SimpleNamespace, port: list[int]) -> None:
        """Keep the registers after the faults of a cycle, and the array's output port."""
        if self._kept is not None:
            for name in self._names:
                self._kept[name].append([row[:] for row in getattr(state, name)])
            self._kept["out"].append(list(port))

    def arrays(self) -> dict[str, np.ndarray] | None:
        """name -> int64 (cycles, rows, cols), "out" (cycles, port width); None if not kept."""
        if self._kept is None:
            return None
        return {name: np.array(cycles, np.int64) for name, cycles in self._kept.items()}


def register_names(accel) -> tuple[str, ...]:
    """Names of the storage elements of the PEs, in the machine's order."""
    return tuple(c.name for c in accel.components if c.kind == "register")
