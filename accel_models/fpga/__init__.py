"""`fpga`: an output-stationary array whose multipliers and adders are look-up tables."""

from ..families import Family

FAMILY = Family(
    name="fpga",
    dataflows=("os",),
    parameters={"scrub_cycles": (0, 0, 1 << 40)},
)
"""scrub_cycles: cycles from one rewriting of the configuration to the next, 0: never."""
