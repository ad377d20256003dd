"""Search methods: what they learn, their probabilities, and what a checkpoint brings back."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from fsim.errors import ConfigError
from fsim.nas.search.controller import Controller, ControllerSettings
from fsim.nas.search.evolution import Evolution, mutate
from fsim.nas.search.searchers import RandomSampling, as_lists, from_lists
from fsim.nas.space.definition import ADSAF_PRIMITIVES, CellSpace
from fsim.nas.space.genotype import Edge, Genotype, check_genotype, random_genotype

SPACE = CellSpace(ADSAF_PRIMITIVES[:5], "relu_conv_bn_1x1", "NR", 2, 4)
TINY = CellSpace(("none", "skip_connect"), "relu_conv_bn_1x1", "N", 1, 4)
WANTED = "skip_connect"


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def multi(space, seed=0):
    pytest.importorskip("optuna")
    from fsim.nas.search.multi import MultiObjective

    return MultiObjective(space, seed, population=10)


def planted(genotype: Genotype) -> float:
    """Share of edges with the wanted operation."""
    edges = [edge for step in genotype.normal + genotype.reduce for edge in step]
    return sum(edge.op == WANTED for edge in edges) / len(edges)


def run(searcher, count):
    """Rewards of `count` proposals."""
    rewards = []
    for _ in range(count):
        genotype = searcher.propose()
        check_genotype(genotype, searcher.space)
        rewards.append(planted(genotype))
        if searcher.objectives > 1:
            searcher.tell(genotype, (rewards[-1], 0.0, 0.0))
        else:
            searcher.tell(genotype, rewards[-1])
    return rewards


@pytest.mark.parametrize(
    ("make", "count"), [(Controller, 300), (Evolution, 300), (multi, 150)],
    ids=["rl", "evolution", "multi"],
)  # fmt: skip
def test_methods_learn_a_planted_reward(make, count):
    """Random sampling stays at 1/5; the last 50 proposals must be 0.3 above it."""
    random = np.mean(run(RandomSampling(SPACE, 1), count)[-50:])
    found = np.mean(run(make(SPACE, 1), count)[-50:])
    assert random < 0.3 and found > random + 0.3


def every_cell(space):
    """All cells of a space of one step."""
    edges = [Edge(op, source) for op in space.primitives for source in range(2)]
    return [((one, other),) for one, other in itertools.product(edges, edges)]


def trained():
    """A controller that no longer is uniform."""
    controller = Controller(TINY, 3, ControllerSettings(lr=0.05, temperature=1.0))
    run(controller, 10)
    return controller


def test_probabilities_of_all_genotypes_sum_to_one():
    controller = trained()
    p = [math.exp(controller.log_prob(Genotype(cell, ()))[0].item()) for cell in every_cell(TINY)]
    assert len(p) == 16 and sum(p) == pytest.approx(1, abs=1e-5)
    assert max(p) > 1.5 / 16


def test_entropy_is_that_of_the_policy():
    """The mean of the decisions' entropies is -sum p log p (chain rule)."""
    controller = trained()
    found = [controller.log_prob(Genotype(cell, ())) for cell in every_cell(TINY)]
    p = np.exp([log_p.item() for log_p, _ in found])
    mean = float(p @ [entropy.item() for _, entropy in found])
    assert mean == pytest.approx(float(-(p * np.log(p)).sum()), rel=1e-4)
    assert mean < math.log(16) - 0.01


def test_samples_follow_the_probabilities():
    controller = trained()
    cells = every_cell(TINY)
    p = np.exp([controller.log_prob(Genotype(cell, ()))[0].item() for cell in cells])
    count = 1500
    drawn = [controller.explore().normal for _ in range(count)]
    seen = np.array([drawn.count(cell) for cell in cells])
    # 16 cells, fixed seed: 6 standard deviations
    assert (np.abs(seen - count * p) < 6 * np.sqrt(count * p * (1 - p)) + 1).all()


def test_one_step_is_reinforce_with_a_moving_baseline():
    controller = Controller(SPACE, 0)
    twin = Controller(SPACE, 0)
    genotype = random_genotype(SPACE, np.random.default_rng(0))
    controller.baseline = twin.baseline = 0.25
    controller.tell(genotype, 0.75)
    for kind, policy in twin.policies.items():
        _, log_p, entropy = policy.decide(genotype.steps(kind))
        adam = torch.optim.Adam(policy.parameters(), 1e-3)
        (-log_p * 0.5 - 0.01 * entropy).backward()
        adam.step()
        for mine, want in zip(controller.policies[kind].parameters(), policy.parameters()):
            torch.testing.assert_close(mine, want)
    assert controller.baseline == pytest.approx(0.99 * 0.25 + 0.01 * 0.75)
    first = Controller(SPACE, 0)
    first.tell(genotype, 0.75)
    assert first.baseline == pytest.approx(0.75)


def test_each_policy_is_stepped_by_its_own_optimiser_once():
    """The reference has one Adam for both: each agent's step moves the other as well."""
    controller = Controller(SPACE, 0)
    run(controller, 3)
    held = [
        {id(p) for group in adam.param_groups for p in group["params"]}
        for adam in controller.optimisers.values()
    ]
    assert len(held) == 2 and not held[0] & held[1]
    for adam in controller.optimisers.values():
        assert {int(state["step"]) for state in adam.state.values()} == {3}


def test_parameters_start_uniform_within_the_spread():
    policy = Controller(SPACE, 0).policies["N"]
    values = torch.cat([p.detach().flatten() for p in policy.parameters()])
    assert values.abs().max() <= 0.1 and abs(values.mean()) < 1e-3
    assert values.std() == pytest.approx(0.1 / math.sqrt(3), rel=0.02)


def test_mutations_change_one_input_or_nothing():
    rng = np.random.default_rng(0)
    changed = []
    for _ in range(400):
        parent = random_genotype(SPACE, rng)
        child = mutate(parent, SPACE, rng)
        check_genotype(child, SPACE)
        pairs = [
            (a, b)
            for one, other in ((parent.normal, child.normal), (parent.reduce, child.reduce))
            for step, new in zip(one, other)
            for a, b in zip(step, new)
            if a != b
        ]
        assert len(pairs) <= 1
        changed += [(a.op != b.op, a.source != b.source) for a, b in pairs]
    assert all(op != source for op, source in changed)
    assert 340 < len(changed) < 400 and 120 < sum(op for op, _ in changed) < 260


def test_the_oldest_dies_however_good_it_is():
    evolution = Evolution(SPACE, 0, population=4, tournament=4)
    best = Genotype(*[tuple((Edge(WANTED, 0),) * 2 for _ in range(2))] * 2)
    evolution.tell(best, 2.0)
    for _ in range(4):
        evolution.tell(random_genotype(SPACE, np.random.default_rng(9)), 1.0)
    for _ in range(20):
        child = evolution.propose()
        edges = [edge for step in child.normal + child.reduce for edge in step]
        assert sum(edge == Edge(WANTED, 0) for edge in edges) < 7  # no child of `best`
    with pytest.raises(ConfigError, match="tournament"):
        Evolution(SPACE, 0, population=4, tournament=5)


@pytest.mark.parametrize("make", [RandomSampling, Evolution, Controller, multi])
def test_a_method_goes_on_from_its_state(make):
    whole = make(SPACE, 5)
    run(whole, 25)
    state = whole.state_dict()
    rest = run(whole, 8)
    again = make(SPACE, 5)
    again.load_state_dict(state)
    assert run(again, 8) == rest
    assert again.explore() == whole.explore() and again.best(3) == whole.best(3)


def test_the_front_holds_what_nothing_beats():
    searcher = multi(SPACE)
    values = [(1.0, 0.0, -5.0), (0.5, 0.5, -5.0), (0.5, 0.4, -5.0), (0.4, 0.4, -1.0)]
    for reward in values:
        searcher.tell(searcher.propose(), reward)
    assert {reward for _, reward in searcher.front()} == {values[0], values[1], values[3]}


def test_genotypes_survive_json():
    genotype = random_genotype(SPACE, np.random.default_rng(0))
    assert from_lists(as_lists(genotype)) == genotype
