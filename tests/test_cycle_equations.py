"""Waveforms of the references obey the machines' equations, restated on whole grids.

Each cycle's registers are predicted from the ones before with numpy, for every PE
but the edges that delay lines feed, while one random fault disturbs the machine.
The faulted element itself is left out: there the fault decides.
"""

import numpy as np
import pytest

from fsim.accel_models.accel import Accel
from fsim.types import FOREVER, LEVEL, STATE


def shifted(values, axis):
    """Each PE sees the register of the PE above (axis 0) or to the left (axis 1)."""
    return np.roll(values, 1, axis)


def wrap32(values):
    return (values + 2**31) % 2**32 - 2**31


def gemmini_os(before, now, earlier):
    """Predictions (name -> grid) and, for each, whether it needs up or left neighbours."""
    p = before
    prop, valid = p["prop"].astype(bool), p["valid"].astype(bool)
    mac = wrap32(p["a"] * p["b"] + np.where(prop, p["c2"], p["c1"]))
    vin = shifted(valid, 0)
    out_c = np.where(prop, p["c1"], p["c2"])
    yield "a", shifted(p["a"], 1), "left"
    yield "valid", vin, "up"
    yield "b", np.where(vin, shifted(p["b"], 0), p["b"]), "up"
    yield "d", np.where(vin, shifted(out_c, 0), p["d"]), "up"
    yield "prop", np.where(vin, shifted(prop, 0), prop), "up"
    yield "c1", np.where(valid, np.where(prop, p["d"], mac), p["c1"]), ""
    yield "c2", np.where(valid, np.where(prop, mac, p["d"]), p["c2"]), ""


def gemmini_ws(before, now, earlier):
    p = before
    prop, valid = p["prop"].astype(bool), p["valid"].astype(bool)
    mac = wrap32(p["a"] * np.where(prop, p["c2"], p["c1"]) + p["b"])
    vin = shifted(valid, 0)
    out_c = np.where(prop, p["c1"], p["c2"])
    yield "a", shifted(p["a"], 1), "left"
    yield "valid", vin, "up"
    yield "b", np.where(vin, shifted(mac, 0), p["b"]), "up"
    yield "d", np.where(vin, shifted(out_c, 0), p["d"]), "up"
    yield "prop", np.where(vin, shifted(prop, 0), prop), "up"
    yield "c1", np.where(valid & prop, p["d"], p["c1"]), ""
    yield "c2", np.where(valid & ~prop, p["d"], p["c2"]), ""


def pipelined_common(p, earlier):
    v2 = earlier["v1"]  # v2 after the edge before: no fault site of its own
    yield "s1_x", shifted(p["x_old"], 1), "left"
    yield "x_old", shifted(p["x_old"], 1), "left"
    yield "v1", shifted(p["en_out"], 1), "left"
    yield "en_out", shifted(p["en_out"], 1), "left"
    yield "s2_p", np.where(p["v1"], p["s1_x"] * p["s1_w"], 0), ""
    yield "v3", v2, ""
    yield "s3_p", np.where(v2, p["s2_p"], 0), ""


def pipelined_os(before, now, earlier):
    p = before
    yield from pipelined_common(p, earlier)
    yield "s1_w", shifted(p["w_old"], 0), "up"
    yield "w_old", shifted(p["w_old"], 0), "up"
    # clr is seen by the sum only: it went on from the last one, or began anew.
    added = np.where(p["v3"], wrap32(p["mac_out"] + p["s3_p"]), p["mac_out"])
    began = np.where(p["v3"], p["s3_p"], p["mac_out"])
    yield "mac_out", np.where(now["mac_out"] == began, began, added), ""


def pipelined_ws(before, now, earlier):
    p = before
    yield from pipelined_common(p, earlier)
    v2 = earlier["v1"]
    yield "s1_w", p["w_reg"], ""
    yield "s1_psum", np.where(shifted(p["en_out"], 1), shifted(p["mac_out"], 0), 0), "up left"
    yield "s2_psum", np.where(p["v1"], p["s1_psum"], 0), ""
    yield "s3_psum", np.where(v2, p["s2_psum"], 0), ""
    yield "mac_out", np.where(p["v3"], wrap32(p["s3_psum"] + p["s3_p"]), p["mac_out"]), ""
    c = now["cycle"] % now["pass"]
    if c < now["rows"]:  # load
        yield "w_reg", shifted(p["w_old"], 0), "up"
        yield "w_old", shifted(p["w_old"], 0), "up"
    else:
        yield "w_reg", p["w_reg"], ""
        yield "w_old", p["w_reg"], ""


def systolic_ws(before, now, earlier):
    p = before
    product = p["ifmap"] * p["filter"]
    yield "ifmap", shifted(p["ifmap"], 1), "left"
    yield "psum", wrap32(shifted(p["psum"], 0) + product), "up"
    loads = now["cycle"] % now["pass"] < now["rows"]
    yield "filter", shifted(p["filter"], 0) if loads else p["filter"], "up" if loads else ""


def systolic_is(before, now, earlier):
    p = before
    product = p["ifmap"] * p["filter"]
    yield "filter", shifted(p["filter"], 1), "left"
    yield "psum", wrap32(shifted(p["psum"], 0) + product), "up"
    loads = now["cycle"] % now["pass"] < now["rows"]
    yield "ifmap", shifted(p["ifmap"], 0) if loads else p["ifmap"], "up" if loads else ""


def systolic_os(before, now, earlier):
    p = before
    yield "ifmap", shifted(p["ifmap"], 1), "left"
    yield "filter", shifted(p["filter"], 0), "up"
    # k > 0 adds, k outside [0, K) holds; k = 0 begins with the bias, zero here.
    i, j = np.indices(p["psum"].shape)
    k = now["cycle"] % now["pass"] - i - j
    product = p["ifmap"] * p["filter"]
    total = wrap32(np.where(k == 0, 0, p["psum"]) + product)
    yield "psum", np.where((k >= 0) & (k < now["k"]), total, p["psum"]), ""


EQUATIONS = {
    ("gemmini", "os"): gemmini_os,
    ("gemmini", "ws"): gemmini_ws,
    ("pipelined", "os"): pipelined_os,
    ("pipelined", "ws"): pipelined_ws,
    ("systolic", "os"): systolic_os,
    ("systolic", "ws"): systolic_ws,
    ("systolic", "is"): systolic_is,
}
M, K, N = 5, 4, 5


def fold_cycles(family, dataflow, rows, cols):
    """Cycles of one pass or fold."""
    if family == "pipelined":
        return K + rows + cols + 2 if dataflow == "os" else 5 * rows + M + cols - 1
    if dataflow == "os":
        return K + rows + cols - 2
    return (M if dataflow == "ws" else N) + 2 * rows + cols - 2


@pytest.mark.parametrize("size", [(2, 3), (3, 2), (3, 3)])
@pytest.mark.parametrize("machine", EQUATIONS, ids="-".join)
def test_every_register_follows_from_the_cycle_before(machine, size):
    family, dataflow = machine
    rows, cols = size
    accel = Accel("x", family, dataflow, (dataflow,), rows, cols)
    rng = np.random.default_rng([rows, cols])
    a, b = rng.integers(-128, 128, (M, K)), rng.integers(-128, 128, (K, N))
    cycles = accel.schedule.cycles(accel, M, K, N)
    registers = [c for c in accel.components if c.kind == "register"]
    compared = 0
    for component in registers:
        index = accel.component_index(component.name)
        for effect in (STATE, LEVEL):
            i, j = int(rng.integers(rows)), int(rng.integers(cols))
            mask, at = 1 << int(rng.integers(component.bits)), int(rng.integers(cycles))
            fault = [index, i, j, -1, effect, at, at, -1, 0, mask]
            if effect == LEVEL:
                fault[5:] = [-1, FOREVER, -1, mask, 0]
            _, waves = accel.cycle.run(accel, a, b, None, np.array([fault], np.int64), True)
            for t in range(2, cycles):
                before, earlier, now = (
                    {n: w[s] for n, w in waves.items()} for s in (t - 1, t - 2, t)
                )
                now |= {"cycle": t, "pass": fold_cycles(*machine, *size), "rows": rows, "k": K}
                for name, predicted, needs in EQUATIONS[machine](before, now, earlier):
                    judged = np.ones(size, bool)
                    if "up" in needs:
                        judged[0] = False
                    if "left" in needs:
                        judged[:, 0] = False
                    if name == component.name and (effect == LEVEL or t == at):
                        judged[i, j] = False
                    np.testing.assert_array_equal(now[name][judged], predicted[judged], name)
                    compared += judged.sum()
    assert compared > 1000
