"""Rows of fault models that are not fsim's own: checked where they enter.

Kernels do not check what they address, and a row that lies nowhere changes nothing: without
this a plug-in's mistake would be a crash or, worse, a fault that counts as masked.
"""

from __future__ import annotations

import numpy as np

from fsim.errors import FaultError
from fsim.types import FAULT

from .sites import Placement, SiteSpace, check_rows


def model_rows(model, space: SiteSpace, trial: int, images: np.ndarray, draws) -> np.ndarray:
    """`model.rows(...)`: FAULT rows of one trial. FaultError if they are not, but for fsim's own.

    images  (n,) int64 that are drawn for; rows strike those, or -1 for all
    """
    rows = model.rows(space, trial, images, draws)
    if not is_own(model):
        _check(model, space, rows, f"of trial {trial}")
        _check_numbers(model, rows, trial, images)
    return rows


def numbered_rows(model, space: SiteSpace, cells, which, word, bit) -> np.ndarray:
    """`model.rows_at(...)`: FAULT rows of single faults, one each; FaultError as above."""
    rows = model.rows_at(space, cells, which, word, bit)
    if not is_own(model):
        _check(model, space, rows, "of numbered faults")
        if len(rows) != len(which):
            raise FaultError(
                f"{_name(model)} must give one row a fault, got {len(rows)} for {len(which)}"
            )
    return rows


def is_own(model) -> bool:
    """Whether a fault model is part of fsim, whose tests have checked its rows."""
    return type(model).__module__.partition(".")[0] == "fsim"


def _check(model, space: SiteSpace, rows, of: str) -> None:
    """Type and place of rows, whatever trial and image they are of."""
    if not (isinstance(rows, np.ndarray) and rows.dtype == FAULT and rows.ndim == 1):
        got = f"{rows.dtype} of shape {rows.shape}" if isinstance(rows, np.ndarray) else repr(rows)
        raise FaultError(
            f"rows {of} must be a vector of fsim.types.FAULT, got {got[:80]} ({_name(model)})"
        )
    try:
        check_rows(space.placement, rows, int(np.iinfo(np.int32).max))
        _check_masks(space.placement, rows)
    except FaultError as error:
        raise FaultError(f"rows {of} of {_name(model)} must lie on the machine: {error}") from None


def _check_masks(placement: Placement, rows: np.ndarray) -> None:
    """Masks must be as `fault_models.rows` makes them, and faults of registers in their layer.

    Kernels rely on masks that are extended like the words: flipping bit 7 of an 8-bit code by
    128, not -128, would make codes that no such word can hold.
    """
    components, layer = placement.accel.components, len(placement.program.ops)
    bits = np.array([[c.bits] * (layer + 1) for c in components])
    signed = np.array([[c.role != "check"] * (layer + 1) for c in components])
    # Column -1, of faults in every layer, has no schedule of its own.
    cycles = np.zeros((len(components), layer + 1), np.int64)
    cycles[:, -1] = np.iinfo(np.int64).max
    names = {component.name: number for number, component in enumerate(components)}
    for block in placement.blocks:
        at = names[block.component], block.layer
        bits[at], signed[at] = block.bits, block.signed
    for site in placement.register_sites:
        at = site.component, site.layer
        signed[at], cycles[at] = site.signed, site.cycles
    at = rows["component"], rows["layer"]
    register = np.array([c.kind != "memory" for c in components])[rows["component"]]

    def refuse(bad: np.ndarray, field: str, must: str) -> None:
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            where = f"{components[rows['component'][row]].name}, fault row {row}"
            raise FaultError(
                f"{field} must be {must.format(bits[at][row])}, got {rows[field][row]} ({where})"
            )

    refuse(register & (cycles[at] == 0), "layer", "one that runs on the array, or -1")
    early, late = rows["first"] < -1, rows["first"] >= cycles[at]
    refuse(register & (early | late), "first", "a cycle of its layer")
    refuse(register & (rows["last"] < rows["first"]), "last", "first or later")
    size = np.left_shift(np.int64(1), np.minimum(bits[at], 62))
    extended = signed[at] & (bits[at] > 1)
    for field in ("and_mask", "or_mask", "xor_mask"):
        low, high = -(size // 2), size // 2
        mask = rows[field]
        refuse(extended & ((mask < low) | (mask >= high)), field,
               "extended by its sign, as words of {} bits are")  # fmt: skip
        low = -size if field == "and_mask" else 0
        refuse(~extended & ((mask < low) | (mask >= size)), field,
               "without sign, as words of {} bits are here")  # fmt: skip


def _check_numbers(model, rows: np.ndarray, trial: int, images: np.ndarray) -> None:
    """Trial and images of rows."""

    def refuse(bad: np.ndarray, field: str, must: str) -> None:
        if bad.any():
            at = int(np.flatnonzero(bad)[0])
            raise FaultError(
                f"{field} of a row of trial {trial} must be {must}, got {int(rows[field][at])} "
                f"(fault row {at} of {_name(model)})"
            )

    refuse(rows["trial"] != trial, "trial", "that trial")
    unit = getattr(model, "unit", None)
    every = rows["image"] == -1
    asked = np.isin(rows["image"], images)
    if unit == "trial":
        refuse(~every, "image", "-1, as its unit is 'trial'")
    elif unit == "image":
        refuse(~asked, "image", "one of those asked for, as its unit is 'image'")
    else:
        refuse(~(every | asked), "image", "-1 or one of those asked for")


def _name(model) -> str:
    return f"fault model {getattr(model, 'name', type(model).__name__)!r}"
