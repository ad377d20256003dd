"""Waveforms of the reference: as long, as wide and as faulty as schedule.py declares."""

from __future__ import annotations

from itertools import product

import numpy as np

from fsim.accel_models.accel import Accel
from fsim.fault_models.explicit import masks
from fsim.simulator.reference import NO_FAULTS
from fsim.types import FOREVER, LEVEL, STATE, Component, wrap

from .check import require
from .difference import same
from .machine import Machine, elements, ends, operands
from .products import SHAPES


def cycles_and_waves(machine: Machine) -> None:
    """Cycles are a number, every register has a wave, and the port shows the results."""
    accel = machine.accel()
    for shape in SHAPES:
        a, b, d = operands(accel, shape, 5)
        cycles = accel.schedule.cycles(accel, *shape)
        require(
            type(cycles) is int and cycles > 0,
            f"cycles must be an int > 0, got {cycles!r} of type {type(cycles).__name__}",
        )
        waves = accel.cycle.run(accel, a, b, d, NO_FAULTS, True)[1]
        for component in _registers(accel):
            wave = waves.get(component.name)
            require(wave is not None, f"the waves must have register {component.name!r}")
            places = accel.grid(component)
            wanted = (cycles, *places[: 2 if places[2] == 1 else 3])
            require(
                wave.shape == wanted,
                f"the wave of {component.name!r} must be (cycles, rows, cols[, words]) = "
                f"{wanted}, got {wave.shape}, (m,k,n) = {shape}",
            )
        require("out" in waves, "the waves must have 'out', the output port")
        port = waves["out"]
        require(
            port.ndim == 2 and len(port) == cycles,
            f"the wave of 'out' must be (cycles, port width), cycles {cycles}, got {port.shape}",
        )
    low, high = ends(accel.operand_bits)
    a, b = np.array([[low], [high]]), np.array([[low, high]])
    out, waves = accel.cycle.run(accel, a, b, None, NO_FAULTS, True)
    for value in out.ravel().tolist():
        require(
            bool((waves["out"] == value).any()),
            f"every result must pass 'out', the output port, got {value} in no cycle",
        )


def widths(machine: Machine) -> None:
    """Values fit the bits that components declare, and extreme ones use the top bit."""
    accel = machine.accel(acc_bits=6)  # one product of 3-bit codes fills such a sum
    low, high = ends(accel.operand_bits)
    least, most = ends(accel.acc_bits)
    needed = {component.name: 0 for component in _registers(accel)}
    for x, y, bias in product((low, high), (low, high), (least, 0, most)):
        a, b, d = np.full((4, 5), x), np.full((5, 4), y), np.full((4, 4), bias)
        out, waves = accel.cycle.run(accel, a, b, d, NO_FAULTS, True)
        for component in _registers(accel):
            bits = _bits_of(waves[component.name], component.bits)
            require(
                bits <= component.bits,
                f"values of {component.name!r} must fit its {component.bits} bits, got some of "
                f"{bits} bits (a {x}, b {y}, bias {bias})",
            )
            needed[component.name] = max(needed[component.name], bits)
        for number, component in elements(accel):
            table = _everywhere(accel, number, (-1, 0, 0))
            same(
                out, accel.cycle.run(accel, a, b, d, table)[0],
                f"masks that change no bit of {component.name!r} ({component.bits} bits; does "
                f"its value fit?), a {x}, b {y}, bias {bias}", "without a fault",
            )  # fmt: skip
    full = accel.acc_bits == accel.product_bits == 2 * accel.operand_bits
    for number, component in elements(accel):
        # A machine that does not take these widths has sums that no short product fills.
        skip = component.role == "control" or component.name in machine.spare
        if skip or (component.role in ("psum", "product") and not full):
            continue
        says = (
            "extreme operands; if the machine has bits to spare, name it in "
            "accelerator_contract(..., spare=...)"
        )
        if component.kind == "register":
            used = needed[component.name]
            require(
                used >= component.bits,
                f"all {component.bits} bits of {component.name!r} must be used by {says}, "
                f"got {used}",
            )
        elif component.role == "product" and component.bits > 1:
            # The square of the smallest code has a 1 below the sign, if that is the sign.
            a, b = np.full((2, 2), low), np.full((2, 2), low)
            table = _everywhere(
                accel, number, masks("stuck0", 1 << (component.bits - 2), component.bits, True)
            )
            out = [accel.cycle.run(accel, a, b, None, t)[0] for t in (NO_FAULTS, table)]
            require(
                not np.array_equal(*out),
                f"bit {component.bits - 2} of {component.name!r} ({component.bits} bits) must be "
                f"used by {says}",
            )


def roles(machine: Machine) -> None:
    """Registers carry what their role says: nothing but zeros where that is all zeros."""
    accel = machine.accel()
    a, b, d = operands(accel, (5, 5, 4), 31)
    for zero in ("a", "b", "bias and a"):
        given = (
            a * 0 if "a" in zero.split() else a,
            b * 0 if zero == "b" else b,
            d * 0 if "bias" in zero else d,
        )
        waves = accel.cycle.run(accel, *given, NO_FAULTS, True)[1]
        of = {
            "a": ("ifmap", "product"),
            "b": ("filter", "product"),
            "bias and a": ("ifmap", "product", "psum"),
        }[zero]
        for component in _registers(accel):
            if component.role in of:
                require(
                    not waves[component.name].any(),
                    f"{component.name!r} has role {component.role!r} and must hold 0 throughout "
                    f"where {zero} is zero, got other values",
                )


def faults_in_waves(machine: Machine) -> None:
    """Waves hold S[t] with the faults of cycle t: a flip is seen at t, a stuck bit always."""
    accel = machine.accel()
    a, b, d = operands(accel, (3, 3, 3), 37)
    clean = accel.cycle.run(accel, a, b, d, NO_FAULTS, True)[1]
    cycles = accel.schedule.cycles(accel, 3, 3, 3)
    for number, component in elements(accel):
        if component.kind != "register":
            continue
        rows, cols, words = accel.grid(component)
        corners = {(0, 0, 0)}
        if component.shared == 1:
            corners.add((rows - 1, cols - 1, words - 1))
        for row, col, word in sorted(corners):
            place = (row, col) if words == 1 else (row, col, word)
            where = (number, row, col, -1 if words == 1 else word)
            bit = 1 << (component.bits - 1)
            for t in sorted({0, 1, cycles // 3, cycles // 2, cycles - 1}):
                mask = masks("flip", bit, component.bits, True)
                waves = _waves(accel, a, b, d, [*where, STATE, t, t, *mask])
                label = f"a flip of the top bit of {component.name}{place} in cycle {t}"
                for name, wave in clean.items():
                    same(wave[:t], waves[name][:t], f"{label}: the wave of {name} before it",
                         "without the fault")  # fmt: skip
                wanted = wrap(int(clean[component.name][(t, *place)]) ^ bit, component.bits)
                got = int(waves[component.name][(t, *place)])
                require(got == wanted, f"{label} must show in its wave as {wanted}, got {got}")
            for kind, bits in (("stuck0", 0), ("stuck1", 1)):
                mask = masks(kind, 1, component.bits, True)
                waves = _waves(accel, a, b, d, [*where, LEVEL, -1, FOREVER, *mask])
                seen = waves[component.name][(slice(None), *place)] & 1
                require(
                    bool((seen == bits).all()),
                    f"bit 0 of {component.name}{place}, {kind}, must be {bits} in every cycle of "
                    "its wave, got the other value in some",
                )


def _registers(accel: Accel) -> list[Component]:
    return [component for _, component in elements(accel) if component.kind == "register"]


def _waves(accel: Accel, a, b, d, row: list[int]) -> dict[str, np.ndarray]:
    return accel.cycle.run(accel, a, b, d, np.array([row], np.int64), True)[1]


def _bits_of(values: np.ndarray, declared: int) -> int:
    """Bits that the widest value takes: two's complement, unsigned if one bit is declared."""
    least, most = int(values.min()), int(values.max())
    if declared == 1 and 0 <= least:
        return most.bit_length()
    return max((~value if value < 0 else value).bit_length() + 1 for value in (least, most))


def _everywhere(accel: Accel, number: int, mask: tuple[int, int, int]) -> np.ndarray:
    """The same permanent fault in all elements of a component."""
    component = accel.components[number]
    rows, cols, words = accel.grid(component)
    return np.array(
        [
            [number, row, col, -1 if words == 1 else word, LEVEL, -1, FOREVER, *mask]
            for row in range(0, rows, component.shared)
            for col in range(cols)
            for word in range(words)
        ],
        np.int64,
    )
