"""Fault-tolerant training: the loss, both backends, kills, and runs that do not fit."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from torch import nn

from fsim.accel_models.load import load_accel
from fsim.cli import main
from fsim.errors import ConfigError
from fsim.fault_models.bit_errors import BitErrors
from fsim.fault_models.statistical import model_from_config
from fsim.nas.training.backends import ArrayFaults, NoFaults, TensorFaults
from fsim.nas.training.folder import RunFolder
from fsim.nas.training.loop import Trainer, TrainSettings, augmented
from fsim.nas.training.run import Run
from fsim.nas.training.statistics import Statistics

SETTINGS = TrainSettings(epochs=3, batch=16, lr=0.05, eval_trials=2)


def data(count=48, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    images = rng.normal(size=(count, 1, 6, 6)) + (labels - 1)[:, None, None, None]
    return torch.tensor(images, dtype=torch.float32), torch.from_numpy(labels)


def network(seed=1):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
    )


def array(model, rate=1e-3, **options):
    images, _ = data()
    return ArrayFaults(
        model, load_accel("systolic-8x8"), BitErrors(rate, rate, rate), images.numpy(), **options
    )


def tensor(network, seed=0, **config):
    config = config or {"model": "mibb", "p_m": 1e-2}
    return TensorFaults(network, [model_from_config(config)], seed)


BACKENDS = {"array": array, "mibb": tensor,
            "adsaf": lambda m: tensor(m, model="adsaf", p=0.1)}  # fmt: skip


@pytest.mark.parametrize("name", BACKENDS)
def test_a_trial_is_one_draw_and_clean_passes_have_none(name):
    backend = BACKENDS[name](network())
    images, _ = data()
    for mode in (backend.train, backend.eval):
        mode()
        backend.model[1].eval()  # statistics must not move between passes
        with torch.no_grad():
            clean, one, again, other = (
                backend.clean(images), backend.faulty(images, 5), backend.faulty(images, 5),
                backend.faulty(images, 6),
            )  # fmt: skip
            assert torch.equal(one, again) and torch.equal(clean, backend.clean(images))
        assert not torch.equal(one, clean) and not torch.equal(one, other)


@pytest.mark.parametrize("name", BACKENDS)
def test_gradients_come_through_faults(name):
    backend = BACKENDS[name](network())
    backend.train()
    images, labels = data()
    F.cross_entropy(backend.faulty(images, 3), labels).backward()
    for parameter in backend.model.parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0


def test_the_loss_is_the_weighted_sum_of_both_passes():
    images, labels = data(16)
    for alpha in (0.0, 0.3, 1.0):
        model = network()
        trainer = Trainer(tensor(model), TrainSettings(alpha=alpha, lr=0.0), data(), data())
        trainer.backend.train()
        model[1].eval()
        loss, clean, faulty = trainer.step(images, labels, 4)
        with torch.no_grad():
            want = [
                F.cross_entropy(out, labels).item()
                for out in (trainer.backend.clean(images), trainer.backend.faulty(images, 4))
            ]
        assert loss == pytest.approx((1 - alpha) * want[0] + alpha * want[1], rel=1e-5)
        assert (clean == 0) == (alpha == 1) and (faulty == 0) == (alpha == 0)


def test_statistics_apart_keep_those_of_clean_passes_clean():
    images, labels = data(16)
    means = {}
    for kind in ("shared", "apart"):
        model = network()
        trainer = Trainer(tensor(model), TrainSettings(bn=kind, lr=0.0), data(), data())
        trainer.backend.train()
        trainer.step(images, labels, 4)
        means[kind] = model[1].running_mean.clone()
    alone = network().train()
    tensor(alone).clean(images)
    torch.testing.assert_close(means["apart"], alone[1].running_mean, rtol=0, atol=0)
    assert not torch.equal(means["shared"], means["apart"])


def test_statistics_swap_and_go_into_checkpoints():
    model = network()
    held = Statistics(model, "apart")
    with held.of_faults():
        model[1].running_mean += 3
    assert float(model[1].running_mean.abs().sum()) == 0
    other = Statistics(network(), "apart")
    other.load(held.state())
    assert float(other.state()[0]["running_mean"].sum()) == 12


def test_training_under_faults_learns_and_helps_under_faults():
    accuracy = {}
    for name in ("plain", "tolerant"):
        settings = TrainSettings(
            epochs=12, batch=16, lr=0.1, alpha=0.7 * (name == "tolerant"), eval_trials=10
        )
        backend = tensor(network(), model="adsaf", p=0.3)
        trainer = Trainer(backend, settings, data(200), data(200, 9))
        results = [trainer.epoch(number) for number in range(settings.epochs)]
        accuracy[name] = results[-1]
    assert accuracy["tolerant"].accuracy > 0.9
    assert accuracy["tolerant"].accuracy_faulty > accuracy["plain"].accuracy_faulty


@pytest.mark.parametrize("name", BACKENDS)
def test_a_run_that_was_stopped_ends_as_one_that_was_not(name, tmp_path):
    def run(folder, stop=None, resume=False):
        trainer = Trainer(BACKENDS[name](network()), SETTINGS, data(), data(20, 2))
        made = Run(folder, {"a": 1}, trainer, resume=resume)

        def on_epoch(found):
            if found.epoch == stop:
                raise KeyboardInterrupt

        made.go(on_epoch, lambda epoch, done: None)
        return trainer.backend.model.state_dict(), made.history

    whole, history = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", stop=1)
    again, rest = run(tmp_path / "cut", resume=True)
    assert history == rest
    assert all(torch.equal(value, again[key]) for key, value in whole.items())
    files = {path.name for path in (tmp_path / "cut").iterdir()}
    assert files == {"checkpoint.pt", "weights.safetensors", "history.json", "curve.png"}


def test_a_checkpoint_of_another_configuration_is_refused(tmp_path):
    def run(identity, resume):
        return Run(tmp_path, identity, Trainer(NoFaults(network()), SETTINGS, data(), data()),
                   resume=resume)  # fmt: skip

    with pytest.raises(ConfigError, match="needs the checkpoint"):
        run({}, True)
    run({"faults": {"p": 1}}, False).go(lambda e: None, lambda e, s: None)
    with pytest.raises(ConfigError, match=r"faults.p: 1 there, 2 asked for"):
        run({"faults": {"p": 2}}, True)
    with pytest.raises(ConfigError, match="holds a run already"):
        run({"faults": {"p": 1}}, False)
    (tmp_path / "checkpoint.pt").write_bytes(b"PK\3\4 nothing")
    with pytest.raises(ConfigError, match="must be one of fsim train"):
        run({"faults": {"p": 1}}, True)


def test_augmentation_moves_pixels_and_adds_none():
    images = torch.arange(2 * 16.0).reshape(2, 1, 4, 4) + 1
    settings = TrainSettings(shift=1, flip=True)
    seen = set()
    for seed in range(40):
        out = augmented(images, settings, torch.Generator().manual_seed(seed))
        kept = out[0][out[0] > 0].tolist()
        assert out.shape == images.shape and set(kept) <= set(images[0].flatten().tolist())
        seen.add(tuple(out[0].flatten().tolist()))
    assert len(seen) > 10


def test_wrong_settings_are_refused():
    for wrong in ({"alpha": 1.5}, {"epochs": 0}, {"bn": "both"}, {"lr": float("nan")}):
        with pytest.raises(ConfigError, match="must"):
            TrainSettings(**wrong)
    with pytest.raises(ConfigError, match="at least one fault model, got none"):
        TensorFaults(network(), [])


def test_a_loss_that_is_not_finite_stops_the_run():
    model = network()
    with torch.no_grad():
        model[4].weight.fill_(float("nan"))
    with pytest.raises(ConfigError, match="finite loss"):
        Trainer(NoFaults(model), SETTINGS, data(), data()).epoch(0)


# --- the command


def fsim(*arguments):
    return CliRunner().invoke(main, ["train", *map(str, arguments)])


def test_train_writes_what_inject_takes(tmp_path):
    out = tmp_path / "run"
    done = fsim("--epochs", 1, "--images", 128, "--test-images", 32, "--ber", "1e-4", "--out", out,
                "--json")  # fmt: skip
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert len(report["epochs"]) == 1 and report["identity"]["faults"]["backend"] == "numba"
    weights = out / "weights.safetensors"
    found = CliRunner().invoke(
        main, ["inject", "--weights", str(weights), "--images", "8", "--trials", "1", "--no-curve"]
    )
    assert found.exit_code == 0, found.output


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--fault-backend", "torch", "--ber", "1e-5"), "--ber needs --fault-backend numba"),
        (("--mibb", "0.1"), "--mibb needs --fault-backend torch"),
        (("--fault-backend", "torch"), "needs --mibb, --adsaf or --faults"),
        (("--model", "resnet99"), "model must be one of"),
        (("--width", "0.5"), "--width belongs to"),
        (("--model", "resnet20", "--data", "digits"), "for images of 1 channels"),
        (("--resume",), "--resume needs the checkpoint"),
        (("--ber", "2"), "probability"),
    ],
)
def test_bad_input_is_one_line(tmp_path, arguments, says):
    done = fsim("--out", tmp_path / "run", "--epochs", 1, *arguments)
    assert done.exit_code == 2 and says in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_one_run_a_folder_and_what_a_stopped_one_keeps(tmp_path):
    folder = RunFolder(tmp_path / "run", {"a": 1}, "fsim train")
    with pytest.raises(ConfigError, match="another run must not write into"):
        RunFolder(tmp_path / "run", {"a": 1}, "fsim train")
    folder.release()
    again = RunFolder(tmp_path / "run", {"a": 1}, "fsim train")
    assert again.hint(0).startswith("nothing of it is kept in")
    assert again.hint(2).endswith("go on with --resume") and "2 epochs" in again.hint(2)
    again.release()
