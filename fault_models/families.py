"""Fault models that have a name and parameters: `--fault NAME,key=value,...`.

A family is a frozen dataclass whose fields are its parameters (`parameters.py`), with

    name      as people write it
    unit      "image" or "trial": what of its faults is independent (`simulator/statistics.py`)
    lasting   its rows are a defect of one chip, the same for all images of a trial (image -1)
    rows(space, trial, images, draws) -> FAULT rows
              of one trial, a function of (seed, trial, image) alone: rows of an image must not
              depend on which other images are asked for
    expected(space, images) -> float     mean number of rows; default: one for each image
    cells, rows_at                       (`cells.py`) if single faults can be numbered

The first line of its docstring says what it draws. Families of other distributions come
through the entry-point group `fsim.fault_models`: name -> class. This module imports nothing
heavy, so that a command line can list the names.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
from functools import cache
from importlib import metadata

from fsim.errors import ConfigError, FaultError, FsimError
from fsim.plugins import blamed, fenced, fenced_function

from .parameters import kind_of, read_value

BUILT_IN = {
    "mbu-patterns": "mbu:MultiBitUpset",
    "mcu": "mcu:MultiCellUpset",
    "intermittent-duty": "intermittent:Intermittent",
    "control": "control:ControlFault",
    "link": "links:LinkFault",
    "sram-voltage": "voltage:LowVoltage",
    "retention": "retention:Retention",
    "timing": "timing:TimingErrors",
    "crossbar-stuck": "crossbar:CrossbarStuck",
    "crossbar-variation": "crossbar:CrossbarVariation",
    "config-upsets": "configuration:ConfigurationUpsets",
}
"""Name -> module of this package and class."""

GROUP = "fsim.fault_models"

MAX_TEXT = 4096


def family_names() -> tuple[str, ...]:
    """Names of all families, fsim's own first."""
    return (*BUILT_IN, *sorted(set(_plugins()) - set(BUILT_IN)))


@cache
def _plugins() -> dict[str, metadata.EntryPoint]:
    return {point.name: point for point in metadata.entry_points(group=GROUP)}


def _plugin(name: str) -> type:
    """The class that another distribution brings; ConfigError if it does not load or fit."""
    point = _plugins()[name]
    try:
        found = point.load()
    except (Exception, SystemExit) as error:  # a plug-in may fail in any way
        raise ConfigError(
            f"the fault model {name!r} must be importable, got {blamed(error)} "
            f"(entry point {point.value!r})"
        ) from error
    wanted = ("name", "unit", "lasting", "rows")
    missing = [attribute for attribute in wanted if not hasattr(found, attribute)]
    if not (isinstance(found, type) and dataclasses.is_dataclass(found)) or missing:
        raise ConfigError(
            f"the fault model {name!r} must be a dataclass with {', '.join(wanted)}, "
            f"got {found!r} without {', '.join(missing) or 'being one'}"
        )
    if found.name != name:
        raise ConfigError(
            f"the fault model {name!r} must have that name, got {found.name!r} "
            f"(entry point {point.value!r})"
        )
    if found.unit not in ("image", "trial"):
        raise ConfigError(
            f"unit of the fault model {name!r} must be 'image' or 'trial', got {found.unit!r}"
        )
    for field in dataclasses.fields(found):
        if "about" not in field.metadata:
            raise ConfigError(
                f"the fault model {name!r} must declare its field {field.name} by "
                "fsim.fault_models.parameters.parameter, got a plain field"
            )
        kind_of(field, name)
    return _fenced(found, name)


_CALLED = ("rows", "expected", "cells", "rows_at")


def _fenced(found: type, name: str) -> type:
    """The class, whose functions raise FaultError for what they do wrong."""
    own = {
        called: fenced_function(getattr(found, called), f"the fault model {name!r}", FaultError)
        for called in _CALLED
        if callable(getattr(found, called, None))
    }
    names = {"__doc__": found.__doc__, "__module__": found.__module__}
    return type(found.__name__, (found,), {**own, **names})


@cache
def family_class(name: str) -> type:
    """The class of a family; ConfigError with the nearest name if there is none."""
    if name not in family_names():
        raise ConfigError(
            f"fault model must be one of {', '.join(family_names())}, "
            + unknown(str(name), family_names())
        )
    if name not in BUILT_IN:
        return _plugin(name)
    module, _, attribute = BUILT_IN[name].partition(":")
    return getattr(importlib.import_module(f"{__package__}.{module}"), attribute)


def parse_family(text: str) -> tuple[str, dict[str, str]]:
    """`mcu,shapes=2x2,interleave=4` as ("mcu", {...}); ConfigError if malformed."""
    if len(text) > MAX_TEXT:
        raise ConfigError(f"a fault model must have at most {MAX_TEXT} characters of text")
    name, *pieces = (piece.strip() for piece in text.split(","))
    values: dict[str, str] = {}
    for piece in pieces:
        key, sign, value = (part.strip() for part in piece.partition("="))
        if not (key and sign and value):
            raise ConfigError(f"a parameter of {name} must be key=value, got {piece[:60]!r}")
        if key in values:
            raise ConfigError(f"a parameter of {name} must be given once, got {key} twice")
        values[key] = value
    return name, values


def make_family(name: str, values: dict):
    """The fault model of some parameters, of text or JSON values; ConfigError, FaultError."""
    cls = family_class(name)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for key in values:
        if key not in fields:
            near = difflib.get_close_matches(key, fields, 1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise ConfigError(
                f"a parameter of {name} must be one of {', '.join(fields)}, got {key[:60]!r}{hint}"
            )
    missing = [
        key for key, field in fields.items()
        if key not in values and field.default is dataclasses.MISSING
    ]  # fmt: skip
    if missing:
        about = fields[missing[0]].metadata["about"]
        raise FaultError(f"fault model {name} needs {missing[0]}=...: {about}")
    read = {key: read_value(fields[key], value, name) for key, value in values.items()}
    with fenced(f"the fault model {name!r}", FaultError):
        return cls(**read)


def described(model) -> dict:
    """JSON values from which `model_of` makes the same fault model."""
    return {"kind": model.name, "parameters": dataclasses.asdict(model)}


def model_of(faults: dict):
    """The fault model of `described`; ConfigError, FaultError."""
    parameters = faults.get("parameters")
    if not isinstance(parameters, dict):
        raise ConfigError(f"faults of kind {faults['kind']} must have parameters")
    return make_family(faults["kind"], parameters)


def parameters_of(name: str) -> list[tuple[str, str, object, str]]:
    """(name, type, default or None if it must be given, what it is) of each parameter."""
    return [
        (field.name, kind_of(field, name).__name__,
         None if field.default is dataclasses.MISSING else field.default, field.metadata["about"])
        for field in dataclasses.fields(family_class(name))
    ]  # fmt: skip


def broken_plugins() -> dict[str, str]:
    """Name of every plug-in's fault model that does not load -> why."""
    found = {}
    for name in family_names():
        try:
            family_class(name)
        except FsimError as error:
            found[name] = str(error)
    return found


def families_told() -> list[dict]:
    """Every family that loads as JSON values: name, about, lasting, and its parameters."""
    found, broken = [], broken_plugins()
    for name in family_names():
        if name in broken:
            continue
        cls = family_class(name)
        keys = ("name", "type", "default", "about")
        found.append(
            {
                "name": name,
                "about": (cls.__doc__ or name).strip().splitlines()[0].rstrip("."),
                "lasting": cls.lasting,
                "parameters": [dict(zip(keys, row)) for row in parameters_of(name)],
            }
        )
    return found


def unknown(text: str, choices) -> str:
    """ "got 'X' (did you mean 'Y'?)" of a name that is not among the choices."""
    name = text.partition(",")[0].strip()
    near = difflib.get_close_matches(name, list(choices), 1)
    return f"got {text[:60]!r}" + (f" (did you mean {near[0]!r}?)" if near else "")
