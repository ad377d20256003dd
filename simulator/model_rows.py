"""Rows of fault models that are not fsim's own: checked where they enter.

Kernels do not check what they address, and a row that lies nowhere changes nothing: without
this a plug-in's mistake would be a crash or, worse, a fault that counts as masked.
"""

from __future__ import annotations

import numpy as np

from fsim.errors import FaultError
from fsim.types import FAULT

from .sites import SiteSpace, check_rows


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
        raise FaultError(f"rows {of} must be a vector of fsim.types.FAULT, got {got[:80]} "
                         f"({_name(model)})")  # fmt: skip
    try:
        check_rows(space.placement, rows, int(np.iinfo(np.int32).max))
    except FaultError as error:
        raise FaultError(f"{error} of {_name(model)}, {of.removeprefix('of ')}") from None


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
