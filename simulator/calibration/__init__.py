"""Which statistical fault models a machine amounts to for a network.

observe    run hardware faults and count what they do to each layer, given its inputs
counts     the counts
fits       parameters of MiBB and iBF from the counts, with intervals and goodness of fit
stuck      adSAF from codes written and codes read under stuck cells
whole_weights  how far adSAF on whole weights is from them
calibrate  all of it, and the configuration that training takes

The statistical models are those of FTT-NAS (arXiv 2003.10375) as
`fsim.fault_models.statistical` defines them.
"""

from .calibrate import (
    Calibration,
    StuckCalibration,
    calibrate,
    calibrate_stuck,
    configuration,
    feature_shares,
    file_text,
    stuck_configuration,
)
from .counts import Flips, Layer, Products
from .fits import FlipFit, MiBBFit, fit_flips, fit_mibb
from .observe import Observation, observe
from .stuck import StuckCounts, StuckFit, fit_stuck, observe_stuck
from .whole_weights import Change, compare

__all__ = [
    "Calibration",
    "Change",
    "FlipFit",
    "Flips",
    "Layer",
    "MiBBFit",
    "Observation",
    "Products",
    "StuckCalibration",
    "StuckCounts",
    "StuckFit",
    "calibrate",
    "calibrate_stuck",
    "compare",
    "configuration",
    "feature_shares",
    "file_text",
    "fit_flips",
    "fit_mibb",
    "fit_stuck",
    "observe",
    "observe_stuck",
    "stuck_configuration",
]
