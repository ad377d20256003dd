"""The fault models of FTT-NAS (arXiv 2003.10375) as tensor operations on any torch device.

    model = model_from_config({"model": "mibb", "p_m": 1e-4})
    faulty = model(y, macs=720, generator=torch.Generator().manual_seed(1))

Module       what it holds
fixed_point  the paper's dynamic fixed point, on its grid and on the hardware's
features     MiBB, iBB and iBF, for the output of a layer
weights      adSAF on whole weights and on bits, variation of RRAM cells, chips
compat       choices of the reference implementation, by name
several      several models on one tensor
registry     models from a dict or a file
"""

from .compat import COMPAT, AwnasBitFlip
from .features import IBB, IBF, MiBB, macs_per_output
from .fixed_point import FixedPoint, Quantised
from .model import FaultModel
from .registry import MODELS, config_of, load_models, model_from_config
from .several import apply_several, common_grid
from .weights import (
    AdSAF,
    AdSAFBits,
    LogNormalVariation,
    ReciprocalNormalVariation,
    draw_chip,
)

__all__ = [
    "AdSAF",
    "AdSAFBits",
    "AwnasBitFlip",
    "COMPAT",
    "FaultModel",
    "FixedPoint",
    "IBB",
    "IBF",
    "LogNormalVariation",
    "MODELS",
    "MiBB",
    "Quantised",
    "ReciprocalNormalVariation",
    "apply_several",
    "common_grid",
    "config_of",
    "draw_chip",
    "load_models",
    "macs_per_output",
    "model_from_config",
]
