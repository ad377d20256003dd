"""`rram`: a crossbar of resistive cells in differential pairs, weight stationary."""

from ..families import Family

FAMILY = Family(
    name="rram",
    dataflows=("ws",),
    parameters={
        "cell_bits": (2, 1, 4),
        "adc_bits": (0, 0, 20),
        "fraction_bits": (0, 0, 6),
    },
)
"""cell_bits: of a weight in one cell; adc_bits: 0 for as many as the largest column needs;
fraction_bits: conductances are multiples of 2^-fraction_bits of a cell's level."""
