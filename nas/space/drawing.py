"""Pictures of the cells of a genotype."""

from __future__ import annotations

from pathlib import Path
from typing import IO

from fsim.errors import ConfigError
from fsim.files import atomic_write

from .definition import CELL_NAMES
from .genotype import INPUT_NODES, Architecture, Step

_INPUT_NAMES = ("0: cell before\nthe last", "1: last cell")
_COLOURS = {
    "none": "#eeeeee",
    "skip": "#d9d9d9",
    "max": "#fff2ae",
    "avg": "#fff2ae",
    "sep": "#b3cde3",
    "dil": "#ccebc5",
    "relu": "#fbb4ae",
    "conv": "#decbe4",
}
"""First word of an operation -> colour of its box."""

_ROW, _COLUMN = 0.62, 3.2  # inches from one operation to the next, and from node to node
_GAP = 0.9  # inches behind a node's middle that no operation's box reaches


def draw(architecture: Architecture, path: str | Path) -> None:
    """Write the cells of an architecture, one above the other, as a .png or .svg file.

    The same architecture gives the same file. ConfigError for another kind of file.
    """
    kind = Path(path).suffix[1:].lower()
    if kind not in ("png", "svg"):
        raise ConfigError(f"a picture must be a .png or .svg file, got {path}")
    with atomic_write(path) as file:
        _draw(architecture, file, kind)


def _draw(architecture: Architecture, file: IO[bytes], kind: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    cells = [
        (letter, name, architecture.genotype.steps(letter))
        for letter, name in CELL_NAMES.items()
        if architecture.genotype.steps(letter)
    ]
    heights = [2 * len(steps) * _ROW + 0.9 for _, _, steps in cells]
    width = max((max(_depths(steps)) + 1.3) * _COLUMN for _, _, steps in cells)
    # A fixed salt and no date: the same picture is the same file.
    with pyplot.rc_context({"svg.hashsalt": "fsim", "svg.fonttype": "none", "font.size": 9}):
        figure, panels = pyplot.subplots(
            len(cells),
            figsize=(width, sum(heights)),
            height_ratios=heights,
            squeeze=False,
            layout="constrained",
        )
        try:
            layout = architecture.space.layout
            for axes, (letter, name, steps) in zip(panels[:, 0], cells):
                title = f"{architecture.name}: " if architecture.name else ""
                count = f"{layout.count(letter)} of {len(layout)} cells"
                text = axes.set_title(f"{title}{name} cell ({count})", fontsize=10, loc="left")
                text.set_parse_math(False)  # a name may contain $
                _draw_cell(axes, steps, width)
            metadata = {"Software": "fsim"} if kind == "png" else {"Date": None, "Creator": "fsim"}
            figure.savefig(file, format=kind, dpi=150, metadata=metadata)
        finally:
            pyplot.close(figure)


def _depths(steps: tuple[Step, ...]) -> list[int]:
    """Of every node: how many operations lie on the longest way to it."""
    depths = [0] * INPUT_NODES
    for step in steps:
        depths.append(1 + max(depths[edge.source] for edge in step))
    return depths


def _draw_cell(axes, steps: tuple[Step, ...], width: float) -> None:
    """Inputs left, output right; each operation has a row of its own, so none overlap."""
    depths, rows = _depths(steps), 2 * len(steps)
    middle = (rows - 1) / 2
    at = {0: (0.0, middle - rows / 4), 1: (0.0, middle + rows / 4)}  # node -> (x, row)
    for node, text in enumerate(_INPUT_NAMES):
        _box(axes, at[node], text, "white")
    for i, step in enumerate(steps):
        node = INPUT_NODES + i
        at[node] = (depths[node] * _COLUMN, 2 * i + 0.5)
        _box(axes, at[node], str(node), "white", circle=True)
        for row, edge in enumerate(step, 2 * i):
            box = (at[node][0] - 0.5 * _COLUMN, row)
            _arrow(axes, at[edge.source], box)
            _arrow(axes, box, at[node], early=False)
            _box(axes, box, edge.op, _COLOURS[edge.op.split("_")[0]])
    end = ((max(depths) + 0.6) * _COLUMN, middle)
    for node in range(INPUT_NODES, len(at)):
        _arrow(axes, at[node], end, early=False)
    _box(axes, end, "concat", "white")
    axes.set_xlim(-0.8, width - 0.8)
    axes.set_ylim(rows - 0.3, -0.7)
    axes.axis("off")


def _box(axes, at, text: str, colour: str, circle: bool = False) -> None:
    style = "circle,pad=0.35" if circle else "round,pad=0.35"
    axes.text(
        *at,
        text,
        ha="center",
        va="center",
        zorder=3,
        bbox={"boxstyle": style, "facecolor": colour, "edgecolor": "#444444"},
    )


def _arrow(axes, start, end, early: bool = True) -> None:
    """A line that changes its row in the gap next to a node's column, where no box is.

    early  in the gap behind `start`, to run in the row of `end`, which only `end` has; or
           in the gap before `end`, in the row of `start`. The boxes cover the line's ends.
    """
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Curve

    (x0, y0), (x1, y1) = start, end
    left = x0 if early else x1 - _GAP
    right, bend = left + _GAP, left + _GAP / 2
    points = [(x0, y0), (left, y0), (bend, y0), (bend, y1), (right, y1), (x1, y1)]
    codes = [Curve.MOVETO, Curve.LINETO, *[Curve.CURVE4] * 3, Curve.LINETO]
    axes.add_patch(
        PathPatch(Curve(points, codes), facecolor="none", edgecolor="#777777", linewidth=1)
    )
