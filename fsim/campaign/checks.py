"""Whether a trace says of itself what a campaign must: tasks of files are not to be trusted.

Everything that tables, intervals and texts of a finished campaign read is checked here, once,
so that they need not.
"""

from __future__ import annotations

import math

import numpy as np

from fsim.accel_models.accel import PROTECTIONS
from fsim.errors import TraceError
from fsim.fault_models import families
from fsim.simulator.campaign.frame import Frame

from .tables import EVERY

MAX_BITS = 1 << 21
"""Bits of all cells of a frame: so many strata there may be, and parts to tell apart."""

FLIPS = 1 << 20  # numbers of flips, at most
_FAULTS = ("flip", "seu", "mbu", "transient", "intermittent", "stuck0", "stuck1")
_NONE = type(None)


def _whole(low: int, high: int = 1 << 62):
    def good(value) -> bool:
        return type(value) is int and low <= value <= high

    return good, f"a whole number from {low} to {high}"


def _kind(*kinds: type):
    names = {str: "text", dict: "an object", list: "a list", _NONE: "null", bool: "true or false"}
    return (lambda value: type(value) in kinds), " or ".join(names[kind] for kind in kinds)


def _or_null(rule):
    good, said = rule
    return (lambda value: value is None or good(value)), said + " or null"


def _number(low: float, high: float):
    def good(value) -> bool:
        return type(value) in (int, float) and low <= value <= high

    return good, f"a number from {low:g} to {high:g}"


def _one_of(*names: str):
    return (lambda value: type(value) is str and value in names), f"one of {', '.join(names)}"


def _names_good(value) -> bool:
    return type(value) is list and all(type(item) is str for item in value)


_TEXT, _OBJECT = _kind(str), _kind(dict)
_NAMES = (_names_good, "a list of names")
_SIZE = _whole(1, 1 << 31)

_TASK = {
    "model": _TEXT, "weights": _kind(str, _NONE), "data": _TEXT, "data_dir": _kind(str, _NONE),
    "data_sha256": _TEXT, "codes_sha256": _TEXT, "images": _SIZE, "accel": _OBJECT,
    "components": _NAMES, "layers": _NAMES, "faults": _OBJECT, "select": _OBJECT,
    "seed": _whole(0, (1 << 64) - 1), "rng_version": _whole(1), "trials": _or_null(_whole(0)),
    "campaign": _OBJECT,
}  # fmt: skip
_ACCEL = {
    "name": _TEXT, "dataflow": _TEXT, "rows": _SIZE, "cols": _SIZE, "operand_bits": _SIZE,
    "acc_bits": _SIZE, "buffers": _OBJECT,
}  # fmt: skip
_BUFFER = {"protection": _one_of(*PROTECTIONS), "word_bits": _whole(1, 64)}
_CAMPAIGN = {
    "version": _whole(1), "design": _one_of("single", "flips", "chips", "events", "list"),
    "frame": _kind(dict, _NONE), "flips": _kind(list), "bits": _or_null(_whole(1, 1 << 40)),
    "unit_images": _SIZE, "list_sha256": _kind(str, _NONE), "rule": _OBJECT,
    "allocation": _kind(list, _NONE), "pilot": _whole(1), "shard": _whole(1), "stated": _OBJECT,
}  # fmt: skip
_RULE = {
    "name": _TEXT, "metric": _TEXT, "value": _number(0, 2.0**62),
    "confidence": _number(1e-12, 1 - 1e-12), "most": _whole(1),
}  # fmt: skip
_STATED = {
    "accel": _TEXT, "settings": _NAMES, "exhaustive": _kind(bool), "margin": _number(0, 1),
    "t": _or_null(_number(0, 1e6)), "p": _or_null(_number(0, 1)), "rounding": _TEXT,
}  # fmt: skip


def _fields(node: dict, rules: dict, where: str, optional: bool = False) -> None:
    for name, (good, said) in rules.items():
        if name not in node:
            if optional:
                continue
            raise TraceError(f"{where}.{name} must be {said}, got nothing")
        if not good(node[name]):
            raise TraceError(f"{where}.{name} must be {said}, got {_short(node[name])}")


def _short(value) -> str:
    text = value if isinstance(value, str) else type(value).__name__
    if type(value) in (int, float) and math.fabs(value) < 1e300:
        text = repr(value)
    return repr(text[:60]) if isinstance(value, str) else text


def check_task(task: dict) -> None:
    """The task of a campaign must state all that makes one; TraceError names what does not."""
    _fields(task, _TASK, "task")
    _fields(task["accel"], _ACCEL, "task.accel")
    buffers = task["accel"]["buffers"]
    _fields(buffers, dict.fromkeys(buffers, _OBJECT), "task.accel.buffers")
    for name, buffer in buffers.items():
        _fields(buffer, _BUFFER, f"task.accel.buffers.{name}", optional=True)
    _fields(task["campaign"], {"critical": _TEXT}, "task.campaign", optional=True)
    names = _or_null(_NAMES)
    _fields(task["select"], {"layers": names, "sites": names}, "task.select")
    stated = task["campaign"]
    _fields(stated, _CAMPAIGN, "task.campaign")
    _fields(stated["rule"], _RULE, "task.campaign.rule")
    _fields(stated["stated"], _STATED, "task.campaign.stated", optional=True)
    if set(stated["rule"]) != set(_RULE):
        raise TraceError(f"task.campaign.rule must have {', '.join(_RULE)} and nothing else")
    design, faults = stated["design"], task["faults"]
    share = _number(0, 1)
    named = tuple(name for name in families.family_names() if "parameters" in faults)
    of_design = {
        "single": {"kind": _one_of(*_FAULTS, *named)},
        "flips": {"kind": _one_of("flips"), "memories": _NAMES},
        "chips": {"kind": _one_of("stuck-cells", "ber", *named)},
        "events": {"kind": _one_of(*named)},
        "list": {"kind": _one_of("list"), "file": _TEXT},
    }[design]
    _fields(faults, of_design, "task.faults")
    of_kind = {
        "flip": {"memories": _NAMES},
        "stuck-cells": {"p": share, "sa1_share": share},
        "ber": {
            "acts": share, "weights": share, "psums": share,
            "hw_batch": _or_null(_whole(1, 1 << 20)),
        },
    }.get(faults["kind"], {})
    _fields(faults, of_kind, "task.faults")
    if "parameters" in faults:
        _check_parameters(faults["parameters"])
    if (design == "single") != (stated["frame"] is not None):
        raise TraceError("task.campaign.frame must be there for single faults and nothing else")
    if design == "list" and stated["list_sha256"] is None:
        raise TraceError("task.campaign.list_sha256 must be that of the fault list, got null")
    if design == "flips":
        _check_flips(stated)


def _check_parameters(values) -> None:
    """Of a named fault model: numbers and short texts by name."""
    good = type(values) is dict and len(values) <= 256
    good = good and all(
        type(value) is int or (type(value) is float and math.isfinite(value))
        or (type(value) is str and len(value) <= families.MAX_TEXT)
        for value in values.values()
    )  # fmt: skip
    if not good:
        raise TraceError("task.faults.parameters must be numbers and texts by name")


def _check_flips(stated: dict) -> None:
    flips, bits = stated["flips"], stated["bits"]
    good = bits is not None and 0 < len(flips) <= FLIPS
    good = good and all(type(j) is int and 1 <= j <= bits for j in flips)
    if not good or any(a >= b for a, b in zip(flips, flips[1:])):
        raise TraceError("task.campaign.flips must rise from 1 to at most task.campaign.bits")


def check_frame_size(frame: dict) -> None:
    """Before a frame is made from JSON: it must not take minutes. TraceError."""
    cells = frame.get("cells")
    if not isinstance(cells, list) or not all(isinstance(c, list) and len(c) == 6 for c in cells):
        raise TraceError("task.campaign.frame.cells must be lists of six values")
    if any(type(c[5]) is not int or not 1 <= c[5] <= 64 for c in cells):
        raise TraceError("task.campaign.frame.cells must have 1 to 64 bits")
    if sum(c[5] for c in cells) > MAX_BITS:
        raise TraceError(f"task.campaign.frame.cells must have at most {MAX_BITS} bits in all")


def check_frame(frame: Frame, task: dict) -> None:
    """Names and sizes of a frame must be those of its task; TraceError otherwise."""
    layers, components = [*task["layers"], EVERY], task["components"]
    for cell in frame.cells:
        known = -1 <= cell.layer < len(layers) - 1 and 0 <= cell.component < len(components)
        if not known or layers[cell.layer] != cell.layer_name or (
            components[cell.component] != cell.component_name
        ):  # fmt: skip
            raise TraceError("cells of the frame must be of the layers and components of the task")
    if frame.images != task["images"] or frame.unit_images != task["campaign"]["unit_images"]:
        raise TraceError("images of the frame must be those of the task")


def check_sites(frame: Frame, stratum: np.ndarray, sites: np.ndarray) -> None:
    """Every trial must have struck a site of its stratum; TraceError otherwise.

    stratum  (t,) numbers; sites: (t,) records with trial, layer, component and bit
    """
    bits: dict[tuple[int, int], int] = {}
    for cell in frame.cells:
        key = cell.layer, cell.component
        bits[key] = max(bits.get(key, 0), cell.bits)
    names = {(c.layer, c.component): (c.layer_name, c.component_name) for c in frame.cells}
    struck = zip(*(sites[name].tolist() for name in ("layer", "component", "bit")))
    for h, trial, (layer, component, bit) in zip(stratum.tolist(), sites["trial"].tolist(), struck):
        key = layer, component
        good = 0 <= bit < bits.get(key, 0)
        if good and frame.stratify:
            is_at = dict(zip(("layer", "component"), names[key])) | {"bit": bit}
            good = all(is_at[axis] == value for axis, value in frame.strata[h].key.items())
        if not good:
            raise TraceError(f"the fault of trial {trial} must lie in its part of the frame")
