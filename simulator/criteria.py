"""When a wrong answer is a failure: criteria that tell SDC-critical from SDC-benign.

A criterion is a function

    critical(golden, faulty, labels) -> bool (n,)

of the last layer's outputs without and with faults, (n, classes) float32 each, and the
labels, (n,) int64, called only where some bit of the output differs. Criteria of other
distributions come through the entry-point group `fsim.metrics`: name -> function.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from functools import cache
from importlib import metadata

import numpy as np

from fsim.errors import ConfigError
from fsim.plugins import blamed, fenced

from .statistics import top1

GROUP = "fsim.metrics"

DEFAULT = "top1"

Criterion = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def class_changed(golden, faulty, labels):
    """The class with the largest output is another; ties go to the lowest class."""
    return top1(golden) != top1(faulty)


def not_in_top5(golden, faulty, labels):
    """The golden class is not among the five largest outputs (of ties the lower classes)."""
    order = np.argsort(-faulty, axis=1, kind="stable")[:, :5]
    return ~(order == top1(golden)[:, None]).any(axis=1)


def made_wrong(golden, faulty, labels):
    """The class was the label and is not any more: what accuracy loses."""
    return (top1(golden) == labels) & (top1(faulty) != labels)


BUILT_IN: dict[str, Criterion] = {
    "top1": class_changed,
    "top5": not_in_top5,
    "wrong": made_wrong,
}


@cache
def _plugins() -> dict[str, metadata.EntryPoint]:
    return {point.name: point for point in metadata.entry_points(group=GROUP)}


def criterion_names() -> tuple[str, ...]:
    """Names of all criteria, fsim's own first."""
    return (*BUILT_IN, *sorted(set(_plugins()) - set(BUILT_IN)))


def criterion(name: str) -> Criterion:
    """The criterion called `name`; ConfigError with the names otherwise."""
    if name in BUILT_IN:
        return BUILT_IN[name]
    if name not in _plugins():
        near = difflib.get_close_matches(str(name), criterion_names(), 1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ConfigError(
            f"critical must be one of {', '.join(criterion_names())}, got {name!r}{hint}"
        )
    point = _plugins()[name]
    try:
        found = point.load()
    except (Exception, SystemExit) as error:  # a plug-in may fail in any way
        raise ConfigError(
            f"the criterion {name!r} must be importable, got {blamed(error)} "
            f"(entry point {point.value!r})"
        ) from error
    if not callable(found):
        raise ConfigError(f"the criterion {name!r} must be a function, got {found!r}")
    return found


def judge(
    name: str, golden: np.ndarray, faulty: np.ndarray, labels: np.ndarray
) -> np.ndarray | None:
    """(n,) bool: which outputs fail by a criterion; None by the default, which `classify` knows.

    golden, faulty  (n, classes) outputs; labels (n,). Rows that are equal do not fail.
    ConfigError if a plug-in's criterion fails or returns anything else than (n,) booleans.
    """
    if name == DEFAULT:
        return None
    found = np.zeros(len(golden), bool)
    differs = np.flatnonzero((golden != faulty).any(axis=1))
    if len(differs):
        found_by = criterion(name)
        with fenced(f"the criterion {name!r}"):
            answer = np.asarray(found_by(golden[differs], faulty[differs], labels[differs]))
        if answer.shape != differs.shape or answer.dtype != bool:
            raise ConfigError(
                f"the criterion {name!r} must return {differs.shape} booleans, "
                f"got {answer.dtype} of shape {answer.shape}"
            )
        found[differs] = answer
    return found
