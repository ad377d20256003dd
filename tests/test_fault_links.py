"""Faults of links are rows on registers: an array with wires of its own says the same."""

from __future__ import annotations

import numpy as np
import pytest

from fsim.accel_models.load import load_accel
from fsim.errors import FaultError
from fsim.fault_models.links import LinkFault, links_of
from fsim.simulator.draws import Draws
from fsim.simulator.gemm import gemm
from fsim.simulator.sites import select
from fsim.types import FOREVER
from tests.rates import assert_uniform, seed_for
from tests.test_engine import network, place

BITS = {"ifmap": 8, "filter": 8, "psum": 32}


class Wire:
    """A faulty wire from PE (i, j) to its neighbour: what the other end sees at edge t."""

    def __init__(self, net, i, j, bit, kind, first=0, last=FOREVER):
        self.at, self.bit, self.kind, self.first, self.last = (net, i, j), bit, kind, first, last

    def carry(self, net, i, j, t, value):
        if (net, i, j) != self.at or not self.first <= t <= self.last:
            return value
        bits = BITS[net]
        word, mask = value & ((1 << bits) - 1), 1 << self.bit
        word = {"transient": word ^ mask, "stuck0": word & ~mask}.get(self.kind, word | mask)
        return word - (1 << bits) if word >> (bits - 1) else word


def wrap(value):
    return (value + (1 << 31)) % (1 << 32) - (1 << 31)


def stationary(a, b, rows, cols, wire, moving="ifmap", held="filter"):
    """a @ b with b resident, a fold of rows x cols after another; every wire by itself."""
    (m, k), n = a.shape, b.shape[1]
    acc, t = np.zeros((m, n), object), 0
    x = [[0] * cols for _ in range(rows)]
    w, p = [row[:] for row in x], [row[:] for row in x]
    for n0 in range(0, n, cols):
        for k0 in range(0, k, rows):
            for c in range(m + 2 * rows + cols - 2):
                nx, nw, np_ = ([row[:] for row in grid] for grid in (x, w, p))
                for i in range(rows):
                    for j in range(cols):
                        step = c + 1 - rows - i
                        inside = 0 <= step < m and k0 + i < k
                        edge = int(a[step, k0 + i]) if inside else 0
                        nx[i][j] = wire.carry(moving, i, j - 1, t, x[i][j - 1]) if j else edge
                        if c < rows:
                            r, q = k0 + rows - 1 - c, n0 + j
                            new = int(b[r, q]) if r < k and q < n else 0
                            nw[i][j] = wire.carry(held, i - 1, j, t, w[i - 1][j]) if i else new
                        above = wire.carry("psum", i - 1, j, t, p[i - 1][j]) if i else 0
                        np_[i][j] = wrap(above + x[i][j] * w[i][j])
                x, w, p, t = nx, nw, np_, t + 1
                for j in range(min(cols, n - n0)):
                    row = c - (2 * rows - 1 + j)
                    if 0 <= row < m:
                        acc[row, n0 + j] = wrap(acc[row, n0 + j] + p[rows - 1][j])
    return acc.astype(np.int64)


def output_stationary(a, b, rows, cols, wire):
    """a @ b with sums at rest; operands through every wire by itself."""
    (m, k), n = a.shape, b.shape[1]
    out = np.zeros((m, n), np.int64)
    length = k + rows + cols - 2
    folds = [(m0, n0) for m0 in range(0, m, rows) for n0 in range(0, n, cols)]

    def fed(fold, c):
        if c == length - 1 and fold + 1 < len(folds):
            return fed(fold + 1, -1)
        m0, n0 = folds[fold]
        at = lambda z, r, q: int(z[r, q]) if 0 <= r < len(z) and 0 <= q < z.shape[1] else 0  # noqa: E731
        left = [at(a, m0 + i, c + 1 - i) for i in range(rows)]
        return left, [at(b, c + 1 - j, n0 + j) for j in range(cols)]

    x, w = ([[0] * cols for _ in range(rows)] for _ in range(2))
    left, top = fed(0, -1)
    for i in range(rows):
        x[i][0] = left[i]
    w[0] = top[:]
    t = 0
    for fold, (m0, n0) in enumerate(folds):
        p = [[0] * cols for _ in range(rows)]
        for c in range(length):
            left, top = fed(fold, c)
            nx, nw = ([row[:] for row in grid] for grid in (x, w))
            for i in range(rows):
                for j in range(cols):
                    if 0 <= c - i - j < k:
                        p[i][j] = wrap(p[i][j] + x[i][j] * w[i][j])
                    nx[i][j] = wire.carry("ifmap", i, j - 1, t, x[i][j - 1]) if j else left[i]
                    nw[i][j] = wire.carry("filter", i - 1, j, t, w[i - 1][j]) if i else top[j]
            x, w, t = nx, nw, t + 1
        for i in range(min(rows, m - m0)):
            for j in range(min(cols, n - n0)):
                out[m0 + i, n0 + j] = p[i][j]
    return out


def with_wires(flow, a, b, rows, cols, wire):
    if flow == "os":
        return output_stationary(a, b, rows, cols, wire)
    if flow == "ws":
        return stationary(a, b, rows, cols, wire)
    return stationary(b.T, a.T, rows, cols, wire, "filter", "ifmap").T


class Place:
    """What a LinkFault asks of a site space, for one product alone."""

    def __init__(self, accel, m, k, n):
        from types import SimpleNamespace

        self.accel = accel
        self.placement = SimpleNamespace(
            lowered={0: SimpleNamespace(m=m, k=k, n=n)},
            group_cycles=lambda layer: accel.schedule.cycles(accel, m, k, n),
        )


@pytest.mark.parametrize("kind", ["transient", "stuck0", "stuck1", "intermittent"])
@pytest.mark.parametrize("flow", ["ws", "os", "is"])
def test_rows_do_what_the_wire_does(flow, kind):
    """Every link, in shapes with padding, several folds and idle PEs, by all backends."""
    from types import SimpleNamespace

    rng = np.random.default_rng(seed_for(f"links {flow} {kind}"))
    rows, cols = 3, 4
    accel = load_accel("systolic", flow, {"rows": rows, "cols": cols})
    different = reads = 0
    for link in links_of(accel):
        for _ in range(30):
            m, k, n = (int(x) for x in rng.integers(1, 9, 3))
            a, b = (rng.integers(-128, 128, shape) for shape in ((m, k), (k, n)))
            space = Place(accel, m, k, n)
            cycles = space.placement.group_cycles(0)
            bits = BITS[link.name]
            bit, cycle = int(rng.integers(bits)), int(rng.integers(cycles))
            duration = int(rng.integers(1, cycles + 3))
            count = rows * (cols - 1) if link.across else (rows - 1) * cols
            place_ = int(rng.integers(count))
            model = LinkFault(kind, duration=duration)
            site = SimpleNamespace(bits=bits, cycles=cycles, layer=0, signed=True)
            struck = model._rows_of(space, link, site, bit, cycle, place_)
            struck["layer"] = -1
            i, j = divmod(place_, cols - 1) if link.across else divmod(place_, cols)
            span = {"transient": (cycle, cycle), "intermittent": (cycle, cycle + duration - 1)}
            wire = Wire(link.name, i, j, bit, kind, *span.get(kind, (0, FOREVER)))
            want = with_wires(flow, a, b, rows, cols, wire)
            for backend in ("reference", "tile", "replay"):
                found = gemm(a, b, accel=accel, faults=struck, backend=backend)
                np.testing.assert_array_equal(found.out, want, err_msg=f"{link} {wire.at}")
            different += not found.masked
            reads += len(struck) > 0
    assert different > 8 and reads >= different


def test_the_array_with_wires_multiplies():
    rng = np.random.default_rng(2)
    nothing = Wire("ifmap", -9, -9, 0, "stuck1")
    for flow in ("ws", "os", "is"):
        a, b = rng.integers(-128, 128, (5, 7)), rng.integers(-128, 128, (7, 6))
        np.testing.assert_array_equal(with_wires(flow, a, b, 3, 4, nothing), a @ b)


@pytest.mark.parametrize("flow", ["ws", "os"])
@pytest.mark.parametrize("name", ["pipelined-systolic-4x4", "gemmini-like-4x4"])
def test_other_machines_have_the_links_of_their_activations(name, flow):
    """A wire wrong for one edge is wrong in every register that latches it, and there only."""
    accel = load_accel(name, flow)
    for link in links_of(accel):
        rng = np.random.default_rng(4)
        a, b = rng.integers(-128, 128, (6, 5)), rng.integers(-128, 128, (5, 7))
        clean = gemm(a, b, accel=accel, backend="reference", waveform=True)
        x = clean.waveform[link.registers[-1]]  # the one that the neighbour reads
        for register in link.registers:
            held = clean.waveform[register]
            passed = held[1:, :, 1:] if link.across else held[1:, 1:]
            sent = x[:-1, :, :-1] if link.across else x[:-1, :-1]
            np.testing.assert_array_equal(passed, sent)  # latched at every edge


def test_wires_and_cycles_are_struck_alike():
    program, _ = network()
    space = select(place(program, rows=3, cols=2), ["fc"])
    model = LinkFault("transient", net="ifmap")
    images = np.arange(4000)
    rows = model.rows(space, 0, images, Draws(seed_for("link sites") >> 1))
    site = next(s for s in space.registers if s.component_name == "ifmap")
    assert len(rows) == len(images) and (rows["col"] == 1).all()
    mask = rows["xor_mask"] & 255
    bit = np.log2(mask.astype(float)).astype(int)
    assert_uniform(np.bincount(rows["row"] * 8 + bit, minlength=24), mutant=np.arange(24) % 2 + 1.0)
    assert set(rows["first"]) <= set(range(site.cycles))
    assert_uniform(np.bincount(rows["first"], minlength=site.cycles),
                   mutant=np.arange(site.cycles) % 2 + 1.0)  # fmt: skip


def test_links_that_are_not_there_are_refused():
    program, _ = network()
    space = select(place(program, flow="os"))
    with pytest.raises(FaultError, match="needs links of psum"):
        LinkFault(net="psum").rows(space, 0, np.arange(1), Draws(0))
    single = select(place(program, rows=1, cols=1))
    with pytest.raises(FaultError, match="needs links"):
        LinkFault().rows(single, 0, np.arange(1), Draws(0))
