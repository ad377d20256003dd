"""The weight-sharing supernet: all architectures of a space in one set of weights."""

from __future__ import annotations

from torch import Tensor, nn

from .cells import CellNetwork, make_cell, make_head, make_stem
from .definition import CellSpace
from .genotype import INPUT_NODES, Edge, Genotype, check_genotype
from .primitives import SUPERNET, Normalisation


class Supernet(nn.Module):
    """Every operation on every edge of every cell, once; a call runs one genotype's path.

    Parameters have the names that they have in a network built alone, so that a
    state_dict of one goes into the other (`build_network(normalisation=SUPERNET)`).

    dropout        before the classifier, 0.1 in the paper's search
    normalisation  the default is the paper's: no learnt scales and shifts in the cells
    """

    def __init__(
        self,
        space: CellSpace,
        *,
        num_classes: int = 10,
        in_channels: int = 3,
        dropout: float = 0.1,
        normalisation: Normalisation = SUPERNET,
    ):
        super().__init__()
        self.space = space
        self.stem = make_stem(space, in_channels)
        edges = all_edges(space)
        self.cells = nn.ModuleList(
            make_cell(space, shape, edges, normalisation) for shape in space.cells()
        )
        self.head = make_head(space, num_classes, dropout)

    def forward(self, images: Tensor, genotype: Genotype) -> Tensor:
        """(n, in_channels, h, w) float32 to (n, num_classes) logits of one architecture.

        ConfigError if the genotype is not one of the space.
        """
        check_genotype(genotype, self.space)
        before = last = self.stem(images)
        for kind, cell in zip(self.space.layout, self.cells):
            before, last = last, cell(before, last, genotype.steps(kind))
        return self.head(last)

    def path(self, genotype: Genotype) -> CellNetwork:
        """The network of one genotype that shares this supernet's modules.

        Training it trains the supernet. Unlike the supernet it takes one tensor, so that
        `fsim.attach` and `fault_points` see just this architecture; it holds no other weights.
        ConfigError if the genotype is not one of the space.
        """
        check_genotype(genotype, self.space)
        cells = [
            cell.path(genotype.steps(kind)) for kind, cell in zip(self.space.layout, self.cells)
        ]
        path = CellNetwork(genotype, self.stem, cells, self.head)
        path.training = self.training
        return path


def all_edges(space: CellSpace) -> list[tuple[Edge, int]]:
    """(edge, target node) of every edge that a cell of the space can have."""
    return [
        (Edge(op, source), target)
        for target in range(INPUT_NODES, INPUT_NODES + space.steps)
        for source in range(target)
        for op in space.primitives
    ]
