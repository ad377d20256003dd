"""How accuracy falls with the bit error rate, quickly and then drawn."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from .inject import Golden, run_trials
from .sites import SiteSpace

_LOWEST, _HIGHEST, _STEPS = -9, -1, 2  # decades searched, points a decade
_CURVE_TRIAL = 1 << 30  # trial numbers apart from those of the main run


@dataclass(frozen=True)
class Curve:
    """Accuracy at several bit error rates.

    ber, accuracy  points, in increasing order of the rate
    images         inferences behind each point
    drop_points    the fall looked for, in percentage points
    ber_at_drop    rate at which accuracy has fallen that far, interpolated on the
                   logarithm of the rate between two points; None if it never does
    """

    ber: tuple[float, ...]
    accuracy: tuple[float, ...]
    images: int
    clean: float
    drop_points: float
    ber_at_drop: float | None


def quick_curve(
    space: SiteSpace,
    golden: Golden,
    model,
    *,
    seed: int,
    repeats: int = 1,
    drop: float = 1.0,
    most_faults: int | None = None,
) -> Curve:
    """Scan the rate upward until accuracy has fallen by ten points or 10 x `drop`.

    model        a BitErrors; its rates are scaled so that the largest is the scanned one
    most_faults  the scan ends before a rate at which all images have more
    """
    largest = max(model.acts, model.weights, model.psums)
    shares = {name: getattr(model, name) / largest for name in ("acts", "weights", "psums")}
    exposed = sum(shares[block.component] * block.exposed_bits for block in space.blocks)
    images = len(golden.images)
    # Below one flip in a hundred inferences of the whole set there is nothing to see.
    lowest = max(_LOWEST, math.floor(math.log10(0.1 / max(exposed, 1))))
    points, numbers = [], range(lowest * _STEPS, _HIGHEST * _STEPS + 1)
    for number in numbers:
        ber = 10 ** (number / _STEPS)
        if points and most_faults is not None and ber * exposed * images > most_faults:
            break
        scaled = replace(model, **{name: ber * share for name, share in shares.items()})
        trials = range(_CURVE_TRIAL, _CURVE_TRIAL + repeats)
        right = [
            np.mean(result.top1 == golden.labels)
            for result in run_trials(space, golden, scaled, seed=seed, trials=trials)
        ]
        points.append((ber, float(np.mean(right))))
        if golden.accuracy - points[-1][1] > 10 * drop / 100:
            break
    bers, accuracies = zip(*points)
    at = _crossing(bers, accuracies, golden.accuracy - drop / 100)
    return Curve(bers, accuracies, images * repeats, golden.accuracy, drop, at)


def _crossing(bers, accuracies, level: float) -> float | None:
    """Rate of the last downward crossing of `level`, log-interpolated."""
    for i in range(len(bers) - 1, 0, -1):
        above, below = accuracies[i - 1], accuracies[i]
        if above >= level > below:
            share = (above - level) / (above - below)
            low, high = math.log10(bers[i - 1]), math.log10(bers[i])
            return 10 ** (low + share * (high - low))
    return None


def draw(curve: Curve, path, title: str) -> None:
    """Write the curve as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 4.0), dpi=150)
    axes.semilogx(curve.ber, [100 * a for a in curve.accuracy], "o-", label="with bit errors")
    axes.axhline(100 * curve.clean, color="grey", linewidth=1, label="clean")
    if curve.ber_at_drop is not None:
        axes.axvline(
            curve.ber_at_drop,
            color="tab:red",
            linestyle=":",
            label=f"-{curve.drop_points:g} point at {curve.ber_at_drop:.1e}",
        )
    axes.set_xlabel("bit error rate (per bit and residency)")
    axes.set_ylabel("accuracy, %")
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, format="png", metadata={"Software": "fsim"})
    pyplot.close(figure)
