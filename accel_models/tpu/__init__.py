"""`tpu-v1-like`: weight stationary, with a shadow and an active weight in every PE.

Made from Jouppi et al., "In-Datacenter Performance Analysis of a Tensor Processing
Unit", ISCA 2017 (arXiv 1704.04760), section 2. What the paper leaves open is said in
`cycle.py`.
"""

from ..families import Family

FAMILY = Family(
    name="tpu",
    dataflows=("ws",),
    unsigned_acts=(False, True),  # section 2: 8-bit operands, signed or unsigned
)
