"""What a criterion of failure must keep (`fsim.simulator.criteria`)."""

from __future__ import annotations

from functools import partial

import numpy as np

from fsim.simulator.criteria import criterion, judge

from .check import Check, require


def criterion_contract(name: str, classes: int = 10) -> list[Check]:
    """The checks of the criterion called `name`, on outputs of `classes` classes."""
    return [
        Check("booleans", partial(_booleans, name, classes)),
        Check("one-by-one", partial(_one_by_one, name, classes)),
        Check("inputs-unchanged", partial(_unchanged, name, classes)),
    ]


def _outputs(classes: int):
    rng = np.random.default_rng(17)
    golden = rng.integers(-500, 500, (64, classes)).astype(np.float32) / 8
    faulty = golden + rng.integers(-200, 200, golden.shape).astype(np.float32) / 8
    faulty[::7] = golden[::7]
    return golden, faulty, rng.integers(0, classes, 64)


def _booleans(name: str, classes: int) -> None:
    found = judge(name, *_outputs(classes))
    require(found is None or found.dtype == bool, f"must be booleans, got {found!r}")


def _one_by_one(name: str, classes: int) -> None:
    """The answer for an inference must not depend on the others of its batch."""
    golden, faulty, labels = _outputs(classes)
    together = judge(name, golden, faulty, labels)
    if together is None:
        return
    for i in range(len(labels)):
        alone = judge(name, golden[i : i + 1], faulty[i : i + 1], labels[i : i + 1])
        require(
            bool(alone[0]) == bool(together[i]),
            f"inference {i} must be judged as in its batch, {together[i]}, got {alone[0]} alone",
        )


def _unchanged(name: str, classes: int) -> None:
    given = _outputs(classes)
    kept = [array.copy() for array in given]
    criterion(name)(*given)  # judge hands out copies
    for what, before, after in zip(("golden", "faulty", "labels"), kept, given):
        require(np.array_equal(before, after), f"a criterion must leave {what} as it is")
