"""What an accelerator family must keep: its backends equal its reference, bit for bit.

The reference itself is held to integer arithmetic, with the overflow rule where all summands
have one sign. Whether it is *your* machine is for vectors from your RTL to say
(`fsim verify`).
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path

import numpy as np

from fsim.accel_models.accel import Accel
from fsim.accel_models.families import Family, Loops, family, has_tile
from fsim.accel_models.load import SUFFIXES, load_accel, presets
from fsim.accel_models.plan import ceil_div

from .check import Check, require
from .difference import same
from .faults import every_component_matters, every_fault, several_faults, state_is_not_level
from .machine import Machine, elements, preset_names
from .products import clean_products, every_preset, overflowing_products, unsigned_activations
from .waves import cycles_and_waves, faults_in_waves, roles, widths

KINDS = ("register", "net")
NETWORK_PES = 8
"""Rows and columns of the array that runs a network, at most: the reference takes its time."""

ROLES = ("ifmap", "filter", "product", "psum", "control")


def accelerator_contract(
    name: str, *, rows: int = 2, cols: int = 3, spare: Iterable[str] = ()
) -> list[Check]:
    """The checks of the family called `name`.

    rows, cols  of the small array on which every single fault is tried; not square, or a
                formula that mixes up the two is right. Operands there are narrowed to 3 bits
                if the family allows it
    spare       names of registers and nets with bits that no product without faults uses,
                such as a sum that is wider than its addends need

    The checks of one dataflow take some half a minute: the reference is plain Python.
    """
    checks = [
        Check("declaration", partial(_declaration, name)),
        Check("presets", partial(_presets, name)),
    ]
    try:
        declared = family(name)
        flows, unsigned = tuple(declared.dataflows), True in declared.unsigned_acts
    except Exception:  # the check above says what is wrong
        return checks
    for flow in flows:
        machine = Machine(name, flow, rows, cols, tuple(spare))
        found = [
            ("components", _components),
            ("clean-products", clean_products),
            ("overflow", overflowing_products),
            ("presets-run", every_preset),
            ("cycles-and-waves", cycles_and_waves),
            ("widths", widths),
            ("roles", roles),
            ("faults-in-waves", faults_in_waves),
            ("every-single-fault", every_fault),
            ("every-component-matters", every_component_matters),
            ("state-is-not-level", state_is_not_level),
            ("several-faults", several_faults),
            ("network", _network),
        ]
        if unsigned:
            found.insert(3, ("unsigned-activations", unsigned_activations))
        checks += [Check(f"{flow}-{title}", partial(run, machine)) for title, run in found]
    return checks


def _declaration(name: str) -> None:
    kind = family(name)
    require(isinstance(kind, Family), f"FAMILY must be a Family, got {kind!r}")
    require(bool(kind.dataflows), "a family must have at least one dataflow")
    unknown = set(kind.overflow) - {"wrap", "saturate"}
    require(not unknown, f"overflow must be of wrap, saturate, got {sorted(unknown)}")
    require(bool(kind.overflow), "a family must have at least one overflow rule")


def _presets(name: str) -> None:
    found = preset_names(name)
    require(bool(found), f"family {name!r} must have at least one preset (Family.presets)")
    for path in _own_files(name):
        taken = presets().get(path.stem)
        require(
            taken == path,
            f"preset {path.name} must have a file name that no other preset has, got that of "
            f"{taken}",
        )
    for preset in found:
        label = load_accel(preset).name
        require(label == preset, f"the name in preset {preset}.yaml must be its own, got {label!r}")
        for flow in family(name).dataflows:
            accel = load_accel(preset, flow)
            require(accel.dataflow == flow, f"{preset} must run {flow}, got {accel.dataflow}")
            missing = [
                key
                for key in ("array.rows", "array.cols", "bits.operand", "bits.product", "bits.acc")
                if key not in accel.sources
            ]
            require(not missing, f"{preset} must name a source for {', '.join(missing)}")


def _own_files(name: str) -> list[Path]:
    folder = family(name).presets
    if folder is None:
        return []
    return sorted(path for path in Path(folder).iterdir() if path.suffix in SUFFIXES)


def _components(machine: Machine) -> None:
    accel = machine.accel()
    found = elements(accel)
    names = [component.name for _, component in found]
    require(bool(names), "schedule.components must name at least one register or net")
    require(len(set(names)) == len(names), f"components must have different names, got {names}")
    for _, c in found:
        require(c.kind in KINDS, f"kind of {c.name!r} must be of {KINDS}, got {c.kind!r}")
        require(c.role in ROLES, f"role of {c.name!r} must be of {ROLES}, got {c.role!r}")
        require(1 <= c.bits <= 62, f"{c.name!r} must have 1 to 62 bits, got {c.bits}")
        claims = set(c.backends)
        unknown = claims - {"reference", "tile", "replay"}
        require(not unknown, f"backends of {c.name!r} must be known, got {sorted(unknown)}")
        require("reference" in claims, f"the reference must serve {c.name!r}, got {c.backends}")
        tile = "tile" not in claims or has_tile(accel.family)
        require(tile, f"{c.name!r} claims the backend tile, but there is no tile.py")
    unknown = set(machine.spare) - set(names)
    if len(family(machine.name).dataflows) == 1:
        require(not unknown, f"spare must be of {', '.join(names)}, got {sorted(unknown)}")
    _loops(accel)


def _loops(accel: Accel) -> None:
    """Tiles have positive edges, and a sum is stored as often as the plan has folds."""
    if not hasattr(accel.schedule, "loops"):
        known = ("ws", "os", "is")
        require(
            accel.dataflow in known,
            f"schedule.py must have loops(accel) for a dataflow other than {', '.join(known)}, "
            f"got {accel.dataflow!r}",
        )
    loops = accel.loops
    require(isinstance(loops, Loops), f"loops must return Loops, got {loops!r}")
    for edge in ("m", "k", "n", "fold"):
        size = getattr(loops, edge)
        good = size is None or (type(size) is int and size > 0)
        require(good, f"Loops.{edge} must be None or an int > 0, got {size!r}")
    if loops.fold is None or not hasattr(accel.schedule, "plan"):
        return
    for k in (1, accel.rows, 3 * accel.rows + 1):
        folds, stored = accel.schedule.plan(accel, 2, k, 2).folds, ceil_div(k, loops.fold)
        require(
            folds == stored,
            f"Loops.fold = {loops.fold} stores a sum of {k} products {stored} times and must do "
            f"so as often as the plan has folds, got {folds}",
        )


def _network(machine: Machine) -> None:
    """A network with upsets of its first layer: fast backends and reference, same answers."""
    from fsim.fault_models.bit_errors import BitErrors
    from fsim.fault_models.upsets import SingleFault
    from fsim.session import open_session
    from fsim.simulator.draws import Draws
    from fsim.simulator.inject import golden_run, run_rows
    from fsim.simulator.sites import select

    preset = preset_names(machine.name)[0]
    whole = load_accel(preset, machine.flow)
    size = {"rows": min(whole.rows, NETWORK_PES), "cols": min(whole.cols, NETWORK_PES)}
    session = open_session("digits-cnn", load_accel(preset, machine.flow, size), images=4)
    placement = session.placement
    golden = golden_run(placement, session.images, session.labels)
    require(
        golden.accuracy >= 0.5,
        f"digits-cnn without faults must classify, got accuracy {golden.accuracy:.2f}; are "
        "sums and bias what they must be?",
    )
    images, draws = np.arange(len(session.images)), Draws(3)
    first = placement.program.array_ops[0].name
    space = select(placement, layers=[first])
    for trial in range(6):
        rows = SingleFault("seu").rows(space, trial, images, draws)
        outs = [run_rows(placement, golden, rows, backend=b).acc for b in ("auto", "reference")]
        same(outs[1], outs[0], f"the network with one upset an image (trial {trial})")
    rows = BitErrors(1e-3, 1e-3, 1e-3).rows(select(placement), 0, images, draws)
    require(len(rows) > 0, "memories must have words that bit errors can strike")
    run_rows(placement, golden, rows)
