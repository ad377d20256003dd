"""A training run in a folder: checkpoint every epoch, resume, history, picture, weights."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path

import safetensors.torch
import torch

from fsim.errors import ConfigError
from fsim.files import atomic_write

from .loop import EpochResult, Trainer

CHECKPOINT, HISTORY, WEIGHTS, PICTURE = (
    "checkpoint.pt", "history.json", "weights.safetensors", "curve.png"
)  # fmt: skip


def first_difference(saved: dict, wanted: dict, path: str = "") -> str | None:
    """What differs between two configurations, as "field: saved, wanted"; None: nothing."""
    for key in sorted(set(saved) | set(wanted)):
        one, other = saved.get(key), wanted.get(key)
        if isinstance(one, dict) and isinstance(other, dict):
            found = first_difference(one, other, f"{path}{key}.")
            if found:
                return found
        elif one != other:
            return f"{path}{key}: {one!r} there, {other!r} asked for"
    return None


def read_checkpoint(path: Path, identity: dict, command: str) -> dict:
    """What `command` wrote for --resume; ConfigError unless it is of this configuration.

    identity  JSON-ready; the file has its own as JSON under "identity"
    """
    if not path.is_file():
        raise ConfigError(f"--resume needs the checkpoint of a run, got none at {path}")
    try:
        saved = torch.load(path, weights_only=True, map_location="cpu")
        there = json.loads(saved["identity"])
    except Exception as error:  # torch raises many kinds on damaged files
        line = (str(error).splitlines() or [""])[0]
        raise ConfigError(
            f"the checkpoint must be one of {command}, got {line} ({path})"
        ) from error
    difference = first_difference(there, identity)
    if difference:
        raise ConfigError(f"the checkpoint is of another configuration: {difference} ({path})")
    return saved


class Run:
    """Training that survives a kill.

    folder    is made; files of another configuration in it are refused
    identity  JSON-ready: everything that decides the result
    resume    go on from the checkpoint in the folder
    """

    def __init__(self, folder: Path, identity: dict, trainer: Trainer, *, resume: bool = False):
        self.folder, self.trainer = folder, trainer
        self.identity = json.loads(json.dumps(identity))
        self.history: list[EpochResult] = []
        path = folder / CHECKPOINT
        if path.exists() and not resume:
            raise ConfigError(f"{path} holds a run already: --resume it or name another folder")
        if resume:
            self._load(path)
        folder.mkdir(parents=True, exist_ok=True)

    def _load(self, path: Path) -> None:
        saved = read_checkpoint(path, self.identity, "fsim train")
        trainer = self.trainer
        trainer.backend.model.load_state_dict(saved["model"])
        trainer.optimiser.load_state_dict(saved["optimiser"])
        trainer.schedule.load_state_dict(saved["schedule"])
        trainer.statistics.load(saved["statistics"])
        self.history = [EpochResult(**entry) for entry in json.loads(saved["history"])]

    def go(self, on_epoch: Callable[[EpochResult], None], on_step: Callable[[int, int], None]):
        """Train the epochs that are left; what was there and what came, in order."""
        for epoch in range(len(self.history), self.trainer.settings.epochs):
            found = self.trainer.epoch(epoch, lambda done, epoch=epoch: on_step(epoch, done))
            self.history.append(found)
            self._save()
            on_epoch(found)
        self._finish()
        return self.history

    def _save(self) -> None:
        trainer, buffer = self.trainer, io.BytesIO()
        torch.save(
            {
                "identity": json.dumps(self.identity),
                "history": json.dumps([dataclasses.asdict(entry) for entry in self.history]),
                "model": trainer.backend.model.state_dict(),
                "optimiser": trainer.optimiser.state_dict(),
                "schedule": trainer.schedule.state_dict(),
                "statistics": trainer.statistics.state(),
            },
            buffer,
        )
        with atomic_write(self.folder / CHECKPOINT) as file:
            file.write(buffer.getvalue())

    def _finish(self) -> None:
        """Weights, history and picture beside the checkpoint."""
        state = {
            name: value.detach().cpu().contiguous()
            for name, value in self.trainer.backend.model.state_dict().items()
        }
        with atomic_write(self.folder / WEIGHTS) as file:
            file.write(safetensors.torch.save(state))
        entries = [dataclasses.asdict(entry) for entry in self.history]
        text = json.dumps({"identity": self.identity, "epochs": entries}, indent=1)
        with atomic_write(self.folder / HISTORY) as file:
            file.write(text.encode())
        with atomic_write(self.folder / PICTURE) as file:
            draw(self.history, file)


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
