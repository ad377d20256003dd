"""The picture of a run: injections a second by tool, and every limited figure on one axis."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from .figures import HIGHER, MISSED, MISSED_AIM, Figure, number, times
from .report import Run

# Solid ground and dark letters: readable on a light and on a dark page alike.
GROUND, INK, GRID = "#f7f7f4", "#22262b", "#cfcfca"
OURS, OTHERS = "#1f6f8b", ("#b0702e", "#7d7d86", "#8a5a83")
GOOD, BAD = "#2f7d4f", "#b3362b"
RATES = ": injections, "
"""How the figures of the upper part are named: network, this, threads."""


def margin(figure: Figure) -> float:
    """How many times better than the floor (the aim, where there is no floor)."""
    limit = figure.aim if figure.floor is None else figure.floor
    return figure.judged / limit if figure.better == HIGHER else limit / figure.judged


def limited(figures: Sequence[Figure]) -> list[Figure]:
    """Figures that can stand on an axis of ratios to their limit: those that are not zero."""
    return [f for f in figures if f.verdict and f.judged > 0 and (f.floor or f.aim)]


def rates(figures: Sequence[Figure]) -> dict[str, dict[str, float]]:
    """Network and threads -> tool -> injections a second."""
    found: dict[str, dict[str, float]] = {}
    for figure in figures:
        if RATES in figure.name:
            mine = found.setdefault(figure.name.replace(RATES, ", "), {})
            mine["fsim"] = figure.value
            if figure.others:
                mine[figure.against] = figure.other
    return found


def draw(run: Run, path: str | os.PathLike) -> bool:
    """Write the picture, its kind by the file's ending; False if there is nothing to draw."""
    speeds, limits = rates(run.figures), limited(run.figures)
    if not speeds and not limits:
        return False
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    heights = [0.32 * sum(map(len, speeds.values())) + 0.9 if speeds else 0,
               0.36 * len(limits) + 0.9 if limits else 0]  # fmt: skip
    kept = [height for height in heights if height]
    style = {
        "text.color": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK,
        "axes.edgecolor": GRID, "axes.facecolor": GROUND, "figure.facecolor": GROUND,
        "font.size": 9, "svg.hashsalt": "fsim",
    }  # fmt: skip
    with pyplot.rc_context(style):
        figure, axes = pyplot.subplots(
            len(kept), 1, figsize=(9, sum(kept) + 0.5), height_ratios=kept, squeeze=False
        )
        parts = iter(axes[:, 0])
        if speeds:
            _draw_rates(next(parts), speeds)
        if limits:
            _draw_limits(next(parts), limits)
        cpu = f"{run.machine.get('CPU', '')}, {run.machine.get('CPUs', '?')} CPUs"
        figure.suptitle(f"fsim, {run.date}, {cpu}" + (", quick run" if run.quick else ""))
        figure.tight_layout()
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        svg = Path(path).suffix == ".svg"
        figure.savefig(path, dpi=120, metadata={"Date": None} if svg else None)
        pyplot.close(figure)
    return True


def _clean(axes) -> None:
    axes.set_axisbelow(True)
    axes.grid(axis="x", color=GRID, linewidth=0.6)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0)


def _draw_rates(axes, speeds: dict[str, dict[str, float]]) -> None:
    tools = list(dict.fromkeys(tool for found in speeds.values() for tool in found))
    colour = {tool: OURS if tool == "fsim" else OTHERS[i % len(OTHERS)]
              for i, tool in enumerate(tools)}  # fmt: skip
    labels, values, colours = [], [], []
    for network, found in speeds.items():
        for tool, value in found.items():
            labels.append(f"{network}, {tool}")
            values.append(value)
            colours.append(colour[tool])
    axes.barh(labels, values, color=colours, height=0.7)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlim(min(values) / 3, max(values) * 4)
    for place, value in enumerate(values):
        axes.text(value * 1.06, place, number(value), va="center")
    axes.set_xlabel("injections a second, one random accumulator (rivals: output) flip an image")
    _clean(axes)


def _draw_limits(axes, figures: list[Figure]) -> None:
    margins = [margin(figure) for figure in figures]
    labels = [f.name + (f"\nagainst {f.against}" if f.against else "") for f in figures]
    aims = [
        None if f.aim is None or f.floor is None
        else (f.aim / f.floor if f.better == HIGHER else f.floor / f.aim)
        for f in figures
    ]  # fmt: skip
    axes.set_xscale("log")
    axes.axvline(1, color=INK, linewidth=1.2)
    for place, (figure, value, aim) in enumerate(zip(figures, margins, aims)):
        colour = BAD if figure.verdict in (MISSED, MISSED_AIM) else GOOD
        axes.plot([1, value], [place, place], color=colour, linewidth=2)
        axes.plot(value, place, "o", color=colour)
        shown = times(figure.ratio) if figure.others else f"{number(figure.value)} {figure.unit}"
        axes.annotate(shown, (value, place), (0, 6), textcoords="offset points", ha="center")
        if aim is not None:
            axes.plot(aim, place, "D", markersize=6, markerfacecolor="none", color=INK)
    everything = [1.0, *margins, *(aim for aim in aims if aim is not None)]
    axes.set_xlim(min(everything) / 1.8, max(everything) * 1.8)
    axes.set_ylim(len(figures) - 0.4, -0.8)
    axes.set_yticks(range(len(figures)), labels)
    ticks = [t for t in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)
             if min(everything) / 1.8 <= t <= max(everything) * 1.8]  # fmt: skip
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("times better than the floor (line at 1); diamonds: aims; red: missed")
    _clean(axes)
