"""The LUT array: exact without upsets, an oracle of its own for upsets, all backends alike.

`gates` below is the multiplier of full adders that are computed, not looked up; an upset
inverts one of their outputs for one combination of inputs. It shares nothing with the tables.
"""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from fsim import Fault, gemm
from fsim.accel_models.fpga import cycle, luts, schedule, tile
from fsim.accel_models.fpga.essential import essential_bits, essential_share
from fsim.accel_models.load import load_accel
from fsim.errors import ConfigError, FaultError
from fsim.fault_models.configuration import ConfigurationUpsets
from fsim.fault_models.explicit import rows_of
from fsim.fault_models.network import Explicit
from fsim.session import open_session
from fsim.simulator import reference
from fsim.simulator.crosscheck import random_table
from fsim.simulator.draws import Draws
from fsim.simulator.gemm import clean
from fsim.simulator.inject import golden_run, run_rows
from fsim.simulator.reference import NO_FAULTS
from fsim.simulator.replay import walk_outputs
from fsim.simulator.sites import check_rows, select
from fsim.testing import fault_model_contract
from fsim.types import LEVEL, fault_table
from tests import naive


def array(rows=2, cols=2, *, bits=3, acc=8, scrub=0):
    return replace(
        load_accel("fpga-lut"), rows=rows, cols=cols, operand_bits=bits, product_bits=2 * bits,
        acc_bits=acc, parameters={"scrub_cycles": scrub},
    )  # fmt: skip


def operands(rng, accel, m, k, n):
    half, top = 1 << (accel.operand_bits - 1), 1 << (accel.acc_bits - 1)
    d = np.clip(rng.integers(-30, 30, (m, n)), -top, top - 1)
    return rng.integers(-half, half, (m, k)), rng.integers(-half, half, (k, n)), d


def upset(tables, lut, bit):
    """The tables with one configuration bit inverted."""
    changed = list(tables)
    changed[lut] = int(np.int64(changed[lut]) ^ (np.int64(1) << bit))
    return changed


# The networks of LUTs -------------------------------------------------------------


@pytest.mark.parametrize("bits", [2, 3, 4, 5])
def test_the_multiplier_is_exact_lut_by_lut(bits):
    tables, half = luts.multiplier(bits), 1 << (bits - 1)
    for x in range(-half, half):
        for y in range(-half, half):
            assert cycle.multiply(x, y, tables, bits) == x * y


@pytest.mark.slow
def test_the_multiplier_of_8_bits_is_exact_for_every_pair():
    tables = luts.multiplier(8)
    wrong = [
        (x, y)
        for x in range(-128, 128) for y in range(-128, 128)
        if cycle.multiply(x, y, tables, 8) != x * y
    ]  # fmt: skip
    assert not wrong


def test_the_compiled_multiplier_of_8_bits_is_exact_for_every_pair():
    tables = np.array(luts.multiplier(8), np.int64)
    codes = range(-128, 128)
    assert all(tile.multiply(x, y, tables, 8) == x * y for x in codes for y in codes)


@settings(deadline=None)
@given(
    x=st.integers(-(2**31), 2**31 - 1), y=st.integers(-(2**15), 2**15 - 1),
    bits=st.sampled_from([17, 24, 32, 48]),
)  # fmt: skip
def test_the_adder_wraps(x, y, bits):
    x = naive.wrapped(x, bits)
    expected = naive.wrapped(x + y, bits)
    assert cycle.add(x, y, luts.adder(bits), bits) == expected
    assert tile.add(x, y, np.array(luts.adder(bits), np.int64), bits) == expected


def full_adder(inputs, wrong):
    """(sum, carry) of single bits; wrong: (inputs, "sum" or "carry") that comes out inverted."""
    total, carry = sum(inputs) % 2, sum(inputs) // 2
    return total ^ (wrong == "sum"), carry ^ (wrong == "carry")


def gates(x, y, bits, lut, selected, output):
    """x * y by diagonals of full adders, one of them (number `lut`) wrong for one input.

    selected  its inputs, as in `luts.py`, for which `output` ("sum", "carry") is inverted
    Bits of a two's complement product: Baugh and Wooley's inverted sign products.
    """
    digit_x = [x >> i & 1 for i in range(bits)]
    digit_y = [y >> j & 1 for j in range(bits)]
    total, carry = {}, {}
    for diagonal in range(2 * bits - 1):
        for j in range(bits):
            i = diagonal - j
            if not 0 <= i < bits:
                continue
            # (i, j) needs (i + 1, j - 1) of the same diagonal and (i, j - 1) of the one before.
            product = digit_x[i] * digit_y[j]
            if (i == bits - 1) + (j == bits - 1) == 1:
                product = 1 - product
            above = total.get((i + 1, j - 1), 0), carry.get((i, j - 1), 0)
            struck = lut == j * bits + i and selected == (digit_x[i], digit_y[j], *above)
            result = full_adder((product, *above), output if struck else None)
            total[i, j], carry[i, j] = result
    answer = sum(total[0, j] << j for j in range(bits))
    chain = 1
    for q in range(bits):
        inputs = (total[q + 1, bits - 1] if q < bits - 1 else 1, carry[q, bits - 1], chain)
        struck = lut == bits * bits + q and selected == inputs
        high, chain = full_adder(inputs, output if struck else None)
        answer += high << (bits + q)
    return naive.wrapped(answer, 2 * bits)


@pytest.mark.parametrize("bits", [2, 3])
def test_an_upset_of_any_configuration_bit_is_one_wrong_output_of_one_full_adder(bits):
    clean_tables, half = luts.multiplier(bits), 1 << (bits - 1)
    visible = 0
    for lut in range(luts.multiplier_luts(bits)):
        inputs = 4 if lut < bits * bits else 3
        for bit in range(64):
            output, entry = ("sum", bit - 32) if bit >= 32 else ("carry", bit)
            selected = tuple(entry >> position & 1 for position in range(inputs))
            if entry >> inputs:  # an input that is tied to 0
                selected = None
            tables = upset(clean_tables, lut, bit)
            compiled = np.array(tables, np.int64)
            for x in range(-half, half):
                for y in range(-half, half):
                    got = cycle.multiply(x, y, tables, bits)
                    assert got == gates(x, y, bits, lut, selected, output), (lut, bit, x, y)
                    assert got == tile.multiply(x, y, compiled, bits)
                    visible += got != x * y
    assert visible > 100


def test_any_tables_reference_equals_compiled():
    rng = np.random.default_rng(4)
    for bits in (2, 5, 8):
        for _ in range(40):
            tables = rng.integers(-(2**63), 2**63 - 1, luts.multiplier_luts(bits))
            half = 1 << (bits - 1)
            x, y = (int(value) for value in rng.integers(-half, half, 2))
            expected = cycle.multiply(x, y, tables.tolist(), bits)
            assert tile.multiply(x, y, tables, bits) == expected
        tables = rng.integers(-(2**63), 2**63 - 1, 20)
        x, y = (int(value) for value in rng.integers(-(2**19), 2**19, 2))
        assert tile.add(x, y, tables, 20) == cycle.add(x, y, tables.tolist(), 20)


# Essential bits -------------------------------------------------------------------


def test_essential_bits_are_those_that_some_operands_show():
    bits, acc = 2, 6
    accel = array(bits=bits, acc=acc)
    found = essential_bits(accel)
    codes = range(-2, 2)
    for lut in range(luts.multiplier_luts(bits)):
        for bit in range(64):
            tables = upset(luts.multiplier(bits), lut, bit)
            seen = any(cycle.multiply(x, y, tables, bits) != x * y for x in codes for y in codes)
            assert seen == found["mul_lut"][lut, bit], (lut, bit)
    products = sorted({x * y for x in codes for y in codes})
    for lut in range(acc):
        for bit in range(64):
            tables = upset(luts.adder(acc), lut, bit)
            seen = any(
                cycle.add(x, y, tables, acc) != naive.wrapped(x + y, acc)
                for x in range(-32, 32) for y in products
            )  # fmt: skip
            assert seen == found["add_lut"][lut, bit], (lut, bit)


def test_the_essential_share_of_8_bit_operands():
    accel = load_accel("fpga-lut")
    found = essential_bits(accel)
    # By sampling: an upset that is not essential is never seen, one that is may be.
    rng = np.random.default_rng(8)
    pairs = rng.integers(-128, 128, (400, 2))
    seen = 0
    for lut, bit in zip(rng.integers(0, 72, 150), rng.integers(0, 64, 150)):
        tables = np.array(upset(luts.multiplier(8), int(lut), int(bit)), np.int64)
        shown = any(tile.multiply(x, y, tables, 8) != x * y for x, y in pairs)
        assert not shown or found["mul_lut"][lut, bit]
        seen += shown
    assert seen > 20
    assert {name: int(bits.sum()) for name, bits in found.items()} == {
        "mul_lut": 1340, "add_lut": 31 * 8 + 30 * 8 + 8,
    }  # fmt: skip
    assert essential_share(accel) == (1340 + 496) / (64 * (72 + 32))
    with pytest.raises(ConfigError, match="at most 10 bits"):
        essential_bits(array(bits=12, acc=24))


# The array ------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    size=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    shape=st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 5)),
    bits=st.integers(2, 6), acc=st.sampled_from([12, 17, 32]), seed=st.integers(0, 2**32),
)  # fmt: skip
def test_without_faults_it_is_integer_arithmetic(size, shape, bits, acc, seed):
    accel = array(*size, bits=bits, acc=acc)
    a, b, d = operands(np.random.default_rng(seed), accel, *shape)
    expected = naive.matmul(a, b, d, acc)
    assert_array_equal(reference.run(accel, a, b, d)[0], expected)
    assert_array_equal(accel.tile.run(accel, a, b, d, NO_FAULTS)[0], expected)
    assert_array_equal(clean(accel, a, b, d), expected)


def test_cycles_are_those_of_the_systolic_array():
    accel = load_accel("fpga-lut")
    other = load_accel("systolic", "os", {"rows": 16, "cols": 16})
    for shape in ((1, 1, 1), (17, 5, 40), (64, 72, 16)):
        expected = other.schedule.cycles(other, *shape)
        assert accel.schedule.cycles(accel, *shape) == expected


def test_registers_and_the_product_are_those_of_the_systolic_array():
    """Faults outside the tables mean what they mean in `systolic`, which has its own code."""
    accel = array(2, 3, bits=4, acc=12)
    other = load_accel("systolic", "os", {
        "rows": 2, "cols": 3, "operand_bits": 4, "product_bits": 8, "acc_bits": 12,
    })  # fmt: skip
    rng = np.random.default_rng(1)
    for _ in range(150):
        a, b, d = operands(rng, accel, *(int(x) for x in rng.integers(1, 6, 3)))
        cycles = accel.schedule.cycles(accel, *a.shape, b.shape[1])
        table = random_table(rng, other, [0, 1, 2, 3], cycles, 3)
        expected, waves = reference.run(other, a, b, d, table, True)
        got, found = reference.run(accel, a, b, d, table, True)
        assert_array_equal(got, expected)
        for name, values in waves.items():
            assert_array_equal(found[name], values, name)


def all_backends(accel, a, b, d, table):
    """The result, the same of all backends, registers and tables included."""
    expected, waves = reference.run(accel, a, b, d, table, True)
    got, found = accel.tile.run(accel, a, b, d, table, True)
    assert_array_equal(got, expected, str(table.tolist()))
    assert waves.keys() == found.keys()
    for name, values in waves.items():
        assert_array_equal(found[name], values, f"{name} {table.tolist()}")
    return replayed(accel, a, b, d, table, expected)


def replayed(accel, a, b, d, table, expected):
    golden = clean(accel, a, b, d)
    out = golden.copy()
    touched = walk_outputs(accel, a, b, d, table, out)
    assert_array_equal(out, expected, str(table.tolist()))
    assert touched[expected != golden].all()
    return not np.array_equal(expected, golden)


@pytest.mark.slow
def test_every_single_fault_of_the_tables():
    accel = array(1, 1, bits=2, acc=4, scrub=3)
    a, b, d = operands(np.random.default_rng(2), accel, 2, 2, 1)
    cycles = accel.schedule.cycles(accel, 2, 2, 1)
    visible = 0
    for name, words in (("mul_lut", 6), ("add_lut", 4)):
        for word in range(words):
            for bit in range(64):
                where = {"word": word, "bit": bit}
                faults = [Fault(name, kind=kind, **where) for kind in ("stuck0", "stuck1")]
                faults += [Fault(name, cycle=t, **where) for t in range(cycles)]
                faults += [Fault(name, cycle=1, last=2, **where)]
                for fault in faults:
                    table = fault_table(rows_of([fault], accel, cycles))
                    expected = reference.run(accel, a, b, d, table)[0]
                    got = accel.tile.run(accel, a, b, d, table)[0]
                    assert_array_equal(got, expected, str(fault))
                    visible += replayed(accel, a, b, d, table, expected)
    assert visible > 150  # most bits are of entries that these operands do not select


@pytest.mark.slow
def test_every_single_fault_of_registers_and_products():
    accel = array(2, 2, bits=2, acc=5)
    a, b, d = operands(np.random.default_rng(2), accel, 3, 2, 3)
    cycles = accel.schedule.cycles(accel, 3, 2, 3)
    visible = set()
    for component in accel.components[:4]:
        for row, col, bit in np.ndindex(2, 2, component.bits):
            where = {"row": row, "col": col, "bit": bit}
            faults = [Fault(component.name, kind=kind, **where) for kind in ("stuck0", "stuck1")]
            faults += [Fault(component.name, cycle=t, **where) for t in range(cycles)]
            for fault in faults:
                table = fault_table(rows_of([fault], accel, cycles))
                if all_backends(accel, a, b, d, table):
                    visible.add(component.name)
    assert visible == {"ifmap", "filter", "psum", "mul"}


@pytest.mark.parametrize("seed", range(120))
def test_several_faults_at_once(seed):
    rng = np.random.default_rng([21, seed])
    bits = int(rng.integers(2, 6))
    accel = array(
        int(rng.integers(1, 4)), int(rng.integers(1, 4)), bits=bits,
        acc=int(rng.integers(2 * bits, 20)), scrub=int(rng.choice([0, 1, 4, 9])),
    )  # fmt: skip
    a, b, d = operands(rng, accel, *(int(x) for x in rng.integers(1, 6, 3)))
    cycles = accel.schedule.cycles(accel, *a.shape, b.shape[1])
    kinds = list(range(6)) if seed % 2 else [4, 5]
    table = random_table(rng, accel, kinds, cycles, int(rng.integers(1, 8)))
    if seed % 4 == 0:  # in one PE, so that upsets meet in one network
        table[:, 1:3] = 0
    all_backends(accel, a, b, d, table)


def test_an_upset_stays_until_the_scrub_and_no_longer():
    """An upset is a LEVEL flip from its cycle to the one before the next scrub."""
    accel = array(1, 1, bits=3, acc=10, scrub=5)
    a, b = np.full((6, 4), 3), np.full((4, 1), 3)
    cycles = accel.schedule.cycles(accel, 6, 4, 1)
    assert cycles == 6 * 4
    where = {"word": 0, "bit": 32 + 3}  # sum of cell (0, 0) where both digits are 1
    touched = set()
    for start in range(cycles):
        upset_ = gemm(a, b, accel=accel, faults=[Fault("mul_lut", cycle=start, **where)])
        last = min((start // 5 + 1) * 5 - 1, cycles - 1)
        fault = Fault("mul_lut", cycle=start, last=last, **where)
        window = gemm(a, b, accel=accel, faults=[fault])
        assert_array_equal(upset_.out, window.out)
        # Products of edges cycle + 1 to last + 1 lose their lowest bit, 9 becoming 8.
        steps = [t for t in range(start + 1, last + 2) if t < cycles]
        expected = np.full((6, 1), 36)
        for t in steps:
            expected[t // 4] -= 1
        assert_array_equal(upset_.out, expected)
        touched.add(upset_.changed)
    assert touched == {0, 1, 2}
    never = replace(accel, parameters={"scrub_cycles": 0})
    out = gemm(a, b, accel=never, faults=[Fault("mul_lut", cycle=1, **where)]).out
    assert out[:, 0].tolist() == [34, 32, 32, 32, 32, 32]


def test_a_partial_sum_in_memory_is_struck():
    accel = array(2, 2)
    a, b, d = operands(np.random.default_rng(3), accel, 3, 2, 3)
    table = np.array([[accel.component_index("psums"), -1, -1, 7, 0, 0, 0, ~2, 1, 4]])
    expected = np.array(naive.matmul(a, b, d, 8))
    expected[2, 1] = naive.wrapped(((int(expected[2, 1]) & ~2) | 1) ^ 4, 8)
    out = clean(accel, a, b, d)
    assert walk_outputs(accel, a, b, d, table, out).sum() == 1
    assert_array_equal(out, expected)


def test_faults_outside_are_refused():
    accel, eye = array(2, 2), np.eye(2, dtype=int)
    for place in ({"row": 2}, {"col": 2}, {"word": 12}, {"bit": 64}):
        with pytest.raises(FaultError):
            gemm(eye, eye, accel=accel,
                 faults=[Fault("mul_lut", kind="stuck1", **({"bit": 0} | place))])  # fmt: skip
    table = np.array([[4, 0, 0, 12, 0, 0, 0, -1, 0, 1]])
    for run in (reference.run, accel.tile.run):
        with pytest.raises(FaultError, match="inside"):
            run(accel, eye, eye, None, table)


# Networks -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def session():
    return open_session("digits-cnn", load_accel("fpga-lut"), images=6)


@pytest.fixture(scope="module")
def space(session):
    return select(session.placement)


@pytest.mark.parametrize("component", ["mul_lut", "add_lut", "ifmap", "psum"])
def test_a_fault_in_a_network_is_that_of_the_reference(component):
    machine = load_accel("fpga-lut", None, {"rows": 1, "cols": 4})
    session = open_session("digits-cnn", machine, images=2)
    space = select(session.placement)
    words = {"mul_lut": 9, "add_lut": 3}.get(component)
    bit = 35 if words else 1
    fault = Fault(component, row=0, col=2, bit=bit, kind="flip", cycle=4, last=60, word=words,
                  layer="fc")  # fmt: skip
    golden = golden_run(session.placement, session.images, session.labels)
    rows = Explicit((fault,)).rows(space, 0, np.arange(2), Draws(0))
    results = {
        backend: run_rows(session.placement, golden, rows, backend=backend).acc
        for backend in ("auto", "tile", "reference")
    }
    assert_array_equal(results["auto"], results["reference"])
    assert_array_equal(results["tile"], results["reference"])
    assert not np.array_equal(results["auto"], golden.acc)


def test_upsets_of_the_configuration_last_from_layer_to_layer(space):
    cycles = {site.layer: site.cycles for site in space.registers}
    total = sum(cycles.values())
    begin = dict(zip(cycles, np.concatenate([[0], np.cumsum(list(cycles.values()))])))
    interval = total // 3
    model = ConfigurationUpsets(3e-10, interval)
    rows = model.rows(space, 0, np.arange(200), Draws(5))
    check_rows(space.placement, rows, 200)
    assert len(rows) and (rows["effect"] == LEVEL).all()
    assert (rows["first"] <= rows["last"]).all() and (rows["last"] >= 0).all()
    spans, crossing = {}, 0
    for row in rows:
        site = tuple(int(row[name]) for name in ("component", "row", "col", "word", "xor_mask"))
        first = begin[row["layer"]] + max(int(row["first"]), 0)
        carried = row["first"] == -1
        spans.setdefault((int(row["image"]), int(row["event"])), []).append(
            (first, begin[row["layer"]] + int(row["last"]), bool(carried), site)
        )
    ends = {}
    for (image, _), pieces in spans.items():
        pieces.sort()
        assert len({site for *_, site in pieces}) == 1
        for (_, last, _, _), (first, _, carried, _) in zip(pieces, pieces[1:]):
            assert carried and first == last + 1  # no gap between layers
        crossing += len(pieces) > 1
        assert pieces[-1][1] - pieces[0][0] < interval
        if pieces[-1][1] < total - 1:  # ended by a scrub, whose phase is that of the image
            ends.setdefault(image, set()).add((pieces[-1][1] + 1) % interval)
    assert crossing > 10 and len(ends) > 20
    assert all(len(phases) == 1 for phases in ends.values())
    assert len({next(iter(phases)) for phases in ends.values()}) > 10


def test_upsets_come_at_their_rate(space):
    rate, interval, images = 1e-10, 1 << 16, 400
    model = ConfigurationUpsets(rate, interval)
    rows = model.rows(space, 1, np.arange(images), Draws(9))
    bits = 16 * 16 * 64 * (72 + 32)
    total = sum({site.layer: site.cycles for site in space.registers}.values())
    # The scrub before an image is 1 to `interval` cycles old.
    events = {(int(row["image"]), int(row["event"])) for row in rows}
    expected = images * rate * bits * (total + (interval + 1) / 2)
    assert abs(len(events) - expected) < 6 * np.sqrt(expected)
    tables = np.bincount(rows["component"], minlength=6)
    assert 0.6 < tables[4] / tables[4:6].sum() < 0.78  # 72 of 104 LUTs
    assert rows["word"][rows["component"] == 4].max() == 71
    assert rows["word"][rows["component"] == 5].max() == 31


def test_upsets_need_a_configuration():
    other = select(open_session("digits-cnn", load_accel("systolic"), images=2).placement)
    with pytest.raises(FaultError, match="family fpga"):
        ConfigurationUpsets(1e-9, 100).rows(other, 0, np.arange(2), Draws(0))
    for bad in ({"rate": 2.0, "interval": 1}, {"rate": 0.1, "interval": 0}):
        with pytest.raises(FaultError):
            ConfigurationUpsets(**bad)


@pytest.mark.slow
def test_the_contract_of_fault_models():
    for check in fault_model_contract(ConfigurationUpsets(1e-11, 100000), "fpga-lut"):
        check()


@pytest.mark.parametrize(
    "faults",
    [
        ("--ber", "1e-4", "--no-curve"),
        ("--fault", "stuck0"),
        ("--fault", "config-upsets,rate=1e-10,interval=1000000"),
        ("--seu-rate", "1e-10", "--sites", "mul_lut,add_lut"),
    ],
    ids=str,
)
def test_fsim_inject(fsim, faults):
    done = fsim("inject", "--accel", "fpga-lut", "--images", 8, "--trials", 2, "--quiet",
                "--json", "--threads", 1, *faults)  # fmt: skip
    assert done.exit_code == 0, done.stderr
    report = json.loads(done.stdout)
    assert sum(report["outcomes"][name]["count"] for name in report["outcomes"]) == 16


def test_the_command_line_says_what_it_is(fsim):
    listed = fsim("accel", "list").stdout
    line = next(line for line in listed.splitlines() if line.startswith("fpga-lut"))
    assert "not checked against RTL" in line
    shown = fsim("accel", "show", "fpga-lut", "--set", "parameters.scrub_cycles=1000", "--json")
    value = json.loads(shown.stdout)
    assert value["parameters"] == {"scrub_cycles": 1000}
    count = {item["name"]: item["count"] for item in value["components"]}
    assert count["mul_lut"] == 256 * 72 and count["add_lut"] == 256 * 32


def test_one_fold_is_as_long_as_its_products_and_skew():
    accel = array(3, 4)
    assert schedule.fold_cycles(accel, 7) == 7 + 3 + 4 - 2
