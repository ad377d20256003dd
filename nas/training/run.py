"""A training run in a folder: checkpoint every epoch, resume, history, picture, weights."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path

import safetensors.torch

from .folder import CHECKPOINT as CHECKPOINT
from .folder import RunFolder
from .loop import EpochResult, Trainer

HISTORY, WEIGHTS, PICTURE = "history.json", "weights.safetensors", "curve.png"


class Run:
    """Training that survives a kill.

    folder    is made; files of another configuration in it are refused
    identity  JSON-ready: everything that decides the result
    resume    go on from the checkpoint in the folder
    """

    def __init__(self, folder: Path, identity: dict, trainer: Trainer, *, resume: bool = False):
        self.trainer = trainer
        self.history: list[EpochResult] = []
        self.folder = RunFolder(folder, identity, "fsim train", self._take if resume else None)

    def _take(self, saved: dict) -> None:
        trainer = self.trainer
        trainer.backend.model.load_state_dict(saved["model"])
        trainer.optimiser.load_state_dict(saved["optimiser"])
        trainer.schedule.load_state_dict(saved["schedule"])
        trainer.statistics.load(saved["statistics"])
        self.history = [EpochResult(**entry) for entry in json.loads(saved["history"])]

    def go(self, on_epoch: Callable[[EpochResult], None], on_step: Callable[[int, int], None]):
        """Train the epochs that are left; what was there and what came, in order."""
        with self.folder.running(self.history):
            for epoch in range(len(self.history), self.trainer.settings.epochs):
                found = self.trainer.epoch(epoch, lambda done, epoch=epoch: on_step(epoch, done))
                self.history.append(found)
                self._save()
                on_epoch(found)
            self._finish()
        return self.history

    def _save(self) -> None:
        trainer = self.trainer
        self.folder.save({
            "history": json.dumps([dataclasses.asdict(entry) for entry in self.history]),
            "model": trainer.backend.model.state_dict(),
            "optimiser": trainer.optimiser.state_dict(),
            "schedule": trainer.schedule.state_dict(),
            "statistics": trainer.statistics.state(),
        })  # fmt: skip

    def _finish(self) -> None:
        """Weights, history and picture beside the checkpoint."""
        state = {
            name: value.detach().cpu().contiguous()
            for name, value in self.trainer.backend.model.state_dict().items()
        }
        self.folder.write(WEIGHTS, safetensors.torch.save(state))
        entries = [dataclasses.asdict(entry) for entry in self.history]
        tree = {"identity": self.folder.identity, "epochs": entries}
        self.folder.write(HISTORY, json.dumps(tree, indent=1).encode())
        picture = io.BytesIO()
        draw(self.history, picture)
        self.folder.write(PICTURE, picture.getvalue())


def draw(history: list[EpochResult], file) -> None:
    """Losses and accuracies by epoch, as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import MaxNLocator

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9.0, 3.6), dpi=150)
    epochs = [entry.epoch + 1 for entry in history]
    for name, label in (("loss_clean", "clean"), ("loss_faulty", "under faults")):
        left.plot(epochs, [getattr(entry, name) for entry in history], "o-", ms=3, label=label)
    for name, label in (("accuracy", "clean"), ("accuracy_faulty", "under faults")):
        values = [100 * getattr(entry, name) for entry in history]
        right.plot(epochs, values, "o-", ms=3, label=label)
    left.set_ylabel("training loss")
    right.set_ylabel("test accuracy, %")
    for axes in (left, right):
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend()
    figure.tight_layout()
    figure.savefig(file, format="png", metadata={"Software": "fsim"})
    pyplot.close(figure)
