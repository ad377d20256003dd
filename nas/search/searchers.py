"""What every search method has in common, and the simplest of them.

A method proposes genotypes and is told what they are worth. Its randomness is a function
of its seed and of how many genotypes it has given: a search that goes on from a
checkpoint proposes what one that was not stopped would have.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch

from fsim.nas.space.definition import CellSpace
from fsim.nas.space.genotype import Edge, Genotype, random_genotype

Reward = float | tuple[float, ...]
"""What a genotype is worth: a number, or one for each of several objectives."""

PROPOSALS, EXPLORATION, SAMPLES = 0, 1, 2
"""Streams of random numbers of a method."""


class Searcher(Protocol):
    """objectives  how many numbers `tell` takes; 1: a float"""

    objectives: int

    def propose(self) -> Genotype:
        """The next genotype whose reward is wanted."""

    def tell(self, genotype: Genotype, reward: Reward) -> None:
        """What a proposed genotype is worth; more is better."""

    def explore(self) -> Genotype:
        """The path for a step of the shared weights; nothing is told about it."""

    def best(self, count: int) -> list[Genotype]:
        """Different genotypes, at most `count`, that the method thinks most of."""

    def state_dict(self) -> dict:
        """What a checkpoint keeps: tensors, and values that JSON knows."""

    def load_state_dict(self, state: dict) -> None: ...


def stream(seed: int, purpose: int, number: int) -> np.random.Generator:
    """Random numbers that depend on these three alone."""
    return np.random.default_rng([seed, purpose, number])


def torch_stream(seed: int, purpose: int, number: int) -> torch.Generator:
    """`stream` for torch."""
    state = int(stream(seed, purpose, number).integers(1 << 63))
    return torch.Generator().manual_seed(state)


class History:
    """Counters and every (genotype, reward) that was told: the base of methods.

    Its own `propose` and `explore` are uniform: random sampling, and for the shared
    weights of any method the single-path uniform sampling of Guo et al. (arXiv 1904.00420).
    """

    objectives = 1

    def __init__(self, space: CellSpace, seed: int = 0):
        self.space, self.seed = space, seed
        self.proposed = self.explored = 0
        self.told: list[tuple[Genotype, Reward]] = []

    def propose(self) -> Genotype:
        self.proposed += 1
        return self._propose(stream(self.seed, PROPOSALS, self.proposed))

    def _propose(self, rng: np.random.Generator) -> Genotype:
        return random_genotype(self.space, rng)

    def tell(self, genotype: Genotype, reward: Reward) -> None:
        self.told.append((genotype, reward))

    def explore(self) -> Genotype:
        self.explored += 1
        return random_genotype(self.space, stream(self.seed, EXPLORATION, self.explored))

    def best(self, count: int) -> list[Genotype]:
        ranked = sorted(self.told, key=lambda entry: entry[1], reverse=True)
        return list(dict.fromkeys(genotype for genotype, _ in ranked))[:count]

    def state_dict(self) -> dict:
        return {
            "proposed": self.proposed,
            "explored": self.explored,
            "told": [[as_lists(genotype), reward] for genotype, reward in self.told],
        }

    def load_state_dict(self, state: dict) -> None:
        self.proposed, self.explored = state["proposed"], state["explored"]
        self.told = [
            (from_lists(genotype), tuple(reward) if isinstance(reward, list) else reward)
            for genotype, reward in state["told"]
        ]


class RandomSampling(History):
    """Uniform genotypes; the best is the one with the best reward: the method to beat."""


def as_lists(genotype: Genotype) -> list:
    """[normal, reduce], each [step: [[op, source], [op, source]]], for JSON."""
    return [
        [[[edge.op, edge.source] for edge in step] for step in steps]
        for steps in (genotype.normal, genotype.reduce)
    ]


def from_lists(lists: list) -> Genotype:
    """The genotype of `as_lists`."""
    return Genotype(
        *(tuple(tuple(Edge(*edge) for edge in step) for step in steps) for steps in lists)
    )
