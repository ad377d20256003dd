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

from fsim.errors import ConfigError, FaultError

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
    except Exception as error:  # a plug-in may fail in any way
        raise ConfigError(
            f"the fault model {name!r} must be importable, got {type(error).__name__}: {error} "
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
    return found


@cache
def family_class(name: str) -> type:
    """The class of a family; ConfigError with the nearest name if there is none."""
    if name not in family_names():
        near = difflib.get_close_matches(str(name), family_names(), 1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ConfigError(
            f"fault model must be one of {', '.join(family_names())}, got {str(name)[:60]!r}{hint}"
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
    from .parameters import read_value

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
    return cls(**{key: read_value(fields[key], value, name) for key, value in values.items()})


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
        (field.name, field.type,
         None if field.default is dataclasses.MISSING else field.default, field.metadata["about"])
        for field in dataclasses.fields(family_class(name))
    ]  # fmt: skip


def families_told() -> list[dict]:
    """Every family as JSON values: name, about, lasting, and its parameters."""
    found = []
    for name in family_names():
        cls = family_class(name)
        keys = ("name", "type", "default", "about")
        found.append(
            {
                "name": name,
                "about": cls.__doc__.strip().splitlines()[0].rstrip("."),
                "lasting": cls.lasting,
                "parameters": [dict(zip(keys, row)) for row in parameters_of(name)],
            }
        )
    return found
