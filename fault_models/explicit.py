"""Faults that a person names, one by one: `Fault` values checked and made rows."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import numpy as np

from fsim.accel_models.accel import Accel
from fsim.errors import FaultError
from fsim.types import FAULT, FOREVER, LEVEL, STATE, Component, Fault


def extend(mask: int, bits: int, signed: bool) -> int:
    """A mask over the low `bits` bits as rows store it.

    Words are two's complement, so the mask's top bit is extended: inverting bit
    7 of an 8-bit register inverts every higher bit of the integer that stands
    for it. Unsigned words (and 1-bit ones) are not extended.
    """
    if signed and bits > 1 and mask >> (bits - 1):
        return mask - (1 << bits)
    return mask


def masks(kind: str, mask: int, bits: int, signed: bool) -> tuple[int, int, int]:
    """(and, or, xor) masks of a flip or stuck-at on the bits of `mask`."""
    mask = extend(mask, bits, signed)
    if kind == "flip":
        return -1, 0, mask
    if kind == "stuck0":
        return ~mask, 0, 0
    return -1, mask, 0


def find_component(accel: Accel, name: str) -> tuple[int, Component]:
    """(index, component) by name; FaultError with the nearest name otherwise."""
    names = [component.name for component in accel.components]
    if name in names:
        index = names.index(name)
        return index, accel.components[index]
    near = difflib.get_close_matches(name, names, 1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise FaultError(
        f"component must be one of {', '.join(names)} on {accel.name} ({accel.dataflow}), "
        f"got {name!r}{hint}"
    )


def rows_of(
    faults: Sequence[Fault], accel: Accel, cycles: int, *, unsigned_ifmap: bool = False
) -> np.ndarray:
    """Explicit faults on PE components as FAULT rows, one event each.

    cycles          length of the schedule the faults must lie in
    unsigned_ifmap  activation codes are unsigned in this schedule
    Raises FaultError for a component, PE, bit or cycle outside the machine.
    """
    rows = np.zeros(len(faults), FAULT)
    for number, fault in enumerate(faults):
        where = f"fault {number} on {fault.component!r}"
        index, component = find_component(accel, fault.component)
        if component.kind == "memory":
            raise FaultError(
                f"{where}: a single product reads its operands from outside; faults in memory "
                "words need a network (fsim inject)"
            )
        height, width, words = accel.grid(component)
        for name, value, size in (("row", fault.row, height), ("col", fault.col, width)):
            if not 0 <= value < size:
                raise FaultError(f"{where}: {name} must be in 0..{size - 1}, got {value}")
        word = -1
        if words > 1:
            word = 0 if fault.word is None else fault.word
            if not 0 <= word < words:
                raise FaultError(f"{where}: word must be in 0..{words - 1}, got {word}")
        elif fault.word is not None:
            raise FaultError(f"{where}: a single register must have no word=, got {fault.word}")
        mask = mask_of(fault, component, where)
        effect, first, last = _window(fault, component, cycles, where)
        signed = not (unsigned_ifmap and component.role == "ifmap")
        row = rows[number]
        row["event"], row["image"], row["layer"] = number, -1, -1
        row["component"], row["row"], row["col"], row["word"] = index, fault.row, fault.col, word
        row["effect"], row["first"], row["last"] = effect, first, last
        row["and_mask"], row["or_mask"], row["xor_mask"] = masks(
            fault.kind, mask, component.bits, signed
        )
    return rows


def mask_of(fault: Fault, component: Component, where: str) -> int:
    """The fault's bits as a non-negative mask within the component's width."""
    if fault.bit is not None:
        if not 0 <= fault.bit < component.bits:
            raise FaultError(
                f"{where}: bit must be in 0..{component.bits - 1} ({component.bits}-bit "
                f"{component.kind}), got {fault.bit}"
            )
        return 1 << int(fault.bit)  # a NumPy integer would not shift beyond its width
    if not 0 < fault.mask < 1 << component.bits:
        raise FaultError(
            f"{where}: mask must be in 1..{(1 << component.bits) - 1:#x} ({component.bits}-bit "
            f"{component.kind}), got {fault.mask:#x}"
        )
    return int(fault.mask)


def _window(fault: Fault, component: Component, cycles: int, where: str) -> tuple[int, int, int]:
    """(effect, first, last) of a fault, checked against the schedule."""
    for name, value in (("cycle", fault.cycle), ("last", fault.last)):
        if value is not None and not 0 <= value < cycles:
            raise FaultError(
                f"{where}: {name} must be in 0..{cycles - 1} (the schedule has {cycles} cycles), "
                f"got {value}"
            )
    if fault.last is not None and (fault.cycle is None or fault.last < fault.cycle):
        raise FaultError(
            f"{where}: last must be >= cycle, got cycle={fault.cycle}, last={fault.last}"
        )
    if fault.kind == "flip":
        if fault.cycle is None:
            raise FaultError(f"{where}: a flip needs cycle=, the clock edge it follows")
        if fault.last is None and component.kind == "register":
            return STATE, fault.cycle, fault.cycle
        return LEVEL, fault.cycle, fault.cycle if fault.last is None else fault.last
    first = -1 if fault.cycle is None else fault.cycle
    return LEVEL, first, FOREVER if fault.last is None else fault.last
