"""A campaign: a network on a machine, a population of faults, a design; from its task alone.

The task is what decides the answers, as JSON values: the network, its data and the machine
by their hashes, the faults, the frame they are drawn from, the design and the seed. Workers
and resumed runs make the same campaign from it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from fsim.errors import ConfigError
from fsim.fault_models import families
from fsim.fault_models.bit_errors import BitErrors, OneFlip
from fsim.fault_models.stuck_cells import StuckCells
from fsim.fault_models.upsets import KINDS, SingleFault
from fsim.session import Session, from_task
from fsim.simulator.campaign.design import PILOT, Allocation, Design
from fsim.simulator.campaign.evaluate import Evaluator, way_of
from fsim.simulator.campaign.events import Events
from fsim.simulator.campaign.frame import Frame
from fsim.simulator.campaign.golden import MEMORY
from fsim.simulator.campaign.layered import LayeredEvaluator
from fsim.simulator.campaign.population import Chips, FaultList, Flips, SingleFaults
from fsim.simulator.campaign.rules import Rule
from fsim.simulator.campaign.tally import Tally
from fsim.simulator.criteria import DEFAULT, criterion
from fsim.simulator.sampling import RNG_VERSION
from fsim.simulator.sites import check_rows, select
from fsim.simulator.trace_format import canonical_json

VERSION = 1
"""Raised whenever the same options would choose other trials."""

DESIGNS = ("single", "flips", "chips", "events", "list")

MEMORIES = ("acts", "weights", "psums")

SHARD = 2048
"""Inferences of a shard: a second or so; what a kill costs at most."""


def model_of(faults: dict):
    """The fault model that the "faults" of a task describe."""
    kind = faults["kind"]
    if kind in KINDS:
        return SingleFault(kind)
    if kind in ("flip", "flips"):
        return OneFlip(tuple(faults["memories"]))
    if kind == "stuck-cells":
        return StuckCells(faults["p"], faults["sa1_share"])
    if kind == "ber":
        return BitErrors(*(faults[name] for name in MEMORIES), hw_batch=faults["hw_batch"])
    return families.model_of(faults)


def design_for(model) -> str:
    """The design that a named fault model is drawn by.

    Single faults where its sites can be numbered, else chips where its rows last, else events.
    A fault that lasts and has no numbered sites is a chip of its own.
    """
    if hasattr(model, "cells"):
        return "single"
    return "chips" if model.lasting or model.unit == "trial" else "events"


def rows_sha256(rows: np.ndarray) -> str:
    """Hash of a fault list."""
    return hashlib.sha256(np.ascontiguousarray(rows).tobytes()).hexdigest()


def make_task(
    session: Session,
    faults: dict,
    select_names: dict,
    seed: int,
    *,
    design: str,
    rule: dict,
    each: int | None = None,
    stratify: tuple[str, ...] = (),
    allocation=None,
    pilot: int = PILOT,
    shard: int | None = None,
    flips: tuple[int, ...] = (),
    rows: np.ndarray | None = None,
    critical: str = DEFAULT,
    stated: dict | None = None,
) -> dict:
    """The task of a campaign.

    design      of DESIGNS; rule: a Rule as JSON values
    each, stratify  of the frame of single faults
    allocation  (frame or None) -> trials of each stratum, or None if they depend on counts
    rows        the fault list of design "list"
    critical    which wrong answers are critical: a name of simulator.criteria
    stated      options as the user gave them, from which `cite.command_of` makes the command
    """
    images = len(session.images)
    space = select(session.placement, select_names["layers"], select_names["sites"])
    frame, sizes, bits = None, (None,), None
    if design == "single":
        frame = Frame(model_of(faults).cells(space), images, each, tuple(stratify))
        sizes = frame.sizes
    elif design == "flips":
        cells = model_of(faults).cells(space)
        bits, sizes = sum(cell.sites for cell in cells), (None,) * len(flips)
    counts = allocation(sizes) if allocation is not None else None
    unit = frame.unit_images if frame is not None else images
    if design in ("flips", "events"):
        unit = 1
    if rows is not None and (rows["image"] >= 0).all():
        unit = 1
    return {
        **session.identity,
        "accel_sha256": hashlib.sha256(canonical_json(session.identity["accel"])).hexdigest(),
        "faults": faults,
        "seed": seed,
        "select": select_names,
        "rng_version": RNG_VERSION,
        "trials": None if counts is None else int(sum(counts)),
        "campaign": {
            "version": VERSION,
            "design": design,
            "frame": None if frame is None else frame.to_json(),
            "flips": list(flips),
            "bits": bits,
            "unit_images": unit,
            "list_sha256": None if rows is None else rows_sha256(rows),
            "rule": rule,
            "allocation": None if counts is None else [int(count) for count in counts],
            "pilot": pilot,
            "shard": shard or max(1, SHARD // unit),
            "stated": stated or {},
            # Left out by default, so that tasks of before there were others keep their hash.
            **({} if critical == DEFAULT else {"critical": criterion(critical) and critical}),
        },
    }


@dataclass(frozen=True)
class Options:
    """What may differ between runs of one campaign.

    way      of evaluate.WAYS; memory: bytes for golden codes; threads: of each process
    """

    way: str = "auto"
    memory: int = MEMORY
    threads: int = 1


class Campaign:
    """A campaign ready to run.

    task     as `make_task` made it
    session  of the task, if it is open already; else it is opened and checked
    rows     the fault list of design "list"
    """

    def __init__(self, task: dict, options: Options, session=None, rows=None):
        self.task, self.options, self.rows = task, options, rows
        self.task_json = canonical_json(task).decode("ascii")
        self.session = session or from_task(task, task["model"], by_layers=True)
        stated = task["campaign"]
        if stated["version"] != VERSION or task["rng_version"] != RNG_VERSION:
            raise ConfigError(
                f"a campaign must be of version {VERSION} with random numbers of version "
                f"{RNG_VERSION}, got {stated['version']} and {task['rng_version']}"
            )
        names = task["select"]
        space = select(self.session.placement, names["layers"], names["sites"])
        model = None if stated["design"] == "list" else model_of(task["faults"])
        images, seed = len(self.session.images), task["seed"]
        if stated["design"] == "single":
            each, stratify = stated["frame"]["each"], tuple(stated["frame"]["stratify"])
            self.population = SingleFaults(
                space, model, images, each=each, stratify=stratify, seed=seed
            )
            if self.population.frame.to_json() != stated["frame"]:
                raise ConfigError("the sites of the machine must be those of the campaign's frame")
        elif stated["design"] == "flips":
            self.population = Flips(space, model, images, stated["flips"], seed=seed)
        elif stated["design"] == "chips":
            self.population = Chips(space, model, images, seed=seed)
        elif stated["design"] == "events":
            self.population = Events(space, model, images, seed=seed)
        else:
            if rows is None or rows_sha256(rows) != stated["list_sha256"]:
                raise ConfigError("the fault list must be the one the campaign was begun with")
            check_rows(self.session.placement, rows, images)
            self.population = FaultList(rows, images)
        self._evaluator: Evaluator | LayeredEvaluator | None = None
        _ = self.design  # what it refuses is known before anything runs

    @property
    def evaluator(self) -> Evaluator | LayeredEvaluator:
        """Made when it is first needed: it runs all images."""
        if self._evaluator is None:
            s, o = self.session, self.options
            critical = self.task["campaign"].get("critical", DEFAULT)
            if s.layered is not None:
                self._evaluator = LayeredEvaluator(
                    s.layered, s.images, s.labels, way=o.way, critical=critical
                )
                return self._evaluator
            self._evaluator = Evaluator(
                s.placement, s.images, s.labels, way=o.way, memory=o.memory, threads=o.threads,
                critical=critical,
            )  # fmt: skip
        return self._evaluator

    @property
    def way(self) -> tuple[str, str | None]:
        """How faults are evaluated, and why not as differences (None if they are)."""
        if self.session.layered is not None:
            return "whole inferences", self.session.layered.coverage.notes[0]
        if self.task["campaign"]["design"] in ("flips", "chips", "events"):
            return "whole inferences", None
        return way_of(self.evaluator)

    def shard(self, trials: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(FAULT rows, OUTCOME rows) of some trials, a function of task and trials alone."""
        drawn = self.population.draw(trials)
        return drawn.rows, self.evaluator.outcomes(drawn)

    @property
    def design(self) -> Design:
        """Which trials to run."""
        return design_of(self.task, self.population)

    @property
    def worker_options(self) -> dict:
        """What `worker.run_shard` needs besides the task."""
        return {"way": self.options.way, "memory": self.options.memory, "rows": self.rows}

    def tally(self) -> Tally:
        """Empty counts for this campaign."""
        return tally_of(self.task)

    def split(self, trials: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(stratum, index) of trial numbers."""
        return split_of(self.task, trials)


def strata_of(task: dict) -> int:
    """Number of strata of a campaign."""
    stated = task["campaign"]
    if stated["design"] == "single":
        return len(Frame.from_json(stated["frame"]).strata)
    return len(stated["flips"]) if stated["design"] == "flips" else 1


def split_of(task: dict, trials: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(stratum, index in its order) of trial numbers."""
    index, stratum = np.divmod(np.asarray(trials, np.int64), strata_of(task))
    return stratum, index


def sizes_of(task: dict) -> tuple:
    """Members of each stratum; None for all but single faults, which are not numbered."""
    stated = task["campaign"]
    if stated["design"] == "single":
        return Frame.from_json(stated["frame"]).sizes
    return (None,) * strata_of(task)


def tally_of(task: dict) -> Tally:
    """Empty counts of a campaign."""
    stated = task["campaign"]
    return Tally(strata_of(task), stated["unit_images"], stated["rule"]["metric"])


def design_of(task: dict, population) -> Design:
    """The design of a task."""
    stated = task["campaign"]
    strata = strata_of(task)

    def trials_of(stratum: int, first: int, last: int) -> np.ndarray:
        if stated["design"] == "list":
            return population.numbers[first:last]
        return np.arange(first, last, dtype=np.int64) * strata + stratum

    counts = stated["allocation"]
    allocation = None if counts is None else Allocation(tuple(counts))
    return Design(
        Rule(**stated["rule"]), sizes_of(task), trials_of, allocation, stated["pilot"],
        stated["shard"],
    )  # fmt: skip
