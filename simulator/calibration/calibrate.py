"""From a fault model of the machine to statistical models: fits, and a configuration."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fsim.errors import ConfigError

from ..sites import SiteSpace
from .fits import FlipFit, MiBBFit, fit_flips, fit_mibb
from .observe import Observation, observe
from .stuck import StuckCounts, StuckFit, fit_stuck, observe_stuck
from .whole_weights import Change, compare

STUCK = (
    "its cells are stuck for good; bit errors and upsets last until the next write "
    "(--stuck-cells has stuck cells)"
)
"""Why adSAF is not fitted to bit errors and upsets."""

UNSTUCK = {
    "mibb": "stuck cells of the weight memory strike no sums and no stored features",
    "ibf features": "stuck cells of the weight memory strike no stored features",
    "ibf weights": "a stuck cell shows where another value is written to it, for good; a flip "
    "inverts what was written, once",
}
"""Why nothing but adSAF is fitted to stuck cells."""


@dataclass(frozen=True, eq=False)
class Calibration:
    """Counts and what was fitted to them.

    observation  the counts
    fitted       positions in observation.products.layers that MiBB was fitted to: all but
                 the last operation of the network, whose sums are no stored feature
    mibb, acts, weights  the fits; None where the machine's faults have no such part
    absent       model -> why it was not fitted
    """

    observation: Observation
    fitted: tuple[int, ...]
    mibb: MiBBFit | None
    acts: FlipFit | None
    weights: FlipFit | None
    absent: dict[str, str]


def calibrate(
    space: SiteSpace,
    images: np.ndarray,
    model,
    *,
    seed: int,
    trials: int,
    on_trial: Callable[[int], None] = lambda done: None,
) -> Calibration:
    """Statistical models of a network on its machine under UpsetRate or BitErrors.

    images  (n, c, h, w) float32 network inputs; the other arguments as in `observe`
    """
    found = observe(space, images, model, seed=seed, trials=trials, on_trial=on_trial)
    products = found.products
    fitted = [i for i, layer in enumerate(products.layers) if not layer.is_last]
    fitted = fitted or list(range(len(products.layers)))
    upsets = hasattr(model, "rate")
    absent = {"adsaf": STUCK}
    mibb = acts = weights = None
    if not fitted:
        absent["mibb"] = "the network has no operation on the array"
    elif upsets or model.psums:
        layers = [products.layers[i] for i in fitted]
        mibb = fit_mibb(
            products.struck[:, fitted],
            np.array([layer.values for layer in layers]),
            np.array([layer.macs for layer in layers]),
            products.biases[fitted].sum(0),
            int(products.powers[fitted].sum()),
            int(products.clamped[fitted].sum()),
        )
    else:
        absent["mibb"] = "no fault strikes registers or partial sums"
    if not upsets and model.acts:
        acts = fit_flips(found.acts.exposed, found.acts.flipped)
    else:
        absent["ibf features"] = "no fault strikes stored feature maps"
    if not upsets and model.weights:
        weights = fit_flips(found.weights.exposed, found.weights.flipped)
    else:
        absent["ibf weights"] = "no fault strikes stored weights"
    return Calibration(found, tuple(fitted), mibb, acts, weights, absent)


@dataclass(frozen=True, eq=False)
class StuckCalibration:
    """Counts of stuck cells, what was fitted to them, and what it would be on whole weights.

    absent  model -> why it was not fitted
    """

    counts: StuckCounts
    fit: StuckFit
    changes: tuple[Change, ...]
    absent: dict[str, str]


def calibrate_stuck(
    space: SiteSpace,
    model,
    *,
    seed: int,
    trials: int,
    on_trial: Callable[[int], None] = lambda done: None,
) -> StuckCalibration:
    """adSAF of a network on its machine under StuckCells; arguments as of `observe_stuck`."""
    counts = observe_stuck(space, model, seed=seed, trials=trials, on_trial=on_trial)
    fit = fit_stuck(counts.written, counts.wrong)
    return StuckCalibration(counts, fit, compare(counts, fit), UNSTUCK)


def stuck_configuration(result: StuckCalibration) -> list[dict]:
    """The table for `model_from_config`: adSAF on bits of the machine's two's complement."""
    share = {} if result.fit.sa1_share is None else {"sa1_share": result.fit.sa1_share.estimate}
    common = {"bits": result.counts.bits, "grid": "hardware"}
    return [{"model": "adsaf-bits", "p": result.fit.p.estimate, **share, **common}]


def feature_shares(result: Calibration) -> dict[str, float]:
    """Model of features -> share of feature values that it strikes on average."""
    bits = result.observation.products.bits
    shares = {}
    if result.mibb is not None:
        layers = [result.observation.products.layers[i] for i in result.fitted]
        units = len(result.observation.products.struck)
        values = units * sum(layer.values for layer in layers)
        shares["mibb"] = float(result.mibb.observed.sum()) / values
    if result.acts is not None:
        shares["ibf"] = 1.0 - (1.0 - result.acts.r) ** bits
    return shares


def configuration(result: Calibration, features: str | None = None) -> list[dict]:
    """Tables for `model_from_config`: one model of features and one of weights at most.

    features  "mibb" or "ibf": which one where both were fitted; None: the one that
              strikes more values. Training takes one of each kind.
    Raises ConfigError if that one was not fitted or nothing was.
    """
    shares = feature_shares(result)
    if features is not None and features not in shares:
        reason = result.absent["mibb" if features == "mibb" else "ibf features"]
        raise ConfigError(f"--features must be a model that was fitted, got {features}: {reason}")
    if features is None and shares:
        features = max(shares, key=shares.get)
    # One grid for all of them: the machine's two's complement.
    common = {"bits": result.observation.products.bits, "grid": "hardware"}
    tables = []
    if features == "mibb":
        tables.append({"model": "mibb", "p_m": result.mibb.p_m, **common})
    elif features == "ibf":
        tables.append({"model": "ibf", "r": result.acts.r, "target": "features", **common})
    if result.weights is not None:
        tables.append({"model": "ibf", "r": result.weights.r, "target": "weights", **common})
    if not tables:
        raise ConfigError("a calibration must have faults to fit a model to, got rates of 0")
    return tables


def file_text(tables: list[dict], comments: list[str], suffix: str) -> str:
    """The file that `load_models` reads; comments go into TOML only, JSON has none."""
    if suffix == ".json":
        return json.dumps({"models": tables}, indent=2, allow_nan=False) + "\n"
    lines = [f"# {line}" for line in comments]
    for table in tables:
        lines += ["", "[[models]]"]
        lines += [f"{key} = {json.dumps(value)}" for key, value in table.items()]
    return "\n".join(lines) + "\n"
