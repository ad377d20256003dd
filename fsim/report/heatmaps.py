"""Heat maps: shares over the network and over the PE array, with what is not known shown as such.

A solid cell has a share that its colour tells. A hatched one has been met, but too seldom
(`scale.Scale.uncertain`). A dashed outline is a part without a single trial; where nothing is
drawn there is nothing to strike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .markup import plain
from .palette import LIGHT, STEPS
from .pictures import Picture, figure, picture
from .scale import Scale, scale_of
from .words import capital, count, estimate, share

_LETTER = 6.6  # widest mean width of a letter of 11 units

_STRIP = 294  # units that the strip of colours is long


@dataclass(frozen=True)
class Cell:
    """One part of the population in a map.

    found  interval as JSON values; trials: its trials, of so many images each; events: the
           inferences that count
    where  what it is, for its tip; told: the whole tip, if it is to be another
    """

    found: dict
    trials: int
    events: int
    where: str
    told: str | None = None
    images: int = 1

    @property
    def tip(self) -> str:
        if self.told is not None:
            return self.told
        if not self.trials:
            return f"{self.where}: no trials"
        seen = f"{count(self.events)} of {count(self.trials * self.images)}"
        return f"{self.where}: {share(self.found)}, {seen}"


def heat_map(
    name: str,
    title: str,
    rows: Sequence[str],
    cols: Sequence[str],
    cells: Mapping[tuple[int, int], Cell],
    *,
    row_name: str,
    col_name: str,
    scale: Scale | None = None,
    values: bool = False,
    cell: tuple[float, float] = (22, 20),
    sampled: bool = True,
    files: bool = True,
) -> Picture:
    """Cells at (row, column).

    values  write the shares into the cells; cell: its width and height
    scale   of several maps that are to be compared; default: one for these cells
    sampled  False: cells are exact numbers, none is uncertain
    """
    from matplotlib.patches import Rectangle

    title, scale = capital(title), scale or scale_of((c.found, c.trials) for c in cells.values())
    rows, cols = [plain(x, 28) for x in rows], [plain(x, 18) for x in cols]
    wide, high = cell
    turned = any(len(x) * _LETTER > wide * _stride(cols, wide) + 2 for x in cols)
    left = 34 + max(len(x) for x in rows) * _LETTER
    below = 30 + (max(len(x) for x in cols) * _LETTER * 0.72 + 10 if turned else 16)
    title = plain(title, 90)
    width = max(left + wide * len(cols) + 14, 330, 28 + 7.6 * len(title))
    height = 32 + high * len(rows) + below + (64 if sampled else 42)
    drawn = figure(width, height)
    ax = drawn.add_axes(
        (left / width, 1 - (32 + high * len(rows)) / height,
         wide * len(cols) / width, high * len(rows) / height)
    )  # fmt: skip
    ax.set_xlim(0, len(cols))
    ax.set_ylim(len(rows), 0)
    for (row, col), one in sorted(cells.items()):
        look, ink = _NONE, "soft"
        if one.trials:
            step = scale.step(one.found["estimate"])
            look, ink = _look(scale, step, scale.uncertain(one.found)), f"t{step}"
        patch = Rectangle((col + 0.03, row + 0.03), 0.94, 0.94, **look)
        patch.set_gid(f"tip:{plain(one.tip, 400)}")
        ax.add_patch(patch)
        if values:
            for x, y, size, text in _words(one, high):
                ax.text(col + x, row + y, text, ha="center", va="center", color=LIGHT[ink],
                        fontsize=size, bbox=_ground(scale, one))  # fmt: skip
    step = _stride(cols, wide) if not turned else 1
    at = range(0, len(cols), step)
    ax.set_xticks([x + 0.5 for x in at], [cols[x] for x in at],
                  rotation=45 if turned else 0, ha="right" if turned else "center",
                  rotation_mode="anchor")  # fmt: skip
    step = -(-12 // int(high)) if high < 12 else 1
    at = range(0, len(rows), step)
    ax.set_yticks([y + 0.5 for y in at], [rows[y] for y in at])
    ax.tick_params(length=0)
    for side in ax.spines.values():
        side.set_visible(False)
    drawn.text(12 / width, 1 - 18 / height, title, ha="left", va="center",
               fontsize=12, fontweight="bold")  # fmt: skip
    ax.set_xlabel(col_name)
    ax.set_ylabel(row_name)
    _draw_key(drawn, scale, sampled, width, height)
    return picture(name, title, _alt(cells, scale, row_name, col_name), drawn, files)


def _stride(cols, wide) -> int:
    """Every how manyth column has room for its number."""
    longest = max(len(x) for x in cols)
    if not all(x.isdigit() for x in cols):
        return 1
    return next(s for s in (1, 2, 4, 8, 16, 32, 1 << 30) if longest * _LETTER + 3 <= wide * s)


_NONE = {"facecolor": "none", "edgecolor": LIGHT["axis"], "linestyle": (0, (2, 2)),
         "linewidth": 0.8}  # fmt: skip
"""A part without trials."""


def _look(scale: Scale, step: int, uncertain: bool) -> dict:
    """A cell that was met."""
    look = {"facecolor": LIGHT[f"h{step}"], "edgecolor": "none", "linewidth": 0}
    if uncertain:  # stripes that stand out from every step, in light and in dark
        look |= {"hatch": "////", "edgecolor": LIGHT["soft" if step < 4 else "card"]}
    return look


def _words(one: Cell, high: float) -> list[tuple[float, float, float, str]]:
    """(x, y, size, text) in a cell: its share and its trials, one below the other if they fit."""
    if not one.trials:
        return [(0.5, 0.5, 10, "no trials")]
    told, n = estimate(one.found), f"n {count(one.trials)}"
    if high >= 36:
        return [(0.5, 0.36, 11, told), (0.5, 0.74, 10, n)]
    return [(0.3, 0.5, 11, told), (0.76, 0.5, 10, n)]


def _ground(scale: Scale, one: Cell) -> dict | None:
    """Behind letters on a hatched cell."""
    if not one.trials or not scale.uncertain(one.found):
        return None
    step = scale.step(one.found["estimate"])
    return {"facecolor": LIGHT[f"h{step}"], "edgecolor": "none", "pad": 1.0}


def _draw_key(drawn, scale: Scale, sampled: bool, width: float, height: float) -> None:
    """The legend: a strip of steps with their limits, then what is no colour."""
    from matplotlib.patches import Rectangle

    def box(x, y, wide, **look):
        drawn.add_artist(Rectangle((x / width, y / height), wide / width, 12 / height,
                                   transform=drawn.transFigure, **look))  # fmt: skip

    def text(x, y, label, where="center"):
        drawn.text(x / width, y / height, label, ha=where, va="center", fontsize=10.5)

    wide, y = _STRIP / STEPS, 42 if sampled else 20
    for step in range(STEPS):
        box(12 + step * wide, y, wide, facecolor=LIGHT[f"h{step}"], edgecolor=LIGHT["axis"],
            linewidth=0.5)  # fmt: skip
    for step, edge in enumerate(scale.edges, 1):
        last = step == len(scale.edges)
        text(12 + step * wide, y - 9, f"{100 * edge:.6g}" + (" %" if last else ""))
    if sampled:
        box(12, 5, 14, **_look(scale, 3, True))
        text(31, 11, "too few events to tell", "left")
        box(182, 5, 14, **_NONE)
        text(201, 11, "no trials", "left")


def _alt(cells, scale, row_name, col_name) -> str:
    """A map in words: its highest certain cell, and how much of it is uncertain."""
    met = [c for c in cells.values() if c.trials]
    sure = [c for c in met if not scale.uncertain(c.found)]
    text = f"Heat map of {row_name} by {col_name}, {len(cells)} parts"
    if sure:
        best = max(sure, key=lambda c: c.found["estimate"])
        text += f"; highest: {best.tip}"
    few, none = len(met) - len(sure), len(cells) - len(met)
    return text + f"; {few} with too few events to tell, {none} without trials."
