"""Which statistical fault models a machine amounts to for a network.

observe    run hardware faults and count what they do to each layer, given its inputs
counts     the counts
fits       parameters of MiBB and iBF from the counts, with intervals and goodness of fit
calibrate  both, and the configuration that training takes

The statistical models are those of FTT-NAS (arXiv 2003.10375) as
`fsim.fault_models.statistical` defines them.
"""

from .calibrate import Calibration, calibrate, configuration, feature_shares, file_text
from .counts import Flips, Layer, Products
from .fits import FlipFit, MiBBFit, fit_flips, fit_mibb
from .observe import Observation, observe

__all__ = [
    "Calibration",
    "FlipFit",
    "Flips",
    "Layer",
    "MiBBFit",
    "Observation",
    "Products",
    "calibrate",
    "configuration",
    "feature_shares",
    "file_text",
    "fit_flips",
    "fit_mibb",
    "observe",
]
