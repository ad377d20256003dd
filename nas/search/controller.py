"""The LSTM controller of the paper, trained by REINFORCE.

Ning et al. (arXiv 2003.10375) after Pham et al. (ENAS, arXiv 1802.03268); numbers as
walkerning/aw_nas configures them. A cell is a sequence of decisions: for every node two
earlier nodes, then two operations. Each decision is a step of an LSTM whose input is the
embedding of what was decided last.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fsim.nas.space.definition import CELL_NAMES, CellSpace
from fsim.nas.space.genotype import INPUT_NODES, Edge, Genotype, Step

from .searchers import EXPLORATION, PROPOSALS, SAMPLES, History, torch_stream


@dataclass(frozen=True)
class ControllerSettings:
    """hidden       size of embeddings, LSTM state and attention
    temperature  that logits are divided by
    spread       parameters start uniform in [-spread, spread]
    lr           of Adam
    decay        of the moving average that is the baseline
    entropy      weight of the entropy in the objective
    """

    hidden: int = 100
    temperature: float = 5.0
    spread: float = 0.1
    lr: float = 1e-3
    decay: float = 0.99
    entropy: float = 0.01


class CellPolicy(nn.Module):
    """A distribution over the cells of one kind: an LSTM of its own.

    Nodes are chosen by additive attention of the LSTM's state over learnt embeddings of
    the nodes, v . tanh(W1 node + W2 h); operations by a linear layer.
    """

    def __init__(self, space: CellSpace, settings: ControllerSettings, generator: torch.Generator):
        super().__init__()
        self.space, self.temperature = space, settings.temperature
        size = settings.hidden
        self.start = nn.Parameter(torch.empty(1, size))
        self.nodes = nn.Embedding(INPUT_NODES + space.steps - 1, size)
        self.ops = nn.Embedding(len(space.primitives), size)
        self.lstm = nn.LSTMCell(size, size)
        self.of_node = nn.Linear(size, size, bias=False)
        self.of_state = nn.Linear(size, size, bias=False)
        self.score = nn.Linear(size, 1, bias=False)
        self.op_logits = nn.Linear(size, len(space.primitives))
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.uniform_(-settings.spread, settings.spread, generator=generator)

    def decide(
        self, steps: tuple[Step, ...] | None, generator: torch.Generator | None = None
    ) -> tuple[tuple[Step, ...], Tensor, Tensor]:
        """(cell, log-probability of it, entropy of its decisions), the last two ().

        steps  the cell in question; None: one is drawn with `generator`
        The entropy is the sum over decisions of that of the distribution each was drawn
        from; its mean over cells is the entropy of the policy (chain rule).
        """
        x, state = self.start, None
        made, log_p, entropy = [], [], []

        def choose(logits: Tensor, embedding: nn.Embedding, known: int | None) -> int:
            nonlocal x
            logs = torch.log_softmax(logits / self.temperature, 0)
            p = logs.exp()
            if known is None:
                known = int(torch.multinomial(p.detach(), 1, generator=generator))
            log_p.append(logs[known])
            entropy.append(-(p * logs).sum())
            x = embedding.weight[known : known + 1]
            return known

        for i in range(self.space.steps):
            given = None if steps is None else steps[i]
            earlier = self.nodes.weight[: INPUT_NODES + i]
            keys = self.of_node(earlier)
            sources, ops = [], []
            for j in range(2):
                state = self.lstm(x, state)
                logits = self.score(torch.tanh(keys + self.of_state(state[0]))).squeeze(1)
                sources.append(choose(logits, self.nodes, given and given[j].source))
            for j in range(2):
                state = self.lstm(x, state)
                known = given and self.space.primitives.index(given[j].op)
                ops.append(choose(self.op_logits(state[0]).squeeze(0), self.ops, known))
            made.append(
                tuple(Edge(self.space.primitives[op], source) for op, source in zip(ops, sources))
            )
        return tuple(made), torch.stack(log_p).sum(), torch.stack(entropy).sum()


class Controller(History):
    """REINFORCE (Williams 1992) over the policies of both kinds of cell.

    Each policy is stepped by an optimiser of its own only. The loss of each is
        -log pi(cell) (R - b) - entropy_weight * H
    with b a moving average of the rewards before this one; the first reward is the
    baseline of itself. A kind that the layout lacks has no policy and no steps.
    """

    def __init__(self, space: CellSpace, seed: int = 0, settings: ControllerSettings | None = None):
        super().__init__(space, seed)
        self.settings = settings = settings or ControllerSettings()
        self.baseline: float | None = None
        self.policies: dict[str, CellPolicy] = {}
        for number, kind in enumerate(CELL_NAMES):
            if kind in space.layout:
                generator = torch_stream(seed, SAMPLES, number)
                self.policies[kind] = CellPolicy(space, settings, generator)
        self.optimisers = {
            kind: torch.optim.Adam(policy.parameters(), settings.lr)
            for kind, policy in self.policies.items()
        }

    def sample(self, generator: torch.Generator) -> Genotype:
        """A genotype drawn from the policies."""
        cells = {name: () for name in CELL_NAMES.values()}
        with torch.no_grad():
            for kind, policy in self.policies.items():
                cells[CELL_NAMES[kind]], _, _ = policy.decide(None, generator)
        return Genotype(**cells)

    def propose(self) -> Genotype:
        self.proposed += 1
        return self.sample(torch_stream(self.seed, PROPOSALS, self.proposed))

    def explore(self) -> Genotype:
        self.explored += 1
        return self.sample(torch_stream(self.seed, EXPLORATION, self.explored))

    def log_prob(self, genotype: Genotype) -> tuple[Tensor, Tensor]:
        """(log-probability, entropy) of a genotype, both ()."""
        found = [policy.decide(genotype.steps(kind))[1:] for kind, policy in self.policies.items()]
        return sum(log_p for log_p, _ in found), sum(entropy for _, entropy in found)

    def tell(self, genotype: Genotype, reward: float) -> None:
        if self.baseline is None:
            self.baseline = reward
        advantage = reward - self.baseline
        for kind, policy in self.policies.items():
            _, log_p, entropy = policy.decide(genotype.steps(kind))
            loss = -log_p * advantage - self.settings.entropy * entropy
            self.optimisers[kind].zero_grad(set_to_none=True)
            loss.backward()
            self.optimisers[kind].step()
        decay = self.settings.decay
        self.baseline = decay * self.baseline + (1 - decay) * reward
        super().tell(genotype, reward)

    def best(self, count: int) -> list[Genotype]:
        """Drawn from the policies, as the paper derives; fewer where they repeat themselves."""
        drawn = (self.sample(torch_stream(self.seed, SAMPLES, 2 + i)) for i in range(count))
        return list(dict.fromkeys(drawn))

    def state_dict(self) -> dict:
        state = {
            "baseline": self.baseline,
            "policies": {kind: policy.state_dict() for kind, policy in self.policies.items()},
            "optimisers": {kind: adam.state_dict() for kind, adam in self.optimisers.items()},
        }
        # Copies: torch's tensors would go on with the search.
        return super().state_dict() | copy.deepcopy(state)

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        self.baseline = state["baseline"]
        for kind in self.policies:
            self.policies[kind].load_state_dict(state["policies"][kind])
            self.optimisers[kind].load_state_dict(state["optimisers"][kind])
