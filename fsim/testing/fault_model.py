"""What a fault model must keep: rows of its own trial, valid, and always the same."""

from __future__ import annotations

from functools import cache, partial

import numpy as np

from fsim.errors import FsimError
from fsim.types import FAULT

from .check import Check, require

IMAGES = 6


def fault_model_contract(model, accel: str = "systolic-8x8") -> list[Check]:
    """The checks of a fault model: an object with `unit` and rows(space, trial, images, draws).

    accel  machine on which it draws, for the network digits-cnn
    """
    return [
        Check("unit", partial(_unit, model)),
        Check("valid-rows", partial(_valid, model, accel)),
        Check("same-again", partial(_again, model, accel)),
        Check("trials-differ", partial(_differ, model, accel)),
        Check("images-alone", partial(_alone, model, accel)),
        Check("runs", partial(_runs, model, accel)),
    ]


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


def _unit(model) -> None:
    unit = getattr(model, "unit", None)
    require(
        unit in ("image", "trial"),
        f"unit must be 'image' (faults of images are independent) or 'trial', got {unit!r}",
    )


def _valid(model, accel: str) -> None:
    from fsim.simulator.sites import check_rows

    for trial in range(20):
        rows = _draw(model, accel, trial)
        require(
            isinstance(rows, np.ndarray) and rows.dtype == FAULT and rows.ndim == 1,
            "rows must be a vector of fsim.FAULT",
        )
        try:
            check_rows(_session(accel).placement, rows, IMAGES)
        except FsimError as error:
            raise AssertionError(
                f"rows of trial {trial} must lie on the machine: {error}"
            ) from None
        require(bool((rows["trial"] == trial).all()), f"rows must be of their trial, {trial}")
        once = (rows["image"] == -1).all()
        each = (rows["image"] >= 0).all()
        right = once if model.unit == "trial" else each
        require(bool(right), f"unit {model.unit!r} needs image -1 in all rows, or in none")


def _again(model, accel: str) -> None:
    for trial in (0, 3):
        first, second = (_draw(model, accel, trial) for _ in range(2))
        require(np.array_equal(first, second), "the same seed and trial must give the same rows")


def _differ(model, accel: str) -> None:
    drawn = [_draw(model, accel, trial).tobytes() for trial in range(50)]
    require(any(drawn), "some of 50 trials must have a fault")
    bodies = {_draw(model, accel, trial)["word"].tobytes() for trial in range(50)}
    seeds = {_draw(model, accel, 0, seed=seed).tobytes() for seed in range(50)}
    require(len(set(drawn)) > 1 and len(bodies | seeds) > 1, "trials and seeds must differ")


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
    first = run_rows(session.placement, golden, rows, hw_batch=hw_batch)
    parts = [
        run_rows(session.placement, golden, rows, hw_batch=hw_batch, batch=batch).acc
        for batch in (1, 4)
    ]
    for part in parts:
        require(np.array_equal(first.acc, part), "answers must not depend on the software batch")
