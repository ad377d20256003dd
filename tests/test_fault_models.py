"""Named fault models: what all of them must keep, on several machines."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from fsim.errors import ConfigError, FaultError
from fsim.fault_models import families
from fsim.fault_models.families import (
    described,
    families_told,
    family_class,
    family_names,
    make_family,
    model_of,
    parse_family,
)
from fsim.simulator.draws import Draws
from fsim.simulator.inject import Golden, run_rows
from fsim.simulator.sites import check_rows, select
from fsim.types import FAULT
from tests.test_engine import IMAGES, network, place

MACHINES = {
    "ws": ("systolic", "ws", 4, 3),
    "os": ("systolic", "os", 3, 5),
    "is": ("systolic", "is", 5, 4),
    "gemmini-os": ("gemmini-like-4x4", "os", 4, 4),
    "pipelined-ws": ("pipelined-systolic-4x4", "ws", 4, 4),
}

VOLTAGE = "sram-voltage,volt=0.6,mean=0.5,sigma=0.05,memories=weights+acts+psums"
MODELS = {
    "mbu-registers": "mbu-patterns,patterns=11:0.6 101:0.3 1:0.1",
    "mbu-memories": "mbu-patterns,patterns=11:0.6 101:0.4,where=memories",
    "mcu": "mcu,shapes=2x2:0.5 10/01:0.5",
    "duty": "intermittent-duty,period=40,burst=7,active=0.5",
    "duty-flip": "intermittent-duty,period=9,burst=9,value=flip,phase=3",
    "control": "control",
    "control-stuck": "control,kind=stuck1",
    "link": "link",
    "link-stuck": "link,kind=stuck0",
    "link-burst": "link,kind=intermittent,duration=11",
    "voltage": VOLTAGE,
    "retention": "retention,refresh=0.064,celsius=95,median=0.5,sigma=1.1,energy=0.6",
    "timing": "timing,volt=0.75,threshold=0.3,nominal=0.9,slack=0.25,spread=0.05,years=9,shift=0.1",
}


@pytest.fixture(scope="module")
def placements():
    found = {}
    for name, machine in MACHINES.items():
        program, codes = network(unsigned=machine[0] == "systolic")
        found[name] = place(program, *machine), codes
    return found


def of_text(text):
    return make_family(*parse_family(text))


def cases():
    """(machine, model) pairs that go together."""
    return [
        pytest.param(machine, name, id=f"{machine}-{name}")
        for machine in MACHINES
        for name in MODELS
        # No control register: refused, see test_fault_control.
        if not (name.startswith("control") and machine in ("ws", "os", "is"))
    ]


def drawn(placement, model, trial=0, images=range(IMAGES), seed=11):
    return model.rows(select(placement), trial, np.array(images, np.int64), Draws(seed))


ELSEWHERE = {"crossbar-stuck", "crossbar-variation", "config-upsets"}
"""Families of machines of their own, tried with those."""


def test_every_family_is_tried_here():
    tried = {text.partition(",")[0] for text in MODELS.values()}
    assert tried | ELSEWHERE == set(families.BUILT_IN)


@pytest.mark.parametrize(("machine", "name"), cases())
def test_rows_lie_on_the_machine(machine, name, placements):
    placement, _ = placements[machine]
    model = of_text(MODELS[name])
    some = 0
    for trial in range(8):
        rows = drawn(placement, model, trial)
        assert rows.dtype == FAULT
        check_rows(placement, rows, IMAGES)
        some += len(rows)
        assert (rows["trial"] == trial).all()
        once = model.unit == "trial"
        assert ((rows["image"] == -1) if once else (rows["image"] >= 0)).all()
        if once:
            continue
        # An event is of one image, and images come in their order.
        assert (np.diff(rows["image"]) >= 0).all()
        pairs = np.unique(rows[["event", "image"]])
        assert len(np.unique(pairs["event"])) == len(pairs)
        changed = rows["xor_mask"] | rows["or_mask"] | ~rows["and_mask"]
        assert (changed != 0).all()
        layer = rows["layer"]
        cycles = np.array([placement.cycles(op.index) if op.is_array else 0
                           for op in placement.program.ops])  # fmt: skip
        kinds = np.array([c.kind == "memory" for c in placement.accel.components])
        mine = (layer >= 0) & ~kinds[rows["component"]]
        assert (rows["last"][mine] < cycles[layer[mine]]).all()
        assert (rows["first"][mine] <= rows["last"][mine]).all()
    assert some


@pytest.mark.parametrize(("machine", "name"), cases())
def test_rows_are_a_function_of_seed_trial_and_image(machine, name, placements):
    placement, _ = placements[machine]
    model = of_text(MODELS[name])
    one, again = drawn(placement, model), drawn(placement, of_text(MODELS[name]))
    assert one.tobytes() == again.tobytes()
    others = [drawn(placement, model, t, seed=s).tobytes() for t in range(8) for s in (11, 12)]
    assert len(set(others)) > 8
    if model.unit == "trial":
        return
    for trial in (0, 5):
        every = drawn(placement, model, trial)
        for image in range(IMAGES):
            alone, here = drawn(placement, model, trial, [image]), every[every["image"] == image]
            assert len(alone) == len(here)
            for column in set(FAULT.names) - {"event"}:
                np.testing.assert_array_equal(alone[column], here[column])


@pytest.mark.parametrize(("machine", "name"), cases())
def test_answers_follow_from_the_rows_in_any_batch(machine, name, placements):
    """Rows alone decide: in one batch, image by image, and through the slow backends."""
    placement, codes = placements[machine]
    rows = drawn(placement, of_text(MODELS[name]))
    golden = golden_of(placement, codes)
    found = run_rows(placement, golden, rows)
    one = run_rows(placement, golden, rows, batch=1)
    np.testing.assert_array_equal(found.acc, one.acc)
    table = placement.accel.components
    memory = [table[c].kind == "memory" for c in rows["component"].tolist()]
    if not any(memory):
        tile = run_rows(placement, golden, rows, backend="tile")
        np.testing.assert_array_equal(found.acc, tile.acc)


def golden_of(placement, codes):
    from fsim.simulator.inject import golden_run

    rng = np.random.default_rng(3)
    shape = (len(codes), *placement.program.input.shape)
    images = rng.normal(size=shape).astype(np.float32)
    found = golden_run(placement, images, np.zeros(len(codes), int))
    assert isinstance(found, Golden)
    return found


# --- names and parameters ---


def test_a_family_is_made_again_from_its_json_values():
    import json

    for text in MODELS.values():
        model = of_text(text)
        again = model_of(json.loads(json.dumps(described(model))))
        assert again == model


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("mcu", "needs shapes"),
        ("mcu,shape=2x2", "did you mean 'shapes'"),
        ("mcx,shapes=2x2", "did you mean 'mcu'"),
        ("mcu,shapes", "key=value"),
        ("mcu,shapes=2x2,shapes=1x1", "once"),
        ("mcu,shapes=2y2", "pictures"),
        ("mcu,shapes=11:0.5 1/1:0.4", "sum to 1"),
        ("mcu,shapes=11:0.5 1x2:0.5", "each shape once"),
        ("mcu,shapes=0", "1 to 64 cells"),
        ("mcu,shapes=99x99", "at most 64"),
        ("mcu,shapes=2x2,memories=wights", "memories"),
        ("mbu-patterns,patterns=1/1", "one row"),
        ("mbu-patterns,patterns=11,where=nowhere", "where"),
        ("intermittent-duty,period=10,burst=11", "burst"),
        ("intermittent-duty,period=10,burst=2,active=1.5", "active"),
        ("intermittent-duty,period=10.5,burst=2", "whole number"),
        ("control,kind=transient", "kind"),
        ("link,net=clock", "net"),
        ("sram-voltage,volt=nan,mean=0.5,sigma=0.1", "volt"),
        ("sram-voltage,volt=0.7,mean=0.5,sigma=0", "sigma"),
        ("sram-voltage,volt=0.7,mean=0.5,sigma=0.1,law=guess", "law"),
        ("retention,refresh=0,celsius=85,median=1,sigma=1,energy=0.6", "refresh"),
        ("timing,volt=0.3,threshold=0.3,nominal=0.9,slack=0.1,spread=0.05", "above the threshold"),
    ],
)
def test_what_does_not_fit_is_refused(text, said):
    with pytest.raises((ConfigError, FaultError), match=said):
        of_text(text)


def test_every_parameter_says_what_it_is():
    for told in families_told():
        assert told["about"] and told["parameters"]
        assert all(len(p["about"]) > 5 for p in told["parameters"])
    for name in family_names():
        cls = family_class(name)
        assert dataclasses.is_dataclass(cls) and cls.name == name and cls.unit


@pytest.mark.parametrize("name", ["mcu", "voltage", "retention"])
def test_memories_that_are_not_there_are_refused(name, placements):
    placement, _ = placements["ws"]
    space = select(placement, None, ["ifmap"])
    with pytest.raises(FaultError):
        of_text(MODELS[name]).rows(space, 0, np.arange(2), Draws(0))
