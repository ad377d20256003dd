"""Regularised evolution (Real et al., "Regularized Evolution for Image Classifier
Architecture Search", AAAI 2019, arXiv 1802.01548, algorithm 1)."""

from __future__ import annotations

import numpy as np

from fsim.errors import ConfigError
from fsim.nas.space.definition import CELL_NAMES, CellSpace
from fsim.nas.space.genotype import INPUT_NODES, Edge, Genotype, random_genotype

from .searchers import History

IDENTITY = 0.05
"""Probability that a child equals its parent (section "Search space" of the paper)."""


class Evolution(History):
    """The `population` youngest genotypes live; a child is a mutation of the best of
    `tournament` of them, drawn with replacement. The oldest dies, however good it is.

    The first `population` genotypes are uniform.
    """

    def __init__(
        self, space: CellSpace, seed: int = 0, *, population: int = 20, tournament: int = 5
    ):
        super().__init__(space, seed)
        if not 1 <= tournament <= population:
            raise ConfigError(
                f"tournament must lie in [1, population], got {tournament} of {population}"
            )
        self.population, self.tournament = population, tournament

    def _propose(self, rng: np.random.Generator) -> Genotype:
        if len(self.told) < self.population:
            return random_genotype(self.space, rng)
        living = self.told[-self.population :]
        drawn = [living[i] for i in rng.integers(len(living), size=self.tournament)]
        parent, _ = max(drawn, key=lambda entry: entry[1])
        return mutate(parent, self.space, rng)


def mutate(genotype: Genotype, space: CellSpace, rng: np.random.Generator) -> Genotype:
    """One input of one cell reads another node, or has another operation; or nothing changes.

    Which of the two is an even chance; a change that the space has no room for (a single
    operation) leaves the genotype as it is.
    """
    if rng.random() < IDENTITY:
        return genotype
    kinds = sorted(set(space.layout))
    kind = CELL_NAMES[kinds[rng.integers(len(kinds))]]
    cells = {name: [list(step) for step in getattr(genotype, name)] for name in CELL_NAMES.values()}
    steps = cells[kind]
    i, j = int(rng.integers(len(steps))), int(rng.integers(2))
    edge = steps[i][j]
    if rng.random() < 0.5:
        others = [node for node in range(INPUT_NODES + i) if node != edge.source]
        steps[i][j] = Edge(edge.op, int(rng.choice(others)))
    else:
        others = [op for op in space.primitives if op != edge.op]
        if others:
            steps[i][j] = Edge(others[rng.integers(len(others))], edge.source)
    return Genotype(**{name: tuple(map(tuple, steps)) for name, steps in cells.items()})
