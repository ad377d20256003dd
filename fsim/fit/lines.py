"""A FIT budget: lines of raw rate x named deratings x P(failure | upset), and their sums.

    FIT of a line = raw FIT of all its bits x factor x ... x P(failure | upset)

The product is that of the architectural vulnerability factor (Mukherjee et al., MICRO 2003,
"A systematic methodology to compute the architectural vulnerability factors"): the raw rate,
derated by what keeps upsets from becoming failures. Tables that people bring and campaigns of
fsim end in the same lines, and their totals in the same sums.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from fsim.errors import ConfigError
from fsim.simulator.statistics import Interval

from .terms import Counts, Term, scaled, total


@dataclass(frozen=True, eq=False)
class Line:
    """One component of a budget.

    component  its name; group  class that subtotals are made of
    bits       on the machine; None where a table gives a share of a whole
    raw        FIT of all its bits, before any derating
    factors    name of a derating -> its value in [0, 1], in the order of the product
    failing    P(failure | upset): Counts, or the stated number
    condition  what that probability is conditional on, in words
    """

    component: str
    group: str
    bits: float | None
    raw: float
    factors: dict[str, float]
    failing: Counts | float
    condition: str

    @property
    def exposed(self) -> float:
        """FIT if every upset that the deratings leave were a failure."""
        return self.raw * math.prod(self.factors.values())

    @property
    def term(self) -> Term:
        return Term(self.exposed, self.failing)


@dataclass(frozen=True, eq=False)
class Layer:
    """What strikes while one layer runs, or words that belong to it.

    terms  of all components
    """

    name: str
    terms: Sequence[Term]

    @property
    def exposed(self) -> float:
        """As `Line.exposed`, of the layer's part."""
        return sum(term.rate for term in self.terms)


@dataclass(frozen=True, eq=False)
class Budget:
    """Lines and what adds them up.

    failure     what counts as a failure, in words
    confidence  of all intervals
    notes       what the reader must know, a sentence each
    """

    lines: Sequence[Line]
    failure: str
    confidence: float = 0.95
    layers: Sequence[Layer] = ()
    notes: tuple[str, ...] = field(default=())

    def __post_init__(self):
        if not self.lines:
            raise ConfigError("a FIT budget must have at least one component, got none")
        if not 0.0 < self.confidence < 1.0:
            raise ConfigError(
                f"confidence must lie strictly between 0 and 1, got {self.confidence!r}"
            )

    @property
    def groups(self) -> list[str]:
        """Classes in the order in which they come."""
        return list(dict.fromkeys(line.group for line in self.lines))

    def total(self, lines: Iterable[Line] | None = None) -> Interval:
        """FIT of some lines (default: all) with its interval."""
        chosen = self.lines if lines is None else list(lines)
        return self.total_of([line.term for line in chosen])

    def total_of(self, terms: Sequence[Term]) -> Interval:
        """FIT of some terms with its interval."""
        return total(terms, self.confidence)

    def probability(self, terms: Sequence[Term]) -> Interval:
        """P(failure | upset that strikes some terms), upsets in proportion to their rates."""
        rate = sum(term.rate for term in terms)
        if rate == 0.0:
            # No upset strikes: the share of a rate of 0 has no value.
            return Interval(0.0, 1.0, math.nan, "no rate", self.confidence)
        if len(terms) == 1:
            return terms[0].probability(self.confidence)
        return scaled(total(terms, self.confidence), 1.0 / rate)

    def failing(self, line: Line) -> Interval:
        """P(failure | upset) of a line."""
        return line.term.probability(self.confidence)

    def fit(self, line: Line) -> Interval:
        """FIT of a line."""
        return total([line.term], self.confidence)
