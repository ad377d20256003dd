"""`fsim.attach`: the same bits as the integer program, clean and with faults."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

import fsim
from fsim.fault_models.bit_errors import BitErrors
from fsim.nas.data import load_data
from fsim.nas.zoo import load_model
from fsim.simulator import program as P
from fsim.simulator.draws import Draws
from fsim.simulator.inject import golden_run, run_rows


@pytest.fixture(scope="module")
def case():
    loaded = load_model("digits-cnn")
    images = loaded.preprocessing(load_data("digits", "test", limit=20).images)
    seen = loaded.preprocessing(load_data("digits", "train", limit=100).images)
    return loaded.model, images, seen


def test_clean_logits_are_those_of_the_program_and_the_model_is_untouched(case):
    model, images, seen = case
    before = copy.deepcopy(model.state_dict())
    attached = fsim.attach(model, "systolic", calibration=seen)
    expected = P.run(attached.placement.program, images.numpy()).logits
    np.testing.assert_array_equal(attached(images).numpy(), expected)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert {row["layer"] for row in attached.coverage if row["on_array"]} >= {"conv1", "fc"}


def test_faults_are_those_of_run_rows_and_fresh_in_each_trial(case):
    model, images, seen = case
    errors = BitErrors(1e-3, 1e-3, 1e-3)
    attached = fsim.attach(model, "systolic", calibration=seen, faults=errors)
    first, second = attached(images).numpy(), attached(images).numpy()
    assert (first != second).any()
    attached.trial = 0
    np.testing.assert_array_equal(attached(images).numpy(), first)
    golden = golden_run(attached.placement.program, images.numpy(), np.zeros(len(images)))
    rows = errors.rows(attached._space, 0, np.arange(len(images)), Draws(0))
    expected = run_rows(attached.placement, golden, rows).acc
    multiplier = attached.placement.program.ops[-1].multiplier
    np.testing.assert_array_equal(first, expected.astype(np.float32) * multiplier)


def test_bad_calibration_is_refused(case):
    with pytest.raises(fsim.ConfigError, match="calibration"):
        fsim.attach(case[0], "systolic", calibration=np.zeros((0, 1, 8, 8)))
