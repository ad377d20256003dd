"""The cycle-level references: their arithmetic, their length, and what a fault means.

That they are the machines' RTL is tested in test_verify.py; here they meet naive
integer arithmetic and consequences of the definitions worked out by hand.
"""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsim.accel_models.accel import Accel
from fsim.errors import FaultError, MappingError
from fsim.simulator import reference
from fsim.simulator.reference import NO_FAULTS
from fsim.types import FOREVER, LEVEL, STATE
from tests import naive

MACHINES = [
    ("gemmini", "os"),
    ("gemmini", "ws"),
    ("pipelined", "os"),
    ("pipelined", "ws"),
    ("systolic", "os"),
    ("systolic", "ws"),
    ("systolic", "is"),
]


def machine(family, dataflow, rows, cols, **widths) -> Accel:
    return Accel(
        name=family,
        family=family,
        dataflow=dataflow,
        dataflows=("ws", "os", "is"),
        rows=rows,
        cols=cols,
        **widths,
    )


def codes(rng, shape, bits=8):
    return rng.integers(-(1 << (bits - 1)), 1 << (bits - 1), shape)


def row(accel, component, i, j, effect, first, last, and_mask=-1, or_mask=0, xor_mask=0):
    index = accel.component_index(component)
    return [index, i, j, -1, effect, first, last, and_mask, or_mask, xor_mask]


def flip(accel, component, i, j, cycle, bit):
    return row(accel, component, i, j, STATE, cycle, cycle, xor_mask=1 << bit)


def table(*rows):
    return np.array(rows, np.int64)


# Without faults -------------------------------------------------------------------


@pytest.mark.parametrize(("family", "dataflow"), MACHINES)
@settings(max_examples=25, deadline=None)
@given(
    size=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    shape=st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9)),
    acc_bits=st.sampled_from([16, 19, 32]),
    with_d=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_without_faults_it_is_integer_arithmetic(
    family, dataflow, size, shape, acc_bits, with_d, seed
):
    accel = machine(family, dataflow, *size, acc_bits=acc_bits)
    rng = np.random.default_rng(seed)
    m, k, n = shape
    a, b = codes(rng, (m, k)), codes(rng, (k, n))
    d = codes(rng, (m, n), acc_bits) if with_d else None
    out, waves = accel.cycle.run(accel, a, b, d, NO_FAULTS)
    assert waves is None
    np.testing.assert_array_equal(out, naive.matmul(a, b, d, acc_bits))


@pytest.mark.parametrize(("family", "dataflow"), MACHINES)
@pytest.mark.parametrize("tiles", list(itertools.product((1, 2, 3), repeat=3)))
def test_odd_and_even_numbers_of_tiles_with_extreme_codes(family, dataflow, tiles):
    accel = machine(family, dataflow, 2, 3)
    m, k, n = (3 * count - 1 for count in tiles)
    a, b = np.full((m, k), -128), np.full((k, n), -128)
    d = np.arange(m * n).reshape(m, n) - 7
    out, _ = accel.cycle.run(accel, a, b, d, NO_FAULTS)
    np.testing.assert_array_equal(out, naive.matmul(a, b, d))


@pytest.mark.parametrize("dataflow", ["os", "ws", "is"])
def test_a_saturating_adder_holds_every_sum_at_the_ends_of_its_range(dataflow):
    accel = machine("systolic", dataflow, 2, 3, acc_bits=17, overflow="saturate")
    rng = np.random.default_rng(11)
    a, b, d = rng.choice([-128, 127], (5, 9)), rng.choice([-128, 127], (9, 4)), None
    d = codes(rng, (5, 4), 17)
    out, _ = accel.cycle.run(accel, a, b, d, NO_FAULTS)
    if dataflow == "os":
        expected = np.array(naive.saturating_matmul_os(a, b, d, 17))
    elif dataflow == "ws":
        expected = np.array(naive.saturating_matmul_ws(a, b, d, 2, 17))
    else:
        expected = np.array(naive.saturating_matmul_ws(b.T, a.T, d.T, 2, 17)).T
    np.testing.assert_array_equal(out, expected)
    # The case tells saturation from wrapping.
    assert (expected != naive.matmul(a, b, d, 17)).any()


# Cycles ---------------------------------------------------------------------------

# m, n, k, rows, cols and the cycles of OS, WS, IS that SCALE-Sim v3 computes.
SCALE_SIM = [
    (256, 128, 256, 32, 32, 10_176, 11_200, 14_208),
    (16, 16, 16, 4, 4, 352, 416, 416),
    (16, 16, 16, 8, 8, 120, 152, 152),
    (100, 10, 50, 8, 8, 1_664, 1_708, 2_912),
    (64, 64, 64, 16, 16, 1_504, 1_760, 1_760),
    (64, 64, 64, 16, 8, 2_752, 3_264, 3_264),
    (37, 29, 53, 8, 4, 2_520, 3_080, 3_290),
    (1, 1000, 512, 16, 16, 34_146, 94_752, 33_472),
    (196, 256, 256, 16, 16, 59_488, 61_952, 62_816),
    (3025, 96, 363, 32, 32, 121_125, 112_284, 216_600),
]


@pytest.mark.parametrize("entry", SCALE_SIM)
def test_systolic_takes_the_cycles_that_scale_sim_counts(entry):
    m, n, k, rows, cols, *cycles = entry
    accels = [machine("systolic", dataflow, rows, cols) for dataflow in ("os", "ws", "is")]
    assert [accel.schedule.cycles(accel, m, k, n) for accel in accels] == cycles


@pytest.mark.parametrize(("dataflow", "column"), [("os", 5), ("ws", 6), ("is", 7)])
@pytest.mark.parametrize("entry", [SCALE_SIM[1], SCALE_SIM[2]])
def test_the_simulation_is_as_long_as_scale_sim_counts(entry, dataflow, column):
    m, n, k, rows, cols = entry[:5]
    accel = machine("systolic", dataflow, rows, cols)
    _, waves = accel.cycle.run(
        accel, np.ones((m, k), int), np.ones((k, n), int), None, NO_FAULTS, True
    )
    assert len(waves["psum"]) == entry[column]


@pytest.mark.parametrize(("family", "dataflow"), MACHINES)
@pytest.mark.parametrize("size", [(2, 2), (3, 2), (1, 4)])
def test_waves_hold_every_register_for_every_cycle_of_the_schedule(family, dataflow, size):
    accel = machine(family, dataflow, *size)
    rng = np.random.default_rng(5)
    a, b = codes(rng, (5, 4)), codes(rng, (4, 3))
    out, waves = accel.cycle.run(accel, a, b, None, NO_FAULTS, True)
    cycles = accel.schedule.cycles(accel, 5, 4, 3)
    registers = {c.name for c in accel.components if c.kind == "register"}
    assert set(waves) == registers | {"out"}
    for name in registers:
        assert waves[name].shape == (cycles, *size)
        assert waves[name].dtype == np.int64
    whole = dataflow == "os" and family != "gemmini"
    assert waves["out"].shape == (cycles, size[0] * size[1] if whole else size[1])
    np.testing.assert_array_equal(out, accel.cycle.run(accel, a, b, None, NO_FAULTS)[0])


@pytest.mark.parametrize("dataflow", ["os", "ws"])
@pytest.mark.parametrize("cols", [2, 5])
def test_columns_do_not_see_how_many_columns_there_are(dataflow, cols):
    """A rectangular mesh is the square one of the RTL with columns cut off or added."""
    rng = np.random.default_rng(17)
    a, b, d = codes(rng, (7, 8)), codes(rng, (8, 2)), codes(rng, (7, 2), 32)
    square = machine("gemmini", dataflow, 3, 3)
    oblong = machine("gemmini", dataflow, 3, cols)
    for component in ("a", "d", "c2", "valid", "prop"):
        fault = table(flip(square, component, 1, 1, 14, 0))
        _, expected = square.cycle.run(square, a, b, d, fault, True)
        _, got = oblong.cycle.run(oblong, a, b, d, fault, True)
        for name in expected:
            length = min(len(expected[name]), len(got[name]))
            np.testing.assert_array_equal(
                got[name][:length, ..., :2], expected[name][:length, ..., :2]
            )


# What a fault means ----------------------------------------------------------------


def test_a_psum_flip_of_a_weight_stationary_array_hits_the_row_that_passes():
    """psum(i, j) holds row m of fold f after edge f T + R + m + i + j, once."""
    rows, cols, m, k, n = 2, 3, 4, 3, 4
    accel = machine("systolic", "ws", rows, cols)
    rng = np.random.default_rng(2)
    a, b = codes(rng, (m, k)), codes(rng, (k, n))
    clean = np.array(naive.matmul(a, b))
    length = m + 2 * rows + cols - 2
    hits = 0
    for t, i, j in itertools.product(range(4 * length), range(rows), range(cols)):
        out, waves = accel.cycle.run(
            accel, a, b, None, table(flip(accel, "psum", i, j, t, 5)), True
        )
        fold, c = divmod(t, length)
        row_of_a, col = c - rows - i - j, (fold // 2) * cols + j
        expected = clean.copy()
        if 0 <= row_of_a < m and col < n:
            hits += 1
            # What the flip adds is seen in the register: +32 if it set the bit.
            expected[row_of_a, col] += 32 if waves["psum"][t, i, j] & 32 else -32
        np.testing.assert_array_equal(out, expected)
    assert hits == 2 * rows * m * n


def test_a_flipped_weight_stays_until_the_next_fold_loads():
    """Rows of A multiplied after the flip see it; those before do not."""
    rows, cols, m, k, n = 2, 2, 5, 3, 3
    accel = machine("systolic", "ws", rows, cols)
    rng = np.random.default_rng(3)
    a, b = codes(rng, (m, k)), codes(rng, (k, n))
    padded_a = np.pad(a, ((0, 0), (0, 1)))
    clean = np.array(naive.matmul(a, b))
    length = m + 2 * rows + cols - 2
    for fold, i, j in itertools.product(range(4), range(rows), range(cols)):
        n0, k0 = (fold // 2) * cols, (fold % 2) * rows
        for c in range(rows - 1, length):
            fault = table(flip(accel, "filter", i, j, fold * length + c, 3))
            out, waves = accel.cycle.run(accel, a, b, None, fault, True)
            delta = 8 if waves["filter"][fold * length + c, i, j] & 8 else -8
            expected = clean.copy()
            if n0 + j < n:
                # Row m is multiplied at edge R + m + i + j, from the state before it.
                first = max(0, c + 1 - rows - i - j)
                expected[first:, n0 + j] += delta * padded_a[first:, k0 + i]
            np.testing.assert_array_equal(out, expected)


def test_a_stuck_accumulator_is_forced_after_every_addition():
    """Output stationary, one PE: the sum is walked by hand with the bit forced."""
    accel = machine("systolic", "os", 1, 1)
    a, b, d = np.array([[7, -3, 100, 5]]), np.array([[9], [11], [-2], [120]]), np.array([[-50]])
    total = -50
    for x, w in zip(a[0], b[:, 0]):
        total = (total + int(x) * int(w)) | 16
    fault = table(row(accel, "psum", 0, 0, LEVEL, -1, FOREVER, or_mask=16))
    np.testing.assert_array_equal(accel.cycle.run(accel, a, b, d, fault)[0], [[total]])
    # The other reading, one hit after the last edge, gives something else.
    once = table(row(accel, "psum", 0, 0, STATE, 3, 3, or_mask=16))
    assert accel.cycle.run(accel, a, b, d, once)[0][0, 0] == int((a @ b + d)[0, 0]) | 16 != total


def test_level_faults_of_cycle_minus_one_force_the_reset_state():
    """S[-1] of the output-stationary array holds the first word of each operand."""
    accel = machine("systolic", "os", 1, 1)
    a, b = np.array([[3, 5]]), np.array([[7], [11]])
    run = accel.cycle.run
    reset = table(row(accel, "ifmap", 0, 0, LEVEL, -1, -1, or_mask=8))
    np.testing.assert_array_equal(run(accel, a, b, None, reset)[0], [[(3 | 8) * 7 + 55]])
    later = table(row(accel, "ifmap", 0, 0, LEVEL, 0, 0, or_mask=8))
    np.testing.assert_array_equal(run(accel, a, b, None, later)[0], [[21 + (5 | 8) * 11]])
    # A STATE fault follows a clock edge, and there is none before reset.
    never = table(row(accel, "ifmap", 0, 0, STATE, -1, -1, xor_mask=8))
    np.testing.assert_array_equal(run(accel, a, b, None, never)[0], [[76]])


def test_a_net_fault_masks_what_is_captured_in_its_window():
    accel = machine("systolic", "os", 1, 1)
    a, b = np.array([[3, 5, -7]]), np.array([[7], [11], [2]])
    for first, last in [(0, 0), (1, 2), (-1, FOREVER), (2, 1)]:
        fault = table(row(accel, "mul", 0, 0, LEVEL, first, last, xor_mask=64))
        products = [21, 55, -14]
        seen = [p ^ 64 if first <= t <= last else p for t, p in enumerate(products)]
        np.testing.assert_array_equal(accel.cycle.run(accel, a, b, None, fault)[0], [[sum(seen)]])


@pytest.mark.parametrize("dataflow", ["os", "ws", "is"])
def test_a_stuck_product_acts_once_a_step_in_every_tile(dataflow):
    """One PE of 2 x 2; OS: the K steps of its outputs. WS: one of each R steps of K,
    padding included; IS: the same with rows and columns of the result exchanged."""
    accel = machine("systolic", dataflow, 2, 2)
    rng = np.random.default_rng(6)
    a, b = codes(rng, (5, 3)), codes(rng, (3, 4))
    fault = table(row(accel, "mul", 1, 0, LEVEL, -1, FOREVER, or_mask=64))
    out, _ = accel.cycle.run(accel, a, b, None, fault)
    products = np.pad(a, ((0, 0), (0, 1)))[:, :, None] * np.pad(b, ((0, 1), (0, 0)))[None]
    steps, rows, cols = slice(1, None, 2), slice(None), slice(None)
    if dataflow == "os":
        steps, rows, cols = slice(0, 3), slice(1, None, 2), slice(0, None, 2)
    elif dataflow == "ws":
        cols = slice(0, None, 2)
    else:
        rows = slice(0, None, 2)
    products[rows, steps, cols] |= 64
    np.testing.assert_array_equal(out, products.sum(axis=1))


def test_the_sign_bit_of_a_net_and_of_a_register_wraps():
    accel = machine("systolic", "os", 1, 1)
    a, b = np.array([[3]]), np.array([[7]])
    stuck = table(row(accel, "mul", 0, 0, LEVEL, -1, FOREVER, or_mask=1 << 15))
    np.testing.assert_array_equal(accel.cycle.run(accel, a, b, None, stuck)[0], [[21 - 2**15]])
    flipped = table(flip(accel, "psum", 0, 0, 0, 31))
    np.testing.assert_array_equal(accel.cycle.run(accel, a, b, None, flipped)[0], [[21 - 2**31]])


def test_faults_of_one_register_act_in_the_order_of_the_table():
    accel = machine("systolic", "os", 1, 1)
    a, b = np.array([[4]]), np.array([[4]])
    clear = row(accel, "psum", 0, 0, LEVEL, 0, 0, and_mask=~16)
    turn = row(accel, "psum", 0, 0, STATE, 0, 0, xor_mask=16)
    run = accel.cycle.run
    np.testing.assert_array_equal(run(accel, a, b, None, table(clear, turn))[0], [[16]])
    np.testing.assert_array_equal(run(accel, a, b, None, table(turn, clear))[0], [[0]])


def test_masks_act_as_and_then_or_then_xor():
    accel = machine("systolic", "os", 1, 1)
    fault = table(row(accel, "psum", 0, 0, STATE, 0, 0, 0b0011, 0b0110, 0b0101))
    out, _ = accel.cycle.run(accel, np.array([[5]]), np.array([[3]]), None, fault)
    # 1111 & 0011 = 0011; | 0110 = 0111; ^ 0101 = 0010
    np.testing.assert_array_equal(out, [[0b0010]])


def test_a_lost_enable_takes_the_clear_with_it():
    """Pipelined OS: clr travels as en & clr. The second pass loses its first word on the
    way from PE (0, 0) to (0, 1), whose v3 is stuck at 1, so that only c3 can tell: its
    sum is not cleared and goes on from the first pass."""
    accel = machine("pipelined", "os", 1, 2)
    a, b = np.array([[3, 5]]), np.array([[2, 7, 11, 13], [4, -6, 9, 10]])
    passes = 2 + 1 + 2 + 2  # cycles: K + R + C + 2
    fault = table(
        row(accel, "v3", 0, 1, LEVEL, -1, FOREVER, or_mask=1),
        flip(accel, "en_out", 0, 0, passes + 1, 0),
    )
    out, _ = accel.cycle.run(accel, a, b, None, fault)
    first, second = 3 * 7 - 5 * 6, 3 * 13 + 5 * 10
    np.testing.assert_array_equal(out, [[26, first, 78, first + second - 3 * 13]])


@pytest.mark.parametrize(("family", "dataflow"), MACHINES)
def test_the_same_flip_twice_is_no_fault(family, dataflow):
    accel = machine(family, dataflow, 2, 2)
    rng = np.random.default_rng(9)
    a, b, d = codes(rng, (3, 3)), codes(rng, (3, 3)), codes(rng, (3, 3), 20)
    _, clean = accel.cycle.run(accel, a, b, d, NO_FAULTS, True)
    for component in accel.components:
        if component.kind == "register":
            once = flip(accel, component.name, 1, 0, 6, 0)
            _, waves = accel.cycle.run(accel, a, b, d, table(once, once), True)
            for name in clean:
                np.testing.assert_array_equal(waves[name], clean[name])
            _, waves = accel.cycle.run(accel, a, b, d, table(once), True)
            assert waves[component.name][6, 1, 0] == clean[component.name][6, 1, 0] ^ 1


def test_input_stationary_is_weight_stationary_transposed():
    rng = np.random.default_rng(4)
    a, b, d = codes(rng, (5, 3)), codes(rng, (3, 4)), codes(rng, (5, 4), 32)
    ws, is_ = machine("systolic", "ws", 2, 3), machine("systolic", "is", 2, 3)
    twin = {"ifmap": "filter", "filter": "ifmap", "psum": "psum", "out": "out"}
    for name in ("ifmap", "filter", "psum"):
        out, waves = is_.cycle.run(is_, a, b, d, table(flip(is_, name, 1, 1, 9, 4)), True)
        mirrored = table(flip(ws, twin[name], 1, 1, 9, 4))
        expected, registers = ws.cycle.run(ws, b.T, a.T, d.T, mirrored, True)
        np.testing.assert_array_equal(out, expected.T)
        for register in waves:
            np.testing.assert_array_equal(waves[register], registers[twin[register]])


# Errors -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({0: 99}, "component must be"),
        ({0: -1}, "component must be"),
        ({1: 2}, "row=2, col=0"),
        ({2: -1}, "row=0, col=-1"),
        ({0: 3}, "'mul' stores nothing"),
        ({0: 4}, "got memory 'acts'"),
    ],
)
def test_a_fault_outside_the_machine_is_refused(change, words):
    accel = machine("systolic", "ws", 2, 2)
    entry = flip(accel, "ifmap", 0, 0, 0, 0)
    for column, value in change.items():
        entry[column] = value
    with pytest.raises(FaultError, match=words):
        reference.run(accel, np.ones((2, 2), int), np.ones((2, 2), int), table=table(entry))


@pytest.mark.parametrize(
    ("operands", "words"),
    [
        ((np.ones((2, 3), int), np.ones((2, 2), int)), "agree in k"),
        ((np.full((2, 2), 128), np.ones((2, 2), int)), r"a must lie in \[-128, 127\]"),
        ((np.ones((2, 2)), np.ones((2, 2), int)), "a must be a non-empty matrix of integers"),
        ((np.ones((2, 2), int), np.ones((2, 0), int)), "b must be a non-empty matrix"),
        ((np.ones((2, 2), int), np.ones((2, 2), int), np.ones((2, 3), int)), "d must have shape"),
    ],
)
def test_operands_that_do_not_fit_are_refused(operands, words):
    accel = machine("systolic", "ws", 2, 2)
    with pytest.raises(MappingError, match=words):
        reference.run(accel, *operands)


def test_reference_run_is_the_machine():
    accel = machine("gemmini", "os", 2, 2)
    a, b = np.array([[1, 2], [3, 4]], np.int8), np.array([[5, 6], [7, 8]], np.int8)
    out, waves = reference.run(accel, a, b, waveform=True)
    np.testing.assert_array_equal(out, naive.matmul(a, b))
    assert len(waves["out"]) == accel.schedule.cycles(accel, 2, 2, 2)
