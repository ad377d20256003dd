"""`--device`: what runs where, what is refused, and what a device must not change."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch.overrides import TorchFunctionMode

from fsim.cli import main
from fsim.errors import ConfigError
from fsim.fault_models.statistical import model_from_config
from fsim.nas.device import device_named, kept_random_state
from fsim.nas.search.controller import Controller
from fsim.nas.search.evaluation import evaluate_maps
from fsim.nas.search.paths import TensorPaths
from fsim.nas.search.run import SearchRun
from fsim.nas.search.search import Search, SearchSettings
from fsim.nas.search.supernet_training import batch_statistics, score, weight_step
from fsim.nas.space.definition import ADSAF_PRIMITIVES, CellSpace
from fsim.nas.space.supernet import Supernet
from fsim.nas.training.backends import TensorFaults
from fsim.nas.training.loop import Trainer, TrainSettings, augmented
from fsim.nas.training.run import Run

DEVICES = ["cpu"] + ["cuda"] * torch.cuda.is_available()
SPACE = CellSpace(ADSAF_PRIMITIVES, "relu_conv_bn_1x1", "NR", 1, 2, 2)
MODELS = [model_from_config(config) for config in (
    {"model": "mibb", "p_m": 1e-2}, {"model": "adsaf", "p": 0.1})]  # fmt: skip


def data(device, count=40):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, count)
    images = rng.normal(size=(count, 1, 6, 6)) + (labels - 1)[:, None, None, None]
    return torch.tensor(images, dtype=torch.float32).to(device), torch.from_numpy(labels).to(device)


def supernet():
    torch.manual_seed(0)
    return batch_statistics(Supernet(SPACE, num_classes=3, in_channels=1))


def trainer(device, epochs=2, bn="apart"):
    torch.manual_seed(1)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3, bias=False), torch.nn.BatchNorm2d(4), torch.nn.ReLU(),
        torch.nn.Flatten(), torch.nn.Dropout(0.2), torch.nn.Linear(64, 3),
    ).to(device)  # fmt: skip
    settings = TrainSettings(epochs=epochs, batch=16, bn=bn, shift=1, flip=True, eval_trials=2)
    return Trainer(TensorFaults(network, MODELS), settings, data(device), data(device))


def search(device, epochs=2):
    settings = SearchSettings(epochs=epochs, batch=16, proposals=3, shift=1, flip=True)
    backend = TensorPaths(supernet().to(device), MODELS)
    return Search(backend, Controller(SPACE, 0), settings, data(device))


MAKERS = {torch.zeros, torch.ones, torch.empty, torch.full, torch.arange, torch.eye, torch.rand,
          torch.randn, torch.randint, torch.tensor, torch.as_tensor, torch.linspace}  # fmt: skip


class NamedDevices(TorchFunctionMode):
    """Refuses a new tensor whose device is not named: it would be on the CPU."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        assert func not in MAKERS or kwargs.get("device") is not None, func
        return func(*args, **kwargs)


def test_no_tensor_of_a_training_step_is_on_the_cpu_by_default():
    made = trainer("cpu")
    images, labels = made.test
    with NamedDevices():
        moved = augmented(images, made.settings, torch.Generator())
        made.step(moved, labels, 3)
        made.evaluate()


def test_no_tensor_of_a_search_step_is_on_the_cpu_by_default():
    made, given = search("cpu"), data("cpu")
    genotype = made.searcher.propose()
    with NamedDevices():
        weight_step(made.backend, made.optimiser, genotype, *given, alpha=0.5, clip=5.0, trial=0)
        score(made.backend, genotype, *given, alpha=0.5, trial=0)
    with pytest.raises(AssertionError), NamedDevices():
        torch.zeros(())


@pytest.mark.parametrize("device", DEVICES)
def test_training_stays_on_its_device_and_goes_on_from_a_checkpoint(device, tmp_path):
    made = trainer(device)
    Run(tmp_path, {}, made).go(lambda found: None, lambda epoch, done: None)
    again = trainer(device)
    Run(tmp_path, {}, again, resume=True)
    saved = torch.load(tmp_path / "checkpoint.pt", map_location="cpu")
    for name, value in again.backend.model.state_dict().items():
        assert value.device.type == device and torch.equal(value.cpu(), saved["model"][name])
    for held, kept in zip(again.statistics.state(), saved["statistics"]):
        assert all(held[n].device.type == device and torch.equal(held[n].cpu(), kept[n])
                   for n in held)  # fmt: skip
    for state in again.optimiser.state.values():
        assert state["momentum_buffer"].device.type == device


@pytest.mark.parametrize("device", DEVICES)
def test_a_search_stays_on_its_device_and_goes_on_from_a_checkpoint(device, tmp_path):
    made = search(device)
    SearchRun(tmp_path, {}, made).go(lambda found: None, lambda epoch, done: None)
    assert len(made.derive(3)) <= 3
    again = search(device)
    run = SearchRun(tmp_path, {}, again, resume=True)
    assert len(run.history) == 2
    for name, value in again.backend.supernet.state_dict().items():
        want = made.backend.supernet.state_dict()[name]
        assert value.device.type == device and torch.equal(value, want)


@pytest.mark.parametrize("device", DEVICES)
def test_accuracy_under_faults_is_measured_on_the_device(device):
    made = trainer(device)
    found = evaluate_maps(made.backend, data(device), 3)
    assert found.faulty.shape == (3,) and 0 <= found.clean <= 1


@pytest.mark.parametrize("device", DEVICES)
def test_batches_do_not_depend_on_the_device(device):
    settings = TrainSettings(shift=2, flip=True)
    found = [
        augmented(data(where)[0], settings, torch.Generator().manual_seed(3)).cpu()
        for where in ("cpu", device)
    ]
    assert torch.equal(*found)


@pytest.mark.parametrize("device", DEVICES)
def test_a_pass_in_between_does_not_move_random_numbers(device):
    device = torch.device(device)
    drawn = []
    for between in (False, True):
        torch.manual_seed(0)
        if between:
            with kept_random_state(device):
                torch.rand(3, device=device)
                torch.rand(3)
        drawn.append((torch.rand(3).tolist(), torch.rand(3, device=device).tolist()))
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize("name", ["cude", "", "meta", "cuda:99", "cpu:x"])
def test_a_device_that_cannot_compute_is_refused(name):
    with pytest.raises(ConfigError, match=f"the device must be cpu, cuda .* got '{name}'"):
        device_named(name)


# --- the commands


SMALL = {
    "train": ("train",),
    "nas search": ("nas", "search"),
    "nas derive": ("nas", "derive"),
    "nas train": ("nas", "train", "w-ftt-net"),
    "nas evaluate": ("nas", "evaluate", "w-ftt-net", "--weights", "w.pt"),
}


def fsim(*arguments):
    return CliRunner().invoke(main, list(map(str, arguments)))


@pytest.mark.parametrize("command", [name for name in SMALL if name != "nas derive"])
@pytest.mark.parametrize(
    ("device", "backend", "says"),
    [
        ("cude", ("torch", "--mibb", "0.1"), "torch knows no such device"),
        ("meta", ("torch", "--mibb", "0.1"), "on which torch can compute"),
        ("cuda", ("numba",), "--device must be cpu with --fault-backend numba"),
        pytest.param(
            "cuda", ("torch", "--mibb", "0.1"), "on which torch can compute",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is one"),
        ),
    ],
)  # fmt: skip
def test_bad_devices_are_one_line(command, device, backend, says):
    done = fsim(*SMALL[command], "--device", device, "--fault-backend", *backend)
    assert done.exit_code == 2 and says in done.stderr and done.stderr.count("\n") == 1, done.output


def test_help_says_what_a_seed_fixes_on_every_device():
    for command in SMALL.values():
        text = " ".join(fsim(*command[:2], "--help").stdout.split())
        assert "--device NAME" in text and "A checkpoint goes on on any device" in text


TINY = ("--images", 64, "--epochs", 1, "--fault-backend", "none")


def test_a_run_may_go_on_elsewhere(tmp_path):
    """cpu and cpu:0 are one device by two names: what is compared must not hold the name."""
    out = ("--out", tmp_path / "net")
    first = fsim("train", *TINY, "--test-images", 32, *out)
    again = fsim("train", *TINY, "--test-images", 32, *out, "--resume", "--device", "cpu:0")
    assert first.exit_code == again.exit_code == 0, again.output
    cells = ("--layout", "N", "--steps", 1, "--channels", 2, "--out", tmp_path / "search")
    first = fsim("nas", "search", *TINY, *cells)
    again = fsim("nas", "search", *TINY, *cells, "--resume", "--device", "cpu:0")
    assert first.exit_code == again.exit_code == 0, again.output
    done = fsim("nas", "derive", "--search", tmp_path / "search", "--device", "cude")
    assert done.exit_code == 2 and "torch knows no such device" in done.stderr
    assert fsim("nas", "derive", "--search", tmp_path / "search").exit_code == 0
