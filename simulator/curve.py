"""How accuracy falls with the bit error rate, quickly and then drawn."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from .inject import Golden, run_trials
from .sites import SiteSpace

_LOWEST, _HIGHEST, _STEPS = -9, -1, 2  # decades searched, points a decade
_CURVE_TRIAL = 1 << 30  # trial numbers apart from those of the main run


_AROUND = (-0.5, -0.25, 0.0, 0.25, 0.5)  # decades about the fall, measured again
_AGAIN = 1500  # inferences at each of them, at least three trials
_RESAMPLES = 400


@dataclass(frozen=True)
class Curve:
    """Accuracy at several bit error rates.

    ber, accuracy  points, in increasing order of the rate; mean over trials
    trials         trials behind each point, each of all images
    images         of a trial
    drop_points    the fall looked for, in percentage points
    ber_at_drop    rate at which accuracy has fallen that far: where the best
                   decreasing fit crosses, on the logarithm of the rate; None if it
                   does not
    low, high      95 % interval of it, by resampling trials; None where open
    """

    ber: tuple[float, ...]
    accuracy: tuple[float, ...]
    trials: tuple[int, ...]
    images: int
    clean: float
    drop_points: float
    ber_at_drop: float | None
    low: float | None
    high: float | None


def quick_curve(
    space: SiteSpace,
    golden: Golden,
    model,
    *,
    seed: int,
    drop: float = 1.0,
    most_faults: int | None = None,
) -> Curve:
    """Scan the rate upward until accuracy has fallen by ten points or 10 x `drop`.

    Then measure again about the rate where it has fallen by `drop`.

    model        a BitErrors; its rates are scaled so that the largest is the scanned one
    most_faults  rates at which all images of a trial have more are left out
    """
    largest = max(model.acts, model.weights, model.psums)
    shares = {name: getattr(model, name) / largest for name in ("acts", "weights", "psums")}
    exposed = sum(shares[block.memory] * block.exposed_bits for block in space.blocks)
    images = len(golden.images)
    points: dict[float, list[float]] = {}

    def affordable(ber: float) -> bool:
        return most_faults is None or ber * exposed * images <= most_faults

    def measure(ber: float, trials: int) -> float:
        scaled = replace(model, **{name: ber * share for name, share in shares.items()})
        # Every point has trials of its own: rates are told apart by more than their luck.
        first = _CURVE_TRIAL + sum(map(len, points.values()))
        found = run_trials(space, golden, scaled, seed=seed, trials=range(first, first + trials))
        right = [float(np.mean(result.top1 == golden.labels)) for result in found]
        points.setdefault(ber, []).extend(right)
        return float(np.mean(right))

    # Below one flip in a hundred inferences of the whole set there is nothing to see.
    lowest = max(_LOWEST, math.floor(math.log10(0.1 / max(exposed, 1))))
    for number in range(lowest * _STEPS, _HIGHEST * _STEPS + 1):
        ber = 10 ** (number / _STEPS)
        if points and not affordable(ber):
            break
        if golden.accuracy - measure(ber, 1) > 10 * drop / 100:
            break
    level = golden.accuracy - drop / 100
    rough = _crossing(points, level)
    if rough is not None:
        for decades in _AROUND:
            ber = rough * 10**decades
            if ber <= 0.5 and affordable(ber):
                measure(ber, max(3, -(-_AGAIN // images)))
    at = _crossing(points, level)
    low, high = _limits(points, level, seed) if at is not None else (None, None)
    rates = sorted(points)
    return Curve(
        tuple(rates),
        tuple(float(np.mean(points[ber])) for ber in rates),
        tuple(len(points[ber]) for ber in rates),
        images,
        golden.accuracy,
        drop,
        at,
        low,
        high,
    )


def _limits(points, level: float, seed: int) -> tuple[float | None, float | None]:
    """Percentile interval of the crossing, trials of each rate drawn with replacement."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(_RESAMPLES):
        drawn = {ber: list(rng.choice(values, len(values))) for ber, values in points.items()}
        at = _crossing(drawn, level)
        found.append(math.inf if at is None else at)
    low, high = np.quantile(found, [0.025, 0.975], method="nearest")
    return tuple(float(v) if math.isfinite(v) else None for v in (low, high))


def _crossing(points: dict[float, list[float]], level: float) -> float | None:
    """Rate at which the decreasing fit falls below `level`, log-interpolated."""
    rates = sorted(points)
    fit = _decreasing([float(np.mean(points[r])) for r in rates], [len(points[r]) for r in rates])
    for i in range(1, len(rates)):
        above, below = fit[i - 1], fit[i]
        if above >= level > below:
            share = (above - level) / (above - below)
            low, high = math.log10(rates[i - 1]), math.log10(rates[i])
            return 10 ** (low + share * (high - low))
    return None


def _decreasing(values: list[float], weights: list[int]) -> list[float]:
    """Weighted least squares among non-increasing sequences: pool adjacent violators."""
    pools: list[list[float]] = []  # mean, weight, members
    for value, weight in zip(values, weights):
        pools.append([value, weight, 1])
        while len(pools) > 1 and pools[-2][0] < pools[-1][0]:
            (a, m, i), (b, n, j) = pools[-2:]
            pools[-2:] = [[(a * m + b * n) / (m + n), m + n, i + j]]
    return [mean for mean, _, members in pools for _ in range(int(members))]


def draw(curve: Curve, path, title: str, what: str = "all memories") -> None:
    """Write the curve as a PNG; `what` has the rate of the axis."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 4.0), dpi=150)
    axes.semilogx(curve.ber, [100 * a for a in curve.accuracy], "o-", label="with bit errors")
    axes.axhline(100 * curve.clean, color="grey", linewidth=1, label="clean")
    if curve.ber_at_drop is not None:
        if curve.low is not None and curve.high is not None:
            axes.axvspan(curve.low, curve.high, color="tab:red", alpha=0.12, linewidth=0)
        axes.axvline(
            curve.ber_at_drop,
            color="tab:red",
            linestyle=":",
            label=f"-{curve.drop_points:g} point at {curve.ber_at_drop:.1e}",
        )
    axes.set_xlabel(f"bit error rate of {what} (per bit and residency)")
    axes.set_ylabel("accuracy, %")
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, format="png", metadata={"Software": "fsim"})
    pyplot.close(figure)
