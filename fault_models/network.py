"""Explicit faults in a network: a layer and, for memories, a word and a residency."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fsim.accel_models.accel import CHECK
from fsim.errors import FaultError
from fsim.types import FAULT, FOREVER, LEVEL, STATE, Fault

from .explicit import find_component, mask_of, masks, rows_of


def _memory_row(space, fault: Fault, where: str) -> np.ndarray:
    """One row for a fault in a stored word; `cycle` is the residency, 0 by default.

    Bits of a weight may be stuck: in every residency.
    """
    index, component = find_component(space.accel, fault.component)
    if fault.layer is None or fault.word is None:
        raise FaultError(f"{where}: a fault in a memory needs layer= and word=")
    if fault.row or fault.col:
        raise FaultError(f"{where}: a memory word has no row= and col=, its address is word=")
    if fault.last is not None:
        raise FaultError(f"{where}: a fault in a memory has no last=, got {fault.last}")
    stuck = fault.kind != "flip"
    if stuck and fault.component.removesuffix(CHECK) != "weights":
        raise FaultError(
            f"{where}: a word of {fault.component} takes flips only, got kind {fault.kind}"
        )
    if stuck and fault.cycle is not None:
        raise FaultError(
            f"{where}: a stuck bit is stuck in every residency and takes no cycle=, "
            f"got {fault.cycle}"
        )
    layer = space.layer_index(fault.layer)
    residency = fault.cycle or 0
    blocks = [b for b in space.blocks if b.component == fault.component and b.layer == layer]
    most = max((block.words for block in blocks), default=0)
    if blocks and not 0 <= fault.word < most:
        raise FaultError(f"{where}: word must be in 0..{most - 1}, got {fault.word}")
    for block in blocks:
        if block.word is not None:
            here = bool(((block.word == fault.word) & (block.residency == residency)).any())
        else:
            here = block.first <= residency < block.first + int(block.residencies)
        if here and fault.word < block.words:
            break
    else:
        raise FaultError(
            f"{where}: layer {fault.layer} has no word {fault.word} of {fault.component} with "
            f"residency {residency}"
        )
    mask = mask_of(fault, replace(component, bits=block.bits), where)
    row = np.zeros(1, FAULT)
    row["layer"], row["component"], row["word"] = layer, index, fault.word
    row["row"] = row["col"] = -1
    row["effect"], row["first"], row["last"] = STATE, residency, residency
    if stuck:
        row["effect"], row["last"] = LEVEL, FOREVER
    row["and_mask"], row["or_mask"], row["xor_mask"] = masks(
        fault.kind, mask, block.bits, block.signed
    )
    return row


def network_rows(faults: Sequence[Fault], space) -> np.ndarray:
    """FAULT rows of explicit faults; image -1 where a fault names none.

    A fault in a PE that names a cycle needs a layer, because cycles count within
    a layer's schedule. Raises FaultError.
    """
    parts = [np.zeros(0, FAULT)]
    for number, fault in enumerate(faults):
        where = f"fault {number} on {fault.component!r}"
        _, component = find_component(space.accel, fault.component)
        if component.kind == "memory":
            row = _memory_row(space, fault, where)
        else:
            if fault.layer is None and (fault.cycle is not None or fault.kind == "flip"):
                raise FaultError(f"{where}: a fault with a cycle needs layer=, whose cycles count")
            if fault.word is not None and component.words == 1:
                raise FaultError(f"{where}: word must be given for memories only, got {fault.word}")
            layer, cycles, signed = -1, 1, True
            if fault.layer is not None:
                layer = space.layer_index(fault.layer)
                sites = [s for s in space.placement.register_sites if s.layer == layer]
                if not sites:
                    raise FaultError(f"{where}: layer {fault.layer!r} does not run on the array")
                cycles = sites[0].cycles
                signed = all(site.signed for site in sites)
            row = rows_of([fault], space.accel, cycles, unsigned_ifmap=not signed)
            row["layer"] = layer
        row["image"] = -1 if fault.image is None else fault.image
        row["event"] = number
        parts.append(row)
    return np.concatenate(parts)


@dataclass(frozen=True, eq=False)
class Explicit:
    """The same named faults in every trial."""

    faults: tuple[Fault, ...]

    name = "explicit"
    unit = "none"

    def rows(self, space, trial: int, images: np.ndarray, draws) -> np.ndarray:
        """FAULT rows of one trial that strike some of the images."""
        rows = network_rows(self.faults, space)
        rows = rows[(rows["image"] < 0) | np.isin(rows["image"], images)]
        rows["trial"] = trial
        return rows
