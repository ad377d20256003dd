"""The machine families there are, fsim's own and those of plug-ins.

A family is a package with

    FAMILY        a `Family`, in `__init__.py`
    schedule.py   components(accel), cycles(accel, m, k, n), and what is listed below
    cycle.py      run(...): the cycle-level reference (`fsim.simulator.reference`)
    tile.py       run(...): the compiled cycle-level simulation; may be absent if no
                  component claims the backend "tile"
    replay.py     only without an accumulation plan, see below

and optional functions of schedule.py, each with a default:

    plan(accel, m, k, n) -> Plan
        The accumulation plan (`plan.py`), by which the replay kernels all machines
        share do their work. A family without one has `replay.py` with
        run(accel, a, b, d, table, out, everything) -> (m, n) bool: overwrite the
        outputs that faults touch (all of them: `everything`), return which.
    plain_limit(accel) -> int
        Largest |sum| for which the machine's arithmetic without faults is that of
        integers, -1 if never. Default: what acc_bits holds; unlimited where sums wrap.
    loops(accel) -> Loops
        How a product is cut into tiles, for what the memories hold when. Default: by
        the dataflow, see `Loops`.
    layer_loops(accel, low) -> Loops
        The same for one layer, where it depends on more than the product's size.
        Default: loops.
    layer_cycles(accel, low) -> int
        Cycles of one image's layer, `low` being a `fsim.simulator.lower.Lowered`.
        Default: groups x cycles(m, k, n).

A family with `layers` has, instead of tile.run and replay, layer.py with

    changed_sums(accel, low, operands, clean, bias, table, truncate)
        -> (group, position, filter, value): the sums of one layer and image that faults
        change (`eyeriss/layer.py`), and Operands, what its passes read;

and array.run_layer in plain Python. Its networks are quantised with a truncation of
their own for each layer (`fsim.simulator.truncation`).

Families of other distributions come through the entry-point group
`fsim.accelerators`: name of the family -> its package.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from types import FunctionType, ModuleType

from fsim.errors import ConfigError
from fsim.plugins import blamed, fenced_function

GROUP = "fsim.accelerators"

BUILT_IN = ("systolic", "gemmini", "pipelined", "tpu", "vta", "nvdla", "eyeriss", "rram", "fpga")
"""Folders beside this file."""


@dataclass(frozen=True)
class Family:
    """What the machines of a family can be.

    name           as descriptions name it
    dataflows      those it can run
    overflow       what adders may do beyond acc_bits: of "wrap", "saturate"
    unsigned_acts  whether activations may be unsigned: of False, True
    truncates      it has an output stage that drops `truncate` bits (`fsim.gemm`)
    short_products a product may be cut to fewer bits than both operands have
    layers         it runs whole layers, not products, and products lose low bits one by
                   one: layer.py, see below
    parameters     name of a family's own number -> (default, smallest, largest); they are
                   the keys under `parameters` of a description
    evidence       what its cycle-level reference was compared with, one line; "" if it was
                   made from documents only
    presets        folder with descriptions, for families of plug-ins
    """

    name: str
    dataflows: tuple[str, ...]
    overflow: tuple[str, ...] = ("wrap",)
    unsigned_acts: tuple[bool, ...] = (False,)
    truncates: bool = False
    short_products: bool = False
    layers: bool = False
    parameters: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    evidence: str = ""
    presets: str | None = None


@dataclass(frozen=True)
class Loops:
    """The tiles a product (m, k)(k, n) is worked off in.

    m, k, n  edge of the tile that one fetch of activations serves, None: the whole axis.
             The loops run n outermost, then m, then k.
    fold     multiply-adds after which a partial sum is stored, None: never before the end
    weights_once  every weight word is read in one tile of positions only
    keeps_last  a sum is stored as a partial sum when it is complete, too
    block    channels with which a convolution moves over its window before it takes the
             next ones, 0: all of them at each place
    """

    m: int | None
    k: int | None
    n: int | None
    fold: int | None
    weights_once: bool = False
    keeps_last: bool = True
    block: int = 0


def default_loops(accel) -> Loops:
    """The tiles of a systolic array, by dataflow; ConfigError for a dataflow of another name."""
    rows, cols = accel.rows, accel.cols
    known = {
        "ws": Loops(None, rows, cols, rows, weights_once=True),
        "os": Loops(rows, None, None, None),
        "is": Loops(cols, rows, None, rows),
    }
    if accel.dataflow not in known:
        raise ConfigError(
            f"family {accel.family!r} must have loops(accel) in schedule.py for its dataflow "
            f"{accel.dataflow!r}: only {', '.join(known)} have loops of their own"
        )
    return known[accel.dataflow]


@cache
def plugin_names() -> tuple[str, ...]:
    """Names of the families that other distributions bring, sorted; fsim's own go first."""
    found = {point.name for point in metadata.entry_points(group=GROUP)}
    return tuple(sorted(found - set(BUILT_IN)))


def family_names() -> tuple[str, ...]:
    """Names of all families, fsim's own first."""
    return BUILT_IN + plugin_names()


def broken_plugins() -> dict[str, str]:
    """Name of every plug-in family that does not load -> why.

    Its schedule and its reference count, which a machine cannot do without.
    """
    found = {}
    for name in plugin_names():
        try:
            for module in () if family(name).layers else ("schedule", "cycle"):
                part(name, module)
        except ConfigError as error:
            found[name] = str(error)
    return found


def has_tile(name: str) -> bool:
    """Whether a family has a compiled cycle-level simulation."""
    return importlib.util.find_spec(f"{package(name).__name__}.tile") is not None


@cache
def package(name: str) -> ModuleType:
    """The package of a family; ConfigError if there is none of that name or it is broken."""
    if name in BUILT_IN:
        return importlib.import_module(f"{__package__}.{name}")
    for point in metadata.entry_points(group=GROUP):
        if point.name == name:
            return _imported(point.value, name, point.value)
    raise ConfigError(f"family must be one of {', '.join(family_names())}, got {name!r}")


def _imported(module: str, name: str, point: str) -> ModuleType:
    """A module of a plug-in; ConfigError for whatever it does wrong on import."""
    try:
        return importlib.import_module(module)
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"the plug-in of family {name!r} must be importable, got {blamed(error)} "
            f"(entry point {point!r})"
        ) from error


class _Fenced:
    """A plug-in's module, whose functions raise ConfigError for what they do wrong."""

    def __init__(self, module: ModuleType, what: str, runs: bool):
        self._module, self._what, self._runs = module, what, runs

    def __getattr__(self, name: str):
        found = getattr(self._module, name)
        if not isinstance(found, FunctionType):
            return found
        safe = fenced_function(found, self._what)
        return _checked(safe, self._what) if self._runs and name == "run" else safe


def _checked(run, what: str):
    """`run` of a reference or a tile simulation, whose answer must be one: (m, n) integers."""

    def checked(accel, a, b, *rest, **options):
        found = run(accel, a, b, *rest, **options)
        wanted = (a.shape[0], b.shape[1])
        pair = isinstance(found, tuple) and len(found) == 2
        out = found[0] if pair else found
        shape, dtype = getattr(out, "shape", None), getattr(out, "dtype", None)
        if not pair or shape != wanted or getattr(dtype, "kind", None) != "i":
            got = type(found).__name__ if not pair else f"{dtype} of shape {shape}"
            raise ConfigError(
                f"run of {what} must return integers of shape {wanted} and waves or None, got {got}"
            )
        return found

    return checked


@cache
def part(name: str, module: str) -> ModuleType:
    """A module of the family `name`: "schedule", "cycle", ...; ConfigError as in `package`."""
    whole = f"{package(name).__name__}.{module}"
    if name in BUILT_IN:
        return importlib.import_module(whole)
    what = f"{module}.py of family {name!r}"
    return _Fenced(_imported(whole, name, whole), what, module in ("cycle", "tile"))


def family(name: str) -> Family:
    """The declaration of a family; ConfigError as in `package`."""
    found = getattr(package(name), "FAMILY", None)
    if not isinstance(found, Family) or found.name != name:
        raise ConfigError(
            f"the package of family {name!r} must define FAMILY with that name, got {found!r}"
        )
    if not isinstance(found.presets, str | None):
        raise ConfigError(
            f"presets of family {name!r} must be the path of a folder as text, or None, "
            f"got {found.presets!r}"
        )
    return found
