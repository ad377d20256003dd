"""Steps and epochs of fault-tolerant training.

L = (1 - a) CE(clean) + a CE(faulty)    (Ning et al., arXiv 2003.10375)

Everything random is a function of (seed, epoch, step): a run that goes on from a
checkpoint meets the same batches and the same faults as one that was not stopped.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fsim.errors import ConfigError

from .backends import FaultBackend
from .statistics import KINDS, Statistics

EVALUATION = 1 << 30
"""Trials of evaluations are numbered from here: training never meets them."""

EVALUATION_BATCH = 256


@dataclass(frozen=True)
class TrainSettings:
    """How a network is trained; every field decides the result.

    alpha         weight a of the faulty loss, in [0, 1]; 0: no faulty pass at all
    bn            batch-norm statistics of the two passes: "shared" or "apart"
    lr            of SGD with Nesterov momentum, falling to 0 along a cosine
    clip          largest norm of the gradient
    shift, flip   augmentation: shifts by up to so many pixels, mirroring
    eval_trials   fault maps that accuracy under faults is a mean over
    """

    epochs: int = 10
    batch: int = 128
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 3e-4
    alpha: float = 0.5
    bn: str = "shared"
    clip: float = 5.0
    shift: int = 0
    flip: bool = False
    eval_trials: int = 3
    seed: int = 0

    def __post_init__(self):
        for name, low, high in (
            ("epochs", 1, 1 << 20), ("batch", 1, 1 << 20), ("lr", 0, math.inf),
            ("momentum", 0, 1), ("weight_decay", 0, math.inf), ("alpha", 0, 1),
            ("clip", 0, math.inf), ("shift", 0, 16), ("eval_trials", 1, 1 << 20),
            ("seed", 0, (1 << 63) - 1),
        ):  # fmt: skip
            value = getattr(self, name)
            if not low <= value <= high:
                raise ConfigError(f"{name} must lie in [{low}, {high}], got {value!r}")
        if self.bn not in KINDS:
            raise ConfigError(f"bn must be one of {', '.join(KINDS)}, got {self.bn!r}")


@dataclass(frozen=True)
class EpochResult:
    """One epoch: mean losses of its steps, accuracies after it (shares)."""

    epoch: int
    loss: float
    loss_clean: float
    loss_faulty: float
    accuracy: float
    accuracy_faulty: float


class Trainer:
    """A network in fault-tolerant training.

    train, test  ((n, c, h, w) float32, (n,) int64), on the device of the network
    """

    def __init__(self, backend: FaultBackend, settings: TrainSettings, train, test):
        self.backend, self.settings = backend, settings
        self.images, self.labels = train
        self.test = test
        self.steps = -(-len(self.images) // settings.batch)
        self.optimiser = torch.optim.SGD(
            backend.model.parameters(), settings.lr, settings.momentum,
            weight_decay=settings.weight_decay, nesterov=settings.momentum > 0,
        )  # fmt: skip
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
            self.optimiser, settings.epochs * self.steps
        )
        self.statistics = Statistics(backend.model, settings.bn)

    def epoch(self, number: int, on_step: Callable[[int], None] = lambda done: None) -> EpochResult:
        """Train one epoch, then evaluate."""
        settings = self.settings
        state = (settings.seed * (1 << 20) + number) % (1 << 63)
        # On the CPU whatever the device is: every device then meets the same batches.
        generator = torch.Generator().manual_seed(state)
        torch.manual_seed(state)  # dropout
        self.backend.train()
        sums = [0.0, 0.0, 0.0]
        order = torch.randperm(len(self.images), generator=generator)
        for step, chosen in enumerate(order.split(settings.batch)):
            images = augmented(self.images[chosen], settings, generator)
            found = self.step(images, self.labels[chosen], number * self.steps + step)
            if not all(map(math.isfinite, found)):
                raise ConfigError(
                    f"training must keep a finite loss, got {found[0]} in epoch {number}, step "
                    f"{step}: a smaller lr or a lower fault rate may help"
                )
            sums = [a + b * len(chosen) for a, b in zip(sums, found)]
            on_step(step + 1)
        losses = [value / len(self.images) for value in sums]
        return EpochResult(number, *losses, *self.evaluate())

    def step(self, images: Tensor, labels: Tensor, trial: int) -> tuple[float, float, float]:
        """One update; (loss, clean part, faulty part)."""
        a = self.settings.alpha
        self.optimiser.zero_grad(set_to_none=True)
        clean = faulty = torch.zeros((), device=images.device)
        if a < 1:
            clean = F.cross_entropy(self.backend.clean(images), labels)
        if a > 0:
            with self.statistics.of_faults():
                faulty = F.cross_entropy(self.backend.faulty(images, trial), labels)
        loss = (1 - a) * clean + a * faulty
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.backend.model.parameters(), self.settings.clip)
        self.optimiser.step()
        self.schedule.step()
        return float(loss.detach()), float(clean.detach()), float(faulty.detach())

    def evaluate(self) -> tuple[float, float]:
        """(accuracy, mean accuracy over `eval_trials` fault maps) on the test images."""
        self.backend.eval()
        images, labels = self.test
        trials = self.settings.eval_trials
        clean = faulty = 0
        with torch.no_grad():
            for number, begin in enumerate(range(0, len(images), EVALUATION_BATCH)):
                part = images[begin : begin + EVALUATION_BATCH]
                want = labels[begin : begin + EVALUATION_BATCH]
                clean += int((self.backend.clean(part).argmax(1) == want).sum())
                for trial in range(trials):
                    at = EVALUATION + number * trials + trial
                    faulty += int((self.backend.faulty(part, at).argmax(1) == want).sum())
        return clean / len(images), faulty / (len(images) * trials)


def augmented(images: Tensor, settings: TrainSettings, generator: torch.Generator) -> Tensor:
    """(n, c, h, w) images, each shifted (zeros move in) and mirrored by chance.

    generator  on the CPU: images on any device move alike
    """
    n, channels, height, width = images.shape
    s, device = settings.shift, images.device
    if s:
        padded = F.pad(images, (s, s, s, s))
        offsets = torch.randint(0, 2 * s + 1, (2, n), generator=generator, device="cpu")
        down, across = offsets.to(device)
        rows = (down[:, None] + torch.arange(height, device=device))[:, None, :, None]
        columns = (across[:, None] + torch.arange(width, device=device))[:, None, None, :]
        channel = torch.arange(channels, device=device)[None, :, None, None]
        image = torch.arange(n, device=device)[:, None, None, None]
        images = padded[image, channel, rows, columns]
    if settings.flip:
        mirror = (torch.rand(n, generator=generator, device="cpu") < 0.5).to(device)
        images = torch.where(mirror[:, None, None, None], images.flip(3), images)
    return images
