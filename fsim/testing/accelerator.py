"""What an accelerator family must keep: its backends equal its reference, bit for bit.

The reference itself is held to integer arithmetic only where nothing can overflow. Whether
it is *your* machine is for vectors from your RTL to say (`fsim verify`).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path

import numpy as np

from fsim.accel_models.accel import Accel
from fsim.accel_models.families import Family, family, has_tile
from fsim.accel_models.load import load_accel, presets
from fsim.errors import ConfigError
from fsim.fault_models.explicit import masks
from fsim.simulator.crosscheck import random_table
from fsim.simulator.gemm import gemm, overflow_free
from fsim.simulator.reference import NO_FAULTS, first_difference
from fsim.simulator.runners import RUNNERS
from fsim.types import FOREVER, LEVEL, STATE, Component

from .check import Check, require

SHAPES = ((1, 1, 1), (3, 3, 3), (2, 5, 3), (5, 4, 2))
"""(m, k, n): one element, sizes that are no multiples of the array, several tiles and folds."""

KINDS = ("register", "net")
ROLES = ("ifmap", "filter", "product", "psum", "control")


def accelerator_contract(name: str, *, rows: int = 2, cols: int = 2) -> list[Check]:
    """The checks of the family called `name`.

    rows, cols  of the small array on which every single fault is tried. Operands there are
                narrowed to 3 bits if the family allows it

    The checks of one dataflow take some ten seconds: the reference is plain Python.
    """
    checks = [
        Check("declaration", partial(_declaration, name)),
        Check("presets", partial(_presets, name)),
    ]
    try:
        flows = family(name).dataflows
    except Exception:  # the check above says what is wrong
        return checks
    for flow in flows:
        small = partial(_small, name, flow, rows, cols)
        checks += [
            Check(f"{flow}-{title}", partial(run, small))
            for title, run in (
                ("components", _components),
                ("clean-products", _clean),
                ("cycles-and-waves", _waves),
                ("every-single-fault", _every_fault),
                ("every-component-matters", _matters),
                ("state-is-not-level", _effects),
                ("several-faults", _several),
            )
        ]
        checks.append(Check(f"{flow}-network", partial(_network, name, flow)))
    return checks


# --- machines ---


def _preset_names(name: str) -> list[str]:
    """Presets of the family. Those of others may be broken, its own may not."""
    folder = family(name).presets
    found = []
    for preset, path in presets().items():
        own = folder is not None and path.parent == Path(folder)
        try:
            if load_accel(preset).family == name:
                found.append(preset)
        except ConfigError as error:
            require(not own, f"preset {preset} must be valid: {error}")
    return found


def _small(name: str, flow: str, rows: int, cols: int) -> Accel:
    """A preset of the family as a small array with narrow words, where they are allowed."""
    found = _preset_names(name)
    require(bool(found), f"family {name!r} must have a preset")
    accel = load_accel(found[0], flow, {"rows": rows, "cols": cols})
    narrow = {"operand_bits": 3, "product_bits": 6, "acc_bits": 10}
    try:
        return load_accel(found[0], flow, {"rows": rows, "cols": cols, **narrow})
    except Exception:
        return accel


def _operands(accel: Accel, shape, seed: int, peak: int | None = None):
    rng = np.random.default_rng(seed)
    half = 1 << (accel.operand_bits - 1) if peak is None else peak
    m, k, n = shape
    a, b = rng.integers(-half, half, (m, k)), rng.integers(-half, half, (k, n))
    return a, b, rng.integers(-half, half, (m, n))


def _elements(accel: Accel) -> list[tuple[int, Component]]:
    return [(i, c) for i, c in enumerate(accel.components) if c.kind != "memory"]


def _backends(accel: Accel) -> list[str]:
    claimed = {backend for _, component in _elements(accel) for backend in component.backends}
    return [name for name in ("tile", "replay") if name in claimed]


# --- checks ---


def _declaration(name: str) -> None:
    kind = family(name)
    require(isinstance(kind, Family), f"FAMILY must be a Family, got {kind!r}")
    require(bool(kind.dataflows), "a family must have at least one dataflow")
    unknown = set(kind.overflow) - {"wrap", "saturate"}
    require(not unknown, f"overflow must be of wrap, saturate, got {sorted(unknown)}")


def _presets(name: str) -> None:
    found = _preset_names(name)
    require(bool(found), f"family {name!r} must have at least one preset (Family.presets)")
    for preset in found:
        for flow in family(name).dataflows:
            accel = load_accel(preset, flow)
            require(accel.dataflow == flow, f"{preset} must run {flow}, got {accel.dataflow}")
            missing = [
                key
                for key in ("array.rows", "array.cols", "bits.operand", "bits.product", "bits.acc")
                if key not in accel.sources
            ]
            require(not missing, f"{preset} must name a source for {', '.join(missing)}")


def _components(small) -> None:
    accel = small()
    elements = _elements(accel)
    names = [component.name for _, component in elements]
    require(bool(names), "schedule.components must name at least one register or net")
    require(len(set(names)) == len(names), f"components must have different names, got {names}")
    for _, c in elements:
        require(c.kind in KINDS, f"kind of {c.name!r} must be of {KINDS}, got {c.kind!r}")
        require(c.role in ROLES, f"role of {c.name!r} must be of {ROLES}, got {c.role!r}")
        require(1 <= c.bits <= 62, f"{c.name!r} must have 1 to 62 bits, got {c.bits}")
        claims = set(c.backends)
        unknown = claims - {"reference", "tile", "replay"}
        require(not unknown, f"backends of {c.name!r} must be known, got {sorted(unknown)}")
        require("reference" in claims, f"the reference must serve {c.name!r}, got {c.backends}")
        tile = "tile" not in claims or has_tile(accel.family)
        require(tile, f"{c.name!r} claims the backend tile, but there is no tile.py")


def _clean(small) -> None:
    accel = small()
    for number, shape in enumerate(SHAPES):
        for peak in (None, 2):
            a, b, d = _operands(accel, shape, number, peak)
            got = accel.cycle.run(accel, a, b, d, NO_FAULTS)[0]
            result = gemm(a, b, d, accel=accel)
            _same(got, result.out, f"fsim.gemm without faults, (m,k,n) = {shape}")
            if overflow_free(accel, a, b, d):
                shift = 64 - accel.acc_bits
                wrapped = ((a @ b + d) << shift) >> shift
                _same(wrapped, got, f"the reference without faults, (m,k,n) = {shape}")
            bare = accel.cycle.run(accel, a, b, None, NO_FAULTS)[0]
            zeros = accel.cycle.run(accel, a, b, np.zeros_like(d), NO_FAULTS)[0]
            _same(zeros, bare, f"the reference without a bias, (m,k,n) = {shape}")


def _waves(small) -> None:
    accel = small()
    for shape in SHAPES:
        a, b, d = _operands(accel, shape, 5)
        cycles = accel.schedule.cycles(accel, *shape)
        require(isinstance(cycles, int) and cycles > 0, f"cycles must be > 0, got {cycles!r}")
        waves = accel.cycle.run(accel, a, b, d, NO_FAULTS, True)[1]
        for _, component in _elements(accel):
            if component.kind != "register":
                continue
            wave = waves.get(component.name)
            require(wave is not None, f"the waves must have register {component.name!r}")
            places = accel.grid(component)
            wanted = (cycles, *places[: 2 if places[2] == 1 else 3])
            require(
                wave.shape == wanted,
                f"the wave of {component.name!r} must be (cycles, rows, cols[, words]) = "
                f"{wanted}, got {wave.shape}, (m,k,n) = {shape}",
            )
        require("out" in waves, "the waves must have 'out', the output port")


def _single_faults(accel: Accel, cycles: int) -> Iterator[tuple[Component, np.ndarray]]:
    """Every flip in every cycle and every permanent stuck-at, as fault tables of one row."""
    for number, component in _elements(accel):
        rows, cols, words = accel.grid(component)
        for place in range(rows * cols * words):
            pe, word = divmod(place, words)
            row, col = divmod(pe, cols)
            for bit in range(component.bits):
                for kind in ("stuck0", "stuck1", "flip"):
                    mask = masks(kind, 1 << bit, component.bits, True)
                    first = [-1] if kind != "flip" else range(cycles)
                    level = kind != "flip" or component.kind == "net"
                    for t in first:
                        last = FOREVER if kind != "flip" else t
                        where = (number, row, col, -1 if words == 1 else word)
                        effect = LEVEL if level else STATE
                        yield component, np.array([[*where, effect, t, last, *mask]], np.int64)


@cache
def _tried(accel_key) -> tuple[str, frozenset[str], frozenset[str]]:
    """(first difference, components with a visible fault, all) over every single fault."""
    accel = accel_key.accel
    a, b, d = _operands(accel, (3, 3, 3), 7)
    clean = accel.cycle.run(accel, a, b, d, NO_FAULTS)[0]
    seen, problem = set(), ""
    for component, table in _single_faults(accel, accel.schedule.cycles(accel, 3, 3, 3)):
        wanted = accel.cycle.run(accel, a, b, d, table)[0]
        if not np.array_equal(wanted, clean):
            seen.add(component.name)
        for backend in _backends(accel):
            if backend in component.backends and not problem:
                got = RUNNERS[backend](accel, a, b, d, table)[0]
                problem = _difference(wanted, got, f"{backend}, {_words(accel, table)}")
    everything = frozenset(component.name for _, component in _elements(accel))
    return problem, frozenset(seen), everything


class _Key:
    """An Accel as a key: descriptions hold dicts, which are not hashable."""

    def __init__(self, accel: Accel):
        self.accel, self.text = accel, repr(accel)

    def __hash__(self):
        return hash(self.text)

    def __eq__(self, other):
        return self.text == other.text


def _every_fault(small) -> None:
    problem, _, _ = _tried(_Key(small()))
    require(not problem, problem)


def _matters(small) -> None:
    _, seen, everything = _tried(_Key(small()))
    dead = sorted(everything - seen)
    require(
        not dead,
        f"some fault of every component must change a result, got none for {', '.join(dead)}",
    )


def _effects(small) -> None:
    """A register that is struck once and one that is stuck must not be the same thing."""
    accel = small()
    a, b, d = _operands(accel, (3, 5, 3), 11)
    cycles = accel.schedule.cycles(accel, 3, 5, 3)
    for number, component in _elements(accel):
        if component.kind != "register":
            continue
        mask = masks("flip", 1 << (component.bits - 1), component.bits, True)
        for t in range(cycles):
            where = (number, 0, 0, -1 if component.words == 1 else 0)
            once = np.array([[*where, STATE, t, t, *mask]], np.int64)
            stays = np.array([[*where, LEVEL, t, FOREVER, *mask]], np.int64)
            first, second = (accel.cycle.run(accel, a, b, d, f)[0] for f in (once, stays))
            if not np.array_equal(first, second):
                return
    raise AssertionError("a STATE fault and a LEVEL fault for ever must differ for some register")


def _several(small) -> None:
    accel = small()
    problem = ""
    for seed in range(60):
        rng = np.random.default_rng([13, seed])
        shape = tuple(int(x) for x in rng.integers(1, 7, 3))
        a, b, d = _operands(accel, shape, seed)
        cycles = accel.schedule.cycles(accel, *shape)
        for backend in _backends(accel):
            claims = [i for i, c in _elements(accel) if backend in c.backends]
            table = random_table(rng, accel, claims, cycles, int(rng.integers(1, 5)))
            wanted, waves = accel.cycle.run(accel, a, b, d, table, backend == "tile")
            got, others = RUNNERS[backend](accel, a, b, d, table, backend == "tile")
            label = f"{backend}, (m,k,n) = {shape}, {_words(accel, table)}"
            problem = problem or _difference(wanted, got, label)
            for name in waves or () if others is not None else ():
                problem = problem or _difference(waves[name], others[name], f"{label}, {name}")
            require(not problem, problem)


def _network(name: str, flow: str) -> None:
    """A network with upsets of its first layer: fast backends and reference, same answers."""
    from fsim.fault_models.bit_errors import BitErrors
    from fsim.fault_models.upsets import SingleFault
    from fsim.session import open_session
    from fsim.simulator.draws import Draws
    from fsim.simulator.inject import golden_run, run_rows
    from fsim.simulator.sites import select

    session = open_session("digits-cnn", load_accel(_preset_names(name)[0], flow), images=4)
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
        _same(outs[1], outs[0], f"the network with one upset an image (trial {trial})")
    rows = BitErrors(1e-3, 1e-3, 1e-3).rows(select(placement), 0, images, draws)
    require(len(rows) > 0, "memories must have words that bit errors can strike")
    run_rows(placement, golden, rows)


# --- words ---


def _same(expected, got, what: str) -> None:
    problem = _difference(expected, got, what)
    require(not problem, problem)


def _difference(expected, got, what: str) -> str:
    expected, got = np.asarray(expected), np.asarray(got)
    if expected.shape != got.shape:
        return f"{what}: shape must be {expected.shape}, got {got.shape}"
    found = first_difference(expected, got)
    if found is None:
        return ""
    index, wanted, had = found
    return f"{what}: element {list(index)} must be {wanted} as in the reference, got {had}"


def _words(accel: Accel, table: np.ndarray) -> str:
    """Faults in words, one after another."""
    found = []
    for number, row, col, word, effect, first, last, and_, or_, xor in table.tolist():
        component = accel.components[number]
        where = f"{component.name}({row},{col}{'' if word < 0 else f',{word}'})"
        when = f"cycle {first}" if effect == STATE else f"cycles {first}..{last}"
        if last == FOREVER:
            when = f"from cycle {first} on"
        found.append(f"{where} and {and_:#x} or {or_:#x} xor {xor:#x} {when}")
    return "; ".join(found)
