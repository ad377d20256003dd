"""Several objectives at once, through Optuna (`pip install .[search]`).

Its NSGA-II (Deb et al. 2002) proposes; accuracy, accuracy under faults and minus the
cycles are all to be as large as possible.
"""

from __future__ import annotations

import warnings

import numpy as np

from fsim.errors import ConfigError
from fsim.nas.space.definition import CELL_NAMES, CellSpace
from fsim.nas.space.genotype import INPUT_NODES, Edge, Genotype

from .searchers import PROPOSALS, History, as_lists, from_lists, stream


class MultiObjective(History):
    """A study whose every proposal has a sampler of its own, seeded by its number: asked
    and told the same again, it gives the same. So a checkpoint keeps what was told only."""

    objectives = 3

    def __init__(self, space: CellSpace, seed: int = 0, *, population: int = 20):
        try:
            import optuna
        except ImportError:
            raise ConfigError(
                "--method multi needs Optuna, which is not installed: pip install 'fsim[search]'"
            ) from None
        super().__init__(space, seed)
        self.optuna, self.population = optuna, population
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.study = optuna.create_study(directions=["maximize"] * self.objectives)
        self.asked: dict[Genotype, list] = {}

    def propose(self) -> Genotype:
        self.proposed += 1
        state = int(stream(self.seed, PROPOSALS, self.proposed).integers(1 << 31))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Optuna's experimental parts
            self.study.sampler = self.optuna.samplers.NSGAIISampler(
                population_size=self.population, seed=state
            )
            trial = self.study.ask()
            genotype = self._genotype(trial)
        self.asked.setdefault(genotype, []).append(trial)
        return genotype

    def _genotype(self, trial) -> Genotype:
        ops, cells = self.space.primitives, {}
        for kind, name in CELL_NAMES.items():
            steps = []
            for node in range(INPUT_NODES, INPUT_NODES + self.space.steps):
                at = [f"{name} {node} {j}" for j in range(2)]
                steps.append(
                    tuple(
                        Edge(
                            trial.suggest_categorical(f"{where} op", ops),
                            trial.suggest_categorical(f"{where} from", tuple(range(node))),
                        )
                        for where in at
                    )
                )
            cells[name] = tuple(steps) if kind in self.space.layout else ()
        return Genotype(**cells)

    def tell(self, genotype: Genotype, reward: tuple[float, ...]) -> None:
        self.study.tell(self.asked[genotype].pop(0), list(reward))
        super().tell(genotype, tuple(reward))

    def best(self, count: int) -> list[Genotype]:
        """The Pareto front of what was told, at most `count`, most accurate under faults first."""
        return list(dict.fromkeys(genotype for genotype, _ in self.front()))[:count]

    def front(self) -> list[tuple[Genotype, tuple[float, ...]]]:
        """What was told and nothing else told is better than in all objectives."""
        values = np.array([reward for _, reward in self.told]).reshape(-1, self.objectives)
        kept = []
        for entry, mine in zip(self.told, values):
            better = (values >= mine).all(1) & (values > mine).any(1)
            if not better.any():
                kept.append(entry)
        return sorted(kept, key=lambda entry: entry[1][1], reverse=True)

    def load_state_dict(self, state: dict) -> None:
        for lists, reward in state["told"]:
            genotype = self.propose()
            if as_lists(genotype) != lists:
                raise ConfigError(
                    "the checkpoint must be of this version of Optuna, "
                    f"{self.optuna.__version__}: it proposes otherwise"
                )
            self.tell(from_lists(lists), tuple(reward))
        self.explored = state["explored"]
