"""Charts: shares with their intervals, accuracy against a rate, chips, what to protect."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .markup import plain
from .palette import LIGHT, OUTCOMES
from .pictures import Picture, figure, picture
from .words import METRICS, capital, count, percent, share

WIDTH = 640
"""Units of a chart across."""

SERIES = {"sdc_critical": ("critical", "o"), "sdc": ("benign", "s"), "masked": ("masked", "D")}
"""Metric -> (colour, marker): told apart without colour too."""


def outcome_bars(name: str, title: str, campaigns: Sequence[tuple[str, list[dict]]],
                 files: bool = True) -> Picture:  # fmt: skip
    """One bar of outcome shares for each (name, outcomes); weighted shares, made to add up."""
    height = 34 + 46 * len(campaigns) + 34
    drawn = figure(WIDTH, height)
    left = _left([label for label, _ in campaigns]) if len(campaigns) > 1 else 16
    ax = _axes(drawn, left, 30, 20, 40)
    seen = {}
    for at, (label, rows) in enumerate(campaigns):
        begin = 0.0
        total = sum(row["share"]["estimate"] or 0 for row in rows) or 1
        for row in rows:
            size = (row["share"]["estimate"] or 0) / total
            colour = LIGHT[OUTCOMES[row["outcome"]]]
            (bar,) = ax.barh(at, size, left=begin, height=0.6, color=colour,
                             edgecolor=LIGHT["card"], linewidth=1)  # fmt: skip
            bar.set_gid(f"tip:{plain(label)}: {METRICS[row['outcome']]} {share(row['share'])}, "
                        f"{count(row['count'])} of {count(row['of'])}")  # fmt: skip
            seen[row["outcome"]] = colour
            begin += size
    ax.set_xlim(0, 1)
    ax.set_ylim(len(campaigns) - 0.5, -0.5)
    names = [plain(label, 28) for label, _ in campaigns] if len(campaigns) > 1 else [""]
    ax.set_yticks(range(len(campaigns)), names)
    _percent_axis(ax.xaxis)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    _title(drawn, title)
    _legend(drawn, [(LIGHT[OUTCOMES[o]], METRICS[o], "bar") for o in seen])
    alt = "; ".join(
        f"{plain(label)}: " + ", ".join(
            f"{METRICS[row['outcome']]} {percent(row['share']['estimate'])}" for row in rows)
        for label, rows in campaigns
    )  # fmt: skip
    return picture(name, title, f"Stacked bars of outcome shares. {alt}.", drawn, files)


def forest(name: str, title: str, rows: Sequence[tuple[str, dict, int]], *, metric: str,
           files: bool = True) -> Picture:  # fmt: skip
    """Dots with their intervals, one for each (label, interval, trials), from zero on.

    The axis ends where the intervals of rows with 30 trials or more do; an interval that goes
    on beyond it ends in an arrow.
    """
    rows = list(rows)
    height = 40 + 24 * len(rows) + 52
    left = _left([label for label, _, _ in rows])
    drawn = figure(WIDTH, height)
    ax = _axes(drawn, left, 96, 34, 48)
    top = _reach([(found, n) for _, found, n in rows])
    colour, marker = SERIES[metric]
    for at, (label, found, n) in enumerate(rows):
        tip = (
            f"tip:{plain(label)}: {share(found)}, {count(n)} trials"
            if n
            else (f"tip:{plain(label)}: no trials")
        )
        if n:
            high = min(found["high"], top)
            (line,) = ax.plot([found["low"], high], [at, at], color=LIGHT[colour], linewidth=2,
                              solid_capstyle="butt")  # fmt: skip
            line.set_gid(tip)
            if found["high"] > top:
                ax.plot([top], [at], marker=">", color=LIGHT[colour], markersize=7, clip_on=False)
            if found["estimate"] <= top:
                (dot,) = ax.plot([found["estimate"]], [at], marker=marker, markersize=7,
                                 color=LIGHT[colour], markeredgecolor=LIGHT["card"],
                                 clip_on=False, zorder=3)  # fmt: skip
                dot.set_gid(tip)
        ax.text(1.02, at, f"n {count(n)}" if n else "no trials", va="center", ha="left",
                fontsize=10.5, color=LIGHT["soft"], transform=ax.get_yaxis_transform())  # fmt: skip
    ax.set_xlim(0, top)
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.set_yticks(range(len(rows)), [plain(label, 28) for label, _, _ in rows])
    ax.tick_params(axis="y", length=0, pad=10)
    ax.grid(axis="x")
    _percent_axis(ax.xaxis)
    ax.set_xlabel(f"{METRICS[metric]}, share of inferences")
    _title(drawn, title)
    alt = "; ".join(f"{plain(label)} {share(found)}" for label, found, n in rows[:12] if n)
    return picture(name, title, f"Rates with intervals. {alt}.", drawn, files)


def bit_profile(name: str, title: str, parts: Sequence[dict], metric: str,
                files: bool = True) -> Picture:  # fmt: skip
    """Rates by bit, a panel for each component. parts: rows of component, bit and metrics."""
    names = list(dict.fromkeys(row["component"] for row in parts))
    panel = 150
    height = 44 + panel * len(names) + 16
    drawn = figure(WIDTH, height)
    colour, marker = SERIES[metric]
    for number, component in enumerate(names):
        rows = [row for row in parts if row["component"] == component]
        met = [row for row in rows if row["trials"]]
        most = max(row["bit"] for row in rows)
        ax = drawn.add_axes(
            (70 / WIDTH, 1 - (36 + panel * (number + 1) - 42) / height, (WIDTH - 90) / WIDTH,
             (panel - 62) / height)
        )  # fmt: skip
        top = _reach([(row[metric], row["trials"]) for row in met])
        for row in met:
            found, x = row[metric], row["bit"]
            (line,) = ax.plot([x, x], [found["low"], min(found["high"], top)],
                              color=LIGHT[colour], linewidth=2)  # fmt: skip
            line.set_gid(f"tip:{plain(component)} bit {row['bit']}: {share(found)}, "
                         f"{count(row['trials'])} trials")  # fmt: skip
            if found["high"] > top:
                ax.plot([x], [top], marker="^", color=LIGHT[colour], markersize=5, clip_on=False)
        shown = [row for row in met if row[metric]["estimate"] <= top]
        ax.plot([row["bit"] for row in shown], [row[metric]["estimate"] for row in shown],
                marker=marker, linestyle="", color=LIGHT[colour], markersize=6,
                markeredgecolor=LIGHT["card"], markeredgewidth=0.5, clip_on=False,
                zorder=3)  # fmt: skip
        ax.set_ylim(0, top)
        ax.set_xlim(-0.6, most + 0.6)
        ax.set_xticks(range(0, most + 1, 1 if most < 16 else 2))
        ax.grid(axis="y")
        _percent_axis(ax.yaxis, 4)
        ax.set_title(plain(component, 40), loc="left", fontsize=11.5, pad=5)
        if component == names[-1]:
            ax.set_xlabel("bit (0 is the lowest)")
    _title(drawn, title)
    best = max((row for row in parts if row["trials"]), key=lambda row: row[metric]["low"],
               default=None)  # fmt: skip
    alt = f"Rates of {len(parts)} bits with intervals"
    if best is not None:
        alt += (f"; highest lower limit: {plain(best['component'])} bit {best['bit']}, "
                f"{share(best[metric])}")  # fmt: skip
    return picture(name, title, alt + ".", drawn, files)


def lines(name: str, title: str, x: Sequence[float], bands: Sequence[tuple[str, str, list[dict]]],
          *, x_name: str, y_name: str, log: bool = False, level: tuple[str, float] | None = None,
          faded: Sequence[bool] | None = None, step: bool = False, from_zero: bool = True,
          files: bool = True) -> Picture:  # fmt: skip
    """Estimates as lines within their bands.

    bands  (colour, label, interval of each x); level: a dashed line and its name
    faded  points that rest on too little: dotted
    """
    drawn = figure(WIDTH, 330)
    ax = _axes(drawn, 76, 24, 62, 56)
    for colour, _label, found in bands:
        middle = [math.nan if f["estimate"] is None else f["estimate"] for f in found]
        how = "post" if step else None
        ax.fill_between(x, [f["low"] for f in found], [f["high"] for f in found], step=how,
                        color=LIGHT[colour], alpha=0.22, linewidth=0)  # fmt: skip
        style = "steps-post" if step else "default"
        sure = [math.nan if faded and faded[i] else y for i, y in enumerate(middle)]
        ax.plot(x, middle, color=LIGHT[colour], linewidth=1.4, linestyle=":", drawstyle=style)
        ax.plot(x, sure, color=LIGHT[colour], linewidth=2, drawstyle=style)
        if len(x) <= 80:
            for at, one in zip(x, found):
                if one["estimate"] is not None:
                    (dot,) = ax.plot([at], [one["estimate"]], marker="o", markersize=3.5,
                                     color=LIGHT[colour])  # fmt: skip
                    dot.set_gid(f"tip:{x_name} {at:.4g}: {share(one)}")
    if level is not None:
        ax.axhline(level[1], color=LIGHT["soft"], linestyle="--", linewidth=1.2)
    if log:
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter(lambda value, _: f"{value:.0e}".replace("e-0", "e-"))
    ax.grid()
    told = [f for _, _, found in bands for i, f in enumerate(found) if not (faded and faded[i])]
    if told:  # what rests on too little may leave the picture
        low = 0.0 if from_zero else min(f["low"] for f in told)
        high = max([f["high"] for f in told] + ([level[1]] if level else []))
        margin = 0.05 * (high - low) or 0.01
        ax.set_ylim(low - (0 if low == 0 else margin), high + margin)
    _percent_axis(ax.yaxis)
    ax.set_xlabel(x_name)
    ax.set_ylabel(y_name)
    _title(drawn, title)
    marks = [(LIGHT[colour], label, "-") for colour, label, _ in bands]
    if level is not None:
        marks.append((LIGHT["soft"], level[0], "--"))
    _legend(drawn, marks, below_title=True)
    ends = [(x[0], 0), (x[-1], -1)] if len(x) else []
    alt = "; ".join(
        f"{label}: " + ", ".join(f"{share(found[i])} at {at:.4g}" for at, i in ends)
        for _, label, found in bands
    )
    return picture(name, title, f"Lines with bands over {x_name}. {alt}.", drawn, files)


def chip_steps(name: str, title: str, accuracy: Sequence[float], clean: float | None,
               files: bool = True) -> Picture:  # fmt: skip
    """Share of chips that are at most as accurate, one step a chip."""
    values = sorted(accuracy)
    drawn = figure(WIDTH, 320)
    ax = _axes(drawn, 76, 24, 62, 56)
    n = len(values)
    ax.step([values[0], *values], [i / n for i in range(n + 1)], where="post",
            color=LIGHT["good"], linewidth=2)  # fmt: skip
    for value in values if n <= 500 else ():
        (rug,) = ax.plot([value, value], [0, 0.03], color=LIGHT["good"], linewidth=1)
        rug.set_gid(f"tip:a chip with {percent(value)}")
    marks = [(LIGHT["good"], plural_chips(n), "-")]
    if clean is not None:
        ax.axvline(clean, color=LIGHT["soft"], linestyle="--", linewidth=1.2)
        marks.append((LIGHT["soft"], f"without faults {percent(clean, 4)}", "--"))
    ax.grid()
    ax.set_ylim(0, 1.02)
    _percent_axis(ax.xaxis)
    _percent_axis(ax.yaxis)
    ax.set_xlabel("accuracy of a chip")
    ax.set_ylabel("chips at most so accurate")
    _title(drawn, title)
    _legend(drawn, marks, below_title=True)
    alt = (f"Distribution of accuracy over {plural_chips(n)}: from {percent(values[0])} to "
           f"{percent(values[-1])}, median {percent(values[(n - 1) // 2])}.")  # fmt: skip
    return picture(name, title, alt, drawn, files)


def plural_chips(n: int) -> str:
    """3 -> "3 chips"."""
    return f"{n:,} chip{'' if n == 1 else 's'}"


def side_rates(name: str, title: str, rows: Sequence[dict], x_name: str, metric: str,
               files: bool = True) -> Picture:  # fmt: skip
    """Rates along one side of the array: a bar of its interval for each block."""
    drawn = figure(WIDTH, 250)
    ax = _axes(drawn, 76, 24, 40, 52)
    colour, marker = SERIES[metric]
    top = min(1.0, 1.04 * max([row["rate"]["high"] for row in rows if row["trials"]] or [1.0]))
    for row in rows:
        found = row["rate"]
        middle, wide = (row["first"] + row["last"]) / 2, row["last"] - row["first"] + 1
        if not row["trials"]:
            continue
        bar = ax.bar(middle, min(found["high"], top) - found["low"], bottom=found["low"],
                     width=wide * 0.8, color=LIGHT[colour], alpha=0.28)[0]  # fmt: skip
        bar.set_gid(f"tip:{x_name} {span(row['first'], row['last'])}: {share(found)}, "
                    f"{count(row['events'])} of {count(row['trials'])}")  # fmt: skip
        ax.plot([middle - wide * 0.4, middle + wide * 0.4], [found["estimate"]] * 2,
                color=LIGHT[colour], linewidth=2, clip_on=False)  # fmt: skip
    ax.set_ylim(0, top)
    ax.set_xlim(rows[0]["first"] - 0.6, rows[-1]["last"] + 0.6)
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.grid(axis="y")
    _percent_axis(ax.yaxis)
    ax.set_xlabel(x_name)
    _title(drawn, title)
    best = max(rows, key=lambda row: row["rate"]["low"])
    alt = (f"{METRICS[metric]} along the array with intervals; highest lower limit at {x_name} "
           f"{span(best['first'], best['last'])}: {share(best['rate'])}.")  # fmt: skip
    return picture(name, title, alt, drawn, files)


def span(first: int, last: int) -> str:
    """3, 5 -> "3–5"."""
    return str(first) if first == last else f"{first}–{last}"


def _reach(rows: Sequence[tuple[dict, int]]) -> float:
    """Where an axis of shares ends."""
    worth = [f for f, n in rows if n >= 30] or [f for f, n in rows if n]
    if not worth:
        return 1.0
    high = max(found["high"] for found in worth)
    # An interval far above every estimate says little: show three times the largest one.
    most = max(found["estimate"] for found in worth)
    if most > 0:
        high = min(high, 3 * most)
    return min(1.0, high * 1.04) or 1.0


def _left(labels) -> float:
    return 24 + max([4, *(len(plain(label, 28)) for label in labels)]) * 6.6


def _axes(drawn, left, right, top, bottom):
    """Axes with margins in units."""
    wide, high = drawn.get_size_inches() * 72
    return drawn.add_axes(
        (left / wide, bottom / high, (wide - left - right) / wide, (high - top - bottom) / high)
    )


def _title(drawn, title: str) -> None:
    wide, high = drawn.get_size_inches() * 72
    drawn.text(12 / wide, 1 - 16 / high, plain(capital(title), 90), ha="left", va="center",
               fontsize=12, fontweight="bold")  # fmt: skip


def _legend(drawn, marks, below_title: bool = False) -> None:
    """(colour, label, kind) in a row: at the foot or below the title; kinds: bar, -, --."""
    wide, high = drawn.get_size_inches() * 72
    x, y = (76.0, high - 40) if below_title else (16.0, 12.0)
    from matplotlib.lines import Line2D
    from matplotlib.patches import Rectangle

    for colour, label, kind in marks:
        if kind == "bar":
            drawn.add_artist(Rectangle((x / wide, (y - 5) / high), 16 / wide, 10 / high,
                                       facecolor=colour, transform=drawn.transFigure))  # fmt: skip
        else:
            drawn.add_artist(Line2D([x / wide, (x + 18) / wide], [y / high] * 2, color=colour,
                                    linestyle=kind, linewidth=2,
                                    transform=drawn.transFigure))  # fmt: skip
        drawn.text((x + 24) / wide, y / high, label, ha="left", va="center", fontsize=11)
        x += 26 + 6.6 * len(label) + 12


def _percent_axis(axis, ticks: int = 6) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axis.set_major_locator(MaxNLocator(nbins=ticks, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.6g} %"))
