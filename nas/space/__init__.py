"""The paper's cell search space: primitives, genotypes, networks of cells, supernet."""
