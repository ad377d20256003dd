"""Traces as plain tables: columns with names instead of numbers, for CSV, Parquet and back."""

from __future__ import annotations

import numpy as np

from fsim.errors import ConfigError, TraceError
from fsim.simulator.statistics import OUTCOME_NAMES
from fsim.simulator.trace import Trace
from fsim.types import EFFECTS, FAULT

TABLES = ("inferences", "faults", "outcomes", "trials")
EVERY = "(all)"
"""Name of layer -1: damage in all of them."""

FAULT_COLUMNS = ("trial", "event", "image", "layer", "component", "row", "col", "word", "effect",
                 "first", "last", "and_mask", "or_mask", "xor_mask")  # fmt: skip


def lowest_bit(rows: np.ndarray) -> np.ndarray:
    """(f,) int64 lowest bit that each FAULT row changes; -1 if it changes none."""
    mask = rows["xor_mask"] | rows["or_mask"] | ~rows["and_mask"]
    low = (mask & -mask).astype(np.uint64)
    bit = np.full(len(rows), -1, np.int64)
    bit[low > 0] = np.round(np.log2(low[low > 0].astype(np.float64))).astype(np.int64)
    return bit


def table_of(trace: Trace, name: str) -> dict[str, np.ndarray]:
    """Columns of equal length.

    inferences  one row a (trial, image): outcome, and of trials with one fault also where it
                struck
    faults      FAULT rows; outcomes, trials: as stored
    Layers, components, effects and outcomes are names.
    """
    if name == "faults":
        return faults_table(trace.faults, names_of(trace))
    if name == "outcomes":
        return _outcomes(trace)
    if name == "trials":
        return {column: trace.trials[column] for column in trace.trials.dtype.names}
    if name != "inferences":
        raise ConfigError(f"table must be one of {', '.join(TABLES)}, got {name!r}")
    found = _outcomes(trace)
    counts = trace.trials["n_faults"]
    found["faults"] = np.repeat(counts, _per_trial(trace))
    if not len(counts) or not (counts == 1).all():
        return found
    rows = np.repeat(trace.faults, _per_trial(trace))
    sites = faults_table(rows, names_of(trace))
    found["bit"] = lowest_bit(rows)
    for column in FAULT_COLUMNS[3:]:
        found[column] = sites[column]
    return found


def _per_trial(trace: Trace) -> np.ndarray:
    """Outcomes of each trial."""
    return np.unique(trace.outcomes["trial"], return_counts=True)[1]


def names_of(trace: Trace) -> tuple[list[str], list[str]]:
    """Names of layers and components, which the rows of the trace are within; TraceError."""
    try:
        layers, components = list(trace.task["layers"]), list(trace.task["components"])
        if not all(isinstance(x, str) for x in [*layers, *components]):
            raise TypeError("names must be text")
    except (KeyError, TypeError) as error:
        raise TraceError(f"the task of a trace must name layers and components: {error}") from None
    rows = trace.faults
    if len(rows) and (
        rows["layer"].max() >= len(layers) or rows["layer"].min() < -1
        or rows["component"].max() >= len(components) or rows["component"].min() < 0
    ):  # fmt: skip
        raise TraceError("layers and components of faults must be among those the task names")
    if len(rows) and not 0 <= rows["effect"].min() <= rows["effect"].max() < len(EFFECTS):
        raise TraceError(f"effects of faults must be one of {', '.join(EFFECTS)}")
    return layers, components


def _outcomes(trace: Trace) -> dict[str, np.ndarray]:
    table = trace.outcomes
    found = {name: table[name] for name in ("trial", "image", "label", "golden", "faulty")}
    found["outcome"] = np.array(OUTCOME_NAMES)[table["outcome"]]
    found["digest"] = np.array([f"{value:016x}" for value in table["digest"].tolist()], "U16")
    return found


def faults_table(rows: np.ndarray, names: tuple[list[str], list[str]]) -> dict[str, np.ndarray]:
    """FAULT rows as columns, with the names of layers and components."""
    layers, components = names
    found = {column: rows[column] for column in FAULT_COLUMNS}
    found["layer"] = np.array([*layers, EVERY])[rows["layer"]]
    found["component"] = np.array(components)[rows["component"]]
    found["effect"] = np.array(EFFECTS)[rows["effect"]]
    return found


def rows_of(columns: dict[str, list[str]], layers: list[str], components: list[str],
            where: str, lines: list[int] | None = None) -> np.ndarray:  # fmt: skip
    """FAULT rows from columns of text as `faults_table` has them, sorted by trial.

    lines  of the file, where each row is; None: rows are numbered from 0

    ConfigError names the line of what is not valid. `event` may be missing: rows of a trial
    are then numbered.
    """
    needed = [name for name in FAULT_COLUMNS if name != "event"]
    missing = [name for name in needed if name not in columns]
    if missing:
        raise ConfigError(f"{where} must have the columns {', '.join(needed)}; "
                          f"{', '.join(missing)} missing")  # fmt: skip
    other = sorted(set(columns) - set(FAULT_COLUMNS))
    if other:
        raise ConfigError(f"{where} must have no other columns than those of faults, "
                          f"got {other[0][:60]!r}")  # fmt: skip
    count = len(columns["trial"])
    rows = np.zeros(count, FAULT)
    lookup = {
        "layer": {**{name: i for i, name in enumerate(layers)}, EVERY: -1},
        "component": {name: i for i, name in enumerate(components)},
        "effect": {name: i for i, name in enumerate(EFFECTS)},
    }

    def at(i: int) -> str:
        return f"{where}, row {i}" if lines is None else f"{where}, line {lines[i]}"

    for name in FAULT_COLUMNS:
        if name not in columns:
            continue
        known = lookup.get(name)
        limits = np.iinfo(FAULT[name])
        for i, text in enumerate(columns[name]):
            if known is not None:
                if text not in known:
                    raise ConfigError(
                        f"{at(i)}: {name} must be one of "
                        f"{', '.join(list(known)[:20])}, got {text[:60]!r}"
                    )
                rows[name][i] = known[text]
                continue
            try:
                value = int(text) if text.isascii() else None
            except ValueError:
                value = None
            if value is None or len(text) > 24 or not limits.min <= value <= limits.max:
                raise ConfigError(
                    f"{at(i)}: {name} must be a whole number of {limits.bits} bits, "
                    f"got {text[:60]!r}"
                )
            rows[name][i] = value
    if count and rows["trial"].min() < 0:
        raise ConfigError(f"{at(int(rows['trial'].argmin()))}: trials must not be negative")
    rows = rows[np.argsort(rows["trial"], kind="stable")]
    if "event" not in columns:
        _, first, sizes = np.unique(rows["trial"], return_index=True, return_counts=True)
        rows["event"] = np.arange(count) - np.repeat(first, sizes)
    return rows
