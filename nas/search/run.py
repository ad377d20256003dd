"""A search in a folder: checkpoint every epoch, resume, and what a finished search leaves."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable
from pathlib import Path

from fsim.errors import ConfigError
from fsim.files import atomic_write
from fsim.nas.space.definition import CellSpace
from fsim.nas.space.files import write_architecture
from fsim.nas.space.genotype import Architecture, Genotype
from fsim.nas.training.folder import RunFolder

from .search import Search, SearchEpoch
from .searchers import as_lists

HISTORY, GENOTYPE, OPTIONS = "search.json", "genotype.toml", "options.json"


class SearchRun:
    """A search that survives a kill.

    folder    is made; files of another configuration in it are refused
    identity  JSON-ready: everything that decides the result
    resume    go on from the checkpoint in the folder
    """

    def __init__(self, folder: Path, identity: dict, search: Search, *, resume: bool = False):
        self.search = search
        self.history: list[SearchEpoch] = []
        self.folder = RunFolder(folder, identity, "fsim nas search", self._take if resume else None)

    def _take(self, saved: dict) -> None:
        search = self.search
        search.backend.supernet.load_state_dict(saved["supernet"])
        search.optimiser.load_state_dict(saved["optimiser"])
        search.schedule.load_state_dict(saved["schedule"])
        search.searcher.load_state_dict(saved["searcher"] | json.loads(saved["told"]))
        self.history = [SearchEpoch(**entry) for entry in json.loads(saved["history"])]

    def go(
        self, on_epoch: Callable[[SearchEpoch], None], on_step: Callable[[int, int], None]
    ) -> list[SearchEpoch]:
        """Search the epochs that are left; what was there and what came, in order."""
        with self.folder.running(self.history):
            for epoch in range(len(self.history), self.search.settings.epochs):
                found = self.search.epoch(epoch, lambda done, epoch=epoch: on_step(epoch, done))
                self.history.append(found)
                self._save()
                on_epoch(found)
            self._finish()
        return self.history

    def _save(self) -> None:
        search = self.search
        state = search.searcher.state_dict()
        told = {"told": state.pop("told")}
        self.folder.save({
            "history": json.dumps(self._history()),
            "supernet": search.backend.supernet.state_dict(),
            "optimiser": search.optimiser.state_dict(),
            "schedule": search.schedule.state_dict(),
            "searcher": state,
            "told": json.dumps(told),
        })  # fmt: skip

    def _history(self) -> list[dict]:
        return [dataclasses.asdict(entry) for entry in self.history]

    def _finish(self) -> None:
        told = [[as_lists(g), reward] for g, reward in self.search.searcher.told]
        tree = {"identity": self.folder.identity, "epochs": self._history(), "told": told}
        self.folder.write(HISTORY, json.dumps(tree, indent=1).encode())


def write_options(folder: Path, options: dict) -> None:
    """What a search was asked for, so that `read_options` can make it again."""
    with atomic_write(folder / OPTIONS) as file:
        file.write(json.dumps(options, indent=1).encode())


def read_options(folder: Path, names: Iterable[str]) -> dict:
    """The options of the search in a folder; ConfigError unless there is one with `names`."""
    path = folder / OPTIONS
    if not path.is_file():
        raise ConfigError(f"{folder} must hold a search of fsim nas search, got no {OPTIONS}")
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:
        raise ConfigError(f"{path} must be one of fsim nas search, got {error}") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{path} must be one of fsim nas search, got {type(found).__name__}")
    missing = sorted(set(names) - set(found))
    if missing:
        raise ConfigError(f"{path} must be one of fsim nas search, got none with {missing[0]}")
    return found


def write_genotype(path: Path, genotype: Genotype, space: CellSpace, source: str) -> None:
    """The genotype file of a search's result."""
    write_architecture(path, Architecture(genotype, space, path.stem, source))
