"""Campaigns of named fault models: events, chips, numbered sites; from the command line too."""

from __future__ import annotations

import json
import shlex

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from fsim.accel_models.load import load_accel
from fsim.campaign.api import run_campaign
from fsim.campaign.campaign import design_for
from fsim.campaign.cite import cite, command_of
from fsim.campaign.results import read_results
from fsim.cli import main
from fsim.errors import ConfigError
from fsim.fault_models.families import make_family, parse_family
from fsim.fault_models.voltage import LowVoltage
from fsim.session import open_session
from fsim.simulator.campaign.events import Events
from fsim.simulator.draws import Draws
from fsim.simulator.sites import select
from tests.rates import assert_uniform, seed_for

MCU = "mcu,shapes=11:0.5 2x2:0.5"
VOLTAGE = "sram-voltage,volt=0.62,mean=0.5,sigma=0.05"


def fsim(*words):
    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.fixture(scope="module")
def space():
    return select(open_session("digits-cnn", load_accel("systolic"), images=20).placement)


def model(text):
    return make_family(*parse_family(text))


def test_a_trial_of_events_is_one_draw_in_one_random_image(space):
    population = Events(space, model(MCU), 20, seed=seed_for("events") >> 1)
    drawn = population.draw(np.arange(400))
    np.testing.assert_array_equal(drawn.begin[1:] - drawn.begin[:-1],
                                  np.bincount(drawn.rows["trial"], minlength=400))  # fmt: skip
    np.testing.assert_array_equal(drawn.image[drawn.rows["trial"], 0], drawn.rows["image"])
    assert_uniform(np.bincount(drawn.image[:, 0] // 5, minlength=4), mutant=[1, 3, 1, 3])
    for trial in (0, 7, 399):
        alone = population.draw(np.array([trial]))
        mine = slice(*drawn.begin[trial : trial + 2])
        assert alone.rows.tobytes() == drawn.rows[mine].tobytes()
        direct = model(MCU).rows(space, trial, drawn.image[trial], Draws(population.seed))
        assert direct.tobytes() == alone.rows.tobytes()


def test_designs_follow_from_what_a_model_is():
    for text, design in ((MCU, "events"), (VOLTAGE, "chips"), ("link,kind=stuck1", "chips"),
                         ("link", "events"), ("control", "single")):  # fmt: skip
        assert design_for(model(text)) == design


@pytest.mark.parametrize(
    ("words", "design"),
    [
        (["--fault", MCU, "--trials", 30], "events"),
        (["--fault", "intermittent-duty,period=200,burst=30", "--failures", 2, "--max-trials", 60],
         "events"),
        (["--fault", VOLTAGE, "--chips", 4], "chips"),
        (["--fault", "link,kind=stuck0", "--chips", 3], "chips"),
        (["--fault", "control", "--accel", "gemmini-like-4x4", "--layers", "fc", "--trials", 6,
          "--stratify", "component", "--pilot", 2], "single"),
    ],
)  # fmt: skip
def test_campaigns_are_written_replayed_and_told(words, design, tmp_path):
    out = tmp_path / "c.h5"
    result = fsim("campaign", *words, "--images", 12, "--out", out, "--json")
    assert result.exit_code == 0, result.output
    found = read_results(out)
    assert found.kind == design == json.loads(result.output)["design"]
    assert found.task["faults"]["kind"] == words[1].partition(",")[0]
    replayed = fsim("replay", out, "--json")
    assert replayed.exit_code == 0 and json.loads(replayed.output)["differences"] == 0
    assert words[1].partition(",")[0] in cite(found)
    # The command that the paragraph gives makes the same campaign again.
    again = tmp_path / "again.h5"
    command = shlex.split(command_of(found.task))[1:]
    assert fsim(*command, "--out", again).exit_code == 0
    one, other = (read_results(path).trace for path in (out, again))
    np.testing.assert_array_equal(one.faults, other.faults)
    np.testing.assert_array_equal(one.outcomes, other.outcomes)


def test_processes_and_a_resumed_run_draw_the_same_events(tmp_path):
    common = ["campaign", "--fault", MCU, "--trials", 40, "--images", 10, "--shard-size", 10]
    for name, more in (("one", []), ("two", ["--engine", "loky", "--workers", 2])):
        result = fsim(*common, *more, "--out", tmp_path / f"{name}.h5")
        assert result.exit_code == 0, result.output
    one, two = (read_results(tmp_path / f"{name}.h5").trace for name in ("one", "two"))
    np.testing.assert_array_equal(one.faults, two.faults)
    np.testing.assert_array_equal(one.outcomes, two.outcomes)


def test_inject_draws_the_rows_of_the_model(tmp_path, space):
    trace = tmp_path / "i.h5"
    result = fsim("inject", "--fault", MCU, "--trials", 2, "--images", 20, "--seed", 9, "--trace",
                  trace, "--json")  # fmt: skip
    assert result.exit_code == 0, result.output
    from fsim.simulator.trace import read_trace

    stored = read_trace(trace)
    for trial in range(2):
        rows = model(MCU).rows(space, trial, np.arange(20), Draws(9))
        np.testing.assert_array_equal(stored.faults_of(trial), rows)
    assert json.loads(fsim("replay", trace, "--json").output)["differences"] == 0


def test_from_python(tmp_path):
    torch.manual_seed(1)
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(),
                              torch.nn.Linear(144, 3)).eval()  # fmt: skip
    images = np.random.default_rng(2).normal(size=(9, 1, 8, 8)).astype(np.float32)
    labels = np.arange(9) % 3
    events = run_campaign(net, images, labels, tmp_path / "e.h5", fault=MCU, trials=25)
    assert events.kind == "events" and len(events.trials) == 25
    chips = run_campaign(net, images, labels, tmp_path / "c.h5",
                         fault=LowVoltage(0.6, 0.5, 0.05), trials=4)  # fmt: skip
    assert chips.kind == "chips" and chips.outcome.shape == (4, 9)
    for options, said in (
        ({"fault": MCU, "stratify": ("layer",)}, "sites are numbered"),
        ({"fault": VOLTAGE}, "their number"),
        ({"fault": "magic"}, "fault must be"),
    ):
        with pytest.raises(ConfigError, match=said):
            run_campaign(net, images, labels, tmp_path / "x.h5", **options)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--fault", VOLTAGE], "--chips"),
        (["--fault", VOLTAGE, "--chips", 3, "--stuck-cells", 0.1], "one of"),
        (["--fault", MCU, "--chips", 3], "one kind"),
        (["--fault", MCU, "--stratify", "layer"], "--stratify does not go with"),
        (["--fault", MCU, "--exhaustive"], "--exhaustive does not go with"),
        (["--fault", "mcu"], "needs shapes"),
        (["--fault", "control"], "has none"),
    ],
)
def test_options_that_do_not_fit_are_refused(words, said, tmp_path):
    result = fsim("campaign", *words, "--images", 4, "--out", tmp_path / "x.h5")
    assert result.exit_code == 2 and said in result.output
    assert len(result.output.strip().splitlines()) == 1 and not list(tmp_path.iterdir())


def test_a_control_fault_is_a_single_fault_of_a_control_register():
    placement = open_session("digits-cnn", load_accel("gemmini-like-4x4"), images=4).placement
    space = select(placement)
    found = model("control").cells(space)
    roles = {placement.accel.components[cell.component].role for cell in found}
    assert roles == {"control"} and {cell.component_name for cell in found} == {"valid", "prop"}
    stuck = model("control,kind=stuck1")
    assert stuck.permanent and {cell.layer for cell in stuck.cells(space)} == {-1}
