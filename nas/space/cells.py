"""Networks of cells: from a genotype to a torch module."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from fsim.nas.networks.layers import classifier, conv_bn

from .definition import CellShape, CellSpace
from .genotype import INPUT_NODES, Architecture, Edge, Genotype, Step
from .primitives import Normalisation, final_normalisation, preprocess, primitive


def edge_name(op: str, source: int, target: int) -> str:
    """Name of an edge's module in `Cell.edges`."""
    return f"{op}_{source}_{target}"


class Cell(nn.Module):
    """Two inputs, nodes that each sum two edges, and the concatenation of the nodes.

    preprocess  of the output of the cell before the last one and of that of the last one
    edges       `edge_name` -> operation
    steps       of the genotype that the cell stands for; in a supernet they are given with
                every call
    """

    def __init__(
        self,
        preprocess: Iterable[nn.Module],
        edges: Mapping[str, nn.Module],
        steps: tuple[Step, ...] = (),
    ):
        super().__init__()
        self.preprocess = nn.ModuleList(preprocess)
        self.edges = nn.ModuleDict(edges)
        self.steps = steps

    def forward(self, before: Tensor, last: Tensor, steps: tuple[Step, ...] = ()) -> Tensor:
        """Two feature maps to one of (n, nodes * channels, h, w)."""
        nodes = [self.preprocess[0](before), self.preprocess[1](last)]
        for step in steps or self.steps:
            nodes.append(self._node(step, nodes))
        return torch.cat(nodes[INPUT_NODES:], dim=1)

    def _node(self, step: Step, nodes: list[Tensor]) -> Tensor:
        # Zeros are not added, unless there is nothing else.
        edges = [edge for edge in step if edge.op != "none"] or step[:1]
        values = [
            self.edges[edge_name(edge.op, edge.source, len(nodes))](nodes[edge.source])
            for edge in edges
        ]
        return values[0] if len(values) == 1 else values[0] + values[1]

    def path(self, steps: tuple[Step, ...]) -> Cell:
        """The cell that runs these steps with this cell's own modules, not copies."""
        wanted = {edge_name(edge.op, edge.source, target): None for edge, target in _edges(steps)}
        return Cell(self.preprocess, {name: self.edges[name] for name in wanted}, steps)


def _edges(steps: tuple[Step, ...]) -> list[tuple[Edge, int]]:
    """(edge, target node) of every edge of a cell."""
    return [(edge, target) for target, step in enumerate(steps, INPUT_NODES) for edge in step]


def make_cell(
    space: CellSpace,
    shape: CellShape,
    edges: Iterable[tuple[Edge, int]],
    norm: Normalisation,
    steps: tuple[Step, ...] = (),
) -> Cell:
    """A cell with new weights.

    edges  with their target nodes; what occurs twice is made once, so that two equal
           edges of a node share their weights, as in the reference (cnn_model.py)
    """
    made = {}
    for edge, target in edges:
        name = edge_name(edge.op, edge.source, target)
        if name not in made:
            stride = shape.stride if edge.source < INPUT_NODES else 1
            made[name] = primitive(edge.op, shape.channels, stride, norm)
    inputs = [
        preprocess(space.preprocess, channels, shape.channels, stride, norm.preprocess_affine)
        for channels, stride in zip(shape.inputs, (shape.before_stride, 1))
    ]
    return Cell(inputs, made, steps)


class CellNetwork(nn.Module):
    """A network of one genotype: (n, in_channels, h, w) float32 to (n, num_classes) logits.

    Made by `build_network` with weights of its own, and by `Supernet.path` with shared ones.
    torch.fx traces it.
    """

    def __init__(self, genotype: Genotype, stem: nn.Module, cells: Iterable[Cell], head: nn.Module):
        super().__init__()
        self.genotype = genotype
        self.stem = stem
        self.cells = nn.ModuleList(cells)
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        before = last = self.stem(images)
        for cell in self.cells:
            before, last = last, cell(before, last)
        return self.head(last)


def make_stem(space: CellSpace, in_channels: int) -> nn.Sequential:
    """conv_bn_3x3: no ReLU, for the cells' preprocessing begins with one."""
    return conv_bn(in_channels, space.stem_multiplier * space.init_channels, 3)


def make_head(space: CellSpace, num_classes: int, dropout: float) -> nn.Sequential:
    """Mean over the map, dropout, linear."""
    *_, last = space.cells()
    return classifier(last.channels * space.steps, num_classes, dropout)


def build_network(
    architecture: Architecture,
    *,
    num_classes: int = 10,
    in_channels: int = 3,
    dropout: float = 0.0,
    normalisation: Normalisation | None = None,
) -> CellNetwork:
    """The network of an architecture with new weights, for training on its own.

    dropout        before the classifier; the paper's final training has none
    normalisation  the default is that of the paper's final networks
    """
    space, genotype = architecture.space, architecture.genotype
    norm = normalisation or final_normalisation(space)
    cells = []
    for shape in space.cells():
        steps = genotype.steps(shape.kind)
        cells.append(make_cell(space, shape, _edges(steps), norm, steps))
    stem, head = make_stem(space, in_channels), make_head(space, num_classes, dropout)
    return CellNetwork(genotype, stem, cells, head)
