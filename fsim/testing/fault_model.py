"""What a fault model must keep: rows of its own trial, valid, and always the same."""

from __future__ import annotations

import dataclasses
from functools import cache, partial

import numpy as np

from fsim.errors import FsimError
from fsim.types import FAULT, wrap

from .check import Check, require

IMAGES = 6


def fault_model_contract(model, accel: str = "systolic-8x8", *, fixed: bool = False) -> list[Check]:
    """The checks of a fault model: an object, not a class, as `fsim.fault_models.families` says.

    accel  machine on which it draws, for the network digits-cnn
    fixed  the model draws nothing: every seed and every trial must have the same rows
    """
    differ = ("seed-does-not-matter", _fixed) if fixed else ("trials-differ", _differ)
    return [
        Check("declaration", partial(_declaration, model)),
        *(
            Check(name, partial(_of_object, run, model, accel))
            for name, run in (
                ("valid-rows", _valid),
                ("codes-stay-codes", _codes),
                ("same-again", _again),
                differ,
                ("images-alone", _alone),
                ("runs", _runs),
            )
        ),
    ]


def _of_object(run, model, accel: str) -> None:
    """A check that needs an object."""
    _instance(model)
    run(model, accel)


def _instance(model) -> None:
    name = getattr(model, "__name__", "")
    require(
        not isinstance(model, type),
        f"a fault model must be an object, got the class {name}: give {name}(...)",
    )


@cache
def _session(accel: str):
    from fsim.accel_models.load import load_accel
    from fsim.session import open_session

    return open_session("digits-cnn", load_accel(accel), images=IMAGES)


def _draw(model, accel: str, trial: int, images=None, seed: int = 5) -> np.ndarray:
    from fsim.simulator.draws import Draws
    from fsim.simulator.sites import select

    images = np.arange(IMAGES) if images is None else images
    return model.rows(select(_session(accel).placement), trial, images, Draws(seed))


def _declaration(model) -> None:
    _instance(model)
    require(
        dataclasses.is_dataclass(model),
        f"a fault model must be a dataclass, so that traces can keep its parameters, got {model!r}",
    )
    for field in dataclasses.fields(model):
        require(
            "about" in field.metadata,
            f"field {field.name!r} must be made by fsim.fault_models.parameters.parameter(about)",
        )
    name, lasting = getattr(model, "name", None), getattr(model, "lasting", None)
    require(isinstance(name, str) and bool(name), f"name must be text, got {name!r}")
    require(
        isinstance(lasting, bool),
        f"lasting must be True (a trial is a chip with these defects) or False, got {lasting!r}",
    )
    unit = getattr(model, "unit", None)
    require(
        unit in ("image", "trial"),
        f"unit must be 'image' (faults of images are independent) or 'trial', got {unit!r}",
    )


def _valid(model, accel: str) -> None:
    for trial in range(20):
        _check(model, accel, trial, _draw(model, accel, trial))


def _check(model, accel: str, trial: int, rows) -> None:
    """AssertionError unless these are FAULT rows on the machine, of their trial and unit."""
    from fsim.simulator.sites import check_rows

    require(
        isinstance(rows, np.ndarray) and rows.dtype == FAULT and rows.ndim == 1,
        "rows must be a vector of fsim.FAULT",
    )
    try:
        check_rows(_session(accel).placement, rows, IMAGES)
    except FsimError as error:
        raise AssertionError(f"rows of trial {trial} must lie on the machine: {error}") from None
    require(bool((rows["trial"] == trial).all()), f"rows must be of their trial, {trial}")
    once = (rows["image"] == -1).all()
    each = (rows["image"] >= 0).all()
    right = once if model.unit == "trial" else each
    require(bool(right), f"unit {model.unit!r} needs image -1 in all rows, or in none")


def _codes(model, accel: str) -> None:
    """Masks turn every code of a memory word into a code: those of signed words are extended."""
    from fsim.simulator.sites import select

    placement = _session(accel).placement
    names = [component.name for component in placement.accel.components]
    words = {
        (names.index(block.component), block.layer): (block.bits, block.signed)
        for block in select(placement).blocks
    }
    for trial in range(20):
        for number, row in enumerate(_draw(model, accel, trial)):
            bits, signed = words.get((int(row["component"]), int(row["layer"])), (0, False))
            if not bits:  # registers and nets are reduced to their width
                continue
            # Bits above the code are all 0 or, in negative codes, all 1: two codes show both.
            for code in (0, -1 if signed else (1 << bits) - 1):
                found = (code & int(row["and_mask"]) | int(row["or_mask"])) ^ int(row["xor_mask"])
                fits = found == (wrap(found, bits) if signed else found & ((1 << bits) - 1))
                require(
                    fits,
                    f"masks of a {'signed' if signed else 'unsigned'} {bits}-bit word of "
                    f"{names[row['component']]} must keep codes codes (a mask with the sign bit "
                    f"is negative: -128, not 128), got {found} from {code} (trial {trial}, "
                    f"row {number})",
                )


def _again(model, accel: str) -> None:
    for trial in (0, 3):
        first, second = (_draw(model, accel, trial) for _ in range(2))
        require(np.array_equal(first, second), "the same seed and trial must give the same rows")


def _body(rows: np.ndarray) -> bytes:
    """What rows strike, and how: all but the numbers of trial and event."""
    return b"".join(
        np.ascontiguousarray(rows[name]).tobytes()
        for name in FAULT.names
        if name not in ("trial", "event")
    )


def _differ(model, accel: str) -> None:
    trials = [_body(_draw(model, accel, trial)) for trial in range(50)]
    require(any(trials), "some of 50 trials must have a fault")
    says = "; for a model that draws nothing: fault_model_contract(model, fixed=True)"
    require(len(set(trials)) > 1, f"rows must differ from trial to trial{says}")
    seeds = [
        b"".join(_body(_draw(model, accel, trial, seed=seed)) for trial in range(10))
        for seed in range(6)
    ]
    if any(seeds):
        require(len(set(seeds)) > 1, f"rows must depend on the seed (use draws){says}")


def _fixed(model, accel: str) -> None:
    wanted = _body(_draw(model, accel, 0))
    require(bool(wanted), "a fixed fault model must have rows")
    for trial in range(5):
        for seed in range(3):
            require(
                _body(_draw(model, accel, trial, seed=seed)) == wanted,
                f"a fixed fault model must have the same rows always, got others in trial {trial} "
                f"of seed {seed}",
            )


def _alone(model, accel: str) -> None:
    """Faults of an image must not depend on which images are drawn with it."""
    if model.unit != "image":
        return
    every = _draw(model, accel, 1)
    for image in range(IMAGES):
        alone = _draw(model, accel, 1, np.array([image]))
        here = every[every["image"] == image]
        for name in FAULT.names:
            if name != "event":
                require(
                    np.array_equal(alone[name], here[name]),
                    f"{name} of image {image} must be the same when it is drawn alone",
                )


def _runs(model, accel: str) -> None:
    from fsim.simulator.inject import golden_run, run_rows

    session = _session(accel)
    golden = golden_run(session.placement, session.images, session.labels)
    hw_batch = getattr(model, "hw_batch", 1)
    rows = _draw(model, accel, 0)
    _check(model, accel, 0, rows)  # compiled kernels trust what they are given
    first = run_rows(session.placement, golden, rows, hw_batch=hw_batch)
    parts = [
        run_rows(session.placement, golden, rows, hw_batch=hw_batch, batch=batch).acc
        for batch in (1, 4)
    ]
    for part in parts:
        require(np.array_equal(first.acc, part), "answers must not depend on the software batch")
