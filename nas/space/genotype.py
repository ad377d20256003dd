"""Genotypes: which operations connect which nodes of the two kinds of cell."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from fsim.errors import ConfigError

from .definition import CELL_NAMES, CellSpace, unknown_primitive

INPUT_NODES = 2
"""Nodes 0 and 1 of a cell are the outputs of the cell before the last one and of the last one."""

_LONGEST = 500


@dataclass(frozen=True)
class Edge:
    """Operation `op` on the value of node `source`."""

    op: str
    source: int

    def __str__(self):
        return f"{self.op} from {self.source}"


Step = tuple[Edge, Edge]
"""The two edges whose sum is a node's value; step i makes node i + 2."""


@dataclass(frozen=True)
class Genotype:
    """The steps of the normal and of the reduction cell, all cells of a kind being alike.

    A kind that the layout lacks may have no steps.
    """

    normal: tuple[Step, ...]
    reduce: tuple[Step, ...]

    def steps(self, kind: str) -> tuple[Step, ...]:
        """Of the cells of kind N or R."""
        return getattr(self, CELL_NAMES[kind])


@dataclass(frozen=True)
class Architecture:
    """A genotype, the space it is of, and what is known of it: what a genotype file holds.

    ConfigError lists everything that is not valid.
    """

    genotype: Genotype
    space: CellSpace
    name: str = ""
    source: str = ""

    def __post_init__(self):
        problems = list(genotype_problems(self.genotype, self.space))
        problems += text_problems(self.name, self.source)
        if problems:
            raise ConfigError("; ".join(problems))


def check_genotype(genotype: Genotype, space: CellSpace) -> None:
    """ConfigError with all that keeps `genotype` from being one of `space`, in one line."""
    problems = list(genotype_problems(genotype, space))
    if problems:
        raise ConfigError(f"the genotype does not fit: {'; '.join(problems)}")


def genotype_problems(genotype: Genotype, space: CellSpace) -> Iterator[str]:
    """Everything that keeps `genotype` from being one of `space`."""
    for kind in CELL_NAMES:
        yield from cell_problems(kind, genotype.steps(kind), space)


def cell_problems(kind: str, steps: tuple[Step, ...], space: CellSpace) -> Iterator[str]:
    """Everything that keeps `steps` from being those of the space's cells of kind N or R."""
    name = CELL_NAMES[kind]
    if not steps and kind not in space.layout:
        return
    if len(steps) != space.steps:
        yield f"the {name} cell must have {space.steps} steps, got {len(steps)}"
    for target, step in enumerate(steps, INPUT_NODES):
        where = f"{name} cell, node {target}"
        if len(step) != 2:
            yield f"{where}: must have 2 inputs, got {len(step)}"
        for edge in step:
            if edge.op not in space.primitives:
                yield f"{where}: {unknown_primitive(edge.op, space.primitives)}"
            if not isinstance(edge.source, int) or not 0 <= edge.source < target:
                yield (
                    f"{where}: must read earlier nodes, 0 to {target - 1}, "
                    f"got {str(edge.source)[:20]}"
                )


def text_problems(name: object, source: object) -> list[str]:
    """What is wrong with an architecture's name and source."""
    return [
        f"{key} must be one line of at most {_LONGEST} printable characters"
        for key, value in (("name", name), ("source", source))
        if not isinstance(value, str) or not value.isprintable() or len(value) > _LONGEST
    ]


def random_genotype(space: CellSpace, rng: np.random.Generator) -> Genotype:
    """Every input of every step independently: a uniform operation of a uniform earlier node."""

    def edge(target: int) -> Edge:
        op = space.primitives[rng.integers(len(space.primitives))]
        return Edge(op, int(rng.integers(target)))

    def cell() -> tuple[Step, ...]:
        nodes = range(INPUT_NODES, INPUT_NODES + space.steps)
        return tuple((edge(node), edge(node)) for node in nodes)

    return Genotype(cell(), cell())


def describe(architecture: Architecture) -> str:
    """The cells as text, a line a node."""
    space, lines = architecture.space, []
    for kind, name in CELL_NAMES.items():
        steps = architecture.genotype.steps(kind)
        if not steps:
            continue
        lines.append(f"{name} cell ({space.layout.count(kind)} of {len(space.layout)})")
        for node, (first, second) in enumerate(steps, INPUT_NODES):
            lines.append(f"  {node} = {first.op}({first.source}) + {second.op}({second.source})")
        nodes = ", ".join(str(i) for i in range(INPUT_NODES, INPUT_NODES + len(steps)))
        lines.append(f"  output = concat({nodes})")
    lines.append("0: output of the cell before the last one, 1: of the last one, both preprocessed")
    return "\n".join(lines)
