"""A search in its supernet: formulas, passes, threads, kills, the commands."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from fsim.accel_models.load import load_accel
from fsim.cli import main
from fsim.errors import ConfigError
from fsim.fault_models.bit_errors import BitErrors
from fsim.fault_models.statistical import model_from_config
from fsim.nas.search.controller import Controller
from fsim.nas.search.evaluation import Robustness
from fsim.nas.search.paths import ArrayPaths, NoPathFaults, TensorPaths
from fsim.nas.search.products import Products
from fsim.nas.search.run import SearchRun
from fsim.nas.search.search import Search, SearchSettings
from fsim.nas.search.supernet_training import (
    batch_statistics,
    one_torch_thread,
    score,
    weight_step,
)
from fsim.nas.space.definition import ADSAF_PRIMITIVES, CellSpace
from fsim.nas.space.files import read_architecture
from fsim.nas.space.genotype import Edge, Genotype, random_genotype
from fsim.nas.space.supernet import Supernet
from tests.test_layout import ROOT

SPACE = CellSpace(ADSAF_PRIMITIVES, "relu_conv_bn_1x1", "NR", 1, 2, 2)
SETTINGS = SearchSettings(epochs=2, batch=16, alpha_l=0.5, alpha_r=0.5, proposals=3)


@pytest.fixture(autouse=True)
def _one_thread():
    with one_torch_thread():
        yield


def data(count=48):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, count)
    images = rng.normal(size=(count, 1, 6, 6)) + (labels - 1)[:, None, None, None]
    return torch.tensor(images, dtype=torch.float32), torch.from_numpy(labels)


def supernet(dropout=0.1):
    torch.manual_seed(0)
    return batch_statistics(Supernet(SPACE, num_classes=3, in_channels=1, dropout=dropout))


def array(rate=1e-3, **options):
    model = BitErrors(rate, rate, rate)
    return ArrayPaths(Products(supernet(**options), load_accel("systolic-8x8"), data()[0], model))


def tensor(**options):
    return TensorPaths(supernet(**options), [model_from_config({"model": "mibb", "p_m": 1e-2})])


BACKENDS = {"array": array, "tensor": tensor}
GENOTYPE = random_genotype(SPACE, np.random.default_rng(4))


class Stub:
    """A backend whose logits are known, and which counts its passes."""

    def __init__(self):
        self.supernet = torch.nn.Linear(1, 3)
        self.calls = []

    def clean(self, images, genotype):
        self.calls.append("clean")
        return torch.eye(3)[[0, 1, 2, 2]] + 0 * self.supernet.weight.sum()

    def faulty(self, images, genotype, trial):
        self.calls.append(trial)
        return torch.eye(3)[[1, 1, 1, 1]] + 0 * self.supernet.weight.sum()


LABELS = torch.tensor([0, 1, 2, 0])


@pytest.mark.parametrize(("alpha", "calls"), [(0.0, ["clean"]), (0.3, ["clean", 7]), (1.0, [7])])
def test_loss_and_reward_by_hand_in_as_many_passes_as_needed(alpha, calls):
    stub = Stub()
    # acc(clean) 3/4, acc(faulty) 1/4
    got = score(stub, GENOTYPE, None, LABELS, alpha=alpha, trial=7)
    assert got.reward == pytest.approx((1 - alpha) * 0.75 + alpha * 0.25) and stub.calls == calls
    stub.calls.clear()
    right, wrong = -np.log(np.e / (np.e + 2)), -np.log(1 / (np.e + 2))
    clean, faulty = (3 * right + wrong) / 4, (right + 3 * wrong) / 4
    optimiser = torch.optim.SGD(stub.supernet.parameters(), 0.1)
    loss = weight_step(
        stub, optimiser, GENOTYPE, torch.zeros(4), LABELS, alpha=alpha, clip=5.0, trial=7
    )
    assert loss == pytest.approx((1 - alpha) * clean + alpha * faulty, rel=1e-5)
    assert stub.calls == calls


def test_objectives_want_both_passes():
    stub = Stub()
    score(stub, GENOTYPE, None, LABELS, alpha=0.0, trial=7, both=True)
    assert stub.calls == ["clean", 7]


def test_the_names_of_the_papers_searches():
    for left, right, name in ((0, 0, "plain NAS"), (0, 0.2, "FT-NAS"), (0.7, 0.2, "FTT-NAS")):
        assert SearchSettings(alpha_l=left, alpha_r=right).kind == name


@pytest.mark.parametrize("name", BACKENDS)
def test_a_trial_is_one_draw_and_clean_passes_have_none(name):
    backend = BACKENDS[name]()
    backend.supernet.eval()
    images, _ = data()
    with torch.no_grad():
        clean, one, again, other = (
            backend.clean(images, GENOTYPE), backend.faulty(images, GENOTYPE, 5),
            backend.faulty(images, GENOTYPE, 5), backend.faulty(images, GENOTYPE, 6),
        )  # fmt: skip
    assert torch.equal(one, again)
    assert not torch.equal(one, clean) and not torch.equal(one, other)


@pytest.mark.parametrize("name", BACKENDS)
def test_steps_move_the_path_and_nothing_else_and_rewards_nothing(name):
    backend = BACKENDS[name]()
    before = {key: value.clone() for key, value in backend.supernet.state_dict().items()}
    images, labels = data()
    score(backend, GENOTYPE, images, labels, alpha=0.5, trial=0)
    for key, value in backend.supernet.state_dict().items():
        assert torch.equal(value, before[key])
    optimiser = torch.optim.SGD(backend.supernet.parameters(), 0.1, 0.9, weight_decay=0.1)
    weight_step(backend, optimiser, GENOTYPE, images, labels, alpha=0.5, clip=5.0, trial=1)
    on_path = {id(p) for p in backend.supernet.path(GENOTYPE).parameters()}
    for key, value in backend.supernet.named_parameters():
        if id(value) not in on_path:
            assert torch.equal(value, before[key]), key
    assert not torch.equal(backend.supernet.stem.conv.weight, before["stem.conv.weight"])


def test_any_path_runs_on_the_array_whatever_its_weights():
    """Whether activations are signed follows from how they are made, not from examples."""
    backend = array(1e-5)
    rng = np.random.default_rng(1)
    images, labels = data()
    optimiser = torch.optim.SGD(backend.supernet.parameters(), 0.5, 0.9)
    for trial in range(15):
        genotype = random_genotype(SPACE, rng)
        weight_step(backend, optimiser, genotype, images, labels, alpha=0.5, clip=5.0, trial=trial)
    zeros = Genotype(*[((Edge("none", 0),) * 2,)] * 2)
    with torch.no_grad():
        assert torch.isfinite(backend.faulty(images, zeros, 3)).all()


def test_products_of_a_shape_are_placed_once_and_cycles_add_up():
    products = array().products
    first = products.of(GENOTYPE)
    assert products.of(GENOTYPE) is first
    placed = {id(site.placement) for site in first.session.sites}
    assert len(placed) < len(first.session.sites)
    sites = first.session.sites
    assert first.cycles == sum(site.placement.cycles(1) for site in sites) > 0
    relu_fed = [site for site in sites if "edges" in site.name and "pointwise" not in site.name]
    assert all(not site.input.signed for site in relu_fed if "conv_1x1" not in site.name)
    assert sites[0].name == "stem.conv" and sites[0].input.signed


def search(name="tensor", **changes):
    from dataclasses import replace

    backend = BACKENDS[name]()
    return Search(backend, Controller(SPACE, 0), replace(SETTINGS, **changes), data())


def outcome(made):
    """Everything that a search changes."""
    state = made.backend.supernet.state_dict()
    told = made.searcher.told
    return told, torch.cat([value.flatten() for value in state.values()])


@pytest.mark.parametrize("name", BACKENDS)
def test_the_same_for_one_and_two_threads(name):
    import numba

    before = numba.get_num_threads(), torch.get_num_threads()
    found = []
    try:
        for threads in (1, min(2, numba.config.NUMBA_NUM_THREADS)):
            numba.set_num_threads(threads)
            torch.set_num_threads(2 if threads > 1 else 1)
            made = search(name)
            for number in range(2):
                made.epoch(number)
            found.append((*outcome(made), made.derive(4)))
    finally:
        numba.set_num_threads(before[0])
        torch.set_num_threads(before[1])
    (told, state, derived), (other_told, other, other_derived) = found
    assert told == other_told and torch.equal(state, other) and derived == other_derived


def test_numba_that_starts_its_threads_leaves_torch_on_one():
    code = (
        "import torch; torch.set_num_threads(2)\n"
        "from fsim.nas.search.supernet_training import one_torch_thread\n"
        "with one_torch_thread():\n"
        "    import numba; numba.get_num_threads(); print(torch.get_num_threads())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "1\n", done.stderr


@pytest.mark.parametrize("name", BACKENDS)
def test_a_search_that_was_stopped_ends_as_one_that_was_not(name, tmp_path):
    def run(folder, stop=None, resume=False):
        made = SearchRun(folder, {"a": 1}, search(name, epochs=3), resume=resume)

        def on_epoch(found):
            if found.epoch == stop:
                raise KeyboardInterrupt

        made.go(on_epoch, lambda epoch, done: None)
        return outcome(made.search), made.history

    (told, state), history = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", stop=0)
    (again, rest), later = run(tmp_path / "cut", resume=True)
    assert told == again and torch.equal(state, rest) and history == later


def test_a_checkpoint_of_another_configuration_is_refused(tmp_path):
    run = SearchRun(tmp_path, {"faults": {"p": 1}}, search(epochs=1))
    run.go(lambda e: None, lambda e, s: None)
    with pytest.raises(ConfigError, match=r"faults.p: 1 there, 2 asked for"):
        SearchRun(tmp_path, {"faults": {"p": 2}}, search(epochs=1), resume=True)
    with pytest.raises(ConfigError, match="holds a run already"):
        SearchRun(tmp_path, {"faults": {"p": 1}}, search(epochs=1))


def test_both_shares_are_disjoint_and_warmup_tells_nothing():
    made = Search(NoPathFaults(supernet()), Controller(SPACE, 0),
                  SearchSettings(epochs=2, batch=16, warmup=1), data(50))  # fmt: skip
    assert len(made.weights[0]) == 40 and len(made.rewards[0]) == 10
    both = torch.cat([made.weights[0], made.rewards[0]]).flatten(1)
    assert len(torch.unique(both, dim=0)) == 50
    assert made.epoch(0).reward is None and not made.searcher.told
    with pytest.raises(ConfigError, match="finite loss"):
        with torch.no_grad():
            made.backend.supernet.stem.conv.weight.fill_(float("nan"))
        made.epoch(1)


def test_robustness_by_hand():
    found = Robustness(0.9, np.array([0.8, 0.6, 0.7])).summary()
    assert found == pytest.approx({"clean": 0.9, "mean": 0.7, "std": 0.1, "p5": 0.61, "worst": 0.6})


# --- the commands


def nas(*arguments):
    return CliRunner().invoke(main, ["nas", *map(str, arguments)])


SMALL = ("--images", 128, "--layout", "NR", "--steps", 1, "--channels", 2, "--epochs", 2,
         "--proposals", 2)  # fmt: skip


def test_search_derive_train_evaluate(tmp_path):
    out = tmp_path / "search"
    done = nas("search", *SMALL, "--ber", "1e-4", "--out", out)
    assert done.exit_code == 0, done.output
    assert "on the array: convolutions and linear layers; not on it" in done.stdout
    found = read_architecture(out / "genotype.toml")
    assert found.space.layout == "NR"
    again = nas("derive", "--search", out, "--samples", 3, "--json", "--out", tmp_path / "g.toml")
    assert again.exit_code == 0, again.output
    assert len(json.loads(again.stdout)["candidates"]) <= 3

    resumed = nas("search", *SMALL, "--ber", "2e-4", "--out", out, "--resume")
    assert resumed.exit_code == 2 and resumed.stderr.count("\n") == 1
    assert "faults.model.acts: 0.0001 there, 0.0002 asked for" in resumed.stderr

    trained = nas("train", out / "genotype.toml", "--images", 128, "--test-images", 32,
                  "--epochs", 1, "--fault-backend", "none", "--out", tmp_path / "net")  # fmt: skip
    assert trained.exit_code == 0, trained.output
    weights = tmp_path / "net" / "weights.safetensors"
    arguments = ("evaluate", out / "genotype.toml", "--weights", weights, "--maps", 3,
                 "--test-images", 32, "--json")  # fmt: skip
    for faults in (("--ber", "1e-4"), ("--fault-backend", "torch", "--adsaf", "0.1")):
        judged = nas(*arguments, *faults)
        assert judged.exit_code == 0, judged.output
        assert len(json.loads(judged.stdout)["faulty"]) == 3
    other = nas("evaluate", "w-ftt-net", "--weights", weights)
    assert other.exit_code == 2 and "does not fit" in other.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("search", "--primitives", "sep_conv_3x3,sep_conv_4x4"), "operation must be one of"),
        (("search", "--layout", "NXN"), "layout must be letters"),
        (("search", "--fault-backend", "torch"), "needs --mibb, --adsaf or --faults"),
        (("search", "--fault-backend", "none", "--ber", "1e-5"), "--ber needs"),
        (("search", "--resume"), "--resume needs the checkpoint"),
        (("search", "--method", "magic"), "--method"),
        (("derive",), "must hold a search"),
        (("train", "GENOTYPE"), "operation must be one of"),
        (("train", "digits-cnn"), "genotype must be one of"),
        (("evaluate", "GENOTYPE", "--weights", "w.pt"), "operation must be one of"),
    ],
)
def test_bad_input_is_one_line(tmp_path, arguments, says):
    file = tmp_path / "g.toml"
    file.write_text('[space]\nlayout = "N"\nsteps = 1\n[normal]\n2 = ["conv_9x9 from 0", '
                    '"none from 1"]\n')  # fmt: skip
    arguments = [str(file) if argument == "GENOTYPE" else argument for argument in arguments]
    where = {"search": ("--out",), "derive": ("--search",), "train": ("--out",)}
    extra = (*where.get(arguments[0], ()), tmp_path / "run")[: 2 * (arguments[0] in where)]
    done = nas(*arguments, *extra)
    assert done.exit_code == 2 and says in done.stderr and done.stderr.count("\n") == 1, done.output
    assert not (tmp_path / "run").exists()


def test_several_objectives_leave_a_front(tmp_path):
    pytest.importorskip("optuna")
    out = tmp_path / "search"
    done = nas("search", "--method", "multi", *SMALL, "--fault-backend", "torch", "--mibb", "1e-3",
               "--accel", "systolic-8x8", "--out", out, "--json")  # fmt: skip
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)["candidates"]
    assert found and all(entry["cycles"] > 0 for entry in found)
    assert len(list(out.glob("front-*.toml"))) == len(found)


def test_a_search_that_is_not_finished_is_not_derived_from(tmp_path):
    out = tmp_path / "search"
    done = nas("search", *SMALL, "--fault-backend", "none", "--out", out)
    assert done.exit_code == 0, done.output
    options = json.loads((out / "options.json").read_text())
    other = tmp_path / "other"
    shutil.copytree(out, other)
    (other / "options.json").write_text(json.dumps(options | {"epochs": 3}))
    done = nas("derive", "--search", other)
    assert done.exit_code == 2 and "settings.epochs: 2 there, 3 asked for" in done.stderr
    (other / "options.json").write_text("[]")
    assert "must be one of fsim nas search" in nas("derive", "--search", other).stderr
