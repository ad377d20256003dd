"""Products with faults: every backend gives, bit for bit, what the reference gives."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import numpy as np

from fsim.accel_models.accel import Accel
from fsim.fault_models.explicit import masks
from fsim.simulator.crosscheck import random_table
from fsim.simulator.reference import NO_FAULTS
from fsim.simulator.runners import RUNNERS
from fsim.types import FOREVER, LEVEL, STATE, Component

from .check import require
from .difference import difference, in_words
from .machine import Machine, backends, elements, operands


def _single_faults(accel: Accel, cycles: int) -> Iterator[tuple[Component, np.ndarray]]:
    """Every flip in every cycle and every permanent stuck-at, as fault tables of one row."""
    for number, component in elements(accel):
        rows, cols, words = accel.grid(component)
        for place in range(rows * cols * words):
            pe, word = divmod(place, words)
            row, col = divmod(pe, cols)
            for bit in range(component.bits):
                for kind in ("stuck0", "stuck1", "flip"):
                    mask = masks(kind, 1 << bit, component.bits, True)
                    first = [-1] if kind != "flip" else range(cycles)
                    level = kind != "flip" or component.kind == "net"
                    for t in first:
                        last = FOREVER if kind != "flip" else t
                        where = (number, row, col, -1 if words == 1 else word)
                        effect = LEVEL if level else STATE
                        yield component, np.array([[*where, effect, t, last, *mask]], np.int64)


@cache
def _tried(machine: Machine) -> tuple[str, frozenset[str], frozenset[str]]:
    """(first difference, components with a visible fault, all) over every single fault."""
    accel = machine.accel()
    # More than one tile along every axis, whichever of them lies on rows and which on columns.
    shape = (machine.rows + 1, max(machine.rows, machine.cols) + 1, machine.cols + 1)
    a, b, d = operands(accel, shape, 7)
    clean = accel.cycle.run(accel, a, b, d, NO_FAULTS)[0]
    seen, problem = set(), ""
    for component, table in _single_faults(accel, accel.schedule.cycles(accel, *shape)):
        wanted = accel.cycle.run(accel, a, b, d, table)[0]
        if not np.array_equal(wanted, clean):
            seen.add(component.name)
        for backend in backends(accel):
            if backend in component.backends and not problem:
                got = RUNNERS[backend](accel, a, b, d, table)[0]
                problem = difference(wanted, got, f"{backend}, {in_words(accel, table)}")
    everything = frozenset(component.name for _, component in elements(accel))
    return problem, frozenset(seen), everything


def every_fault(machine: Machine) -> None:
    """Each bit of each element in each cycle, flipped, and stuck at 0 and at 1."""
    problem, _, _ = _tried(machine)
    require(not problem, problem)


def every_component_matters(machine: Machine) -> None:
    """A component of which no fault changes a result is not part of the machine."""
    _, seen, everything = _tried(machine)
    dead = sorted(everything - seen)
    require(
        not dead,
        f"some fault of every component must change a result, got none for {', '.join(dead)}",
    )


def state_is_not_level(machine: Machine) -> None:
    """A register that is struck once and one that is stuck must not be the same thing."""
    accel = machine.accel()
    a, b, d = operands(accel, (3, 5, 3), 11)
    cycles = accel.schedule.cycles(accel, 3, 5, 3)
    for number, component in elements(accel):
        if component.kind != "register":
            continue
        mask = masks("flip", 1 << (component.bits - 1), component.bits, True)
        for t in range(cycles):
            where = (number, 0, 0, -1 if component.words == 1 else 0)
            once = np.array([[*where, STATE, t, t, *mask]], np.int64)
            stays = np.array([[*where, LEVEL, t, FOREVER, *mask]], np.int64)
            first, second = (accel.cycle.run(accel, a, b, d, f)[0] for f in (once, stays))
            if not np.array_equal(first, second):
                return
    raise AssertionError("a STATE fault and a LEVEL fault for ever must differ for some register")


def several_faults(machine: Machine) -> None:
    """One to four faults at random in products and arrays of many shapes."""
    for seed in range(60):
        rng = np.random.default_rng([13, seed])
        rows, cols = (machine.rows, machine.cols) if seed < 30 else rng.integers(1, 5, 2).tolist()
        accel = replace(machine, rows=rows, cols=cols).accel()
        shape = tuple(int(x) for x in rng.integers(1, 7, 3))
        a, b, d = operands(accel, shape, seed)
        cycles = accel.schedule.cycles(accel, *shape)
        for backend in backends(accel):
            claims = [i for i, c in elements(accel) if backend in c.backends]
            table = random_table(rng, accel, claims, cycles, int(rng.integers(1, 5)))
            wanted, waves = accel.cycle.run(accel, a, b, d, table, backend == "tile")
            got, others = RUNNERS[backend](accel, a, b, d, table, backend == "tile")
            label = f"{backend}, {rows} x {cols} PEs, (m,k,n) = {shape}, {in_words(accel, table)}"
            problem = difference(wanted, got, label)
            for name in waves or () if others is not None else ():
                problem = problem or difference(waves[name], others[name], f"{label}, {name}")
            require(not problem, problem)
