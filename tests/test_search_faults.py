"""Which faults a search meets: fresh ones for every reward, the same for all candidates."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from fsim.accel_models.load import load_accel
from fsim.fault_models.bit_errors import BitErrors
from fsim.fault_models.statistical import AdSAF, model_from_config
from fsim.nas.search import search as module
from fsim.nas.search.paths import ArrayPaths, TensorPaths
from fsim.nas.search.products import Products
from fsim.nas.search.search import Search, SearchSettings
from fsim.nas.search.searchers import RandomSampling
from fsim.nas.search.supernet_training import batch_statistics, one_torch_thread
from fsim.nas.space.definition import ADSAF_PRIMITIVES, CellSpace
from fsim.nas.space.supernet import Supernet

SPACE = CellSpace(ADSAF_PRIMITIVES, "relu_conv_bn_1x1", "NR", 1, 2, 3)
STEM = (6, 1, 3, 3)
"""Shape of the first convolution's weight, which every path has and no other convolution."""


@pytest.fixture(autouse=True)
def _one_thread():
    with one_torch_thread():
        yield


def data(count=60):
    rng = np.random.default_rng(0)
    images = torch.tensor(rng.normal(size=(count, 1, 6, 6)), dtype=torch.float32)
    return images, torch.from_numpy(rng.integers(0, 3, count))


@pytest.fixture(params=["tensor", "array"])
def made(request, monkeypatch):
    """(search, faults of the first convolution by pass, in order)."""
    seen = []
    torch.manual_seed(0)
    supernet = batch_statistics(Supernet(SPACE, num_classes=3, in_channels=1))
    if request.param == "tensor":
        draw = AdSAF.draw

        def drawn(self, shape, **given):
            faults = draw(self, shape, **given)
            if tuple(shape) == STEM:
                seen.append(faults.flatten().tolist())
            return faults

        monkeypatch.setattr(AdSAF, "draw", drawn)
        backend = TensorPaths(supernet, [model_from_config({"model": "adsaf", "p": 0.3})])
    else:
        rows = BitErrors.rows

        def found(self, space, trial, images, draws):
            faults = rows(self, space, trial, images, draws)
            first = faults[faults["layer"] == 0]
            # Of image 0: batches of rewards and of derivation differ in size.
            first = first[first["image"] == 0]
            seen.append(first[["component", "word", "xor_mask"]].tolist())
            return faults

        monkeypatch.setattr(BitErrors, "rows", found)
        errors = BitErrors(weights=0.05)
        products = Products(supernet, load_accel("systolic-8x8"), data()[0], errors)
        backend = ArrayPaths(products)
    settings = SearchSettings(
        epochs=2, batch=8, proposals=4, share=0.75, alpha_l=0.0, alpha_r=1.0, seed=1
    )
    return Search(backend, RandomSampling(SPACE, 1), settings, data()), seen


def all_differ(faults: list) -> bool:
    return all(one != other for one, other in itertools.combinations(faults, 2))


def test_every_reward_meets_faults_of_its_own(made):
    search, seen = made
    search.epoch(0)
    assert len(seen) == 4 and all(seen)
    search.epoch(1)
    assert len(seen) == 8 and all_differ(seen)


def test_candidates_meet_the_same_faults_and_others_than_rewards_did(made, monkeypatch):
    search, seen = made
    monkeypatch.setattr(module, "BATCH_OF_REWARDS", 8)  # 15 images: two batches
    search.epoch(0)
    rewards = list(seen)
    seen.clear()
    assert len(search.derive(4)) == 4
    assert len(seen) == 8
    assert seen[0::2] == [seen[0]] * 4 and seen[1::2] == [seen[1]] * 4
    assert all_differ([*rewards, *seen[:2]])
    again = list(seen)
    seen.clear()
    search.backend = type(search.backend)(*_parts(search.backend))
    search.derive(4)
    assert seen == again


def _parts(backend):
    """Arguments for a backend that has no passes behind it."""
    if isinstance(backend, TensorPaths):
        return backend.supernet, backend.models, backend.seed
    old = backend.products
    return (Products(old.supernet, old.accel, data()[0], old.model, old.seed),)


def test_weight_steps_rewards_and_candidates_never_share_a_trial(made):
    search, _ = made
    search.settings = SearchSettings(
        epochs=2, batch=8, proposals=4, share=0.75, alpha_l=0.5, alpha_r=0.5, seed=1
    )
    trials, faulty = [], search.backend.faulty

    def counted(images, genotype, trial):
        trials.append(trial)
        return faulty(images, genotype, trial)

    search.backend.faulty = counted
    for number in range(2):
        search.epoch(number)
    rewards_and_steps = len(trials)
    assert rewards_and_steps == 2 * search.total(0) == len(set(trials))
    search.derive(2)
    assert not set(trials[:rewards_and_steps]) & set(trials[rewards_and_steps:])
