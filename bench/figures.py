"""A measured figure: its rounds, what it is compared with, and its limits.

Rounds of a figure and of what it is compared with take turns, so that a busy machine
slows both. The value is the median; where there is something to compare with, the ratio
is what floor and aim are about, and its range comes from the rounds in pairs.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass

HIGHER, LOWER = "higher", "lower"

AIM, FLOOR, KEPT = "meets the aim", "meets the floor", "kept"
MISSED, MISSED_AIM = "MISSED", "MISSES THE AIM"
"""Verdicts. KEPT, MISSED: the floor is; KEPT and MISSED_AIM where there is no other limit."""


@dataclass(frozen=True)
class Figure:
    """One row of the table.

    name     what was measured
    values   one a round
    unit     of the values
    better   HIGHER, LOWER, or "" for what is neither (where time goes, say)
    against  what `others` are of; "" if it is compared with nothing
    others   one a round, in the unit of the values
    floor    the least that is acceptable, aim what is wanted: of the ratio
             values / others where there are others, else of the value; None: no limit
    source   where floor and aim come from
    note     what a reader must know to judge the figure
    """

    name: str
    values: tuple[float, ...]
    unit: str
    better: str = ""
    against: str = ""
    others: tuple[float, ...] = ()
    floor: float | None = None
    aim: float | None = None
    source: str = ""
    note: str = ""

    def __post_init__(self):
        for field in ("values", "others"):
            object.__setattr__(self, field, tuple(float(v) for v in getattr(self, field)))
        if not self.values or not all(map(math.isfinite, self.values + self.others)):
            raise ValueError(f"a figure needs finite values ({self.name})")
        if len(self.others) not in (0, len(self.values)):
            raise ValueError(
                f"a figure needs as many others as values, got {len(self.others)} "
                f"and {len(self.values)} ({self.name})"
            )
        if bool(self.against) != bool(self.others):
            raise ValueError(f"what others are of must be said where there are any ({self.name})")
        if any(other == 0 for other in self.others):
            raise ValueError(f"a ratio to nothing ({self.name})")
        if self.better not in ("", HIGHER, LOWER):
            raise ValueError(f"better must be higher, lower or empty, got {self.better!r}")
        if not self.better and not self.floor is self.aim is None:
            raise ValueError(f"a limit needs a direction ({self.name})")

    @property
    def value(self) -> float:
        return statistics.median(self.values)

    @property
    def other(self) -> float | None:
        return statistics.median(self.others) if self.others else None

    @property
    def ratio(self) -> float | None:
        """Median value by median other."""
        return self.value / self.other if self.others else None

    @property
    def ratios(self) -> tuple[float, ...]:
        """Round by round."""
        return tuple(a / b for a, b in zip(self.values, self.others))

    @property
    def judged(self) -> float:
        """What floor and aim are about."""
        return self.ratio if self.others else self.value

    def meets(self, limit: float) -> bool:
        return self.judged >= limit if self.better == HIGHER else self.judged <= limit

    @property
    def verdict(self) -> str:
        """How the figure stands to floor and aim; "" if it has none."""
        if self.aim is not None and self.meets(self.aim):
            return AIM
        if self.floor is not None:
            kept = KEPT if self.aim is None else FLOOR
            return kept if self.meets(self.floor) else MISSED
        return "" if self.aim is None else MISSED_AIM

    def to_json(self) -> dict:
        """Fields, and what follows from them for readers without this class."""
        return {
            **asdict(self),
            "values": list(self.values),
            "others": list(self.others),
            "value": self.value,
            "other": self.other,
            "ratio": self.ratio,
            "verdict": self.verdict,
        }

    @classmethod
    def from_json(cls, data: dict) -> Figure:
        return cls(**{name: data[name] for name in cls.__dataclass_fields__})


def number(value: float | None) -> str:
    """Three digits that matter, thousands marked; "" for None."""
    if value is None:
        return ""
    if value == 0:
        return "0"
    rounded = float(f"{value:.3g}")
    digits = 2 - math.floor(math.log10(abs(rounded)))
    return f"{rounded:,.{max(digits, 0)}f}"


def times(ratio: float | None) -> str:
    """A ratio as it is read: 79.4 x, 0.200 x."""
    return "" if ratio is None else f"{number(ratio)} x"


def spread(values: Sequence[float]) -> str:
    """Least and greatest of several rounds."""
    if len(values) < 2:
        return ""
    return f"{number(min(values))} .. {number(max(values))}"


def limits(figure: Figure) -> tuple[str, str]:
    """Floor and aim as they are read."""
    sign = ">=" if figure.better == HIGHER else "<="
    show = times if figure.others else number
    return tuple("" if v is None else f"{sign} {show(v)}" for v in (figure.floor, figure.aim))


HEADS = ("figure", "value", "unit", "rounds", "against", "its value", "ratio", "floor", "aim",
         "verdict")  # fmt: skip


def row(figure: Figure) -> tuple[str, ...]:
    """A figure as cells under HEADS."""
    return (
        figure.name, number(figure.value), figure.unit, spread(figure.values), figure.against,
        number(figure.other), times(figure.ratio), *limits(figure), figure.verdict,
    )  # fmt: skip


def table(figures: Sequence[Figure]) -> str:
    """Aligned columns for a terminal; columns that are empty everywhere are left out."""
    rows = [row(figure) for figure in figures]
    used = [i for i in range(len(HEADS)) if any(cells[i] for cells in rows)]
    lines = [[HEADS[i] for i in used], *([cells[i] for i in used] for cells in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(used))]
    right = [HEADS[i] in ("value", "its value", "ratio", "floor", "aim") for i in used]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if flush else cell.ljust(width)
            for cell, width, flush in zip(line, widths, right)
        ).rstrip()
        for line in lines
    )


def markdown(figures: Sequence[Figure]) -> str:
    """The same columns as a table of Markdown; a missed limit in bold."""
    rows = [row(figure) for figure in figures]
    used = [i for i in range(len(HEADS)) if any(cells[i] for cells in rows)]
    lines = ["| " + " | ".join(HEADS[i] for i in used) + " |", "|---" * len(used) + "|"]
    for cells in rows:
        shown = [cells[i].replace("|", "\\|") for i in used]
        if used[-1] == len(HEADS) - 1 and cells[-1] in (MISSED, MISSED_AIM):
            shown[-1] = f"**{shown[-1]}**"
        lines.append("| " + " | ".join(shown) + " |")
    return "\n".join(lines)
