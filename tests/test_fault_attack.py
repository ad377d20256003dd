"""The progressive bit search: gradients, ranking, what it keeps, and its fault list."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner

from fsim.accel_models.load import load_accel
from fsim.cli import main
from fsim.errors import ConfigError
from fsim.nas.zoo import load_model
from fsim.session import open_session
from fsim.simulator import program as P
from fsim.simulator.attack import (
    cross_entropy,
    flip_of,
    progressive_search,
    random_flips,
    ranked,
)
from fsim.simulator.gradients import weight_gradients
from fsim.simulator.sites import check_rows


@pytest.fixture(scope="module")
def session():
    return open_session("digits-cnn", load_accel("systolic"), images=150)


@pytest.fixture(scope="module")
def found(session):
    return progressive_search(
        session.placement, session.images, session.labels, flips=5, batch=64, tried=2
    )


def codes_with(program, steps):
    """The program's weights with the bits of some steps flipped, bit by bit."""
    weights = {}
    for step in steps:
        op = program.op(step.layer)
        codes = weights.setdefault(op.index, op.weight.copy())
        value = int(codes.reshape(-1)[step.word]) & 255
        value ^= 1 << step.bit
        codes.reshape(-1)[step.word] = value - 256 if value > 127 else value
    return P.with_weights(program, weights)


def test_gradients_are_those_of_the_float_network(session):
    """By torch on the network itself: the same but for what rounding does to activations."""
    net = load_model("digits-cnn").model.eval()
    images, labels = session.images[:64], session.labels[:64]
    loss, gradients = weight_gradients(session.program, images, labels)
    logits = net(torch.from_numpy(images))
    F.cross_entropy(logits, torch.from_numpy(np.asarray(labels, np.int64))).backward()
    modules = dict(net.named_modules())
    for op in session.program.array_ops:
        real = modules[op.name].weight.grad.numpy().reshape(op.weight.shape[0], -1)
        ours = gradients[op.index].reshape(op.weight.shape[0], -1)
        # A normalisation folded into a weight has its scale, channel by channel: compare each.
        for a, b in zip(real, ours):
            if np.abs(a).max() > 1e-4:
                assert np.corrcoef(a, b)[0, 1] > 0.9, op.name
    machine = P.run(session.program, images).logits
    want = F.cross_entropy(torch.from_numpy(machine), torch.from_numpy(labels.astype(np.int64)))
    assert loss == pytest.approx(float(want), rel=2e-3)
    assert cross_entropy(machine, labels) == pytest.approx(float(want), rel=1e-5)


def test_gradients_tell_what_a_code_step_does(session):
    """Of the last layer, behind which nothing is rounded: against a difference quotient."""
    images, labels = session.images[:64], session.labels[:64]
    op = session.program.ops[-1]
    _, gradients = weight_gradients(session.program, images, labels)
    largest = np.argsort(-np.abs(gradients[op.index]).reshape(-1))[:12]
    for word in largest.tolist():
        sides, values = [], []
        for step in (1, -1):
            codes = op.weight.copy()
            codes.reshape(-1)[word] = np.clip(codes.reshape(-1)[word] + step, -128, 127)
            values.append(int(codes.reshape(-1)[word]))
            logits = P.run(P.with_weights(session.program, {op.index: codes}), images).logits
            sides.append(cross_entropy(logits, labels))
        slope = (sides[0] - sides[1]) / (values[0] - values[1])
        assert gradients[op.index].reshape(-1)[word] == pytest.approx(slope, rel=0.05)


def test_bits_are_ranked_by_the_first_order_change_of_the_loss():
    rng = np.random.default_rng(5)
    gradient, codes = rng.normal(size=(4, 6)), rng.integers(-128, 128, (4, 6))
    gains = {}
    for word, (g, code) in enumerate(zip(gradient.reshape(-1), codes.reshape(-1).tolist())):
        for bit in range(8):
            flipped = (code & 255) ^ (1 << bit)
            flipped -= 256 if flipped > 127 else 0
            gains[word, bit] = g * (flipped - code)
    order = [key for key in sorted(gains, key=gains.get, reverse=True) if gains[key] > 0]
    for count in (1, 7, 1000):
        word, bit, gain = ranked(gradient, codes, 8, count)
        assert list(zip(word.tolist(), bit.tolist())) == order[:count]
        np.testing.assert_allclose(gain, [gains[key] for key in order[:count]])


def test_every_step_is_what_the_network_with_those_weights_answers(session, found):
    assert len(found.steps) == len(found.rows) == 5
    check_rows(session.placement, found.rows, len(session.images))
    for count in range(1, 6):
        program = codes_with(session.program, found.steps[:count])
        logits = P.run(program, session.images).logits
        step = found.steps[count - 1]
        assert step.accuracy == np.mean(logits.argmax(1) == session.labels)
        loss = F.cross_entropy(
            torch.from_numpy(logits[:64]), torch.from_numpy(session.labels[:64].astype(np.int64))
        )
        assert step.loss == pytest.approx(float(loss), rel=1e-4)


def test_each_flip_is_the_worst_of_those_tried(session, found):
    """The first step against every candidate of every layer, run by hand."""
    images, labels = session.images[:64], session.labels[:64]
    _, gradients = weight_gradients(session.program, images, labels)
    losses = {}
    for op in session.program.array_ops:
        word, bit, _ = ranked(gradients[op.index], op.weight, 8, 2)
        for w, b in zip(word.tolist(), bit.tolist()):
            codes = op.weight.copy()
            row = flip_of(session.placement, op.index, w, b)[0]
            codes.reshape(-1)[w] ^= row["xor_mask"]
            logits = P.run(P.with_weights(session.program, {op.index: codes}), images).logits
            losses[op.name, w, b] = cross_entropy(logits, labels)
    step = found.steps[0]
    assert max(losses, key=losses.get) == (step.layer, step.word, step.bit)


def test_an_attack_does_more_harm_than_chance(session, found):
    random = random_flips(
        session.placement, session.images, session.labels, flips=5, repeats=4, seed=3
    )
    assert found.clean > 0.95 and found.steps[-1].accuracy < 0.3
    assert random.shape == (4, 5) and random.mean() > 0.9
    again = random_flips(
        session.placement, session.images, session.labels, flips=5, repeats=4, seed=3
    )
    np.testing.assert_array_equal(random, again)


def test_layers_restrict_the_attacker(session):
    found = progressive_search(
        session.placement, session.images[:40], session.labels[:40], flips=2, layers=["conv3"]
    )
    assert {step.layer for step in found.steps} == {"conv3"}
    for bad in (["add"], []):
        with pytest.raises(ConfigError, match="layers with weights"):
            progressive_search(session.placement, session.images, session.labels, flips=1,
                               layers=bad)  # fmt: skip


@pytest.mark.parametrize("options", [{"flips": 0}, {"flips": 1, "batch": 0}])
def test_what_cannot_be_is_refused(session, options):
    with pytest.raises(ConfigError, match="at least 1"):
        progressive_search(session.placement, session.images, session.labels, **options)


def test_the_fault_list_replays(tmp_path):
    run = CliRunner().invoke
    out, trace = tmp_path / "attack.csv", tmp_path / "attack.h5"
    result = run(main, ["attack", "--flips", "3", "--images", "60", "--random", "1", "--json",
                        "--out", str(out)])  # fmt: skip
    assert result.exit_code == 0, result.output
    report = json.loads(result.output)
    result = run(main, ["campaign", "--faults", str(out), "--images", "60", "--out", str(trace),
                        "--json"])  # fmt: skip
    assert result.exit_code == 0, result.output
    from fsim.campaign.results import read_results

    table = read_results(trace).trace.outcomes.reshape(3, 60)
    by_trial = np.mean(table["faulty"] == table["label"], axis=1)
    np.testing.assert_allclose(by_trial, [step["accuracy"] for step in report["steps"]])
    result = run(main, ["replay", str(trace), "--json"])
    assert result.exit_code == 0 and json.loads(result.output)["differences"] == 0
    bad = run(main, ["attack", "--out", str(tmp_path / "x.txt")])
    assert bad.exit_code == 2
