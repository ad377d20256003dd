"""A search: epochs of weight steps, then of proposals and their rewards.

Plain NAS, FT-NAS and FTT-NAS (Ning et al., arXiv 2003.10375) are settings of it: weights
of the faulty loss and reward (0, 0), (0, x) and (x, x).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fsim.errors import ConfigError
from fsim.nas.space.genotype import Genotype
from fsim.nas.training.loop import TrainSettings, augmented

from .paths import PathBackend
from .searchers import Searcher, torch_stream
from .supernet_training import Score, one_torch_thread, score, weight_step

ORDER, DROPOUT, REWARDS = 10, 11, 12
"""Streams of random numbers of a search."""

DERIVED = 1 << 29
"""Trials of derivation are numbered from here, those of rewards from half of it."""

BATCH_OF_REWARDS = 256


@dataclass(frozen=True)
class SearchSettings:
    """How a search goes; every field decides the result.

    alpha_l, alpha_r  weights of the faulty loss and of the faulty reward, in [0, 1]
    lr                of SGD with momentum on the shared weights, to 0 along a cosine
    share             of the training data for the weights; the rest gives rewards
    proposals         an epoch; 0: one for each batch of the rest
    reward_batch      images that a reward is measured on; 0: as many as `batch`
    warmup            epochs of weight steps alone, at the start
    shift, flip       augmentation of the weights' images
    """

    epochs: int = 100
    batch: int = 64
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 1e-4
    clip: float = 5.0
    alpha_l: float = 0.5
    alpha_r: float = 0.5
    share: float = 0.8
    proposals: int = 0
    reward_batch: int = 0
    warmup: int = 0
    shift: int = 0
    flip: bool = False
    seed: int = 0

    def __post_init__(self):
        for name, low, high in (
            ("epochs", 1, 1 << 20), ("batch", 2, 1 << 20), ("lr", 0, math.inf), ("momentum", 0, 1),
            ("weight_decay", 0, math.inf), ("clip", 0, math.inf), ("alpha_l", 0, 1),
            ("alpha_r", 0, 1), ("share", 0.01, 0.99), ("proposals", 0, 1 << 20),
            ("reward_batch", 0, 1 << 20), ("warmup", 0, 1 << 20), ("shift", 0, 16),
            ("seed", 0, (1 << 63) - 1),
        ):  # fmt: skip
            value = getattr(self, name)
            if not low <= value <= high:
                raise ConfigError(f"{name} must lie in [{low}, {high}], got {value!r}")

    @property
    def kind(self) -> str:
        """What the paper calls it."""
        if not self.alpha_l:
            return "FT-NAS" if self.alpha_r else "plain NAS"
        return "FTT-NAS" if self.alpha_r else "fault-tolerant weights, plain reward"


@dataclass(frozen=True)
class SearchEpoch:
    """One epoch: mean loss of the weight steps; of its proposals the mean and best reward,
    and mean accuracies (None: not computed)."""

    epoch: int
    loss: float
    reward: float | None
    best: float | None
    accuracy: float | None
    accuracy_faulty: float | None


class Search:
    """A supernet, a method and the training data in two shares.

    train   ((n, c, h, w) float32, (n,) int64)
    cycles  genotype -> cycles of one image on the machine; for a method with several
            objectives: accuracy, accuracy under faults, - cycles
    """

    def __init__(
        self,
        backend: PathBackend,
        searcher: Searcher,
        settings: SearchSettings,
        train: tuple[Tensor, Tensor],
        cycles: Callable[[Genotype], int] | None = None,
    ):
        self.backend, self.searcher = backend, searcher
        self.settings, self.cycles = settings, cycles
        images, labels = train
        cut = int(settings.share * len(images))
        least = min(cut, len(images) - cut)
        if least < 2:
            raise ConfigError(f"both shares need at least 2 images, got {len(images)} to divide")
        order = torch.randperm(len(images), generator=torch_stream(settings.seed, ORDER, 0))
        self.weights = images[order[:cut]], labels[order[:cut]]
        self.rewards = images[order[cut:]], labels[order[cut:]]
        self.steps = len(_batches(torch.arange(cut), settings.batch))
        rest = len(_batches(torch.arange(len(images) - cut), settings.batch))
        self.proposals = settings.proposals or rest
        self.optimiser = torch.optim.SGD(
            backend.supernet.parameters(), settings.lr, settings.momentum,
            weight_decay=settings.weight_decay,
        )  # fmt: skip
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
            self.optimiser, settings.epochs * self.steps
        )

    def total(self, epoch: int) -> int:
        """Steps of an epoch, proposals included."""
        return self.steps + (self.proposals if epoch >= self.settings.warmup else 0)

    def epoch(self, number: int, on_step: Callable[[int], None] = lambda done: None):
        """Weight steps over their whole share, then proposals; the `SearchEpoch`."""
        with one_torch_thread():
            loss = self._train(number, on_step)
            found = []
            if number >= self.settings.warmup:
                found = self._propose(number, lambda done: on_step(self.steps + done))
        return SearchEpoch(
            number, loss, _mean([s.reward for s in found]),
            max((s.reward for s in found), default=None),
            _mean([s.accuracy for s in found]), _mean([s.accuracy_faulty for s in found]),
        )  # fmt: skip

    def _train(self, number: int, on_step) -> float:
        settings, (images, labels) = self.settings, self.weights
        self.backend.supernet.train()
        generator = torch_stream(settings.seed, ORDER, 1 + number)
        torch.manual_seed(torch_stream(settings.seed, DROPOUT, number).initial_seed())
        augment = TrainSettings(shift=settings.shift, flip=settings.flip)
        losses = []
        batches = _batches(torch.randperm(len(images), generator=generator), settings.batch)
        for step, chosen in enumerate(batches):
            part = augmented(images[chosen], augment, generator)
            loss = weight_step(
                self.backend, self.optimiser, self.searcher.explore(), part, labels[chosen],
                alpha=settings.alpha_l, clip=settings.clip, trial=number * self.steps + step,
            )  # fmt: skip
            if not math.isfinite(loss):
                raise ConfigError(
                    f"the search must keep a finite loss, got {loss} in epoch {number}, step "
                    f"{step}: a smaller lr or a lower fault rate may help"
                )
            self.schedule.step()
            losses.append(loss)
            on_step(step + 1)
        return sum(losses) / len(losses)

    def _propose(self, number: int, on_step) -> list[Score]:
        settings, (images, labels) = self.settings, self.rewards
        self.backend.supernet.eval()
        found = []
        for at in range(self.proposals):
            count = number * self.proposals + at
            generator = torch_stream(settings.seed, REWARDS, count)
            chosen = torch.randperm(len(images), generator=generator)
            chosen = chosen[: settings.reward_batch or settings.batch]
            genotype = self.searcher.propose()
            several = self.searcher.objectives > 1
            got = score(
                self.backend, genotype, images[chosen], labels[chosen], alpha=settings.alpha_r,
                trial=DERIVED // 2 + count, both=several,
            )  # fmt: skip
            reward = got.reward
            if several:
                reward = (got.accuracy, got.accuracy_faulty, -float(self.cycles(genotype)))
            self.searcher.tell(genotype, reward)
            found.append(got)
            on_step(at + 1)
        return found

    def derive(self, count: int, on_step: Callable[[int], None] = lambda done: None):
        """[(genotype, Score)], best reward first, of `count` candidates of the method.

        Rewards are on the whole share that the weights were not trained on, both
        accuracies of each, under the same faults for all.
        """
        images, labels = self.rewards
        alpha, found = self.settings.alpha_r, []
        self.backend.supernet.eval()
        with one_torch_thread():
            for genotype in self.searcher.best(count):
                sums = torch.zeros(3, dtype=torch.float64)
                batches = _batches(torch.arange(len(images)), BATCH_OF_REWARDS)
                for number, chosen in enumerate(batches):
                    got = score(
                        self.backend, genotype, images[chosen], labels[chosen], alpha=alpha,
                        trial=DERIVED + number, both=True,
                    )  # fmt: skip
                    values = (got.reward, got.accuracy, got.accuracy_faulty)
                    sums += len(chosen) * torch.tensor(values, dtype=torch.float64)
                total = sum(len(chosen) for chosen in batches)
                found.append((genotype, Score(*(sums / total).tolist())))
                on_step(len(found))
        return sorted(found, key=lambda entry: entry[1].reward, reverse=True)


def _batches(order: Tensor, size: int) -> list[Tensor]:
    """Parts of an order; a last one of a single image, which has no statistics, is left out."""
    return [part for part in order.split(size) if len(part) > 1]


def _mean(values: list) -> float | None:
    values = [value for value in values if value is not None]
    return sum(values) / len(values) if values else None
